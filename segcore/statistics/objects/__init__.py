"""The `objects` table: measures, outlines and rows of single objects."""
