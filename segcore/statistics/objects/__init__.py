"""The `objects` table: measures, outlines and rows of single objects."""

from maskloom.segcore.statistics.objects.options import Objects

__all__ = ["Objects"]
