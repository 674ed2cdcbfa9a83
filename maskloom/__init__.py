"""Segment large image collections in batch: seamless masks, true areas, Parquet tables.

`maskloom.flows` decides what is done, `maskloom.tasks` decides where, `maskloom.segcore` does it.
"""

__version__ = "0.2.0"
