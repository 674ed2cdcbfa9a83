"""Compiled loops. Imported only inside functions: numba takes a second to load."""
