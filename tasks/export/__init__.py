"""Masks of an output as vectors for other programs. A target is one file in `targets`."""
