"""Trained networks that are installed with the package."""
