"""Truth masks for training and evaluation: pairing, label values, reading."""
