"""Neural networks: their architectures and how they are run."""
