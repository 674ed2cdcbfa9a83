"""Decides what is done: the command line, recipes, and one flow per command."""
