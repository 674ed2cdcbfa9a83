"""Measuring the receptive field of a network on a copy of its graph."""
