"""Statistics, one file a table. Importing this package fills
`segcore.statistics.protocol.STATISTICS`.
"""

from maskloom.segcore.statistics import area

__all__ = ["area"]
