"""The Python door: what `import maskloom` offers. See docs/python.md."""
