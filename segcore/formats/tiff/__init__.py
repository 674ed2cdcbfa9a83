"""TIFF files as images: GeoTIFF, multi-page files, side-car files."""

from maskloom.segcore.formats.tiff import geotiff

__all__ = ["geotiff"]
