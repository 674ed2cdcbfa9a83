"""Objects: scikit-image's measures of the whole image, whatever the tiling."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from objects_support import ObjectImage, random_ids
from pydantic import TypeAdapter, ValidationError
from skimage.measure import label, regionprops_table

from maskloom.segcore.geometry import Box, Grid, Tile
from maskloom.segcore.ground.space import Space
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.statistics.objects.bands import BandSums, observe_bands
from maskloom.segcore.statistics.objects.geoparquet import schema
from maskloom.segcore.statistics.objects.int96 import as_integers, as_wide, normalised, product
from maskloom.segcore.statistics.objects.measures import Measures
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.statistics.objects.table import TileObjects, finish, measure
from maskloom.segcore.storage.packing import pack, unpack
from maskloom.segcore.testing.statistics import wkt

EQUAL = {
    "object_id": "label",
    "pixel_count": "area",
    "bbox_x0": "bbox-1",
    "bbox_y0": "bbox-0",
    "bbox_x1": "bbox-3",
    "bbox_y1": "bbox-2",
}
CLOSE = {
    "centroid_x": "centroid-1",
    "centroid_y": "centroid-0",
    "perimeter": "perimeter",
    "major_axis_length": "axis_major_length",
    "minor_axis_length": "axis_minor_length",
    "mean_1": "intensity_mean-0",
    "mean_2": "intensity_mean-1",
    "std_1": "intensity_std-0",
    "std_2": "intensity_std-1",
}
PROPERTIES = [
    *(
        "label",
        "area",
        "bbox",
        "centroid",
        "perimeter",
        "axis_major_length",
        "axis_minor_length",
        "orientation",
        "eccentricity",
    ),
    *("intensity_mean", "intensity_std"),
]
PIXELS = ["uint8", "int16", "uint16", "int32", "uint32", "float16", "float32", "float64"]


SINGLES = st.builds(
    lambda number, power: number * 2.0**power,
    st.integers(1 - 2**24, 2**24 - 1),
    st.integers(-10, 10),
)
"""Numbers of float32 that span 2**20 to one and more."""


def pixels_for(
    ids: np.ndarray, dtype: str, generator: np.random.Generator, channels: int = 2
) -> np.ndarray:
    shape, kind = (*ids.shape, channels), np.dtype(dtype)
    if kind.kind == "f":
        return (generator.standard_normal(shape) * 100 + 7).astype(kind)
    return generator.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, kind, endpoint=True)


def against_scikit_image(image: ObjectImage, table: object) -> None:
    rows = table.to_pydict()
    expected = regionprops_table(image.ids, image.pixels.astype(np.float64), properties=PROPERTIES)
    for ours, theirs in EQUAL.items():
        assert rows[ours] == expected[theirs].tolist(), ours
    for ours, theirs in CLOSE.items():
        # Square roots of what is 0 but for rounding leave 1e-8 of the longer axis.
        slack = (
            1e-7 * max(expected["axis_major_length"], default=0)
            if ours == "minor_axis_length"
            else 1e-9
        )
        assert np.allclose(
            rows[ours],
            expected[theirs],
            rtol=1e-9,
            atol=slack + 1e-12 * np.abs(expected[theirs]).max(),
        ), ours
    assert np.allclose(rows["eccentricity"], expected["eccentricity"], atol=1e-6)
    long, short = np.array(rows["major_axis_length"]), np.array(rows["minor_axis_length"])
    # Round objects have no orientation but by rounding.
    known = long - short > 1e-6 * long
    turned = (np.array(rows["orientation"]) - expected["orientation"])[known] / np.pi
    assert np.allclose(turned, np.rint(turned), atol=1e-7)
    edge = set(
        np.concatenate([image.ids[0], image.ids[-1], image.ids[:, 0], image.ids[:, -1]]).tolist()
    )
    assert rows["touches_edge"] == [number in edge for number in rows["object_id"]]


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    tile=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    objects=st.integers(0, 30),
    coarse=st.integers(1, 6),
    dtype=st.sampled_from(PIXELS),
    seed=st.integers(0, 2**16),
)
def test_any_tiling_gives_the_table_of_scikit_image(
    shape: tuple[int, int], tile: tuple[int, int], objects: int, coarse: int, dtype: str, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    ids = random_ids(shape, objects, coarse, generator)
    image = ObjectImage(ids, pixels_for(ids, dtype, generator))
    whole = image.table()

    assert image.table(tile, seed=seed).equals(whole)
    if objects and ids.any():
        against_scikit_image(image, whole)


def test_long_thin_and_tiny_objects() -> None:
    ids = np.zeros((60, 70), int)
    ids[3, 2:60] = 1
    ids[5:50, 1] = 2
    np.fill_diagonal(ids[10:40, 10:40], 3)
    np.fill_diagonal(ids[10:40, 30:60][:, ::-1], 4)
    ids[55, 55] = 5
    ids[52:54, 60:62] = 6
    ids[45:58:2, 5:30:3] = 7
    image = ObjectImage(ids, pixels_for(ids, "uint8", np.random.default_rng(0)))

    against_scikit_image(image, image.table((9, 11)))
    assert image.table().column("orientation").to_pylist()[2:4] == [np.pi / 4, -np.pi / 4]


@pytest.mark.parametrize("epsg", ["EPSG:32633", "EPSG:4326", "EPSG:3857", "EPSG:3035"])
def test_areas_are_those_of_the_pixels_under_any_tiling(epsg: str) -> None:
    generator = np.random.default_rng(3)
    ids = label(random_ids((150, 170), 9, 9, generator), connectivity=2)
    affine = (
        (0.01, 0.001, 10.0, 0.001, -0.01, 60.0)
        if epsg == "EPSG:4326"
        else (300.0, 40.0, 499980.0, 40.0, -300.0, 5300040.0)
    )
    image = ObjectImage(ids, pixels_for(ids, "uint8", generator), Space(affine, wkt(epsg)))
    cells = np.broadcast_to(image.space.cell_size(Box.whole(ids.shape), ids.shape), ids.shape)
    whole = image.table()

    assert whole.column("area").to_pylist() == pytest.approx(
        np.bincount(ids.ravel(), cells.ravel())[1:], rel=1e-9
    )
    assert set(whole.column("area_unit").to_pylist()) == {"m2"}
    assert image.table((64, 37), seed=1).equals(whole)


def test_centroids_have_a_longitude_and_a_latitude() -> None:
    ids = np.ones((20, 30), int)
    image = ObjectImage(
        ids,
        pixels_for(ids, "uint8", np.random.default_rng(0)),
        Space((0.5, 0, 170.0, 0, -0.5, 60.0), wkt("EPSG:4326")),
    )
    row = image.table((7, 7)).to_pylist()[0]

    # The image goes on beyond the antimeridian; its middle is at 177.5.
    assert (row["longitude"], row["latitude"]) == (177.5, 55.0)
    beyond = (
        replace(image, space=Space((0.5, 0, 175.0, 0, -0.5, 60.0), wkt("EPSG:4326")))
        .table()
        .to_pylist()[0]
    )
    assert (beyond["longitude"], beyond["latitude"]) == (-177.5, 55.0)


def test_without_a_crs_there_is_no_longitude() -> None:
    ids = np.ones((20, 30), int)
    row = (
        ObjectImage(ids, pixels_for(ids, "uint8", np.random.default_rng(0))).table().to_pylist()[0]
    )

    assert (row["longitude"], row["latitude"], row["area"], row["area_unit"]) == (
        None,
        None,
        600.0,
        "px",
    )


def test_moon_has_areas_but_no_longitude_of_the_earth() -> None:
    ids = np.ones((20, 30), int)
    moon = Space((0.5, 0, 0.0, 0, -0.5, 60.0), wkt("IAU_2015:30100"))
    row = (
        ObjectImage(ids, pixels_for(ids, "uint8", np.random.default_rng(0)), moon)
        .table((8, 8))
        .to_pylist()[0]
    )

    assert row["longitude"] is row["latitude"] is row["geometry"] is row["bbox"] is None
    assert row["area"] > 1e9


def exact(values: np.ndarray) -> tuple[float, float]:
    """Mean and population deviation in exact arithmetic."""
    numbers = [Fraction(float(value)) for value in values.ravel()]
    mean = sum(numbers) / len(numbers)
    variance = sum((number - mean) ** 2 for number in numbers) / len(numbers)
    scale = 10**60
    return float(mean), isqrt(int(variance * scale**2)) / scale


@pytest.mark.parametrize("dtype", [*PIXELS, "int64"])
def test_band_sums_are_exact_far_from_zero(dtype: str) -> None:
    generator = np.random.default_rng(1)
    offset = {"uint8": 250, "float16": 1000}.get(dtype, 32_000)
    offset = (
        1e7
        if dtype in ("float32", "float64")
        else 2**31 - 9
        if dtype in ("int32", "uint32", "int64")
        else offset
    )
    values = (offset + generator.integers(0, 4, (40, 50, 1))).astype(dtype)
    sums = observe_bands(np.ones((40, 50), np.uint32), values, 1)
    mean, deviation = exact(values)

    assert sums.mean()[1, 0] == pytest.approx(mean, rel=1e-15)
    assert sums.deviation()[1, 0] == pytest.approx(deviation, rel=1e-14)
    assert np.isnan(sums.mean()[0, 0])
    assert np.isnan(sums.deviation()[0, 0])


@given(st.lists(SINGLES, min_size=2, max_size=60), st.data())
def test_floats_in_any_order_and_any_parts(values: list[float], data: st.DataObject) -> None:
    def total(numbers: list[float], cut: int) -> BandSums:
        parts = [
            np.array(part, np.float32).reshape(1, -1, 1) for part in (numbers[:cut], numbers[cut:])
        ]
        one, other = (observe_bands(np.ones(part.shape[:2], np.uint32), part, 1) for part in parts)
        return one + other

    one = total(values, data.draw(st.integers(0, len(values))))
    other = total(data.draw(st.permutations(values)), data.draw(st.integers(0, len(values))))

    assert one.mean()[1] == other.mean()[1]
    assert one.deviation()[1] == other.deviation()[1]
    assert one.mean()[1, 0] == pytest.approx(exact(np.array(values))[0], rel=1e-15, abs=1e-300)
    assert one.deviation()[1, 0] == pytest.approx(exact(np.array(values))[1], rel=1e-12, abs=1e-40)


def test_equal_floats_have_no_deviation() -> None:
    values = np.full((300, 300, 1), 0.1, np.float32)
    assert observe_bands(np.ones((300, 300), np.uint32), values, 1).deviation()[1, 0] == 0


def test_infinite_values_and_values_that_are_no_numbers_stay_with_their_object() -> None:
    ids = np.repeat([[1, 2, 3]], 4, axis=0)
    pixels = np.ones((4, 3, 1), np.float32)
    pixels[0, 0], pixels[0, 1] = np.inf, np.nan
    image = ObjectImage(ids, pixels)

    for table in (image.table(), image.table((1, 1), seed=2)):
        assert table.column("mean_1").to_pylist() == [np.inf, None, 1.0]
        assert table.column("std_1").to_pylist() == [None, None, 0.0]


def test_sums_of_a_huge_object_do_not_overflow() -> None:
    # 2**32 pixels of 65535 and 2**32 of 65533, by doubling: mean 65534, deviation 1.
    sums = observe_bands(np.ones((1, 2), np.uint32), np.array([[[65535], [65533]]], np.uint16), 1)
    for _ in range(32):
        sums = sums + sums
    assert sums.pixels[1] == 2**33
    assert (sums.mean()[1, 0], sums.deviation()[1, 0]) == (65534.0, 1.0)


def test_moments_of_a_huge_object_do_not_overflow() -> None:
    """A full image of 2**20 x 2**20 pixels, put together from sixteen parts, has the moments of a
    square.
    """
    side, part = 2**20, 2**18
    below = np.arange(part, dtype=object)
    first, second = int(below.sum()), int((below**2).sum())
    parts = []
    for k in np.ndindex(4, 4):
        box = [[k[0] * part, k[1] * part, k[0] * part + part, k[1] * part + part]]
        moments = as_wide(np.zeros((1, 3), np.int64))
        for i, value in enumerate((second * part, second * part, first * first)):
            moments[0, i] = value >> 32, value & (2**32 - 1)
        empty = ObjectImage(np.ones((1, 1), int), np.zeros((1, 1, 0), np.uint8))
        one = measure(
            empty.tile_objects(Tile((0, 0), Box((0, 0), (1, 1)), Box((0, 0), (1, 1)))),
            geometry=False,
        )
        pixels, moved = np.array([part * part]), np.array([[first * part, first * part]])
        shape = replace(one.shape, second=moments)
        parts.append(replace(one, pixels=pixels, box=np.array(box), first=moved, shape=shape))
    total = Measures.concatenate(parts)
    spec = RasterSpec("memory://huge", "memory", (side, side), (), "uint8", (1, 1), "1", 0)
    row = finish(total, spec, ("zero", "one"), 0).to_pylist()[0]

    variance = (side**2 - 1) / 12
    assert row["pixel_count"] == side**2
    assert row["centroid_x"] == row["centroid_y"] == (side - 1) / 2
    assert (
        row["major_axis_length"]
        == row["minor_axis_length"]
        == pytest.approx(4 * variance**0.5, rel=1e-15)
    )
    assert row["eccentricity"] == 0


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1), st.integers(-(2**62), 2**62))
def test_wide_integers_hold_products_exactly(small: int, large: int, number: int) -> None:
    wide = product(np.array([small]), np.array([large]))
    assert as_integers(wide) == [small * large]
    assert 0 <= wide[0, 1] < 2**32
    plain = as_wide(np.array([number]))
    assert as_integers(plain) == [number]
    assert as_integers(normalised(plain * 5)) == [number * 5]


def test_fragments_of_one_object_in_a_tile_are_one_row() -> None:
    ids = np.array([[1, 1, 0, 2], [0, 0, 0, 2], [1, 1, 1, 0]])
    pixels = pixels_for(ids, "uint8", np.random.default_rng(0))
    image = ObjectImage(ids, pixels)
    (tile,) = Grid(ids.shape, ids.shape)
    known = image.tile_objects(tile)
    labels = np.pad(np.array([[1, 1, 0, 3], [0, 0, 0, 3], [2, 2, 2, 0]], np.uint32), 2)
    # Local numbers 1 and 2 are the same object, and 4, which has no pixel here, is background.
    several = TileObjects(
        labels,
        np.array([0, 1, 1, 2, 0]),
        np.array([0, 1, 1, 2, 0], np.int32),
        np.ones(5, bool),
        observe_bands(labels[2:-2, 2:-2], pixels, 4),
        tile,
        image.spec,
    )
    names = ("zero", "one", "two")
    assert finish(measure(several), image.spec, names, 2).equals(
        finish(measure(known), image.spec, names, 2)
    )


def test_objects_of_the_ring_get_no_row() -> None:
    ids = np.array([[1, 2], [3, 4]])
    image = ObjectImage(ids, pixels_for(ids, "uint8", np.random.default_rng(0)))
    for tile, expected in zip(Grid((2, 2), (1, 1)), (1, 2, 3, 4), strict=True):
        assert measure(image.tile_objects(tile)).object_id.tolist() == [expected]


def test_measures_travel_and_split() -> None:
    generator = np.random.default_rng(4)
    ids = random_ids((50, 50), 12, 3, generator)
    image = ObjectImage(ids, pixels_for(ids, "float32", generator))
    measures = measure(image.tile_objects(next(iter(Grid((50, 50), (50, 50))))))
    names = ("zero", "one", "two")
    whole = finish(measures, image.spec, names, 2)
    odd, even = measures.split(measures.object_id % 2 == 1)

    assert [n % 2 for n in odd.object_id] == [1] * len(odd)
    assert len(odd) + len(even) == len(measures) == 12
    assert finish(unpack(Measures, pack(even)).merge(odd), image.spec, names, 2).equals(whole)


def test_bands_go_to_the_columns_of_their_numbers() -> None:
    ids = np.ones((4, 5), int)
    image = ObjectImage(ids, pixels_for(ids, "uint8", np.random.default_rng(0)))
    measures = measure(image.tile_objects(next(iter(Grid((4, 5), (4, 5))))))
    spec = replace(image.spec, bands=(4, 2), file_bands=4)
    row = finish(measures, spec, ("zero", "one"), 4).to_pylist()[0]

    assert row["mean_4"] == pytest.approx(image.pixels[..., 0].mean())
    assert row["mean_2"] == pytest.approx(image.pixels[..., 1].mean())
    assert row["mean_1"] is row["std_1"] is row["mean_3"] is None
    with pytest.raises(ValueError, match="none above 3"):
        finish(measures, spec, ("zero", "one"), 3)


def test_geometry_may_be_left_out() -> None:
    ids = random_ids((20, 20), 5, 2, np.random.default_rng(0))
    image = ObjectImage(ids, pixels_for(ids, "uint8", np.random.default_rng(0)))
    plain, full = image.table((6, 7), geometry=False), image.table((6, 7))
    left = ["geometry", "bbox"]

    assert plain.column("geometry").null_count == plain.column("bbox").null_count == len(plain)
    assert plain.drop_columns(left).equals(full.drop_columns(left))
    assert full.column("geometry").null_count == 0


def test_no_objects_give_an_empty_table() -> None:
    image = ObjectImage(np.zeros((9, 9), int), np.zeros((9, 9, 3), np.uint8))
    table = image.table((4, 4))
    assert len(table) == 0
    assert table.schema.equals(schema(3))


def test_labels_that_do_not_fit_are_refused() -> None:
    image = ObjectImage(np.ones((9, 9), int), np.zeros((9, 9, 3), np.uint8))
    known = image.tile_objects(next(iter(Grid((9, 9), (9, 9)))))
    with pytest.raises(ValueError, match=r"labels of shape \(13, 13\)"):
        measure(replace(known, labels=known.labels[1:]))
    with pytest.raises(ValueError, match="labels below 2, got 7"):
        measure(replace(known, labels=known.labels * 7))


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"classes": []}, "classes"),
        ({"classes": ["a", "a"]}, "classes"),
        ({"connectivity": 5}, "connectivity"),
        ({"min_size": 0}, "min_size"),
    ],
)
def test_wrong_parameters_are_refused_by_name(parameters: dict, field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(Objects).validate_python(parameters)


def test_parameters_have_a_table() -> None:
    assert TypeAdapter(Objects).validate_python({"classes": ["a"], "connectivity": 4}) == Objects(
        ("a",), 4
    )
    assert Objects().table == "objects"


@given(st.integers(0, 2**31 - 1))
def test_an_object_is_as_sure_as_the_surest_of_its_parts(seed: int) -> None:
    generator = np.random.default_rng(seed)
    ids = random_ids((30, 40), 8, 4, generator)
    image = ObjectImage(ids, pixels_for(ids, "uint8", generator))
    parts, expected = [], dict.fromkeys(np.unique(ids[ids > 0]).tolist(), np.nan)
    for tile in Grid(ids.shape, (11, 13)):
        known = image.tile_objects(tile)
        scores = generator.random(len(known.object_id)).astype(np.float32)
        scores[generator.random(len(scores)) < 0.3] = np.nan
        parts.append(unpack(Measures, pack(measure(replace(known, score=scores), geometry=False))))
        for number in np.unique(ids[tile.core.slices]):
            if number:
                expected[int(number)] = np.fmax(
                    expected[int(number)], scores[known.object_id == number][0]
                )
    table = finish(Measures.concatenate(parts), image.spec, ("zero", "one", "two"), 2)
    found = {row["object_id"]: row["score"] for row in table.to_pylist()}
    assert found == {
        number: None if np.isnan(score) else score for number, score in expected.items()
    }
