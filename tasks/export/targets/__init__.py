"""Targets of `maskloom export`: one file each, which registers a function under its name."""
