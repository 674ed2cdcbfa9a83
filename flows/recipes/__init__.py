"""Recipes: YAML files, their schemas, and the run that they describe."""
