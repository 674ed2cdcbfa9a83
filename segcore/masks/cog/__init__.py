"""Masks as cloud-optimised GeoTIFF, written from compressed blocks."""

from maskloom.segcore.masks.cog import writer

__all__ = ["writer"]
