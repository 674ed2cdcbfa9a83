"""Whole slides: one level of the pyramid of a scan, never its label, macro or thumbnail picture."""

from maskloom.segcore.formats.slide import slides

__all__ = ["slides"]
