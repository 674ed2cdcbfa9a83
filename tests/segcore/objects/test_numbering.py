"""Objects are numbered by their first pixels, whatever the tiling and however fragments were
numbered.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import relabel_sequential

from maskloom.segcore.errors import FormatError
from maskloom.segcore.geometry import Grid, Tile
from maskloom.segcore.models.fragments import Equivalences
from maskloom.segcore.objects import numbering
from maskloom.segcore.objects.numbering import first_positions, number_objects

sides = st.integers(1, 13)
grids = st.builds(Grid, st.tuples(sides, sides), st.tuples(st.integers(1, 6), st.integers(1, 6)))


def by_first_pixel(ids: np.ndarray) -> np.ndarray:
    """The same objects, numbered from 1 in the order of their first pixels."""
    present, first = np.unique(ids, return_index=True)
    order = np.argsort(first[present > 0])
    number = np.zeros(int(present.max()) + 1, int)
    number[present[present > 0][order]] = np.arange(1, len(order) + 1)
    return number[ids]


@given(st.tuples(sides, sides), st.integers(0, 99))
def test_first_positions_are_those_of_numpy(shape: tuple[int, int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    whole = np.zeros((shape[0] + 5, shape[1] + 7), np.int64)
    core = relabel_sequential(generator.integers(0, 5, shape))[0].astype(np.uint32)
    whole[3 : 3 + shape[0], 4 : 4 + shape[1]] = core
    tile = next(tile for tile in _cells(whole.shape, (3, 4), shape))
    found = first_positions(core, tile, whole.shape)
    assert found[0] == 0
    assert found[1:].tolist() == [
        int(np.flatnonzero(whole.ravel() == value)[0]) for value in range(1, int(core.max()) + 1)
    ]


def _cells(shape: tuple[int, ...], start: tuple[int, int], size: tuple[int, int]) -> list[Tile]:
    tile = Grid(shape, shape)[0]
    core = type(tile.core)(start, (start[0] + size[0], start[1] + size[1]))
    return [Tile((0, 0), core, core)]


@given(grids, st.integers(1, 9), st.integers(0, 999))
def test_ids_do_not_know_the_tiling(grid: Grid, objects: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, objects + 1, grid.shape)
    dropped = generator.random(objects + 1) < 0.2
    tiles_of = [
        sum((ids[tile.core.slices] == name).any() for tile in grid) for name in range(objects + 1)
    ]
    # Objects of one tile may or may not be named; those of several must be.
    alone = (np.array(tiles_of) == 1) & (generator.random(objects + 1) < 0.7) & ~dropped
    names, values, groupings = [], [], []
    for tile in grid:
        core = ids[tile.core.slices]
        here = generator.permutation(np.unique(core[core > 0]))
        fragment = np.zeros(objects + 1, np.uint32)
        fragment[here] = np.arange(1, len(here) + 1)
        names.append(here)
        values.append(fragment[core])
        # Of a fragment that is not named the class stays as it was.
        named = np.flatnonzero(~alone[here])
        groups = np.where(dropped[here[named]], 0, 3 * here[named])
        groupings.append(
            Equivalences(
                (named + 1).astype(np.uint32),
                groups,
                np.where(groups > 0, here[named] + 100, 0).astype(np.uint16),
            )
        )
    asked: list[int] = []

    def read(number: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(number)
        return first_positions(values[number], grid[number], grid.shape), np.concatenate(
            [[0], names[number] + 100]
        ).astype(np.uint16)

    out = np.zeros(grid.shape, np.int64)
    wanted = by_first_pixel(np.where(dropped[ids], 0, ids))
    for tile, here, value, numbers in zip(
        grid, names, values, number_objects(grid, groupings, read, "memory"), strict=True
    ):
        out[tile.core.slices] = numbers.ids[value]
        kept = ~dropped[here]
        assert numbers.class_of.tolist() == [0, *np.where(kept, here + 100, 0).tolist()]
        assert not numbers.whole[0]
        assert numbers.whole[1:][kept].tolist() == (np.array(tiles_of)[here[kept]] == 1).tolist()
    assert np.array_equal(out, wanted)
    assert max((asked.count(number) for number in asked), default=0) <= 2


def test_parts_of_one_class_are_numbered_as_scipy_does() -> None:
    mask = np.random.default_rng(1).random((90, 70)) < 0.5
    labels = ndimage.label(mask)[0]
    shuffled = 1 + np.random.default_rng(2).permutation(labels.max() + 1)
    assert np.array_equal(by_first_pixel(shuffled[labels] * mask), labels)


def test_more_objects_than_ids_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbering, "_MOST_OBJECTS", 2)
    grid = Grid((1, 3), (1, 3))
    read = lambda number: (np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1], np.uint16))  # noqa: E731
    with pytest.raises(FormatError, match=r"photo\.tif has more objects"):
        list(number_objects(grid, [Equivalences.none()], read, "photo.tif"))
