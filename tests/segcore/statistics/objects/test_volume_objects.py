"""Objects in volumes are measured as by scikit-image, the same for any tiling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from objects_support import ObjectImage
from scipy import ndimage
from scipy.spatial.transform import Rotation
from skimage.measure import regionprops

from maskloom.segcore.ground.space import AXES, Frame, Metric, Space
from maskloom.segcore.statistics.objects.geoparquet import schema

VOXELS = Space(axes=AXES)
MILLIMETRES = Space(axes=AXES, metric=Metric((2.0, 0.5, 250.0), "um"))


def volume_of(shape: tuple[int, ...], seed: int, space: Space = VOXELS) -> ObjectImage:
    """Connected objects of many shapes in a volume with two bands."""
    generator = np.random.default_rng(seed)
    ids = ndimage.label(generator.random(shape) < 0.35, np.ones((3, 3, 3)))[0]
    pixels = generator.integers(0, 60_000, (*shape, 2)).astype(np.uint16)
    return ObjectImage(ids.astype(np.uint32), pixels, space)


shapes = st.tuples(*[st.integers(1, 9)] * 3)


@given(shapes, shapes, st.integers(0, 999))
def test_any_tiling_gives_the_same_rows(
    shape: tuple[int, int, int], tile: tuple[int, int, int], seed: int
) -> None:
    volume = volume_of(shape, seed)
    assert volume.table(tile, seed=seed).equals(volume.table())


@given(shapes, st.integers(0, 999))
def test_rows_are_those_of_scikit_image(shape: tuple[int, int, int], seed: int) -> None:
    volume = volume_of(shape, seed)
    rows = volume.table((4, 3, 5)).to_pylist()
    expected = regionprops(volume.ids.astype(int), volume.pixels)
    assert [row["object_id"] for row in rows] == [each.label for each in expected]
    for row, each in zip(rows, expected, strict=True):
        assert row["pixel_count"] == row["area"] == each.num_pixels
        assert row["area_unit"] == "px"
        centroid = [row[f"centroid_{axis}"] for axis in AXES]
        np.testing.assert_allclose(centroid, each.centroid, rtol=1e-12)
        box = [row[f"bbox_{axis}{end}"] for end in (0, 1) for axis in AXES]
        assert box == list(each.bbox)
        at_edge = np.array(each.bbox) == (0, 0, 0, *shape)
        assert row["touches_edge"] == at_edge.any()
        np.testing.assert_allclose([row["mean_1"], row["mean_2"]], each.intensity_mean)
        padded = np.pad(volume.ids == each.label, 1).astype(int)
        assert row["surface"] == sum(np.abs(np.diff(padded, axis=axis)).sum() for axis in range(3))
        assert row["perimeter"] is row["eccentricity"] is row["geometry"] is None
        assert row["longitude"] is row["latitude"] is None


def test_sizes_are_in_millimetres_where_the_spacing_is_known() -> None:
    ids = np.zeros((5, 6, 7), np.uint32)
    ids[1:3, 2:5, 3:4] = 1
    volume = ObjectImage(ids, np.zeros((5, 6, 7, 1), np.uint8), MILLIMETRES)
    (row,) = volume.table((2, 2, 2)).to_pylist()
    assert row["area_unit"] == "mm3"
    z, y, x = 2 * 0.002, 3 * 0.0005, 1 * 0.25
    assert row["area"] == pytest.approx(z * y * x)
    assert row["surface"] == pytest.approx(2 * (y * x + z * x + z * y))


@pytest.mark.parametrize("oblique", [False, True])
def test_the_surface_of_a_sheared_stack_is_that_of_its_parallelograms(oblique: bool) -> None:
    """A box of 4 x 2 x 5 voxels of 0.5 x 0.5 mm in slices 4 mm apart, each of which is moved by
    3 mm along y (gantry tilt): neighbours along z are 5 mm apart.
    """
    z, y, x = np.array([[0.0, 3.0, 4.0], [0.0, 0.5, 0.0], [0.5, 0.0, 0.0]])
    if oblique:
        turned = Rotation.from_rotvec([0.3, -0.8, 0.5])
        z, y, x = turned.apply([z, y, x])
    frame = Frame(tuple(np.column_stack([x, y, z, [7.0, -8.0, 9.0]]).ravel()))
    assert frame.spacing == pytest.approx((4.0, 0.5, 0.5))
    ids = np.zeros((6, 4, 7), np.uint32)
    ids[1:5, 1:3, 1:6] = 1
    volume = ObjectImage(
        ids,
        np.zeros((*ids.shape, 1), np.uint8),
        Space(axes=AXES, metric=Metric(frame.spacing), frame=frame),
    )
    (row,) = volume.table((2, 2, 2)).to_pylist()
    # Two sides of 2 x 0.5 by 5 x 0.5; two of 4 x 5 by 5 x 0.5 that the tilt leaves rectangles; two
    # parallelograms of 4 x 5 by 2 x 0.5, 4 x 4 high.
    assert row["surface"] == pytest.approx(2 * (1.0 * 2.5 + 20.0 * 2.5 + 16.0 * 1.0))
    assert row["area"] == pytest.approx(40 * 4.0 * 0.5 * 0.5)
    assert row["equivalent_diameter"] == pytest.approx((6 / np.pi * 40) ** (1 / 3))


def test_the_table_of_images_lacks_no_column_of_that_of_volumes() -> None:
    images, volumes = schema(3), schema(3, 3)
    assert volumes.names[: len(images)] == images.names
    assert set(volumes.names) - set(images.names) == {
        "centroid_z",
        "bbox_z0",
        "bbox_z1",
        "surface",
    }
    assert all(volumes.field(name).type == images.field(name).type for name in images.names)
