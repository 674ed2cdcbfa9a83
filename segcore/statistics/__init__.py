"""Statistics over masks, one file or folder per table."""
