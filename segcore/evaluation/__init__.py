"""Evaluation: masks against truth."""
