"""Two masks compared: against NumPy on whole arrays, and relations that hold for any masks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer

from maskloom.segcore.change.compare import Change, ChangeOptions, GridMismatch, Side, compare
from maskloom.segcore.change.joint import Joint
from maskloom.segcore.change.legend import Legend
from maskloom.segcore.formats import describe
from maskloom.segcore.geometry import Box, Tile
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.statistics.area import Area
from maskloom.segcore.statistics.protocol import LabelledTile
from maskloom.segcore.storage.store import Store

NAMES = ("water", "forest", "field")
TABLE = ClassTable.of(NAMES)
UTM = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5300000)}
DEGREES = {"crs": "EPSG:4326", "transform": Affine(0.01, 0, 14, 0, -0.01, 55)}
MERCATOR = {"crs": "EPSG:3857", "transform": Affine(90, 2, 1.5e6, 3, -90, 6.2e6)}
SHAPE = (70, 90)
RNG = np.random.default_rng(8)


def written(path: Path, values: np.ndarray, place: dict[str, Any] = UTM) -> Path:
    nodata = 255 if values.dtype == np.uint8 else None
    height, width = values.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "nodata": nodata}
    with rasterio.open(path, "w", dtype=values.dtype.name, **profile, **place) as file:
        file.write(values, 1)
    return path


def blocky(seed: int, classes: int = len(NAMES)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, classes, (7, 9), np.uint8).repeat(10, 0).repeat(10, 1)
    values[rng.random(SHAPE) < 0.1] = rng.integers(classes)
    values[rng.random(SHAPE) < 0.02] = 255
    return values


def changed(a: Path, b: Path, target: Path, **options: Any) -> Change:
    own = Side(str(a), np.arange(len(NAMES))), Side(str(b), np.arange(len(NAMES)))
    return compare(own, ChangeOptions(Legend(TABLE), **options), Store(str(target)), "masks/x")


def by_transition(change: Change) -> dict[tuple[int, int], tuple[int, float]]:
    keys = zip(change.before.tolist(), change.after.tolist(), strict=True)
    sizes = zip(change.pixels.tolist(), change.areas.tolist(), strict=True)
    return dict(zip(keys, sizes, strict=True))


@pytest.mark.parametrize("place", [UTM, DEGREES, MERCATOR], ids=["utm", "degrees", "mercator"])
def test_transitions_are_those_of_whole_arrays(place: dict[str, Any], tmp_path: Path) -> None:
    before, after = blocky(1), blocky(2)
    a, b = written(tmp_path / "a.tif", before, place), written(tmp_path / "b.tif", after, place)
    found = changed(a, b, tmp_path / "out", tile=16)
    transitions = by_transition(found)
    signed = [each.astype(int) for each in (before, after)]
    for side in signed:
        side[side == 255] = -1
    counts = {
        pair: int(((signed[0] == pair[0]) & (signed[1] == pair[1])).sum())
        for pair in product(range(-1, 3), repeat=2)
    }
    assert {pair: n for pair, (n, _) in transitions.items()} == {
        p: n for p, n in counts.items() if n
    }

    # Both marginals are the table of areas of each mask.
    spec = describe(str(a))
    for axis, values in enumerate((before, after)):
        labelled = LabelledTile(values, Tile.whole(SHAPE), spec, TABLE)
        state = Area().observe(labelled)
        for row in Area().finish(state, spec, TABLE):
            mine = [size for pair, size in transitions.items() if pair[axis] == row["class_id"]]
            assert sum(pixels for pixels, _ in mine) == row["pixel_count"]
            assert sum(area for _, area in mine) == pytest.approx(row["area"], rel=1e-12)

    # Any tiling gives the same bits, in tables and mask; the other way round is the transpose.
    again = changed(a, b, tmp_path / "again", tile=64)
    assert by_transition(again) == transitions
    with rasterio.open(tmp_path / "out/masks/x.tif") as one:
        mask = one.read(1)
        names = one.tags()["CLASSES"]
    with rasterio.open(tmp_path / "again/masks/x.tif") as other:
        assert (mask == other.read(1)).all()
    back = by_transition(changed(b, a, tmp_path / "back", tile=32))
    assert back == {(to, start): size for (start, to), size in transitions.items()}

    # The mask says of each pixel what the tables say of all.
    unknown = (before == 255) | (after == 255)
    assert (unknown == (mask == 255)).all()
    assert ((before == after) & ~unknown == (mask == 0)).all()
    for label, (start, to) in enumerate(Legend(TABLE).transitions, 1):
        assert ((mask == label) == (before == start) & (after == to)).all()
        assert f'"{label}": "{NAMES[start]}_to_{NAMES[to]}"' in names


def test_nothing_changed_from_a_mask_to_itself(tmp_path: Path) -> None:
    values = blocky(3)
    a = written(tmp_path / "a.tif", values)
    found = changed(a, a, tmp_path / "out", tile=32)
    assert (found.before == found.after).all()
    assert found.changed == 0
    with rasterio.open(tmp_path / "out/masks/x.tif") as file:
        assert set(np.unique(file.read(1))) == {0, 255}


def test_many_pairs_in_a_tile_are_counted_in_parts(tmp_path: Path) -> None:
    """Objects of one pixel each: more pairs than labels of 16 bits."""
    spec = describe(str(written(tmp_path / "a.tif", np.zeros((300, 300), np.uint32), DEGREES)))
    ids = np.arange(90_000).reshape(300, 300)
    joint = Joint.of(ids, ids[::-1].copy(), spec, Box.whole((300, 300)))
    assert (joint.before == np.arange(90_000)).all()
    assert (joint.after == ids[::-1].ravel()).all()
    rows = spec.space.cell_size(Box.whole((300, 300)), (300, 300))
    assert joint.areas(spec) == pytest.approx(np.repeat(np.asarray(rows), 300), rel=1e-9)


def elsewhere(path: Path) -> Iterator[tuple[str, Path, str]]:
    values = blocky(4)
    moved = Affine(10, 0, 500005, 0, -10, 5300000)
    yield "moved", written(path / "1.tif", values, {**UTM, "transform": moved}), "0.5 pixels apart"
    yield "smaller", written(path / "2.tif", values[:50]), "90 x 50 pixels"
    yield "other CRS", written(path / "3.tif", values, {**UTM, "crs": "EPSG:32634"}), "EPSG:32634"
    yield "no CRS", written(path / "4.tif", values, {}), "without a CRS"


def test_other_grids_are_refused_and_both_named(tmp_path: Path) -> None:
    a = written(tmp_path / "a.tif", blocky(1))
    for name, b, said in elsewhere(tmp_path):
        with pytest.raises(GridMismatch) as refused:
            changed(a, b, tmp_path / "out")
        assert said in str(refused.value), name
        assert str(a) in str(refused.value)
        assert str(b) in str(refused.value)
        assert not (tmp_path / "out/masks/x.tif").exists()


@pytest.mark.parametrize("dtype", ["uint8", "uint32"])
def test_warped_masks_are_those_at_the_centres_of_pixels(dtype: str, tmp_path: Path) -> None:
    before, after = (blocky(seed).astype(dtype) for seed in (1, 2))
    if dtype == "uint32":
        before[before == 255], after[after == 255] = 0, 0
    there = {"crs": "EPSG:32634", "transform": Affine(12, 1, 51142, 0, -11, 5317492)}
    a = written(tmp_path / "a.tif", before)
    b = written(tmp_path / "b.tif", after, there)
    found = changed(a, b, tmp_path / "out", tile=32, warp=True)
    assert found.warped
    # Of each pixel's centre, the pixel of the other mask that contains it.
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    to_other = Transformer.from_crs(UTM["crs"], there["crs"], always_xy=True)
    x, y = ~there["transform"] * to_other.transform(*(UTM["transform"] * (columns, rows)))
    x, y = np.floor(x).astype(int), np.floor(y).astype(int)
    inside = (x >= 0) & (x < SHAPE[1]) & (y >= 0) & (y < SHAPE[0])
    onto = np.full(SHAPE, -1)
    onto[inside] = after[y[inside], x[inside]]
    onto[onto == 255] = -1
    assert 0 < (onto >= 0).mean() < 1
    known = np.where(before == 255, -1, before.astype(int))
    counts = {
        pair: int(((known == pair[0]) & (onto == pair[1])).sum())
        for pair in product(range(-1, 3), repeat=2)
    }
    assert {pair: n for pair, (n, _) in by_transition(found).items()} == {
        pair: n for pair, n in counts.items() if n
    }
