"""Ground areas: against geodesic polygons on the ellipsoid (GeographicLib, through pyproj.Geod) and
known surfaces.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pyproj import CRS, Geod, Transformer

from maskloom.segcore.errors import FormatError
from maskloom.segcore.geometry import Affine, Box
from maskloom.segcore.ground.cells import ground_area, ground_cells, nominal_area
from maskloom.segcore.ground.space import Space

DATA = os.environ.get("MASKLOOM_TEST_DATA")

GEOS = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +datum=WGS84 +type=crs"
MODIS = "+proj=sinu +R=6371007.181 +units=m +type=crs"
TRIPEL = "+proj=wintri +datum=WGS84 +type=crs"
MOLLWEIDE = "+proj=moll +datum=WGS84 +type=crs"
ROTATED_POLE = (
    "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=40 +lon_0=10 +datum=WGS84 +type=crs"
)
FEET = "+proj=utm +zone=33 +datum=WGS84 +units=us-ft +type=crs"

EARTH = 510065621724088.44
"""Surface of the ellipsoid of WGS 84 in square metres."""
NUMBER, ROWS, PIXELS = "number", "rows", "pixels"
PLACES: list[tuple[str, Affine, str]] = [
    ("EPSG:4326", (0.01, 0, 10, 0, -0.01, 60), ROWS),
    ("EPSG:4326", (0.01, 0.002, 10, 0.003, -0.01, 60), PIXELS),
    ("IAU_2015:49900", (0.01, 0, 2, 0, -0.01, -55), ROWS),
    ("EPSG:3857", (5000, 0, -20037508.342789244, 0, -5000, 15e6), ROWS),
    (FEET, (30, 0, 1.6e6, 0, -30, 17e6), PIXELS),
    ("EPSG:3413", (5000, 0, -5e6, 0, -5000, 5e6), PIXELS),
    (MODIS, (463.3127, 0, 1111950.5, 0, -463.3127, 5559752.6), NUMBER),
    (GEOS, (3000, 0, -3e6, 0, -3000, 3e6), PIXELS),
]
"""One of each kind: degrees, turned, on Mars, the world in Web Mercator, UTM in feet, a pole, equal
areas, the disk of a satellite.
"""
MORE_PLACES: list[tuple[str, Affine, str]] = [
    ("EPSG:4326", (0.0001, 0, -70, 0, -0.0001, 0.01), ROWS),
    ("EPSG:4326", (0.01, 0, 10, 0, 0.01, -80), ROWS),
    ("EPSG:4326", (0, 0.001, 10, 0.001, 0, 60), PIXELS),
    ("EPSG:4807", (0.01, 0, 2, 0, -0.01, 55), ROWS),
    ("IAU_2015:30100", (0.01, 0, 2, 0, -0.01, 55), ROWS),
    ("EPSG:3857", (10, 0, 1e6, 0, -10, 8e6), ROWS),
    ("EPSG:3857", (8, 6, 1e6, 6, -8, 8e6), PIXELS),
    ("EPSG:3395", (10, 0, 1e6, 0, -10, -4e6), ROWS),
    ("EPSG:4087", (100, 0, 1e6, 0, -100, 6e6), ROWS),
    ("EPSG:32633", (10, 0, 499980, 0, -10, 5300040), PIXELS),
    ("EPSG:32633", (10, 0, 166020, 0, -10, 1000000), PIXELS),
    ("EPSG:32633", (8, 6, 499980, 6, -8, 5300040), PIXELS),
    ("EPSG:32733", (10, 0, 300000, 0, -10, 9e6), PIXELS),
    ("EPSG:2263", (30, 0, 1e6, 0, -30, 2e5), PIXELS),
    ("EPSG:2154", (10, 0, 700000, 0, -10, 6600000), PIXELS),
    ("EPSG:27572", (20, 0, 6e5, 0, -20, 22e5), PIXELS),
    ("EPSG:27700", (10, 0, 4e5, 0, -10, 3e5), PIXELS),
    ("EPSG:2056", (10, 0, 26e5, 0, -10, 12e5), PIXELS),
    ("EPSG:5514", (10, 0, -8e5, 0, -10, -1e6), PIXELS),
    ("EPSG:3031", (500, 0, -5e5, 0, -500, 5e5), PIXELS),
    ("EPSG:3035", (10, 0, 4e6, 0, -10, 3e6), NUMBER),
    ("EPSG:6933", (1000, 0, -1e6, 0, -1000, 6e6), NUMBER),
    ("EPSG:6931", (1000, 0, -1e6, 0, -1000, 1e6), NUMBER),
    ("ESRI:102001", (30, 4, 1e6, 4, -30, 1e6), NUMBER),
    (MOLLWEIDE, (1000, 0, -1e6, 0, -1000, 5e6), PIXELS),
    (TRIPEL, (5000, 0, -1e7, 0, -5000, 6e6), PIXELS),
    (ROTATED_POLE, (0.01, 0, -10, 0, -0.01, 20), PIXELS),
]
EVERY_PLACE = [*PLACES, *(pytest.param(*place, marks=pytest.mark.nightly) for place in MORE_PLACES)]
at_every_place = pytest.mark.parametrize(("crs", "affine", "kind"), EVERY_PLACE)
COARSE_DISK: tuple[str, Affine, str] = (GEOS, (20000, 0, -6e6, 0, -20000, 6e6), PIXELS)
COARSE_WORLD: tuple[str, Affine, str] = (MOLLWEIDE, (9e4, 0, -2e7, 0, -9e4, 1.1e7), PIXELS)
COARSE_TRIPEL = pytest.param(
    TRIPEL, (9e4, 0, -2e7, 0, -9e4, 1.1e7), PIXELS, marks=pytest.mark.nightly
)


def wkt(crs: str) -> str:
    return CRS.from_user_input(crs).to_wkt()


def full(
    affine: Affine, crs_wkt: str, box: Box, shape: tuple[int, int] | None = None
) -> np.ndarray:
    return np.broadcast_to(ground_area(affine, crs_wkt, box, shape), box.shape)


def geodesic_area(affine: Affine, crs: CRS, box: Box, points: int = 2000) -> float:
    """Area on the ellipsoid within the outline of a box, its edges made of short geodesics."""
    t, zero = np.linspace(0, 1, points, endpoint=False), np.zeros(points)
    (top, left), (rows, columns) = box.start, box.shape
    row = top + rows * np.concatenate([zero, t, zero + 1, 1 - t])
    column = left + columns * np.concatenate([t, zero + 1, 1 - t, zero])
    a, b, c, d, e, f = affine
    base = (crs.source_crs if crs.is_derived and crs.is_geographic else crs.geodetic_crs).to_2d()
    to_base = Transformer.from_crs(crs, base, always_xy=True)
    longitude, latitude = to_base.transform(a * column + b * row + c, d * column + e * row + f)
    degrees = math.degrees(base.axis_info[0].unit_conversion_factor)
    geod = Geod(a=crs.ellipsoid.semi_major_metre, b=crs.ellipsoid.semi_minor_metre)
    return abs(geod.polygon_area_perimeter(longitude * degrees, latitude * degrees)[0])


@at_every_place
def test_areas_are_those_of_geodesic_polygons(crs: str, affine: Affine, kind: str) -> None:
    for start, shape in [
        ((0, 0), (64, 64)),
        ((1990, 300), (128, 90)),
        ((700, 1000), (3, 70)),
        ((1023, 1023), (2, 2)),
    ]:
        box = Box(start, (start[0] + shape[0], start[1] + shape[1]))
        expected = geodesic_area(affine, CRS.from_user_input(crs), box)

        # The geodesic polygon itself is right to about 2e-3 m2.
        assert full(affine, wkt(crs), box).sum() == pytest.approx(expected, rel=2e-8, abs=2e-3), box


@at_every_place
def test_arrays_are_as_small_as_the_projection_allows(crs: str, affine: Affine, kind: str) -> None:
    area = ground_area(affine, wkt(crs), Box((5, 7), (25, 37)))

    expected = {NUMBER: (), ROWS: (20, 1), PIXELS: (20, 30)}[kind]
    assert np.shape(area) == expected
    assert isinstance(area, float if kind == NUMBER else np.ndarray)


@pytest.mark.nightly
def test_the_kernels_of_the_algebra_library_do_not_matter() -> None:
    """OpenBLAS has others for each generation of processors, and their last bits differ."""
    program = (
        "from maskloom.segcore.geometry import Box\n"
        "from maskloom.segcore.ground.cells import ground_area\n"
        "from pyproj import CRS\n"
        "affine = (30.0, 0.0, 3e5, 0.0, -30.0, 5e6)\n"
        "print(ground_area(affine, CRS.from_epsg(32633).to_wkt(), Box((3, 5), (9, 7))).tolist())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OPENBLAS_CORETYPE": kernels},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        for kernels in ("Sandybridge", "Haswell", "SkylakeX")
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("crs", "affine", "kind"), [*EVERY_PLACE, COARSE_DISK, COARSE_WORLD, COARSE_TRIPEL]
)
def test_a_pixel_has_the_same_area_whichever_box_asks(crs: str, affine: Affine, kind: str) -> None:
    """Bit for bit, also across the cells that the interpolation stands on, and one row or one pixel
    alone.
    """
    for corner in ((0, 0), (2040, 250)):
        whole = Box(corner, (corner[0] + 300, corner[1] + 320))
        expected = full(affine, wkt(crs), whole)
        for start, stop in [
            ((0, 0), (1, 1)),
            ((3, 5), (4, 300)),
            ((7, 0), (9, 319)),
            ((5, 100), (290, 101)),
            ((11, 13), (211, 317)),
        ]:
            part = Box(
                (corner[0] + start[0], corner[1] + start[1]),
                (corner[0] + stop[0], corner[1] + stop[1]),
            )
            np.testing.assert_array_equal(
                full(affine, wkt(crs), part), expected[part.relative_to(whole).slices]
            )


@pytest.mark.parametrize(("crs", "affine", "kind"), [*EVERY_PLACE, COARSE_DISK])
def test_cells_hold_every_pixel_once_where_areas_vary_along_rows(
    crs: str, affine: Affine, kind: str
) -> None:
    box = Box((2040, 100), (2110, 190))
    several = ground_cells(affine, wkt(crs), box)
    if kind != PIXELS:
        assert several is None
        return

    times = np.zeros(box.shape, int)
    for size, corners, polynomials in several:
        assert len(corners) == len(polynomials)
        for row, column in corners - box.start:
            times[max(row, 0) : max(row + size, 0), max(column, 0) : max(column + size, 0)] += 1

    assert (times == 1).all()


BOX = st.tuples(st.integers(0, 59), st.integers(0, 59), st.integers(1, 60), st.integers(1, 60))


@given(box=BOX, place=st.sampled_from([*PLACES, *MORE_PLACES]))
def test_any_box_is_a_part_of_the_whole(
    box: tuple[int, int, int, int], place: tuple[str, Affine, str]
) -> None:
    crs, affine, _ = place
    part, whole = (
        Box(box[:2], (box[0] + box[2], box[1] + box[3])) & Box.whole((60, 60)),
        Box.whole((60, 60)),
    )
    assume(part.size)

    np.testing.assert_array_equal(
        full(affine, wkt(crs), part), full(affine, wkt(crs), whole)[part.slices]
    )


@given(
    latitude=st.floats(-89, 89),
    longitude=st.floats(-180, 180),
    size=st.floats(1e-4, 0.5),
    crs=st.sampled_from(["EPSG:4326", "EPSG:4807", "IAU_2015:49900", "EPSG:4326 turned"]),
)
def test_cells_of_longitude_and_latitude(
    latitude: float, longitude: float, size: float, crs: str
) -> None:
    code, turned = crs.removesuffix(" turned"), crs.endswith(" turned")
    assume(abs(latitude) + 4 * size < 89.5)
    affine = (
        (size, size / 3, longitude, size / 3, -size, latitude)
        if turned
        else (size, 0.0, longitude, 0.0, -size, latitude)
    )
    box = Box((1, 0), (3, 2))

    assert full(affine, wkt(code), box).sum() == pytest.approx(
        geodesic_area(affine, CRS.from_user_input(code), box, 400), rel=1e-6, abs=2e-3
    )


# ---- whole planets
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crs", "surface"),
    [("EPSG:4326", 5.10065621724e14), ("IAU_2015:30100", 4 * math.pi * 1737400.0**2)],
)
def test_the_globe_in_degrees_is_the_surface_of_the_planet(crs: str, surface: float) -> None:
    area = full((0.5, 0, -180, 0, -0.5, 90), wkt(crs), Box((0, 0), (360, 720)))

    assert area.sum() == pytest.approx(surface, rel=1e-12 if crs != "EPSG:4326" else 1e-11)
    np.testing.assert_allclose(area, area[::-1], rtol=1e-12)


def test_rows_beyond_the_poles_have_no_ground() -> None:
    rows = ground_area((0.5, 0, -180, 0, -0.5, 91), wkt("EPSG:4326"), Box((0, 0), (364, 720)))

    assert isinstance(rows, np.ndarray)
    assert not rows[:2].any()
    assert not rows[-2:].any()
    assert rows.sum() * 720 == pytest.approx(5.10065621724e14, rel=1e-11)


@pytest.mark.parametrize(
    ("crs", "affine", "shape"),
    [
        pytest.param(
            TRIPEL,
            (40000.0, 0.0, -20040000.0, 0.0, -40000.0, 10040000.0),
            (502, 1002),
            marks=pytest.mark.nightly,
        ),
        (MOLLWEIDE, (40000.0, 0.0, -18080000.0, 0.0, -40000.0, 9040000.0), (452, 904)),
        (ROTATED_POLE, (0.5, 0.0, 0.0, 0.0, -0.5, 90.0), (360, 720)),
    ],
)
def test_world_maps_hold_the_whole_planet_once(
    crs: str, affine: Affine, shape: tuple[int, int]
) -> None:
    """Pixels outside the outline of the map count nothing, those that it cuts count in part."""
    area = full(affine, wkt(crs), Box.whole(shape))

    assert area.sum() == pytest.approx(EARTH, rel=1e-6)


# ---- whole planets in few pixels
# -------------------------------------------------------------------------------------


def world(crs: str, shape: tuple[int, int], margin: float = 0.03) -> Affine:
    """A grid over all that a map shows of the globe, with a margin on all sides."""
    to_map = Transformer.from_crs(CRS.from_user_input(crs).geodetic_crs, crs, always_xy=True)
    longitude, latitude = np.meshgrid(np.linspace(-180, 180, 361), np.linspace(-90, 90, 181))
    x, y = (
        np.array(c)[np.isfinite(c)] for c in to_map.transform(longitude.ravel(), latitude.ravel())
    )
    width, height = np.ptp(x) * (1 + 2 * margin), np.ptp(y) * (1 + 2 * margin)
    top, left = y.max() + margin * np.ptp(y), x.min() - margin * np.ptp(x)
    return (float(width / shape[1]), 0.0, float(left), 0.0, float(-height / shape[0]), float(top))


MERCATOR = 20037508.342789244


def mercator_square() -> float:
    """Area of the ellipsoid between the parallels that bound the square of Web Mercator: Snyder's
    equation 3-12.
    """
    squared = CRS.from_epsg(4326).ellipsoid.inverse_flattening
    squared = 2 / squared - 1 / squared**2
    e, s = math.sqrt(squared), math.tanh(math.pi)
    return (
        4
        * math.pi
        * 6378137.0**2
        * (1 - squared)
        / 2
        * (s / (1 - squared * s * s) + math.atanh(e * s) / e)
    )


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 7), (16, 16), (64, 64)])
def test_the_square_of_web_mercator_has_its_area_at_any_size(shape: tuple[int, int]) -> None:
    affine = (2 * MERCATOR / shape[1], 0.0, -MERCATOR, 0.0, -2 * MERCATOR / shape[0], MERCATOR)
    area = full(affine, wkt("EPSG:3857"), Box.whole(shape))

    assert area.sum() == pytest.approx(mercator_square(), rel=1e-9)
    if shape == (16, 16):
        # The row below the equator, and the first row, each against a geodesic polygon.
        for row in (0, 8):
            assert area[row, 3] == pytest.approx(
                geodesic_area(affine, CRS.from_epsg(3857), Box((row, 3), (row + 1, 4))), rel=1e-6
            )


WORLDS = (
    "+proj=moll +datum=WGS84",
    "+proj=eqearth +datum=WGS84",
    "+proj=igh +datum=WGS84",
    "+proj=aeqd +lat_0=90 +datum=WGS84",
    "+proj=laea +lat_0=-30 +lon_0=20 +datum=WGS84",
)
MORE_WORLDS = (
    "+proj=sinu +datum=WGS84",
    "+proj=robin +datum=WGS84",
    "+proj=goode +datum=WGS84",
    "+proj=eck4 +datum=WGS84",
    "+proj=hammer +datum=WGS84",
    "+proj=wintri +datum=WGS84",
)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (16, 24)])
@pytest.mark.parametrize(
    "crs", [*WORLDS, *(pytest.param(crs, marks=pytest.mark.nightly) for crs in MORE_WORLDS)]
)
def test_maps_of_the_world_hold_it_once_at_any_size(crs: str, shape: tuple[int, int]) -> None:
    """The area of the ellipsoid, whatever the map makes of its poles and its cuts, and nothing of
    the margin around it.
    """
    affine = world(crs + " +type=crs", shape)

    assert full(affine, wkt(crs + " +type=crs"), Box.whole(shape), shape).sum() == pytest.approx(
        EARTH, rel=1e-6
    )


@pytest.mark.parametrize(
    ("crs", "height"),
    [("EPSG:4087", 10018754.171394622), ("+proj=cea +datum=WGS84 +type=crs", 6363885.4)],
)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (16, 24)])
def test_rows_over_the_poles_of_straight_maps_count_to_the_pole(
    crs: str, height: float, shape: tuple[int, int]
) -> None:
    """Rows that end beyond the poles, on maps with parallel meridians; the first row may hold the
    planet.
    """
    affine = (2 * MERCATOR / shape[1], 0.0, -MERCATOR, 0.0, -2.1 * height / shape[0], 1.05 * height)

    assert full(affine, wkt(crs), Box.whole(shape), shape).sum() == pytest.approx(EARTH, rel=1e-9)


@pytest.mark.parametrize(
    ("crs", "affine", "pixels"),
    [
        (MOLLWEIDE, world(MOLLWEIDE, (16, 24)), [(8, 12), (4, 10), (2, 12)]),
        ("EPSG:3413", (2e6, 0.0, -3e6, 0.0, -2e6, 3e6), [(1, 1), (0, 2)]),
        ("EPSG:3031", (9e5, 0.0, -1.2e6, 0.0, -9e5, 1.7e6), [(1, 1), (0, 0), (2, 1)]),
        (TRIPEL, world(TRIPEL, (16, 24)), [(8, 3), (3, 12)]),
        (ROTATED_POLE, (15.0, 0.0, -180.0, 0.0, -15.0, 90.0), [(3, 5), (6, 12)]),
        ("EPSG:4326", (8.0, 3.0, 150.0, 2.0, -8.0, 60.0), [(0, 2), (3, 3)]),
    ],
)
def test_single_coarse_pixels_are_geodesic_polygons(
    crs: str, affine: Affine, pixels: list[tuple[int, int]]
) -> None:
    """Also with the pole in the middle of the pixel, and over the antimeridian."""
    for row, column in pixels:
        box = Box((row, column), (row + 1, column + 1))
        expected = geodesic_area(affine, CRS.from_user_input(crs), box, 4000)
        assert full(affine, wkt(crs), box)[0, 0] == pytest.approx(expected, rel=1e-6), (row, column)


@pytest.mark.parametrize(
    "crs", [MOLLWEIDE, "+proj=eqearth +datum=WGS84 +type=crs", "+proj=igh +datum=WGS84 +type=crs"]
)
def test_coarse_pixels_are_the_sums_of_fine_ones(crs: str) -> None:
    """Those that the outline of the map cuts too, each by itself."""
    a, _, left, _, e, top = world(crs, (8, 12))
    coarse = full((a, 0, left, 0, e, top), wkt(crs), Box.whole((8, 12)), (8, 12))
    fine = full((a / 12, 0, left, 0, e / 12, top), wkt(crs), Box.whole((96, 144)), (96, 144))

    np.testing.assert_allclose(
        coarse, fine.reshape(8, 12, 12, 12).sum(axis=(1, 3)), rtol=1e-5, atol=1e-7 * EARTH
    )


def test_equal_area_maps_are_planes_inside_the_world_only() -> None:
    inside = ground_area(
        (500.0, 0, 1e6, 0, -500.0, 5e6), wkt(MODIS), Box((0, 0), (1, 1)), (2400, 2400)
    )
    assert inside == pytest.approx(250000.0, rel=1e-8)
    # The corner tile of the sinusoidal grid of MODIS lies outside; its right neighbours are cut by
    # the antimeridian.
    corner = ground_area(
        (926.6254, 0, -20015109.354, 0, -926.6254, 10007554.677),
        wkt(MODIS),
        Box.whole((30, 30)),
        (1200, 1200),
    )
    assert not np.any(corner)


def test_the_disk_of_a_geostationary_satellite() -> None:
    """On a sphere the part that can be seen is a cap, whose area is known; space around it has no
    area.
    """
    radius, height = 6371000.0, 35785831.0
    crs = wkt(f"+proj=geos +h={height} +R={radius} +lon_0=0 +sweep=y +type=crs")
    area = full((20000.0, 0.0, -5.6e6, 0.0, -20000.0, 5.6e6), crs, Box.whole((560, 560)))

    assert area[0, 0] == area[-1, 0] == area[0, -1] == area[-1, -1] == 0
    assert area[280, 280] == pytest.approx(4e8, rel=1e-5)
    assert area.sum() == pytest.approx(
        2 * math.pi * radius**2 * (1 - radius / (radius + height)), rel=1e-6
    )


@pytest.mark.nightly
def test_a_small_planet_in_a_large_cell_is_found() -> None:
    """The whole disk covers 23 x 23 pixels somewhere in the first cell of 2048; most nodes of the
    cell see space.
    """
    affine = (500000.0, 0.0, -900 * 500000.0, 0.0, -500000.0, 650 * 500000.0)

    area = full(affine, wkt(GEOS), Box.whole((1024, 1024)))

    rows, columns = np.nonzero(area)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx(
        (639, 660, 889, 910), abs=1
    )
    assert area.sum() == pytest.approx(2.15e14, rel=0.1)


def test_pixels_beside_the_cut_are_as_large_as_their_neighbours() -> None:
    """The points around a pixel centre lie on both ends of the map there."""
    edge = Transformer.from_crs(4326, CRS.from_user_input(TRIPEL), always_xy=True).transform(
        180, 0
    )[0]
    area = full((100.0, 0.0, edge - 2000.0, 0.0, -100.0, 50.0), wkt(TRIPEL), Box.whole((1, 40)))

    assert area[0, :20].all()
    assert area[0, 20:].max() < 1e-3
    np.testing.assert_allclose(area[0, :20], area[0, 0], rtol=1e-3)


def test_the_pole_of_a_polar_map_is_no_special_place() -> None:
    area = full((10.0, 0.0, -1005.0, 0.0, -10.0, 1005.0), wkt("EPSG:3031"), Box.whole((201, 201)))

    np.testing.assert_allclose(area, area[100, 100], rtol=1e-7)
    np.testing.assert_allclose(area, area[::-1, ::-1], rtol=1e-10)


# ---- reference systems
# ---------------------------------------------------------------------------------------------


def test_equal_area_maps_count_the_determinant() -> None:
    assert ground_area((25, 0, 4e6, 0, -20, 3e6), wkt("EPSG:3035"), Box((0, 0), (1, 1))) == 500.0
    assert ground_area((3, 4, 4e6, 4, -3, 3e6), wkt("EPSG:3035"), Box((0, 0), (1, 1))) == 25.0


def test_a_map_in_feet_is_the_map_in_metres() -> None:
    foot, box = 1200 / 3937, Box((0, 0), (50, 50))
    metres = full(
        (10.0, 0, 5e5, 0, -10.0, 5.3e6), wkt("+proj=utm +zone=33 +datum=WGS84 +type=crs"), box
    )
    feet = full((10 / foot, 0, 5e5 / foot, 0, -10 / foot, 5.3e6 / foot), wkt(FEET), box)

    np.testing.assert_allclose(feet, metres, rtol=1e-9)


@pytest.mark.parametrize(
    ("local", "area"),
    [
        ('LOCAL_CS["local",UNIT["metre",1]]', 6.0),
        (
            (
                'ENGCRS["site",EDATUM["site"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],'
                'LENGTHUNIT["foot",0.3048]]'
            ),
            6 * 0.3048**2,
        ),
    ],
)
def test_coordinates_without_a_datum_are_a_plane(local: str, area: float) -> None:
    assert ground_area((2, 0, 0, 0, -3, 0), local, Box((0, 0), (1, 1))) == pytest.approx(
        area, rel=1e-15
    )


@pytest.mark.parametrize(
    ("wide", "plain"),
    [
        ("EPSG:7405", "EPSG:27700"),
        ("EPSG:4979", "EPSG:4326"),
        ("EPSG:32633+5773", "EPSG:32633"),
        (
            "+proj=utm +zone=33 +ellps=bessel +towgs84=598,73,418 +type=crs",
            "+proj=utm +zone=33 +ellps=bessel +type=crs",
        ),
    ],
)
def test_heights_and_datum_shifts_change_nothing(wide: str, plain: str) -> None:
    affine = (0.01, 0, 10, 0, -0.01, 50) if plain == "EPSG:4326" else (10, 0, 4e5, 0, -10, 3e5)
    box = Box((0, 0), (20, 20))

    np.testing.assert_array_equal(full(affine, wkt(wide), box), full(affine, wkt(plain), box))


@pytest.mark.parametrize("code", [3857, 32633, 2263, 3035, 4326, 3031])
def test_wkt_as_gdal_writes_it_means_the_same(code: int) -> None:
    rasterio_crs = pytest.importorskip("rasterio.crs")
    affine = (0.01, 0, 10, 0, -0.01, 50) if code == 4326 else (10.0, 0.0, 5e5, 0.0, -10.0, 4e5)
    box = Box((0, 0), (20, 20))
    gdal = rasterio_crs.CRS.from_epsg(code)

    for version in ("WKT1_GDAL", "WKT2_2019"):
        np.testing.assert_allclose(
            full(affine, gdal.to_wkt(version=version), box),
            full(affine, wkt(f"EPSG:{code}"), box),
            rtol=1e-12,
        )


def test_a_rotated_pole_counts_longitudes_from_0_to_360_or_from_minus_180() -> None:
    box = Box((0, 0), (40, 40))
    east = full((0.1, 0, 300, 0, -0.1, 20), wkt(ROTATED_POLE), box)

    assert east.all()
    np.testing.assert_allclose(
        east, full((0.1, 0, -60, 0, -0.1, 20), wkt(ROTATED_POLE), box), rtol=1e-9
    )


@pytest.mark.parametrize("crs", ["", "no such thing", "EPSG:32633 in words"])
def test_a_crs_that_means_nothing_is_an_error_of_the_image(crs: str) -> None:
    with pytest.raises(FormatError, match="reference system that PROJ understands"):
        ground_area((1, 0, 0, 0, -1, 0), crs, Box((0, 0), (1, 1)))


@pytest.mark.parametrize(
    "affine",
    [
        (1, 2, 0, 2, 4, 0),
        (0, 0, 0, 0, 0, 0),
        (math.nan, 0, 0, 0, 1, 0),
        (1, 0, math.inf, 0, 1, 0),
        (1e-200, 0, 0, 0, 1e-200, 0),
    ],
)
def test_a_transform_without_area_is_an_error_of_the_image(affine: Affine) -> None:
    with pytest.raises(FormatError, match="transform of finite numbers"):
        ground_area(affine, wkt("EPSG:32633"), Box((0, 0), (1, 1)))


@at_every_place
def test_the_nominal_area_has_the_right_magnitude(crs: str, affine: Affine, kind: str) -> None:
    area = full(affine, wkt(crs), Box((500, 500), (501, 501)))[0, 0]

    assert nominal_area(affine, wkt(crs)) / 20 < area < 20 * nominal_area(affine, wkt(crs))


def test_spaces_ask_for_the_ground() -> None:
    box = Box((0, 0), (3, 4))
    space = Space((10, 0, 499980, 0, -10, 5300040), wkt("EPSG:32633"))

    np.testing.assert_array_equal(
        space.cell_size(box, (3, 4)), ground_area(space.affine, space.crs, box, (3, 4))
    )


@pytest.mark.skipif(DATA is None, reason="MASKLOOM_TEST_DATA is not set")
def test_real_images_have_the_area_of_their_outlines() -> None:
    rasterio = pytest.importorskip("rasterio")
    from rasterio.errors import RasterioIOError

    checked = []
    for path in sorted(Path(DATA or "").glob("geotiff/images/**/*.tif")):
        try:
            with warnings.catch_warnings(), rasterio.open(path) as image:
                crs, affine, shape = image.crs, tuple(image.transform)[:6], image.shape
        except RasterioIOError:
            continue
        if crs is None or image.transform.is_identity:
            continue
        expected = geodesic_area(affine, CRS.from_wkt(crs.to_wkt()), Box.whole(shape), 5000)
        # A polygon around the planet or with corners in space is no oracle.
        if expected > 0 and shape[1] * abs(affine[0]) < (180 if crs.is_geographic else 1e7):
            assert full(affine, crs.to_wkt(), Box.whole(shape)).sum() == pytest.approx(
                expected, rel=1e-6
            ), path.name
            checked.append(path.name)
    assert len(checked) > 5
