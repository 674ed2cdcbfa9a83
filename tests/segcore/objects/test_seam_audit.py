"""The seam audit flags tilings that cut, drop or double objects, and passes those that leave no
trace.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from skimage.measure import label, regionprops_table

from maskloom.segcore.geometry import Grid
from maskloom.segcore.objects.seam_audit import SUSPICIOUS, audit_seams
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.segmenters.watershed import Watershed
from maskloom.segcore.testing.segmenters import Picture, fitted, object_mask

SHAPE, TILE, BAND = (700, 900), (128, 128), 6


def table_of(ids: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of the objects table that the audit needs, by scikit-image."""
    found = regionprops_table(ids, properties=("centroid", "bbox"))
    names = {"centroid_y": "centroid-0", "centroid_x": "centroid-1"}
    names |= {"bbox_y0": "bbox-0", "bbox_x0": "bbox-1", "bbox_y1": "bbox-2", "bbox_x1": "bbox-3"}
    return {name: found[theirs] for name, theirs in names.items()}


def nuclei(seed: int, shape: tuple[int, int] = SHAPE, heaped: bool = False) -> np.ndarray:
    """Discs of radius 3 to 7 at random places, or in heaps; those drawn later lie over the
    others.
    """
    generator = np.random.default_rng(seed)
    count = shape[0] * shape[1] // 400
    places = generator.random((count, 2)) * shape
    if heaped:
        heaps = generator.random((25, 2)) * shape
        places = heaps[generator.integers(0, 25, count)] + 35 * generator.standard_normal(
            (count, 2)
        )
    ids = np.zeros(shape, np.int32)
    for number, (y, x) in enumerate(places):
        radius = generator.integers(3, 8)
        top, left = max(0, int(y) - 8), max(0, int(x) - 8)
        part = ids[top : int(y) + 9, left : int(x) + 9]
        if part.size:
            rows, columns = np.indices(part.shape)
            part[(rows + top - y) ** 2 + (columns + left - x) ** 2 <= radius**2] = number + 1
    return ids


def cut_up(ids: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """The naive way: every tile numbers what it sees, and nothing is joined."""
    out = np.zeros(ids.shape, np.int64)
    for number, each in enumerate(Grid(ids.shape, tile)):
        part = ids[each.core.slices]
        out[each.core.slices] = np.where(part, number * (int(ids.max()) + 1) + part, 0)
    return np.unique(out, return_inverse=True)[1].reshape(ids.shape)


def lines(shape: tuple[int, ...], tile: tuple[int, int]) -> int:
    """How many seams there are, down and across."""
    return sum((whole - 1) // side for whole, side in zip(shape, tile, strict=True))


def crossings(ids: np.ndarray, tile: tuple[int, int]) -> int:
    """How often an object has pixels on both sides of a seam."""
    count = 0
    for each, side in ((ids, tile[0]), (ids.T, tile[1])):
        for line in range(side, len(each), side):
            both = each[line][each[line] == each[line - 1]]
            count += len(np.setdiff1d(both, [0]))
    return count


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("heaped", [False, True])
def test_naive_tiles_are_found_out_and_whole_objects_pass(seed: int, heaped: bool) -> None:
    ids = nuclei(seed, heaped=heaped)
    whole, naive = (
        audit_seams(table_of(ids), SHAPE, TILE, BAND),
        audit_seams(table_of(cut_up(ids, TILE)), SHAPE, TILE, BAND),
    )
    assert whole.clean
    assert not naive.clean
    assert naive.cut_score > SUSPICIOUS
    assert naive.cut_at_seams * lines(SHAPE, TILE) >= 2 * crossings(ids, TILE)
    assert naive.centroid_score > whole.centroid_score
    assert naive.ratio > 1.3 * whole.ratio


def test_volumes_that_are_cut_along_planes_are_found_out() -> None:
    generator = np.random.default_rng(5)
    shape, tile = (90, 96, 84), (30, 32, 28)
    radius = generator.uniform(2.5, 4.5, 700)
    centre = generator.uniform(0, shape, (700, 3))
    columns = {}
    for axis, places in zip("zyx", centre.T, strict=True):
        columns[f"centroid_{axis}"] = places
        columns[f"bbox_{axis}0"] = np.floor(places - radius)
        columns[f"bbox_{axis}1"] = np.ceil(places + radius)
    assert audit_seams(columns, shape, tile, 4).clean
    # Balls over a seam across z lose their other half.
    line = 30 * np.rint(columns["centroid_z"] / 30)
    over = (columns["bbox_z0"] < line) & (line < columns["bbox_z1"]) & (line > 0) & (line < 90)
    columns["bbox_z1"] = np.where(over, line, columns["bbox_z1"])
    assert audit_seams(columns, shape, tile, 4).cut_score > SUSPICIOUS


def test_objects_dropped_at_seams_are_found_out_by_their_absence() -> None:
    table = table_of(nuclei(3))
    off = np.array(
        [np.abs((table[f"centroid_{axis}"] + 64) % 128 - 64) > BAND for axis in "xy"]
    ).all(axis=0)
    audit = audit_seams({name: column[off] for name, column in table.items()}, SHAPE, TILE, BAND)
    assert not audit.clean
    assert audit.centroid_score < -SUSPICIOUS
    assert audit.ratio < 0.2


def test_densities_are_counts_a_pixel_and_a_line() -> None:
    # Three objects in an image of 2 x 1 tiles of 20: one cut at row 20, beside it its other half,
    # and one inside.
    objects = {
        "centroid_y": np.array([18.0, 21.0, 7.0]),
        "centroid_x": np.array([5.0, 5.0, 9.0]),
        "bbox_y0": np.array([16, 20, 5]),
        "bbox_y1": np.array([20, 24, 10]),
        "bbox_x0": np.array([3, 3, 7]),
        "bbox_x1": np.array([8, 8, 12]),
    }
    audit = audit_seams(objects, (40, 30), (20, 30), 3)
    assert audit.objects == 3
    assert audit.cut_at_seams == 2
    assert audit.cut_inside == 10 / (38 + 29)
    assert audit.centroids_at_seams == 2 / (6 * 30)
    assert audit.centroids_inside == 1 / (34 * 30)


@pytest.mark.parametrize(("shape", "count"), [((50, 60), 4), (SHAPE, 0), (SHAPE, 1)])
def test_one_tile_or_few_objects_show_nothing(shape: tuple[int, int], count: int) -> None:
    columns = {name: np.full(count, 20.0) for name in ("centroid_y", "centroid_x")}
    columns |= {
        f"bbox_{axis}{end}": np.full(count, 15 + 10 * end) for axis in "xy" for end in (0, 1)
    }
    audit = audit_seams(columns, shape, TILE, BAND)
    assert audit.clean
    assert audit.objects == count


def test_a_band_without_an_interior_is_refused() -> None:
    for band in (0, 64):
        with pytest.raises(ValueError, match=r"band: expected .* got"):
            audit_seams(table_of(nuclei(0, (200, 200))), (200, 200), TILE, band)


def test_stitched_watershed_passes() -> None:
    mask = nuclei(8) > 0
    picture = Picture(mask[..., None].astype(np.uint8), np.ones(SHAPE, bool))
    model = fitted(Watershed(Threshold(value=0.5), distance=10), [picture])
    stitched = audit_seams(table_of(object_mask(model, picture, TILE)[0]), SHAPE, TILE, BAND)
    assert stitched.clean
    naive = audit_seams(table_of(cut_up(object_mask(model, picture)[0], TILE)), SHAPE, TILE, BAND)
    assert not naive.clean


DATA = os.environ.get("MASKLOOM_TEST_DATA")


@pytest.mark.skipif(DATA is None, reason="MASKLOOM_TEST_DATA is not set")
@pytest.mark.parametrize("name", ["nuc_041_fluo", "nuc_002_fluo"])
def test_real_nuclei_that_are_cut_up_are_found(name: str) -> None:
    from PIL import Image

    truth = label(
        np.array(Image.open(Path(DATA or "") / "dsb2018" / "labels" / f"{name}.png")),
        connectivity=2,
    )
    tile = (96, 96)
    assert audit_seams(table_of(truth), truth.shape, tile, 6).clean
    naive = audit_seams(table_of(cut_up(truth, tile)), truth.shape, tile, 6)
    assert not naive.clean
    assert naive.cut_score > 2 * SUSPICIOUS
