"""Libraries that execute a network, one file per library."""
