"""Objects over tiles: found as fragments, joined over seams, numbered, measured, written as
rows.
"""
