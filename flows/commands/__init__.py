"""The commands of the command line: each parses its options, calls a flow and prints the result."""
