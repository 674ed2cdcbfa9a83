"""Trains networks from images and truth masks."""
