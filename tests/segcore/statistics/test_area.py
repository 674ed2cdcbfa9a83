"""Areas: against sums in floats over single pixels, and the rows that the contract promises."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.errors import FormatError, MaskloomError
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.space import Metric, Space
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.statistics.area import Area
from maskloom.segcore.statistics.protocol import STATISTICS
from maskloom.segcore.testing.statistics import (
    MaskedImage,
    labelled_images,
    make_image,
    rows_of,
    wkt,
)

GLOBE = Space((1.0, 0.0, -180.0, 0.0, -1.0, 90.0), wkt("EPSG:4326"))
UTM = Space((30.0, 0.0, 199980.0, 0.0, -30.0, 5300040.0), wkt("EPSG:32633"))
EQUAL_AREA = Space((25.0, 0.0, 4e6, 0.0, -20.0, 3e6), wkt("EPSG:3035"))


def whole(image: MaskedImage) -> list[dict]:
    return rows_of(Area(), image, image.cut(image.spec.shape))


@given(image=labelled_images(), tile=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_areas_are_the_sums_of_the_pixels_areas(image: MaskedImage, tile: tuple[int, int]) -> None:
    pixels = np.broadcast_to(
        image.spec.space.cell_size(Box.whole(image.spec.shape), image.spec.shape), image.spec.shape
    )

    rows = rows_of(Area(), image, image.cut(tile))

    for i, row in enumerate(rows):
        assert row["class_id"] == i
        assert row["class_name"] == image.class_table.names[i]
        assert row["pixel_count"] == np.count_nonzero(image.labels == i)
        assert row["area"] == pytest.approx(
            pixels[image.labels == i].sum(dtype=np.longdouble), rel=1e-9
        )
        assert row["nodata_pixels"] == np.count_nonzero(~image.valid)
        assert row["area_unit"] == ("px" if image.spec.space.crs is None else "m2")


@given(image=labelled_images())
def test_fractions_are_parts_of_the_valid_pixels(image: MaskedImage) -> None:
    fractions = [row["fraction"] for row in whole(image)]

    if image.valid.any():
        assert fractions == [
            np.count_nonzero(image.labels[image.valid] == i) / image.valid.sum()
            for i in range(len(fractions))
        ]
    else:
        assert set(fractions) == {None}


def test_equal_pixels_are_counted_and_multiplied() -> None:
    image = make_image((70, 50), EQUAL_AREA, 3, 0.2, 1)

    for row in whole(image):
        assert row["area"] == row["pixel_count"] * 500.0


def test_pixels_are_the_unit_where_the_ground_is_unknown() -> None:
    for space in (Space(), Space((2.0, 0.0, 0.0, 0.0, 2.0, 0.0)), Space(None, wkt("EPSG:32633"))):
        for row in whole(make_image((20, 30), space, 3, 0.2, 1)):
            assert (row["area"], row["area_unit"]) == (row["pixel_count"], "px")


def test_a_globe_of_one_class_is_the_surface_of_the_earth() -> None:
    image = make_image((180, 360), GLOBE, 1, 0, 0)

    (row,) = whole(image)

    assert row["area"] == pytest.approx(5.10065621724089e14, rel=1e-9)
    assert row["fraction"] == 1.0


@pytest.mark.parametrize("space", [Space(), GLOBE, UTM], ids=["equal", "rows", "pixels"])
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64"]
)
def test_labels_of_any_whole_type_give_the_same_rows(space: Space, dtype: str) -> None:
    image = make_image((33, 41), space, 4, 0, 2)
    other = replace(image, labels=image.labels.astype(dtype))

    assert whole(other) == whole(image)


@pytest.mark.parametrize("space", [Space(), GLOBE, UTM], ids=["equal", "rows", "pixels"])
def test_more_classes_than_a_byte_holds(space: Space) -> None:
    image = make_image((90, 120), space, 300, 0.1, 3)
    assert image.labels.dtype == np.uint16

    rows = whole(image)

    assert [row["pixel_count"] for row in rows] == [
        np.count_nonzero(image.labels == i) for i in range(300)
    ]
    assert rows[0]["nodata_pixels"] == np.count_nonzero(~image.valid)


def test_a_legend_may_have_more_classes_than_the_labels_type_holds() -> None:
    image = make_image((9, 9), Space(), 3, 0, 3)
    many = replace(image, class_table=ClassTable.of(tuple(map(str, range(300)))))

    assert [row["pixel_count"] for row in whole(many)] == [
        row["pixel_count"] for row in whole(image)
    ] + [0] * 297


@pytest.mark.parametrize("space", [Space(), GLOBE, UTM], ids=["equal", "rows", "pixels"])
@pytest.mark.parametrize(
    ("dtype", "stranger"),
    [("uint8", 4), ("uint8", 254), ("uint16", 256), ("int32", -1), ("int64", 2**40)],
)
def test_a_label_that_does_not_belong_is_an_error(space: Space, dtype: str, stranger: int) -> None:
    image = make_image((12, 12), space, 4, 0, 4)
    labels = image.labels.astype(dtype)
    labels[7, 5] = stranger

    with pytest.raises(
        MaskloomError, match=rf"below 4 or 255 for no data, got \[{stranger}\].*memory://image"
    ):
        whole(replace(image, labels=labels))


def test_an_image_that_failed_has_rows_of_unprocessed_pixels() -> None:
    image = make_image((12, 10), Space((1.0, 0.0, 0.0, 0.0, 1.0, 0.0), "a broken CRS"), 3, 0, 4)

    rows = Area().finish(None, spec=image.spec, class_table=image.class_table)

    assert [row["class_name"] for row in rows] == ["class_0", "class_1", "class_2"]
    for row in rows:
        assert (row["pixel_count"], row["area"], row["fraction"]) == (0, 0.0, None)
        assert (row["nodata_pixels"], row["unprocessed_pixels"]) == (0, 120)


def test_tiles_that_are_missing_are_unprocessed() -> None:
    image = make_image((20, 20), UTM, 3, 0.3, 4)

    rows = rows_of(Area(), image, image.cut((20, 8))[:-1])

    assert rows[0]["unprocessed_pixels"] == 20 * 4
    assert sum(row["pixel_count"] for row in rows) + rows[0]["nodata_pixels"] == 20 * 16


def test_tiles_that_are_counted_twice_are_an_error() -> None:
    image = make_image((20, 20), Space(), 3, 0.3, 4)

    with pytest.raises(MaskloomError, match="at most the 400 pixels of memory://image"):
        rows_of(Area(), image, image.cut((20, 20)) * 2)


def test_ground_ends_where_an_equal_area_map_ends() -> None:
    """A third of the pixels of a sinusoidal world map lies beside the world, as MODIS has it, and
    has no area; whatever the tiling.
    """
    sphere = 6371007.181
    half = math.pi * sphere
    space = Space(
        (2.2 * half / 44, 0.0, -1.1 * half, 0.0, -1.1 * half / 22, 0.55 * half),
        wkt(f"+proj=sinu +R={sphere} +type=crs"),
    )
    image = make_image((22, 44), space, 2, 0.0, 7)
    rows = whole(image)

    assert sum(row["area"] for row in rows) == pytest.approx(4 * math.pi * sphere**2, rel=1e-6)
    assert sum(row["pixel_count"] for row in rows) == 22 * 44
    for tile in [(7, 5), (22, 13), (1, 44)]:
        assert rows_of(Area(), image, image.cut(tile)) == rows


def test_the_quantum_belongs_to_the_raster_not_to_the_tile() -> None:
    """One tile at the equator, one at the pole: their sums must be in the same quanta to be
    merged.
    """
    image = make_image((180, 4), GLOBE, 1, 0, 0)
    states = [Area().observe(item) for item in image.cut((1, 4))]

    areas = [state["areas"][0] for state in states]

    assert all(a < b for a, b in pairwise(areas[:90]))
    assert areas[:90] == pytest.approx(areas[:89:-1], rel=1e-12)


def test_states_are_plain_whole_numbers() -> None:
    state = Area().observe(make_image((64, 64), UTM, 2, 0.1, 4).cut((64, 64))[0])

    assert json.loads(json.dumps(state)) == state
    assert {type(n) for key in ("counts", "areas") for n in state[key]} == {int}
    assert min(state["areas"]) > 2**32


VARYING = {
    "utm": UTM,
    "fine": Space((0.5, 0.0, 199980.0, 0.0, -0.5, 5300040.0), wkt("EPSG:32633")),
    "turned": Space((24.0, 18.0, 199980.0, 18.0, -24.0, 5300040.0), wkt("EPSG:32633")),
    "parts of 64": Space((500.0, 0.0, -1e6, 0.0, -500.0, 1e6), wkt("EPSG:3413")),
    "single pixels": Space((5000.0, 0.0, -5e6, 0.0, -5000.0, 5e6), wkt("EPSG:3413")),
    "limb": Space(
        (10000.0, 0.0, -6e6, 0.0, -10000.0, 1e6),
        wkt("+proj=geos +h=35785831 +lon_0=0 +sweep=y +type=crs"),
    ),
}


@pytest.mark.parametrize("classes", [3, 200])
@pytest.mark.parametrize("space", VARYING.values(), ids=VARYING.keys())
def test_sums_along_rows_are_those_of_the_pixels(space: Space, classes: int) -> None:
    """Few classes and many are added up in different ways; columns 2040 to 2600 meet two cells and
    several parabolas.
    """
    image = make_image((70, 2600), space, classes, 0.1, 5)
    pixels = np.broadcast_to(
        space.cell_size(Box.whole(image.spec.shape), image.spec.shape), image.spec.shape
    )

    rows = whole(image)

    for i, row in enumerate(rows):
        assert row["area"] == pytest.approx(
            float(pixels[image.labels == i].sum(dtype=np.longdouble)), rel=3e-10
        )
    for tile in [(70, 512), (64, 333), (13, 2600), (70, 131)]:
        assert rows_of(Area(), image, image.cut(tile)) == rows


@pytest.mark.parametrize("space", VARYING.values(), ids=VARYING.keys())
def test_a_pixel_counts_the_same_among_few_classes_and_many(space: Space) -> None:
    image = make_image((40, 1100), space, 2, 0, 6)
    many = replace(image, class_table=ClassTable.of(tuple(map(str, range(254)))))

    assert [row["area"] for row in whole(many)[:2]] == [row["area"] for row in whole(image)]


@pytest.mark.parametrize("space", VARYING.values(), ids=VARYING.keys())
def test_single_pixels_are_right(space: Space) -> None:
    """A class of one pixel has that pixel's area, wherever on a parabola it lies."""
    image = make_image((1, 600), space, 2, 0, 6)
    pixels = space.cell_size(Box.whole((1, 600)), (1, 600))
    for column in (0, 1, 15, 255, 256, 300, 511, 512, 599):
        labels = np.zeros((1, 600), np.uint8)
        labels[0, column] = 1

        row = whole(replace(image, labels=labels))[1]

        assert row["area"] == pytest.approx(pixels[0, column], rel=3e-10), column


def shrunken_map(scale: float) -> Space:
    """A polar map whose units cover 1 / scale metres each, though it calls them metres."""
    return Space(
        (0.1, 0.0, -1.6, 0.0, -0.1, 1.6),
        wkt(f"+proj=stere +lat_0=90 +k={scale} +datum=WGS84 +type=crs"),
    )


def test_sums_of_large_pixels_do_not_overflow() -> None:
    image = make_image((32, 32), shrunken_map(0.02), 1, 0, 0)
    pixels = image.spec.space.cell_size(Box.whole(image.spec.shape), image.spec.shape)
    assert pixels.min() / 0.01 * 2**48 * pixels.size > 2**63

    (row,) = whole(image)

    assert row["area"] == pytest.approx(pixels.sum(), rel=1e-9)


def test_pixels_beyond_all_reason_are_an_error() -> None:
    with pytest.raises(FormatError, match=r"memory://image.* larger than the map"):
        whole(make_image((32, 32), shrunken_map(1e-6), 1, 0, 0))


def test_it_is_registered_under_its_name() -> None:
    assert STATISTICS["area"] is Area
    assert Area() == Area()
    assert Area().table == "areas"


@pytest.mark.parametrize(
    ("metric", "unit", "size"),
    [
        (None, "px", 1.0),
        (Metric((2.5, 0.5, 0.5)), "mm3", 0.625),
        (Metric((0.2, 0.1, 0.1), "cm"), "mm3", 2.0),
    ],
)
@pytest.mark.parametrize("tile", [(7, 30, 20), (3, 8, 20), (1, 30, 7)])
def test_volumes_are_voxels_times_the_size_of_one(
    metric: Metric | None, unit: str, size: float, tile: tuple[int, ...]
) -> None:
    space = Space(metric=metric, axes=("z", "y", "x"))
    image = make_image((7, 30, 20), space, 4, 0.2, 3)
    counts = np.bincount(image.labels[image.valid], minlength=4)

    rows = rows_of(Area(), image, image.cut(tile))

    assert [row["pixel_count"] for row in rows] == counts.tolist()
    assert [row["area"] for row in rows] == pytest.approx((counts * size).tolist(), rel=1e-12)
    assert {row["area_unit"] for row in rows} == {unit}
    assert {row["nodata_pixels"] for row in rows} == {int(np.count_nonzero(~image.valid))}
