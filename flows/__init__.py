"""Decides what is done: the command line, the recipes, and a flow for each command."""
