"""Statistics, one file a table. Importing this package fills `segcore.statistic.STATISTICS`."""

from segcore.statistics import area

__all__ = ["area"]
