"""The true size and place of pixels on the ground."""
