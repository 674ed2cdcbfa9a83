"""What the viewer shows: images at every zoom, as pictures of 8 bits."""
