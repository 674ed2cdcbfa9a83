"""The libraries that execute a network, one file per library."""
