"""Mask writers, one per file format."""
