"""Objects that extend over several tiles: found per tile, joined across tile boundaries,
numbered.
"""
