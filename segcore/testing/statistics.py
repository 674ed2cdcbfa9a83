"""The contract of statistics: checks that every member of `STATISTICS` passes, and images for them.

A `MaskedImage` is a whole image in memory with its mask. It can be cut by any grid, so a test can
check that the table is the same for any tiling and any order of merging, and that every pixel is
counted once.

The checks raise `AssertionError`. Authors of a statistic can call them from their own tests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maskloom.segcore.geometry import Affine, Box, Grid, Shape
from maskloom.segcore.ground.space import AXES, Metric, Space
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.statistics.protocol import LabelledTile, Statistic

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Rows = list[dict[str, Any]]

_PLACES: dict[str | None, tuple[Affine, ...]] = {
    None: ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0),),
    "EPSG:3035": ((10.0, 0.0, 4e6, 0.0, -10.0, 3e6),),
    "EPSG:4326": ((0.5, 0.0, 10.0, 0.0, -0.5, 60.0), (0.4, 0.3, 10.0, 0.3, -0.4, 60.0)),
    "EPSG:3857": ((1000.0, 0.0, 1e6, 0.0, -1000.0, 8e6), (600.0, 800.0, 1e6, 800.0, -600.0, 8e6)),
    "EPSG:32633": (
        (30.0, 0.0, 199980.0, 0.0, -30.0, 5300040.0),
        (8.0, 6.0, 499980.0, 6.0, -8.0, 5300040.0),
    ),
}


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """An image and its mask in memory."""

    spec: RasterSpec
    class_table: ClassTable
    labels: NDArray[np.integer]
    """Class ids, and the nodata label where `valid` is False."""
    pixels: NDArray[np.generic]
    """(y, x, band) or (z, y, x, band)."""
    valid: NDArray[np.bool_]

    def cut(self, tile: Shape, halo: int = 0) -> list[LabelledTile]:
        """The labelled tiles of a grid, in row order."""
        return [
            LabelledTile(self.labels[tile.core.slices], tile, self.spec, self.class_table)
            for tile in Grid(self.spec.shape, tile, halo)
        ]


def labelled_images(max_side: int = 40) -> SearchStrategy[MaskedImage]:
    """Hypothesis strategy: images of all sizes up to `max_side`, of all kinds of space, with and
    without nodata.
    """
    from hypothesis import strategies as st

    @st.composite
    def images(draw: st.DrawFn) -> MaskedImage:
        shape = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
        crs = draw(st.sampled_from(list(_PLACES)))
        classes, invalid = draw(st.integers(1, 6)), draw(st.sampled_from([0.0, 0.3, 1.0]))
        return make_image(
            shape,
            Space(draw(st.sampled_from(_PLACES[crs])), crs and wkt(crs)),
            classes,
            invalid,
            draw(st.integers(0, 99)),
        )

    return images()


def labelled_volumes(max_side: int = 12) -> SearchStrategy[MaskedImage]:
    """Hypothesis strategy: volumes of all sizes up to `max_side`, with voxels of known and of
    unknown size, with and without nodata.
    """
    from hypothesis import strategies as st

    metrics = [None, Metric((2.5, 0.7, 0.7)), Metric((3.0, 1.0, 2.0), "um")]

    @st.composite
    def volumes(draw: st.DrawFn) -> MaskedImage:
        shape = tuple(draw(st.integers(1, max_side)) for _ in AXES)
        return make_image(
            shape,
            Space(metric=draw(st.sampled_from(metrics)), axes=AXES),
            draw(st.integers(1, 6)),
            draw(st.sampled_from([0.0, 0.3, 1.0])),
            draw(st.integers(0, 99)),
        )

    return volumes()


def make_image(shape: Shape, space: Space, classes: int, invalid: float, seed: int) -> MaskedImage:
    """A random image or volume in patches of a few pixels; `invalid` is the fraction of pixels
    without data.
    """
    generator = np.random.default_rng(seed)
    class_table = ClassTable.of(tuple(f"class_{i}" for i in range(classes)))
    patches = generator.integers(0, classes, [-(-n // 3) for n in shape])
    labels = np.kron(patches, np.ones((3,) * len(shape), int))[Box.whole(shape).slices]
    labels = labels.astype(class_table.dtype)
    valid = generator.random(shape) >= invalid
    labels[~valid] = class_table.nodata
    pixels = generator.integers(0, 256, (*shape, 3)).astype(np.uint8)
    spec = RasterSpec(
        "memory://image",
        "memory",
        shape,
        (1, 2, 3),
        "uint8",
        shape,
        "1",
        3,
        interpretation="rgb",
        space=space,
    )
    return MaskedImage(spec, class_table, labels, pixels, valid)


def wkt(crs: str) -> str:
    """The WKT of a coordinate reference system given in any way that PROJ understands."""
    from pyproj import CRS

    return CRS.from_user_input(crs).to_wkt()


def rows_of(statistic: Statistic, image: MaskedImage, items: Sequence[LabelledTile]) -> Rows:
    """The table of an image whose tiles are observed and merged in the order given."""
    total = reduce(statistic.merge, map(statistic.observe, items)) if items else None
    return statistic.finish(total, spec=image.spec, class_table=image.class_table)


def check_any_tiling(statistic: Statistic, image: MaskedImage, tile: Shape, halo: int = 0) -> None:
    """The table is the same, to the last bit, for the whole image and for its tiles."""
    _same(
        rows_of(statistic, image, image.cut(tile, halo)),
        rows_of(statistic, image, image.cut(image.spec.shape)),
        f"tiles of {tile}",
    )


def check_merge(statistic: Statistic, image: MaskedImage, tile: Shape) -> None:
    """Merging is associative and commutative: any order and any grouping of the tiles give the same
    table.
    """
    items = image.cut(tile)
    expected = rows_of(statistic, image, items)
    _same(rows_of(statistic, image, items[::-1]), expected, "the reverse order")
    _same(
        rows_of(statistic, image, items[1::2] + items[::2]),
        expected,
        "tiles that are not neighbours first",
    )
    states = [statistic.observe(item) for item in items]
    while len(states) > 1:
        pairs = [statistic.merge(*states[i : i + 2]) for i in range(0, len(states) - 1, 2)]
        states = pairs + states[2 * len(pairs) :]
    _same(
        statistic.finish(states[0], spec=image.spec, class_table=image.class_table),
        expected,
        "merging in pairs",
    )


def check_json(statistic: Statistic, image: MaskedImage, tile: Shape) -> None:
    """States that went through JSON give the same table."""
    items = image.cut(tile)
    states = [json.loads(json.dumps(statistic.observe(item), allow_nan=False)) for item in items]
    total = json.loads(json.dumps(reduce(statistic.merge, states), allow_nan=False))
    _same(
        statistic.finish(total, spec=image.spec, class_table=image.class_table),
        rows_of(statistic, image, items),
        "states read from JSON",
    )


def check_sums(statistic: Statistic, image: MaskedImage, tile: Shape) -> None:
    """No pixel is counted twice, none is lost, and the pixels of missing tiles are unprocessed."""
    items = image.cut(tile)
    for some in (items, items[::2], []):
        rows = rows_of(statistic, image, some)
        seen = sum(int(np.count_nonzero(item.values != image.class_table.nodata)) for item in some)
        counted = sum(row.get("pixel_count", 0) for row in rows)
        assert counted <= seen, f"{counted} pixels are counted, but only {seen} have a class"
        for row in rows:
            if "unprocessed_pixels" in row:
                assert (
                    counted + row["nodata_pixels"] + row["unprocessed_pixels"] == image.spec.pixels
                )
                assert counted == seen
                assert row["unprocessed_pixels"] == image.spec.pixels - sum(
                    item.values.size for item in some
                )


def check_schema(statistic: Statistic, image: MaskedImage, tile: Shape) -> None:
    """Rows have the columns of the schema, with values that Arrow can convert, and nulls only where
    the schema allows them.
    """
    import pyarrow as pa

    for items in (image.cut(tile), []):
        rows = rows_of(statistic, image, items)
        for row in rows:
            assert list(row) == statistic.schema.names, (
                f"expected the columns {statistic.schema.names}, got {list(row)}"
            )
            empty = [
                field.name
                for field in statistic.schema
                if row[field.name] is None and not field.nullable
            ]
            assert not empty, f"null in {empty}, which the schema does not allow"
        pa.Table.from_pylist(rows, schema=statistic.schema).validate(full=True)


def _same(rows: Rows, expected: Rows, what: str) -> None:
    assert len(rows) == len(expected), f"{what}: expected {len(expected)} rows, got {len(rows)}"
    for row, other in zip(rows, expected, strict=True):
        # As text, so that NaN equals NaN and 0.0 does not equal -0.0.
        assert repr(row) == repr(other), f"{what}: expected {other}, got {row}"
