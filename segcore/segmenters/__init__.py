"""One file a method. Importing this package registers all segmenters."""

from __future__ import annotations

from segcore.segmenters import kmeans, mixture, threshold

__all__ = ["kmeans", "mixture", "threshold"]
