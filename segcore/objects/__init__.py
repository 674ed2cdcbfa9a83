"""Objects that reach over tiles: found per tile, joined over seams, numbered."""
