"""The spread of fires with known growth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Geod
from scipy.ndimage import distance_transform_edt

from maskloom.segcore.change.spread import SECTORS, Spread, spread_of
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.formats import describe
from maskloom.segcore.geometry import Grid

BURNED = 1
PIXEL = 10.0
# On the central meridian, where the map's scale is 0.9996 and north is up.
UTM = {"crs": "EPSG:32633", "transform": Affine(PIXEL, 0, 498500, 0, -PIXEL, 5301500)}
GROUND = 1 / 0.9996
"""Metres on the ground per metre of the map."""
SHAPE = (300, 300)
ROWS, COLUMNS = np.mgrid[: SHAPE[0], : SHAPE[1]]


def spread(
    path: Path, before: np.ndarray, after: np.ndarray, place: dict[str, Any] = UTM, tile: int = 128
) -> dict[str, Spread]:
    with rasterio.open(
        path / "a.tif", "w", driver="GTiff", height=SHAPE[0], width=SHAPE[1], count=1,
        dtype="uint8", **place,
    ) as file:  # fmt: skip
        file.write(np.zeros(SHAPE, np.uint8), 1)
    found = spread_of(
        describe(str(path / "a.tif")),
        Grid(SHAPE, (tile, tile), 1),
        lambda box: (before[box.slices].astype(np.int64), after[box.slices].astype(np.int64)),
        BURNED,
    )
    return {each.sector: each for each in found}


def disc(radius: float) -> np.ndarray:
    return (np.hypot(ROWS - 150, COLUMNS - 150) <= radius).astype(int)


def test_a_round_fire_moves_alike_in_all_directions(tmp_path: Path) -> None:
    before, after = disc(40), disc(100)
    found = spread(tmp_path, before, after)
    assert set(found) == {"all", *SECTORS}
    new = (after == 1) & (before == 0)
    whole = found["all"]
    assert whole.pixels == new.sum() == sum(found[each].pixels for each in SECTORS)
    assert whole.area == pytest.approx(new.sum() * (PIXEL * GROUND) ** 2, rel=1e-6)
    assert whole.area == pytest.approx(sum(found[each].area for each in SECTORS), rel=1e-12)
    distance = distance_transform_edt(before == 0) * PIXEL * GROUND
    assert whole.greatest == pytest.approx(distance[new].max(), rel=1e-6)
    for sector in SECTORS:
        assert found[sector].mean == pytest.approx(600, rel=0.02)
        assert found[sector].area == pytest.approx(whole.area / 8, rel=0.05)
    assert whole.front == pytest.approx(2 * np.pi * 1000, rel=0.02)
    # The tiles do not matter, to the last bit.
    assert spread(tmp_path, before, after, tile=64) == found


def test_a_wind_driven_fire_has_its_head_where_the_wind_blows(tmp_path: Path) -> None:
    """A strip that grows by 80 pixels to the east and 10 to the south, and jumps a gap."""
    before, after = np.zeros(SHAPE, int), np.zeros(SHAPE, int)
    before[100:140, 50:90] = after[100:150, 50:90] = 1
    after[100:140, 50:170] = 1
    before[100:102] = -1
    found = spread(tmp_path, before, after)
    east, south = found["E"], found["S"]
    assert east.greatest == pytest.approx(80 * PIXEL * GROUND, rel=1e-6)
    assert south.greatest == pytest.approx(10 * PIXEL * GROUND, rel=1e-6)
    free = np.pad((after == 0), 1)
    edge = (before == 0) & (after == 1)
    edge &= free[:-2, 1:-1] | free[2:, 1:-1] | free[1:-1, :-2] | free[1:-1, 2:]
    distance = distance_transform_edt(before != 1) * PIXEL * GROUND
    assert found["all"].mean == pytest.approx(distance[edge].mean(), rel=1e-6)
    assert south.mean < found["all"].mean < east.mean < east.greatest
    assert {"W", "SW", "NW"}.isdisjoint(found)
    # What had no data before is not new.
    assert found["all"].pixels == (after == 1).sum() - 38 * 40 - 2 * 120


@pytest.mark.parametrize("tile", [64, 300])
def test_degrees_are_metres_on_the_ground(tile: int, tmp_path: Path) -> None:
    step = 0.001
    place = {"crs": "EPSG:4326", "transform": Affine(step, 0, 15, 0, -step, 60)}
    before, after = np.zeros(SHAPE, int), np.zeros(SHAPE, int)
    before[150, 100] = after[150, 100:201] = 1
    found = spread(tmp_path, before, after, place, tile)
    latitude = 60 - 150.5 * step
    _, _, metres = Geod(ellps="WGS84").inv(15.1005, latitude, 15.2005, latitude)
    assert found["E"].greatest == pytest.approx(metres, rel=1e-5)


def test_a_new_fire_has_no_front_to_measure_from(tmp_path: Path) -> None:
    found = spread(tmp_path, np.zeros(SHAPE, int), disc(10))
    assert set(found) == {"all", "apart"}
    assert found["all"].area > 0
    assert found["all"].greatest is None
    quiet = spread(tmp_path, disc(10), disc(10))
    assert set(quiet) == {"all"}
    assert quiet["all"].area == 0


def test_without_a_place_there_are_no_metres(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no place on earth"):
        spread(tmp_path, disc(10), disc(20), {})
    site = 'LOCAL_CS["site",UNIT["metre",1]]'
    with pytest.raises(RecipeError, match="no longitude and latitude"):
        spread(tmp_path, disc(10), disc(20), {**UTM, "crs": site})
