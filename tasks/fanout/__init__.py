"""Runs jobs in this process or on Dask workers, and survives lost workers."""
