"""Model files from disk, read without trusting them."""
