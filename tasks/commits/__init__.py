"""The commit log of an output: who may publish what, and what was published."""
