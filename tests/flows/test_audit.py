"""An audit finds what differs, and gives the same report from this process and from workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import data

from maskloom.flows import audit as module
from maskloom.flows.audit import Audit, audit
from maskloom.flows.recipes.run import RunRecipe, load
from maskloom.segcore.figures.drawing import ACCENT, MARGIN, TOP, WRONG
from maskloom.segcore.pipeline.in_memory import Mask, Region
from maskloom.tasks.clusters.local import LocalCluster
from maskloom.tasks.regions import RegionJob, SegmentedRegion, segment_region


def recipe_of(folder: Path, segmenter: str, cluster: str = "serial") -> RunRecipe:
    Image.fromarray(data.coffee()[100:260, 150:350]).save(folder / "coffee.png")
    path = folder / "recipe.yaml"
    path.write_text(
        f"inputs: coffee.png\noutput: out\nsegmenter: {segmenter}\ncluster: {cluster}\n"
    )
    return load(path, [])


@pytest.mark.parametrize(
    "segmenter",
    [
        "{kind: kmeans, clusters: 3}",
        pytest.param(
            "{kind: connected_parts, of: {kind: threshold, value: 90}}", marks=pytest.mark.nightly
        ),
    ],
)
def test_an_exact_segmenter_gives_the_same_report_on_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segmenter: str
) -> None:
    here = audit(recipe_of(tmp_path, segmenter), 10_000, 64)
    assert not here.broken
    assert any(line.startswith("differing pixels: 0 of ") for line in here.lines)
    monkeypatch.setattr(module, "_PIXELS_IN_PROCESS", 1)
    opened = []
    open_local = LocalCluster.open
    monkeypatch.setattr(
        LocalCluster, "open", lambda *given: (opened.append(given), open_local(*given))[1]
    )
    there = audit(recipe_of(tmp_path, segmenter, "{kind: local, workers: 2}"), 10_000, 64)
    assert len(opened) == 1
    assert there == here


@pytest.mark.parametrize("shape", [(120, 150), (60, 70, 80)], ids=["image", "volume"])
@pytest.mark.parametrize("cut", [False, True])
def test_seams_show_where_objects_are_cut_there(shape: tuple[int, ...], cut: bool) -> None:
    """Blobs as they are, and cut into one object for each tile that they reach."""
    side = 20
    field = ndimage.gaussian_filter(np.random.default_rng(6).normal(size=shape), 2)
    ids = ndimage.label(field > 1.2 * field.std())[0]
    if cut:
        tiles = np.indices(shape) // side
        number = np.ravel_multi_index(tuple(tiles), tuple(-(-n // side) for n in shape))
        ids = np.unique(ids + number * (ids.max() + 1) * (ids > 0), return_inverse=True)[1]
        ids = ids.reshape(shape)
    *_, last = module._seams(ids, side)
    assert last.startswith("The seams show" if cut else "The seams do not show")


def test_differences_are_counted_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(job: RegionJob) -> SegmentedRegion:
        found = segment_region(job)
        if job.tile is None:
            return found
        values = found.mask.values.copy()
        values[10:14, 20:25] ^= 1
        return SegmentedRegion(found.model, Mask(values, values, found.mask.valid))

    monkeypatch.setattr("maskloom.tasks.regions.segment_region", spoiled)
    recipe = recipe_of(tmp_path, "{kind: threshold, value: 90}")
    found: Audit = audit(recipe, 200 * 160, 64)
    assert found.broken
    assert "differing pixels: 20 of 32000" in found.lines
    (picture,) = (tmp_path / "out" / "runs" / "audit").glob("*.png")
    drawn = np.array(Image.open(picture))[TOP : TOP + 160, MARGIN : MARGIN + 200]
    red = (drawn == WRONG).all(axis=2)
    expected = np.zeros((160, 200), bool)
    expected[10:14, 20:25] = True
    np.testing.assert_array_equal(red, expected)
    blue = (drawn == ACCENT).all(axis=2)
    assert np.flatnonzero(blue.all(axis=0)).tolist() == [64, 128, 192]
    assert np.flatnonzero(blue.all(axis=1)).tolist() == [64, 128]


def test_a_region_in_tiles_is_the_region(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "{kind: threshold, value: 90}")
    photo = str(tmp_path / "coffee.png")
    from maskloom.segcore.formats import describe

    region = Region.middle(describe(photo), 10_000)
    whole, tiled = (
        segment_region(RegionJob(0, "a", recipe.segmenter, region, tile))
        for tile in (None, (32, 48))
    )
    np.testing.assert_array_equal(whole.mask.values, tiled.mask.values)
    assert whole.model == tiled.model
