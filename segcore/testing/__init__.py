"""Checks that authors of segmenters, formats and statistics can run on their own work."""
