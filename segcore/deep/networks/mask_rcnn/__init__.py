"""Mask R-CNN: backbone, proposals, heads and losses."""

from maskloom.segcore.deep.networks.mask_rcnn.recipe import MaskRcnn

__all__ = ["MaskRcnn"]
