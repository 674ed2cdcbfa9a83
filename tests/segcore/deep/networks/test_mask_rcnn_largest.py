"""The size of the largest object of training images, which becomes the halo of the segmenter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from maskloom.segcore.geometry import Box
from maskloom.segcore.training.dataset import DatasetWindow
from maskloom.segcore.training.instances import largest_side


class Strips:
    """Stands for a collection whose images come in strips of some rows."""

    def __init__(self, images: list[np.ndarray], rows: int) -> None:
        self.images, self.rows = images, rows

    def strips(self, number: int, multiple: int) -> Iterator[tuple[Box, DatasetWindow, np.ndarray]]:
        ids = self.images[number]
        for top in range(0, len(ids), self.rows):
            part = ids[top : top + self.rows]
            box = Box((top, 0), (top + len(part), ids.shape[1]))
            yield (
                box,
                DatasetWindow(
                    part[..., None], np.ones(part.shape, bool), (part > 0).astype(np.uint8), part
                ),
                part,
            )


def test_objects_are_measured_over_strips_and_pieces() -> None:
    one, other = np.zeros((40, 30), np.uint16), np.zeros((20, 50), np.uint16)
    one[3:24, 5:9] = 60_000
    one[30:34, 2:14] = 7
    other[2, 4] = other[5, 44] = 9
    every = np.ones((10, 12), np.uint16)
    for rows in (4, 100):
        collection = cast("Any", Strips([one, other, every, np.zeros((8, 8), np.uint16)], rows))
        assert [largest_side(collection, [number]) for number in range(4)] == [21, 41, 12, 0]
        assert largest_side(collection, [0, 3]) == 21
        assert largest_side(collection, []) == 0
