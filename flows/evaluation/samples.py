"""Tables and vector files of labelled samples."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskloom.segcore.annotations.polygons.files import VectorFile, is_vector_file
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.storage.store import Store
from maskloom.tasks.samples import Place, Spot

if TYPE_CHECKING:
    from collections.abc import Callable

DESIGN = "design.json"
"""File beside a table with the strata of its samples, as `maskloom sample` writes it."""


@dataclass(frozen=True, slots=True)
class LabelledSample:
    """A sample as people have labelled it."""

    sample_id: str
    at: Place | Spot
    label: str
    """Empty: nobody has labelled it."""
    stratum: str = ""
    """Empty: not stated."""


@dataclass(frozen=True, slots=True)
class LabelledSamples:
    """The samples of a file."""

    samples: tuple[LabelledSample, ...]
    sizes: Mapping[str, int]
    """Pixels of each stratum. Empty: not stated."""


def read_samples(path: str, attribute: str = "label") -> LabelledSamples:
    """The samples of a table, or of a file of points or polygons whose `attribute` is the label.

    A table has a column with this name, and `image_id` with `row` and `column` (and `plane` in
    volumes), or `longitude` and `latitude`. Raises `RecipeError` for other files.
    """
    folder, _, name = path.rpartition("/")
    store = Store(folder or ".")
    if not store.exists(name):
        raise RecipeError(
            f"{path} does not exist. Expected samples with labels: see `maskloom sample`."
        )
    if is_vector_file(path):
        return LabelledSamples(tuple(_features(path, attribute)), {})
    stratum_of, sizes = _design(store)
    text = store.read(name).decode("utf-8-sig")
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    place_of = _places(path, list(rows.fieldnames or ()), attribute)
    found = []
    for line, row in enumerate(rows, 2):
        sample_id = row.get("sample_id") or str(line - 1)
        try:
            at = place_of(row)
        except (TypeError, ValueError) as error:
            raise RecipeError(
                f"{path}, line {line}: expected numbers as the place of a sample; {error}."
            ) from error
        stratum = row.get("stratum") or stratum_of.get(sample_id, "")
        found.append(LabelledSample(sample_id, at, (row[attribute] or "").strip(), stratum))
    return LabelledSamples(tuple(found), sizes)


def _places(
    path: str, columns: list[str], attribute: str
) -> Callable[[Mapping[str, str]], Place | Spot]:
    """How the columns of a table give the place of a sample."""

    def pixel(row: Mapping[str, str]) -> Place:
        planes = (row["plane"],) if row.get("plane") else ()
        return Place(row["image_id"], tuple(map(int, (*planes, row["row"], row["column"]))))

    def spot(row: Mapping[str, str]) -> Spot:
        return Spot(float(row["longitude"]), float(row["latitude"]))

    by_pixel, by_spot = {"image_id", "row", "column"}, {"longitude", "latitude"}
    if attribute not in columns or not (by_pixel <= {*columns} or by_spot <= {*columns}):
        raise RecipeError(
            f"{path}: expected columns image_id, row, column and {attribute}, or longitude, "
            f"latitude and {attribute}; got {', '.join(columns) or 'none'}."
        )
    return pixel if by_pixel <= {*columns} else spot


def _design(store: Store) -> tuple[dict[str, str], dict[str, int]]:
    """The stratum of each sample, and the sizes of the strata."""
    if not store.exists(DESIGN):
        return {}, {}
    try:
        held = json.loads(store.read(DESIGN))
        sizes = {str(name): int(pixels) for name, pixels in held["strata"].items()}
        return {str(key): str(name) for key, name in held["stratum_of"].items()}, sizes
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RecipeError(
            f"{store.uri(DESIGN)} is damaged ({error!r}). Restore it, or draw the sample again in "
            "another folder, with the same seed."
        ) from error


def _delimiter(text: str) -> str:
    """Spreadsheets of some countries write semicolons."""
    head = text.partition("\n")[0]
    return max(",;\t", key=head.count)


def _features(path: str, attribute: str) -> Iterator[LabelledSample]:
    import pyproj
    import shapely

    with VectorFile(path) as file:
        layer = file.describe()
        layer.require(attribute, "--attribute")
        if layer.crs is None:
            raise RecipeError(
                f"{path} states no CRS, so its features have no place. Write it with one."
            )
        to_lonlat = pyproj.Transformer.from_crs(layer.crs, "OGC:CRS84", always_xy=True)
        number = 0
        for geometries, (labels,) in file.features((attribute,)):
            for content, label in zip(geometries.to_pylist(), labels, strict=True):
                number += 1
                shape: Any = None if content is None else shapely.from_wkb(content)
                if shape is None or shape.is_empty:
                    raise RecipeError(f"{path}: feature {number} has no geometry.")
                lonlat = shapely.transform(shape, to_lonlat.transform, interleaved=False)
                point = lonlat.representative_point()
                area = lonlat if lonlat.area else None
                text = "" if label is None else str(label).strip()
                yield LabelledSample(str(number), Spot(point.x, point.y, area), text)
