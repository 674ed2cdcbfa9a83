"""Files of vectors: GeoJSON (of QuPath too), GeoPackage, GeoParquet and others that GDAL reads.

Features come in batches, so that a file may be larger than memory. GeoParquet is read by pyarrow,
the others by pyogrio, which streams them as Arrow tables; it is an extra of this package. A file in
an object store is copied to a local one first.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.storage.addresses import redacted, without_query
from maskloom.segcore.storage.filesystems import filesystem, is_local, store_errors

if TYPE_CHECKING:
    import pyarrow as pa

JSON_SUFFIXES = (".geojson", ".json")
PARQUET_SUFFIXES = (".parquet", ".geoparquet")
SUFFIXES = (*JSON_SUFFIXES, ".gpkg", *PARQUET_SUFFIXES, ".fgb", ".shp", ".kml", ".gml")
"""Suffixes of files with vectors, in lower case."""
LONLAT = "OGC:CRS84"
"""The CRS of GeoJSON and GeoParquet that name none."""
_BATCH = 4096
"""Features that are in memory at once."""
_SHOWN = 12
_INSTALL = "pip install 'maskloom[vectors]'"


@dataclass(frozen=True, slots=True)
class Layer:
    """The features of a file, or of one layer of it."""

    location: str
    crs: str | None
    """As pyproj understands it. None: the file states none."""
    assumed: bool
    """Whether the CRS is that of GeoJSON by its standard, and not stated in the file: programs for
    pictures write pixels into GeoJSON.
    """
    columns: tuple[str, ...]
    """Names of the attributes."""
    kinds: tuple[str, ...] = ()
    """Kind of each: int64, float64, bool or string."""

    def require(self, column: str, key: str) -> None:
        """Raise `RecipeError` if there is no such attribute."""
        if column not in self.columns:
            named = ", ".join(self.columns[:_SHOWN]) or "none"
            more = ", ..." if len(self.columns) > _SHOWN else ""
            raise RecipeError(
                f"{key}: {self.location} has no attribute {column!r}. Its attributes: {named}"
                f"{more}."
            )


def is_vector_file(address: str) -> bool:
    """Whether a file holds vectors by its suffix. A `.parquet` file may be a list too: see
    `is_geoparquet`.
    """
    return without_query(address).lower().endswith(SUFFIXES)


def is_geoparquet(address: str) -> bool:
    """Whether a file is GeoParquet by its metadata. Raises `StoreError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not without_query(address).lower().endswith(PARQUET_SUFFIXES):
        return False
    fs, path = filesystem(address)
    try:
        with store_errors(f"read {redacted(address)}"), fs.open(path, "rb") as file:
            return b"geo" in (pq.read_schema(file).metadata or {})
    except (FileNotFoundError, pa.ArrowException):
        return False


class VectorFile:
    """An open file of vectors. Use as a context manager."""

    def __init__(self, location: str, layer: str = "") -> None:
        """`layer`: name of the layer of a GeoPackage. Empty: its only one."""
        self.location, self._layer = redacted(location), layer
        self._address, self._stack = location, contextlib.ExitStack()
        self._path = ""

    def __enter__(self) -> VectorFile:
        self._path = str(self._local())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def _parquet(self) -> bool:
        return without_query(self._address).lower().endswith(PARQUET_SUFFIXES)

    def describe(self) -> Layer:
        """The CRS and the attributes. Raises `RecipeError` if the file cannot be read."""
        with self._errors():
            return self._describe_parquet() if self._parquet else self._describe_other()

    def features(self, columns: tuple[str, ...]) -> Iterator[tuple[pa.Array, list[list[Any]]]]:
        """Batches of features in the order of the file: geometries as well-known binary (null for
        none), and the values of each of these attributes. Raises as `describe`.
        """
        with self._errors():
            yield from self._of_parquet(columns) if self._parquet else self._of_other(columns)

    def _local(self) -> Path:
        """The path of the file, or of a local copy; an array of features, as QuPath writes it, is
        wrapped in a collection.
        """
        fs, path = filesystem(self._address)
        if not fs.isfile(path):
            raise RecipeError(f"{self.location} does not exist. Check its name.")
        suffix = Path(without_query(path)).suffix
        if is_local(self._address):
            local = Path(path)
        else:
            local = self._temporary() / f"features{suffix}"
            with store_errors(f"read {self.location}"):
                fs.get_file(path, str(local))
        if suffix.lower() not in JSON_SUFFIXES or not _begins_with_array(local):
            return local
        wrapped = self._temporary() / "features.geojson"
        with local.open("rb") as source, wrapped.open("wb") as target:
            target.write(b'{"type": "FeatureCollection", "features": ')
            shutil.copyfileobj(source, target)
            target.write(b"}")
        return wrapped

    def _temporary(self) -> Path:
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="maskloom-")))

    def _describe_other(self) -> Layer:
        pyogrio = _pyogrio()
        layer = self._one_layer(pyogrio)
        found = pyogrio.read_info(self._path, layer=layer)
        crs = found["crs"]
        # GDAL reports local coordinates ("Undefined Cartesian SRS" of GeoPackage) as a CRS.
        local = crs is not None and _is_local_system(crs)
        return Layer(
            self.location,
            None if local else crs,
            found["driver"] == "GeoJSON" and crs == "EPSG:4326",
            tuple(map(str, found["fields"])),
            tuple(map(_kind, map(str, found["dtypes"]))),
        )

    def _one_layer(self, pyogrio: Any) -> str | None:
        layers = [str(name) for name, kind in pyogrio.list_layers(self._path) if kind is not None]
        if self._layer and self._layer not in layers:
            raise RecipeError(
                f"layer: {self.location} has no layer {self._layer!r}. Its layers: "
                f"{', '.join(layers[:_SHOWN]) or 'none'}."
            )
        if self._layer or not layers:
            return self._layer or None
        if len(layers) > 1:
            raise RecipeError(
                f"{self.location} has {len(layers)} layers: {', '.join(layers[:_SHOWN])}. Say "
                "which one holds the polygons: `layer` in the recipe, --layer for `maskloom "
                "evaluate`."
            )
        return layers[0]

    def _of_other(self, columns: tuple[str, ...]) -> Iterator[tuple[pa.Array, list[list[Any]]]]:
        pyogrio = _pyogrio()
        with pyogrio.raw.open_arrow(
            self._path,
            layer=self._one_layer(pyogrio),
            columns=list(columns),
            batch_size=_BATCH,
            use_pyarrow=True,
        ) as (meta, reader):
            geometry = meta["geometry_name"] or "wkb_geometry"
            for batch in reader:
                yield (
                    batch.column(geometry),
                    [_plain(batch.column(name)).to_pylist() for name in columns],
                )

    def _describe_parquet(self) -> Layer:
        import pyarrow.parquet as pq

        schema = pq.read_schema(self._path)
        column = self._geometry_column(schema)
        # The standard: without `crs` it is longitude and latitude; null is not known.
        crs = column.get("crs", LONLAT)
        return Layer(
            self.location,
            json.dumps(crs) if isinstance(crs, dict) else crs,
            False,
            tuple(name for name in schema.names if name != column["name"]),
            tuple(_kind(str(each.type)) for each in schema if each.name != column["name"]),
        )

    def _geometry_column(self, schema: pa.Schema) -> dict[str, Any]:
        """The metadata of the primary geometry, with its name."""
        said = (schema.metadata or {}).get(b"geo")
        if said is None:
            raise RecipeError(
                f"{self.location} has no GeoParquet metadata, so its geometry is not known. Write "
                "it with GeoPandas (to_parquet) or GDAL."
            )
        geo = json.loads(said)
        name = geo["primary_column"]
        column: dict[str, Any] = geo["columns"][name]
        if column.get("encoding") != "WKB":
            raise RecipeError(
                f"{self.location} has geometries encoded as {column.get('encoding')}. Write them "
                "as WKB, the default of GeoPandas and GDAL."
            )
        return {**column, "name": name}

    def _of_parquet(self, columns: tuple[str, ...]) -> Iterator[tuple[pa.Array, list[list[Any]]]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._path) as file:
            name = self._geometry_column(file.schema_arrow)["name"]
            for batch in file.iter_batches(_BATCH, columns=list({name, *columns})):
                yield (
                    _plain(batch.column(name)).cast(pa.binary()),
                    [_plain(batch.column(each)).to_pylist() for each in columns],
                )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of the libraries as errors for users."""
        try:
            yield
        except (RecipeError, MemoryError):
            raise
        # pyogrio and pyarrow raise RuntimeError, ValueError, OSError and KeyError for broken files.
        except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
            reason = str(error).replace(self._path, self.location).rstrip(".")
            raise RecipeError(
                f"{self.location} cannot be read as a file of vectors: {reason.split('; It')[0]}. "
                "Write it again, or give another file."
            ) from error


def _begins_with_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _plain(column: Any) -> Any:
    """A column of an extension type (JSON, GeoArrow) as that of its values."""
    return getattr(column, "storage", column)


def _kind(dtype: str) -> str:
    """The kind of an attribute whose type NumPy or Arrow calls so."""
    if dtype.startswith(("int", "uint")):
        return "int64"
    if dtype.startswith(("float", "double", "halffloat")):
        return "float64"
    return "bool" if dtype.startswith("bool") else "string"


def _is_local_system(crs: str) -> bool:
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        return CRS.from_user_input(crs).type_name == "Engineering CRS"
    except CRSError:
        return True


def _pyogrio() -> Any:
    try:
        import pyogrio
    except ImportError as error:
        raise RecipeError(
            f"Files of vectors other than GeoParquet need the extra 'vectors': {_INSTALL}."
        ) from error
    return pyogrio
