"""Reads and checks recipes: YAML files, their schemas, and the values that they describe."""
