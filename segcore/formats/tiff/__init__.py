"""TIFF files as images: GeoTIFF, multi-page files, side-car files."""
