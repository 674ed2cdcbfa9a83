"""How far a network looks, measured on a copy of its graph."""
