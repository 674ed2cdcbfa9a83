"""Outlines: valid polygons of the very pixels, the same whatever the tiling."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given
from hypothesis import strategies as st
from objects_support import check_rings, geometries, image_of, parts, random_ids
from pyproj import Geod, Transformer
from shapely.geometry import shape as shape_of
from skimage.measure import label

from maskloom.segcore.errors import MaskloomError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.ground.lonlat import vertex_spacing
from maskloom.segcore.ground.space import Space
from maskloom.segcore.statistics.objects.outlines import find_rings
from maskloom.segcore.statistics.objects.table import finish, measure
from maskloom.segcore.testing.statistics import wkt


def against_rasterio(ids: np.ndarray, table: object) -> None:
    """The polygons that rasterio (GDAL) finds for 4-connected parts, made valid; ours are so by
    themselves.
    """
    found: dict[int, list[shapely.Geometry]] = {}
    for shape, number in rasterio.features.shapes(
        ids.astype(np.int32), mask=ids > 0, connectivity=4
    ):
        found.setdefault(int(number), []).append(shapely.make_valid(shape_of(shape)))
    for number, ours, pixels in zip(
        table.column("object_id").to_pylist(),
        geometries(table),
        table.column("pixel_count").to_pylist(),
        strict=True,
    ):
        check_rings(ours)
        assert ours.area == pixels
        assert len(parts(ours)) == len(found[number])
        assert ours.equals(shapely.union_all(found[number]))
        bounds = table.column("bbox").to_pylist()[
            table.column("object_id").to_pylist().index(number)
        ]
        assert tuple(bounds.values()) == ours.bounds


@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    tile=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    objects=st.integers(1, 6),
    coarse=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_outlines_are_rasterios_whatever_the_tiling(
    shape: tuple[int, int], tile: tuple[int, int], objects: int, coarse: int, seed: int
) -> None:
    ids = random_ids(shape, objects, coarse, np.random.default_rng(seed))
    image = image_of(ids)
    whole = image.table()

    assert image.table(tile, seed=seed).equals(whole)
    against_rasterio(ids, whole)


@pytest.mark.parametrize("seed", range(4))
def test_torn_objects_full_of_holes(seed: int) -> None:
    """One object of random pixels: hundreds of parts and holes that touch at corners and lie in one
    another.
    """
    ids = (np.random.default_rng(seed).random((70, 80)) < (0.4, 0.5, 0.6, 0.75)[seed]).astype(int)
    image = image_of(ids)
    table = image.table((13, 17), seed=seed)

    assert table.equals(image.table())
    against_rasterio(ids, table)


NESTED = [
    "#########",
    "#.......#",
    "#.#####.#",
    "#.#...#.#",
    "#.#.#.#.#",
    "#.#...#.#",
    "#.#####.#",
    "#.......#",
    "#########",
]
PINCHED = ["..##.", ".#.#.", "#.###", "###..", ".#.##"]
DIAMOND = ["#####", "##.##", "#.#.#", "##.##", "#####"]
COMB = ["#.#.#", "#####", "#.#.#"]


@pytest.mark.parametrize(
    "rows", [NESTED, PINCHED, DIAMOND, COMB, ["#"], ["##", "##"], ["#.", ".#"]]
)
def test_known_shapes(rows: list[str]) -> None:
    ids = np.array([[int(pixel == "#") for pixel in row] for row in rows])
    for tile in (None, (1, 1), (2, 2), (3, 2)):
        against_rasterio(ids, image_of(ids).table(tile))


def test_an_island_in_a_lake_and_its_lake_are_parts_of_their_own() -> None:
    ids = np.array([[int(pixel == "#") for pixel in row] for row in NESTED])
    (geometry,) = geometries(image_of(ids).table((4, 4)))

    assert geometry.geom_type == "MultiPolygon"
    assert [(part.exterior.bounds, len(part.interiors)) for part in parts(geometry)] == [
        ((0, 0, 9, 9), 1),
        ((2, 2, 7, 7), 1),
        ((4, 4, 5, 5), 0),
    ]


def test_vertices_stand_at_corners_only() -> None:
    ids = np.zeros((300, 200), int)
    ids[10:290, 20:180] = 1
    ids[100:200, 50:60] = 0
    (geometry,) = geometries(image_of(ids).table((64, 64)))

    assert geometry.exterior.coords[:] == [(20, 10), (180, 10), (180, 290), (20, 290), (20, 10)]
    assert len(geometry.interiors[0].coords) == 5


@pytest.mark.parametrize(
    ("code", "affine"),
    [
        ("EPSG:32633", (10.0, 0.0, 399960.0, 0.0, -10.0, 5600040.0)),
        ("EPSG:32733", (30.0, 5.0, 300000.0, 5.0, 30.0, 6000000.0)),
        ("EPSG:4326", (1e-4, 0.0, 14.0, 0.0, -1e-4, 50.0)),
        ("EPSG:3857", (20.0, 0.0, 1e6, 0.0, -20.0, 8e6)),
    ],
)
def test_polygons_on_the_globe_have_the_area_of_their_pixels(
    code: str, affine: tuple[float, ...]
) -> None:
    generator = np.random.default_rng(2)
    ids = label(random_ids((120, 130), 4, 7, generator), connectivity=2)
    image = image_of(ids, Space(affine, wkt(code)))
    table = image.table((50, 33), seed=1)
    geod = Geod(ellps="WGS84")

    assert table.equals(image.table())
    for geometry, area in zip(geometries(table), table.column("area").to_pylist(), strict=True):
        check_rings(geometry)
        assert geod.geometry_area_perimeter(geometry)[0] == pytest.approx(area, rel=1e-5, abs=0.5)
    # A corner of the image is where the CRS says.
    corner = Transformer.from_crs(code, "OGC:CRS84", always_xy=True).transform(affine[2], affine[5])
    first = geometries(table)[table.column("object_id").to_pylist().index(int(ids[0, 0]))]
    assert shapely.distance(first, shapely.Point(corner)) < 1e-12


def test_neighbours_share_their_edges_on_the_globe() -> None:
    """A long edge of the map is curved on the globe; vertices at common places leave neither gaps
    nor overlaps.
    """
    ids = np.zeros((64, 2000), int)
    ids[:32] = 1
    ids[32:, :1234] = 2
    ids[32:, 1234:] = 3
    image = image_of(ids, Space((100.0, 0.0, 399960.0, 0.0, -100.0, 7000000.0), wkt("EPSG:32633")))
    assert 16 <= vertex_spacing(image.space, image.ids.shape) < 1024
    upper, left, right = geometries(image.table((40, 512)))

    spacing = shapely.length(upper) / (2 * 2064)
    edge = upper.intersection(shapely.union_all([left, right]))
    assert edge.area < 0.02 * 2000 * spacing**2
    # Where one vertex of a neighbour stands between two of ours, a sliver of a tenth of a pixel may
    # be left.
    assert shapely.union_all([upper, left, right]).area == pytest.approx(
        upper.area + left.area + right.area, rel=1e-4
    )
    # Every edge of the map is within a tenth of a pixel.
    to_map = Transformer.from_crs("OGC:CRS84", "EPSG:32633", always_xy=True)
    points = np.array(upper.segmentize(spacing / 3).exterior.coords)
    x, y = np.array(to_map.transform(*points.T))
    row, column = (7000000.0 - y) / 100, (x - 399960.0) / 100
    assert np.abs(row[(row > 16) & (column > 1) & (column < 1999)] - 32).max() < 0.1


def test_spacing_is_free_where_maps_are_straight() -> None:
    assert vertex_spacing(Space(), (10, 10)) > 2**20
    assert (
        vertex_spacing(Space((1e-3, 0, 10.0, 0, -1e-3, 50.0), wkt("EPSG:4326")), (5000, 5000))
        >= 5000
    )


def test_global_grids_are_left_as_they_are() -> None:
    ids = np.ones((180, 360), int)
    ids[60:120, 100:200] = 2
    (ocean, land) = geometries(
        image_of(ids, Space((1.0, 0, -180.0, 0, -1.0, 90.0), wkt("EPSG:4326"))).table((64, 64))
    )

    assert ocean.bounds == (-180, -90, 180, 90)
    assert land.bounds == (-80, -30, 20, 30)
    assert ocean.area == 360 * 180 - 6000
    (shifted,) = geometries(
        image_of(
            np.ones((10, 10), int), Space((1.0, 0, 300.0, 0, -1.0, 10.0), wkt("EPSG:4326"))
        ).table()
    )
    assert shifted.bounds == (-60, 0, -50, 10)


def test_what_lies_outside_the_domain_has_no_polygon() -> None:
    # The corners of a full disc from space look past the Earth.
    goes = "+proj=geos +h=35786023 +lon_0=0 +sweep=y +datum=WGS84"
    ids = np.ones((50, 50), int)
    ids[20:30, 20:30] = 2
    affine = (240_000.0, 0.0, -6e6, 0.0, -240_000.0, 6e6)
    corner, middle = image_of(ids, Space(affine, wkt(goes))).table((20, 20)).to_pylist()

    assert corner["geometry"] is corner["bbox"] is None
    assert middle["bbox"]["xmin"] < 0 < middle["bbox"]["xmax"]


def test_a_missing_tile_is_an_error() -> None:
    ids = np.ones((8, 8), int)
    image = image_of(ids)
    measures = measure(image.tile_objects(Grid((8, 8), (4, 4))[0]))
    with pytest.raises(MaskloomError, match="a tile that the object reaches is missing"):
        finish(measures, image.spec, ("zero", "one"), 0)


def test_rings_start_at_their_upper_left_vertex() -> None:
    ids = random_ids((40, 40), 3, 2, np.random.default_rng(8))
    (tile,) = Grid((40, 40), (40, 40))
    rings = find_rings(measure(image_of(ids).tile_objects(tile)).shape.outlines)
    for first, last in zip(rings.offsets[:-1], rings.offsets[1:], strict=True):
        assert rings.places[first] == rings.places[first:last].min()
        assert len(np.unique(rings.places[first:last])) == last - first
    assert rings.exterior[rings.shell].all()


@pytest.mark.skipif("MASKLOOM_TEST_DATA" not in os.environ, reason="needs the test images")
def test_nuclei() -> None:
    import imageio.v3

    folder = Path(os.environ["MASKLOOM_TEST_DATA"]) / "dsb2018"
    masks = sorted(
        path for path in folder.rglob("*.png") if imageio.v3.improps(path).dtype == np.uint16
    )[:6]
    assert masks
    for path in masks:
        ids = imageio.v3.imread(path).astype(int)
        table = image_of(ids).table((100, 130))
        assert table.equals(image_of(ids).table())
        against_rasterio(ids, table)
