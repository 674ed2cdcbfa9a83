"""Architectures of networks, one file or folder each. Importing this package registers their
recipes, without keras.
"""

from maskloom.segcore.registry import import_modules

import_modules(__name__)
