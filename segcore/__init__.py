"""Does the work: everything that touches pixels, masks, tables and models."""
