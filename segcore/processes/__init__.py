"""Child processes that end with their parent, and time limits on one step of work."""
