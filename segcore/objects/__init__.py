"""Objects that reach over tiles: found per tile, joined where tiles meet, numbered."""
