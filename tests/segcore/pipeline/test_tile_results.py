"""What tiles give: merged in any order it is the same, and it survives the way through a store."""

from __future__ import annotations

import itertools
import uuid

import numpy as np
import pytest

from maskloom.segcore.figures.preview import PreviewPart
from maskloom.segcore.geometry import Grid
from maskloom.segcore.masks.protocol import EncodedBlock
from maskloom.segcore.pipeline.tile_results import (
    StagedResults,
    TileResults,
    merge_results,
    merge_states,
)
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.statistics.area import Area
from maskloom.segcore.statistics.protocol import LabelledTile
from maskloom.segcore.storage.store import Store
from maskloom.segcore.testing.segmenters import Picture

STATISTICS = {"area": Area()}
SHAPE = (40, 50)


@pytest.fixture
def store():
    return Store(f"memory://tile-results-{uuid.uuid4().hex}")


@pytest.fixture
def results():
    """What each of six tiles gives."""
    labels = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    spec = Picture(labels[..., None], np.ones(SHAPE, bool)).spec
    return [
        TileResults(
            [EncodedBlock(0, tile.index, f"block {tile.index}".encode() * (1 + tile.index[0]))],
            {
                "area": STATISTICS["area"].observe(
                    LabelledTile(
                        labels[tile.core.slices], tile, spec, ClassTable.of(("a", "b", "c"))
                    )
                )
            },
            [
                PreviewPart(
                    (2 * tile.index[0], 3 * tile.index[1]),
                    np.full((2, 3, 1), sum(tile.index), np.float32),
                    np.ones((2, 3), bool),
                    labels[tile.core.slices][:2, :3],
                )
            ],
            [f"rows {tile.index}".encode()],
            [b"x" * tile.index[1]],
        )
        for tile in Grid(SHAPE, (20, 20))
    ]


def staged(store, name, part, seconds=1.5):
    with store.writing(name) as out:
        part.stage(seconds, out)
    return StagedResults.open(store, name)


def test_states_are_merged_in_any_order_and_grouping(results):
    whole = merge_results(results, STATISTICS).states
    assert sum(whole["area"]["counts"]) == SHAPE[0] * SHAPE[1]
    for order in itertools.permutations(results, 4):
        rest = [each for each in results if not any(each is other for other in order)]
        groups = [merge_results(order[:1], STATISTICS), merge_results(order[1:], STATISTICS), *rest]
        assert merge_results(groups, STATISTICS).states == whole


def test_merging_keeps_every_piece_preview_and_measure_in_order(results):
    whole = merge_results(results, STATISTICS)
    assert whole.blocks == [block for part in results for block in part.blocks]
    assert [each.start for each in whole.previews] == [part.previews[0].start for part in results]
    assert whole.rows == [each for part in results for each in part.rows]
    assert whole.spanning == [each for part in results for each in part.spanning]


def test_a_pass_that_counts_nothing_changes_no_state(results):
    states = results[0].states
    assert merge_states({}, states, STATISTICS) == merge_states(states, {}, STATISTICS) == states
    assert merge_states({}, {}, STATISTICS) == {}


def cells_of(previews):
    """What each cell shows, exactly, by its place; a place has one cell."""
    found = {}
    for part in previews:
        for y, x in np.ndindex(part.labels.shape):
            arrays = (part.pixels[y, x], part.valid[y, x], part.labels[y, x])
            place = part.start[0] + y, part.start[1] + x
            assert place not in found
            found[place] = [(each.dtype, each.tobytes()) for each in arrays]
    return found


def test_a_staged_part_comes_back_as_it_was(store, results):
    part = merge_results(results, STATISTICS)

    loaded = staged(store, "a.part", part)

    assert (loaded.front.seconds, loaded.front.states) == (1.5, part.states)
    assert list(loaded.blocks()) == part.blocks
    assert (list(loaded.rows()), list(loaded.spanning())) == (part.rows, part.spanning)
    # Previews of tiles side by side have become one.
    assert len(loaded.front.previews) < len(part.previews)
    assert cells_of(loaded.front.previews) == cells_of(part.previews)


def test_a_staged_part_of_nothing_comes_back_as_nothing(store):
    loaded = staged(store, "empty.part", TileResults())
    assert (loaded.front.states, loaded.front.previews) == ({}, [])
    assert list(loaded.blocks()) == list(loaded.rows()) == list(loaded.spanning()) == []


def test_staged_parts_merge_as_those_in_memory(store, results):
    loaded = [staged(store, f"{i}.part", part) for i, part in enumerate(results)]

    states = {}
    for each in loaded[::-1]:
        states = merge_states(states, each.front.states, STATISTICS)

    assert states == merge_results(results, STATISTICS).states


def test_a_missing_part_is_a_missing_file(store):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.part"):
        StagedResults.open(store, "nowhere.part")
