"""Results of tiles come back from their files as they were, and merge as their statistics do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskloom.segcore.figures.preview import PreviewPart
from maskloom.segcore.masks.protocol import EncodedBlock
from maskloom.segcore.objects.two_pass import PackedLabels
from maskloom.segcore.pipeline.tile_results import (
    StagedLabels,
    StagedResults,
    TileResults,
    merge_results,
    merge_states,
)
from maskloom.segcore.statistics.area import Area
from maskloom.segcore.storage.store import Store

STATE = {"counts": [3, 2**70], "nodata": 1, "areas": [5, 7]}
STATISTICS = {"area": Area()}


def results_of(number: int, axes: int = 2) -> TileResults:
    preview = PreviewPart(
        (number, 0), np.full((2, 3, 1), number, np.float32), np.ones((2, 3), bool), np.eye(2, 3)
    )
    blocks = [EncodedBlock(0, (number,) * axes, b"pixels"), EncodedBlock(1, (0,) * axes, b"")]
    return TileResults(blocks, {"area": STATE}, [preview], [b"rows %d" % number], [b"spanning"])


@pytest.mark.parametrize("axes", [2, 3])
def test_staged_results_are_read_back(tmp_path: Path, axes: int) -> None:
    store, results = Store(str(tmp_path)), results_of(4, axes)
    with store.writing("staging/results") as out:
        results.stage(1.5, out)
    staged = StagedResults.open(store, "staging/results")
    assert list(staged.blocks()) == results.blocks
    assert staged.front.states == results.states
    assert staged.front.seconds == 1.5
    assert list(staged.rows()) == results.rows
    assert list(staged.spanning()) == results.spanning
    (preview,) = staged.front.previews
    assert preview.start == (4, 0)
    assert np.array_equal(preview.pixels, results.previews[0].pixels)
    assert np.array_equal(preview.labels, results.previews[0].labels)


def test_a_pass_that_encodes_nothing_is_staged_too(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.writing("staging/results") as out:
        TileResults(rows=[b"a"], spanning=[b"b"]).stage(0.0, out)
    staged = StagedResults.open(store, "staging/results")
    assert list(staged.blocks()) == staged.front.previews == []
    assert staged.front.states == {}
    assert (list(staged.rows()), list(staged.spanning())) == ([b"a"], [b"b"])


def test_staged_labels_are_read_tile_by_tile(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    labels = [PackedLabels(b"edge %d" % i, b"firsts %d" % i, b"labels") for i in range(3)]
    with store.writing("staging/labels") as out:
        StagedLabels.write(labels, out)
    tiles = StagedLabels.read(store, "staging/labels")
    assert [tile.boundary for tile in tiles] == [each.boundary for each in labels]
    assert [tile.first_positions for tile in tiles] == [each.first_positions for each in labels]


def test_results_of_tiles_merge_in_their_order() -> None:
    one, other = results_of(1), results_of(2)
    merged = merge_results([one, TileResults(), other], STATISTICS)
    assert merged.blocks == one.blocks + other.blocks
    assert merged.rows == [b"rows 1", b"rows 2"]
    assert [preview.start for preview in merged.previews] == [(1, 0), (2, 0)]
    assert merged.states["area"] == {"counts": [6, 2**71], "nodata": 2, "areas": [10, 14]}
    assert merge_states({}, {"area": STATE}, STATISTICS) == {"area": STATE}
