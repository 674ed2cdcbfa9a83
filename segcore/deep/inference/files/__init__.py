"""Reading model files without trusting them."""
