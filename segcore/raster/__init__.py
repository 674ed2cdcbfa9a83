"""The values that describe an image, its pixels and its classes."""
