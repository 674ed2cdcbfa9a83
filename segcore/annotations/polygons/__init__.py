"""Polygons as truth: read from files of vectors, looked up by place, drawn on the grid of an
image.
"""
