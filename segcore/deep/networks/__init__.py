"""Plain builders of keras models. Importing this package registers the recipes of all networks,
without keras.
"""

from __future__ import annotations

from maskloom.segcore.deep.networks import recipes
from maskloom.segcore.deep.networks.mask_rcnn import recipe as mask_rcnn

__all__ = ["mask_rcnn", "recipes"]
