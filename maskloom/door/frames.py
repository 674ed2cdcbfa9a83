"""Tables as DataFrames, and as GeoDataFrames where outlines have a place on the ground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_PLACE = "longitude"


def frame(table: pa.Table) -> pd.DataFrame:
    """The table as a DataFrame."""
    found: pd.DataFrame = table.to_pandas()
    return found


def object_frame(table: pa.Table) -> pd.DataFrame:
    """The table of objects. With a CRS and geopandas it is a GeoDataFrame in longitude and latitude
    (OGC:CRS84); otherwise `geometry` holds WKB, as in the files.
    """
    found = frame(table)
    geopandas = _geopandas()
    if geopandas is None or not _is_located(table):
        return found
    outlines = geopandas.GeoSeries.from_wkb(found["geometry"], index=found.index, crs="OGC:CRS84")
    located: pd.DataFrame = geopandas.GeoDataFrame(
        found.drop(columns=[name for name in ("bbox",) if name in found]).assign(geometry=outlines),
        geometry="geometry",
    )
    return located


def _is_located(table: pa.Table) -> bool:
    """Whether all outlines are in longitude and latitude, and there are some."""
    names = table.column_names
    if _PLACE not in names or "geometry" not in names or not len(table):
        return False
    return bool(table[_PLACE].null_count == 0) and bool(table["geometry"].null_count < len(table))


def _geopandas() -> Any:
    try:
        import geopandas
    except ImportError:
        return None
    return geopandas
