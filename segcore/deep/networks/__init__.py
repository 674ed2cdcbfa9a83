"""Architectures of networks, one file or folder each."""
