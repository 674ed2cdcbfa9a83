"""Finds the images that the inputs of a recipe name, and gives each an id."""
