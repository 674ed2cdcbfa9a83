"""Parts that several networks are made of: backbones and the up-sampling family."""
