"""Kinds of clusters that recipes can name, one file each."""
