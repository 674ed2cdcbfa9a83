"""What changed between two masks of one place: classes, objects, and how a class spread."""
