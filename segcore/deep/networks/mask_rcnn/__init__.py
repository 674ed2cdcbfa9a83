"""Mask R-CNN: backbone, proposals, heads, losses."""
