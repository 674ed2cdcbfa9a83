"""Objects over the antimeridian and the poles: valid polygons within -180 to 180 that hold the very
pixels. Oracles are pyproj and shapely.
"""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from objects_support import ObjectImage, check_rings, geometries, image_of, random_ids
from pyproj import CRS, Geod, Transformer

from maskloom.segcore.ground.space import Space
from maskloom.segcore.testing.statistics import wkt

WGS84 = Geod(ellps="WGS84")
UTM_EAST = (2000.0, 0.0, 790_000.0, 0.0, -2000.0, 1_100_000.0)
"""Where UTM zone 60 meets 180 degrees, near the equator."""
UTM_WEST = (2000.0, 0.0, 90_000.0, 0.0, -2000.0, 1_100_000.0)
SEAMS = {
    "longitude to 181": ("EPSG:4326", (0.05, 0.0, 178.5, 0.0, -0.05, 10.0)),
    "longitude from -181": ("EPSG:4326", (0.05, 0.0, -181.5, 0.0, -0.05, 10.0)),
    "grid of 0 to 360, rows to the north": ("EPSG:4326", (0.05, 0.0, 178.5, 0.0, 0.05, 8.0)),
    "Mercator about 150 east": ("EPSG:3832", (5000.0, 0.0, 3_190_000.0, 0.0, -5000.0, 1_000_000.0)),
    "Web Mercator beyond its edge": (
        "EPSG:3857",
        (5000.0, 0.0, 19_890_000.0, 0.0, -5000.0, 1_000_000.0),
    ),
    "UTM 60": ("EPSG:32660", UTM_EAST),
    "UTM 1": ("EPSG:32601", UTM_WEST),
    "UTM 60 south": ("EPSG:32760", (2000.0, 0.0, 790_000.0, 0.0, -2000.0, 9_000_000.0)),
}
POLES = {
    "north": ("EPSG:3413", (10_000.0, 0.0, -300_000.0, 0.0, -10_000.0, 200_000.0)),
    "south": ("EPSG:3031", (10_000.0, 0.0, -300_000.0, 0.0, -10_000.0, 200_000.0)),
    "north in the middle of a pixel": (
        "EPSG:3413",
        (10_000.0, 0.0, -305_000.0, 0.0, -10_000.0, 205_000.0),
    ),
    "south on an edge": ("EPSG:3031", (10_000.0, 0.0, -303_000.0, 0.0, -10_000.0, 200_000.0)),
    "north, turned and mirrored": (
        "EPSG:3413",
        (6_000.0, 8_000.0, -340_000.0, 8_000.0, -6_000.0, -120_000.0),
    ),
    "north, equal area": ("EPSG:6931", (10_000.0, 0.0, -300_000.0, 0.0, -10_000.0, 200_000.0)),
}


def space_of(case: tuple[str, tuple[float, ...]]) -> Space:
    return Space(case[1], wkt(case[0]))  # type: ignore[arg-type]


def middles(image: ObjectImage) -> tuple[np.ndarray, np.ndarray]:
    """Longitude from -180 to 180 and latitude of the middle of each pixel, by pyproj."""
    rows, columns = np.indices(image.ids.shape) + 0.5
    a, b, c, d, e, f = image.space.affine  # type: ignore[misc]
    to_degrees = Transformer.from_crs(CRS.from_wkt(image.space.crs), "OGC:CRS84", always_xy=True)
    longitude, latitude = to_degrees.transform(
        a * columns + b * rows + c, d * columns + e * rows + f
    )
    known = np.isfinite(longitude)
    return np.where(known, (np.where(known, longitude, 0) + 180) % 360 - 180, np.nan), np.where(
        known, latitude, np.nan
    )


def check(image: ObjectImage, tile: tuple[int, int] = (7, 9)) -> object:
    """Each geometry is valid, within the world, and holds the middles of its pixels and of no
    others.
    """
    table = image.table(tile, seed=1)
    assert table.equals(image.table())
    longitude, latitude = middles(image)
    for number, geometry, box in zip(
        table.column("object_id").to_pylist(),
        geometries(table),
        table.column("bbox").to_pylist(),
        strict=True,
    ):
        check_rings(geometry)
        west, south, east, north = geometry.bounds
        assert -180 <= west <= east <= 180
        assert -90 <= south <= north <= 90
        # The middle of a pixel may lie on the antimeridian, and so on the border of a geometry that
        # is cut there.
        assert not (
            shapely.contains_xy(geometry, longitude, latitude) & (image.ids != number)
        ).any()
        assert shapely.dwithin(
            shapely.points(longitude, latitude)[image.ids == number], geometry, 1e-9
        ).all()
        assert (box["ymin"], box["ymax"]) == (south, north)
        inside = [part.bounds for part in shapely.get_parts(geometry)]
        if box["xmin"] > box["xmax"]:
            assert all(left >= box["xmin"] or right <= box["xmax"] for left, _, right, _ in inside)
        else:
            assert (box["xmin"], box["xmax"]) == (west, east)
    assert all(-180 <= each <= 180 for each in table.column("longitude").to_pylist())
    return table


def geodesic_area(geometry: shapely.Geometry) -> float:
    """Square metres; vertices every 0.02 degrees, since sides of polygons are lines in longitude
    and latitude.
    """
    return sum(
        abs(WGS84.geometry_area_perimeter(shapely.segmentize(part, 0.02))[0])
        for part in shapely.get_parts(geometry)
    )


@pytest.mark.parametrize("case", SEAMS)
def test_objects_over_the_antimeridian_are_cut_there(case: str) -> None:
    ids = np.zeros((40, 60), int)
    ids[5:35, 5:55] = 1
    ids[15:25, 20:40] = 0
    ids[0:3, 0:10] = 2
    ids[0:3, 50:60] = 3
    table = check(image_of(ids, space_of(SEAMS[case])))
    crossing, *beside = geometries(table)
    boxes = table.column("bbox").to_pylist()

    assert crossing.geom_type == "MultiPolygon"
    assert boxes[0]["xmin"] > 170 > -170 > boxes[0]["xmax"]
    assert crossing.bounds[0] == -180
    assert crossing.bounds[2] == 180
    for geometry, box in zip(beside, boxes[1:], strict=True):
        assert geometry.geom_type == "Polygon"
        assert box["xmin"] < box["xmax"]
    areas = table.column("area").to_pylist()
    assert np.allclose([geodesic_area(each) for each in (crossing, *beside)], areas, rtol=2e-4)


@pytest.mark.parametrize("corner", [True, False])
def test_parts_that_meet_at_the_antimeridian_stay_together(corner: bool) -> None:
    """One object of 81 pixels whose last pixel may touch by a corner only, at 180 degrees."""
    ids = np.zeros((12, 24), int)
    ids[1:9, 2:12] = 1
    ids[9 if corner else 8, 12] = 1
    table = check(image_of(ids, Space((0.1, 0.0, 178.8, 0.0, -0.1, 5.0), wkt("EPSG:4326"))))
    (box,), (geometry,) = table.column("bbox").to_pylist(), geometries(table)

    assert (round(box["xmin"], 9), round(box["xmax"], 9)) == (179.0, -179.9)
    assert len(shapely.get_parts(geometry)) == 2
    assert table.column("pixel_count").to_pylist() == [81]


@pytest.mark.parametrize("case", POLES)
def test_an_object_around_a_pole_reaches_it(case: str) -> None:
    ids = np.ones((40, 60), int)
    ids[:4, :6] = 2
    table = check(image_of(ids, space_of(POLES[case])))
    around, beside = geometries(table)
    pole = -90 if "south" in case else 90

    assert pole in around.bounds
    assert (around.bounds[0], around.bounds[2]) == (-180, 180)
    assert pole not in beside.bounds
    box = table.column("bbox").to_pylist()[0]
    assert (box["xmin"], box["xmax"]) == (-180, 180)
    assert np.allclose(
        [geodesic_area(around), geodesic_area(beside)], table.column("area").to_pylist(), rtol=2e-3
    )


@pytest.mark.parametrize("case", POLES)
def test_a_ring_around_a_pole_is_open_there_and_corners_at_it_meet(case: str) -> None:
    """A ring, the quarters and halves that meet in the pole, and one pixel at it."""
    ids = np.zeros((40, 60), int)
    ids[5:35, 15:45] = 1
    ids[10:30, 20:40] = 0
    ids[12:20, 22:30], ids[12:20, 30:38], ids[20:28, 22:38] = 2, 3, 4
    ids[20, 30] = 5
    table = check(image_of(ids, space_of(POLES[case])))
    ring, *others = geometries(table)

    assert abs(ring.bounds[1 if "south" in case else 3]) < 89.9
    assert (ring.bounds[0], ring.bounds[2]) == (-180, 180)
    areas = table.column("area").to_pylist()
    assert np.allclose([geodesic_area(each) for each in (ring, *others)], areas, rtol=2e-3)
    for one in range(len(others)):
        for other in range(one):
            assert others[one].intersection(others[other]).area < 1e-9


@given(
    case=st.sampled_from([*SEAMS.values(), *POLES.values()]),
    objects=st.integers(1, 5),
    coarse=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_torn_objects_hold_their_pixels(
    case: tuple[str, tuple[float, ...]], objects: int, coarse: int, seed: int
) -> None:
    check(
        image_of(
            random_ids((40, 60), objects, coarse, np.random.default_rng(seed)), space_of(case)
        ),
        (16, 16),
    )


def test_an_object_around_both_poles_is_the_planet_without_the_rest() -> None:
    """A map of the whole planet about a place on the equator: the outline turns around neither pole
    in the end.
    """
    ids = np.zeros((64, 64), int)
    ids[7:57, 18:46] = 1
    ids[20:30, 25:35] = 2
    space = Space(
        (4e5, 0.0, -12.8e6, 0.0, -4e5, 12.8e6),
        wkt("+proj=laea +lat_0=0 +lon_0=20 +datum=WGS84 +type=crs"),
    )
    table = check(image_of(ids, space))
    around, inside = geometries(table)

    assert around.bounds == (-180, -90, 180, 90)
    assert inside.geom_type == "Polygon"
    # In an equal-area map, squares of pixels are areas of ground.
    assert np.allclose(
        [geodesic_area(around), geodesic_area(inside)], [1300 * 1.6e11, 100 * 1.6e11], rtol=5e-3
    )


def test_a_world_map_reaches_the_poles_and_both_sides() -> None:
    ids = np.ones((18, 36), int)
    ids[6:12, 10:20] = 2
    world, land = geometries(
        check(image_of(ids, Space((10.0, 0, -180.0, 0, -10.0, 90.0), wkt("EPSG:4326"))))
    )
    shifted, island = geometries(
        check(image_of(ids, Space((10.0, 0, 0.0, 0, -10.0, 90.0), wkt("EPSG:4326"))))
    )

    assert world.bounds == shifted.bounds == (-180, -90, 180, 90)
    assert world.area == shifted.area == 360 * 180 - 6000
    assert land.bounds == (-80, -30, 20, 30)
    assert island.bounds == (-180, -30, 180, 30)
    assert island.area == 6000
