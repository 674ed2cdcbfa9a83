"""GeoPackage, in the CRS of the images."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from maskloom.segcore.errors import RecipeError
from maskloom.tasks.export.request import TARGETS, Exported, Request
from maskloom.tasks.export.tables import write_tables


@TARGETS.register("gpkg")
def gpkg(request: Request) -> Exported:
    """Write one file, or one per image. Raises as `write_tables`."""
    try:
        import pyogrio  # noqa: F401
    except ImportError as error:
        raise RecipeError("GeoPackage needs pyogrio: pip install 'maskloom[vectors]'") from error

    def write(name: str, crs: str | None, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
        with tempfile.TemporaryDirectory(prefix="maskloom-") as folder:
            path = Path(folder) / "classes.gpkg"
            _add(path, crs, schema.empty_table(), append=False)
            for table in tables:
                _add(path, crs, table, append=True)
            with path.open("rb") as source, request.store.writing(name) as file:
                shutil.copyfileobj(source, file, 2**20)

    return write_tables(request, "gpkg", ".gpkg", write)


def _add(path: Path, crs: str | None, table: pa.Table, *, append: bool) -> None:
    import pyogrio

    with warnings.catch_warnings():
        # Images without a CRS have none to give.
        warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
        pyogrio.write_arrow(
            table,
            path,
            layer="classes",
            driver="GPKG",
            geometry_name="geometry",
            geometry_type="Unknown",
            crs=crs,
            append=append,
        )
