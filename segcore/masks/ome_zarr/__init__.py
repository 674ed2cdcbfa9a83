"""Masks as labels of OME-Zarr, written chunk by chunk."""

from maskloom.segcore.masks.ome_zarr.writer import OmeZarrMasks

__all__ = ["OmeZarrMasks"]
