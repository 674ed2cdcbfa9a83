"""The true area and position of pixels on the ground."""
