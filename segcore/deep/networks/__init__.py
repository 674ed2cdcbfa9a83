"""Network architectures, one file or folder each."""
