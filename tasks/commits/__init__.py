"""The commit log of an output: who may publish, and what has been published."""
