"""Masks as cloud-optimised GeoTIFF, written from compressed blocks."""
