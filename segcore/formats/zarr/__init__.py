"""Zarr arrays and OME-Zarr images, time series and plates."""

from maskloom.segcore.formats.zarr import reader

__all__ = ["reader"]
