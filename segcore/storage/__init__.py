"""Files on any fsspec store: reading, atomic writing, Parquet and packed arrays."""
