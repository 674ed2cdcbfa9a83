"""Segmentation methods, one file each."""
