"""The protocols of fitters and segmenters, and models made of other models."""
