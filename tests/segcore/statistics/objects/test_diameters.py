"""Feret and equivalent diameters are those of other libraries, of known shapes, and of the ground,
whatever the tiling.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from objects_support import ObjectImage, image_of, random_ids
from pyproj import CRS, Geod
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist
from skimage.measure import find_contours, regionprops

from maskloom.segcore.ground.space import AXES, Frame, Metric, Space

TEST_DATA = os.environ.get("MASKLOOM_TEST_DATA")
TILE, CUBE = (7, 9), (3, 4, 2)
sizes = st.floats(0.01, 100)


def solid(ids: np.ndarray, space: Space | None = None) -> ObjectImage:
    """A volume of objects without bands."""
    return ObjectImage(
        ids.astype(np.uint32), np.zeros((*ids.shape, 0), np.uint8), space or Space(axes=AXES)
    )


def by_id(image: ObjectImage, tile: tuple[int, ...] | None, seed: int = 0) -> dict[int, dict]:
    return {row["object_id"]: row for row in image.table(tile, seed=seed).to_pylist()}


def contour_width(mask: np.ndarray) -> float:
    """The greatest distance between points of the object's contours."""
    contours = find_contours(np.pad(mask, 2).astype(float), 0.5, fully_connected="high")
    return float(pdist(np.vstack(contours)).max())


def hull_width(mask: np.ndarray, spacing: tuple[float, ...]) -> float:
    """The greatest distance between corners of the hull of the middles of the voxels' faces."""
    halves = np.concatenate([np.eye(mask.ndim), -np.eye(mask.ndim)]) / 2
    points = (np.argwhere(mask)[:, None] + halves).reshape(-1, mask.ndim) * spacing
    return float(pdist(points[ConvexHull(points).vertices]).max())


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_images_have_the_width_of_their_contours(seed: int, coarse: int) -> None:
    ids = random_ids((30, 34), 4, coarse, np.random.default_rng(seed))
    rows = by_id(image_of(ids), TILE, seed)
    for each in regionprops(ids):
        row = rows[each.label]
        assert row["feret_diameter_max"] == pytest.approx(contour_width(ids == each.label))
        # scikit-image takes the contour of the convex picture, which may stick out half a pixel
        # on each side.
        assert 0 <= each.feret_diameter_max + 1e-9 - row["feret_diameter_max"] <= 1
        assert row["equivalent_diameter"] == pytest.approx(each.equivalent_diameter_area)


@given(st.tuples(*[st.integers(1, 8)] * 3), st.tuples(sizes, sizes, sizes), st.integers(0, 999))
def test_volumes_have_the_width_of_their_hull(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int
) -> None:
    filled = np.random.default_rng(seed).random(shape) < 0.35
    ids = ndimage.label(filled, np.ones((3, 3, 3)))[0]
    space = Space(axes=AXES, metric=Metric(spacing))
    rows = by_id(solid(ids, space), CUBE, seed)
    for number, row in rows.items():
        assert row["feret_diameter_max"] == pytest.approx(hull_width(ids == number, spacing))
        ball = np.pi / 6 * row["equivalent_diameter"] ** 3
        assert ball == pytest.approx((ids == number).sum() * np.prod(spacing))


@given(st.integers(0, 10**6), st.tuples(*[st.integers(1, 12)] * 3), sizes)
def test_the_tiling_changes_no_bit(seed: int, tile: tuple[int, int, int], depth: float) -> None:
    """Of objects larger than tiles, in volumes of unequal steps and in images."""
    generator = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(generator.random((8, 9, 10)), 1.5)
    ids = ndimage.label(noise > np.quantile(noise, 0.6))[0]
    volume = solid(ids, Space(axes=AXES, metric=Metric((depth, 0.7, 0.3))))
    assert volume.table(tile, seed=seed).equals(volume.table())
    image = ObjectImage(ids[5].astype(np.uint32), np.zeros((9, 10, 0), np.uint8))
    assert image.table(tile[1:], seed=seed).equals(image.table())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.7)])
def test_a_ball_has_its_diameter(spacing: tuple[float, float, float]) -> None:
    radius = 9.0
    reach = [int(radius / step) + 2 for step in spacing]
    z, y, x = (
        np.arange(-n, n + 1).reshape([-1 if i == k else 1 for k in range(3)]) * step
        for i, (n, step) in enumerate(zip(reach, spacing, strict=True))
    )
    ball = z**2 + y**2 + x**2 <= radius**2
    (row,) = by_id(solid(ball, Space(axes=AXES, metric=Metric(spacing))), (5, 6, 7)).values()
    assert row["feret_diameter_max"] == pytest.approx(2 * radius, abs=max(spacing))
    assert row["equivalent_diameter"] == pytest.approx(2 * radius, rel=0.02)
    assert row["area_unit"] == "mm3"


def test_a_box_is_as_wide_as_from_face_to_face() -> None:
    """A rod reaches over its whole length; one voxel over its longest side."""
    ids = np.zeros((6, 20, 5), np.uint32)
    ids[1, 2:19, 3], ids[4, 4, 4] = 1, 2
    rows = by_id(solid(ids, Space(axes=AXES, metric=Metric((0.5, 2.0, 1.0), "um"))), CUBE)
    assert rows[1]["feret_diameter_max"] == pytest.approx(17 * 0.002)
    assert rows[2]["feret_diameter_max"] == pytest.approx(0.002)


def test_a_sheared_stack_has_the_width_of_its_body() -> None:
    """Slices of a tilted gantry: each is moved against the one before it."""
    ids = np.zeros((9, 8, 8), np.uint32)
    ids[:, 3, 3] = 1
    shift, step = 1.5, 4.0
    affine = (0.8, 0.0, 0.0, 0.0, 0.0, 0.8, shift, 0.0, 0.0, 0.0, step, 0.0)
    metric = Metric((step, 0.8, 0.8))
    space = Space(axes=AXES, metric=metric, frame=Frame(affine))
    (row,) = by_id(solid(ids, space), CUBE).values()
    assert row["feret_diameter_max"] == pytest.approx(9 * np.hypot(shift, step))
    # A size in the user's words replaces that of the frame.
    other = Space(axes=AXES, metric=Metric((2.0, 1.0, 1.0)), frame=Frame(affine))
    (row,) = by_id(solid(ids, other), CUBE).values()
    assert row["feret_diameter_max"] == pytest.approx(9 * 2.0)


def located(ids: np.ndarray, crs: str, affine: tuple[float, ...]) -> ObjectImage:
    return image_of(ids.astype(np.uint32), Space(affine=affine, crs=CRS(crs).to_wkt()))


@pytest.mark.parametrize("latitude", [0.0, 60.0, -80.0])
def test_degrees_become_metres(latitude: float) -> None:
    """A row of pixels along a parallel, and a column along a meridian, across the antimeridian."""
    ids, step = np.zeros((40, 40)), 0.01
    ids[20, 5:35], ids[2:18, 20] = 1, 2
    left, top = 180 - 20 * step, latitude + 20.5 * step
    image = located(ids, "OGC:CRS84", (step, 0.0, left, 0.0, -step, top))
    rows, geod = by_id(image, TILE), Geod(ellps="WGS84")
    *_, across = geod.inv(left + 5 * step, latitude, left + 35 * step, latitude)
    longitude = left + 20.5 * step
    *_, along = geod.inv(longitude, top - 2 * step, longitude, top - 18 * step)
    assert rows[1]["feret_diameter_max"] == pytest.approx(across, rel=1e-9)
    assert rows[2]["feret_diameter_max"] == pytest.approx(along, rel=1e-9)
    assert rows[2]["area_unit"] == "m2"
    assert rows[1]["equivalent_diameter"] == pytest.approx(np.sqrt(4 / np.pi * rows[1]["area"]))


def mercator_metres(latitude: float) -> float:
    """Metres on a meridian of WGS84 for a metre in Web Mercator, which takes it for a sphere."""
    squared = 0.0066943799901413165
    sine = np.sin(np.radians(latitude))
    return float((1 - squared) / (1 - squared * sine**2) ** 1.5 * np.cos(np.radians(latitude)))


@pytest.mark.parametrize(
    ("crs", "factor"), [("EPSG:32633", 1 / 0.9996), ("EPSG:3857", mercator_metres(60.0))]
)
def test_the_scale_of_a_map_is_taken_out(crs: str, factor: float) -> None:
    """On the central meridian of a UTM zone, and at 60 degrees north in Web Mercator."""
    ids = np.zeros((30, 30))
    ids[4:25, 15] = 1
    x, y = (500_000.0, 6_651_411.0) if crs == "EPSG:32633" else (1_669_792.0, 8_399_738.0)
    image = located(ids, crs, (10.0, 0.0, x - 155, 0.0, -10.0, y + 145))
    (row,) = by_id(image, TILE).values()
    assert row["feret_diameter_max"] == pytest.approx(210 * factor, rel=1e-4)


def test_a_rotated_grid_is_as_wide_as_a_straight_one() -> None:
    ids = np.zeros((40, 40))
    ids[10:13, 5:30] = 1
    cos, sin = 10 * np.cos(0.6), 10 * np.sin(0.6)
    straight = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)
    turned = (cos, sin, 500_000.0, sin, -cos, 5_000_000.0)
    widths = [
        by_id(located(ids, "EPSG:32633", affine), TILE)[1]["feret_diameter_max"]
        for affine in (straight, turned)
    ]
    assert widths[0] == pytest.approx(widths[1], rel=1e-5)


def test_other_bodies_have_their_own_size() -> None:
    """A degree on the Moon, in a CRS that no path leads from to the Earth's."""
    ids = np.zeros((9, 12))
    ids[4, 1:11] = 1
    image = located(ids, "IAU_2015:30100", (1.0, 0.0, 0.0, 0.0, -1.0, 4.5))
    (row,) = by_id(image, TILE).values()
    assert row["feret_diameter_max"] == pytest.approx(np.radians(10) * 1_737_400, rel=1e-6)


def test_ground_beyond_the_map_has_no_width() -> None:
    """An object outside the limb of a full-disc image has no position."""
    ids = np.zeros((10, 10))
    ids[0:3, 0:3] = 1
    crs = "+proj=geos +h=35785831 +lon_0=0 +sweep=y"
    image = located(ids, crs, (3e6, 0.0, -1.5e7, 0.0, -3e6, 1.5e7))
    (row,) = by_id(image, TILE).values()
    assert row["feret_diameter_max"] is None


@pytest.mark.skipif(not TEST_DATA, reason="MASKLOOM_TEST_DATA is not set")
@pytest.mark.parametrize(
    ("name", "volume", "width"),
    [
        ("brain1", 16412.658691406243, 69.60099030590368),
        ("breast1", 132.42579545515324, 9.081018608331778),
    ],
)
def test_tumours_have_the_published_size(name: str, volume: float, width: float) -> None:
    """PyRadiomics publishes VoxelVolume and Maximum3DDiameter of these labels, in mm³ and mm."""
    nrrd = pytest.importorskip("nrrd")
    path = Path(TEST_DATA or "", "mri_ct_pyradiomics", "labels", f"{name}_label.nrrd")
    labels, header = nrrd.read(str(path))
    spacing = np.linalg.norm(header["space directions"], axis=1)[::-1]
    space = Space(axes=AXES, metric=Metric(tuple(spacing.tolist())))
    (row,) = by_id(solid(labels.T > 0, space), (16, 64, 64)).values()
    assert row["area"] == pytest.approx(volume, rel=1e-12)
    assert row["feret_diameter_max"] == pytest.approx(width, rel=1e-12)
