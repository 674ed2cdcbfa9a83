"""Objects whose pixels belong to a part elsewhere, the same for any tiling.

A tile knows the *parts*, connected sets of pixels, of its core and of `reach` pixels around it; the
parts may go on beyond. Each pixel of the core may belong to the part at some place within `reach`
of it. Two tiles see the same parts where they overlap, cut at different places: what shares a pixel
there is one part (`join_parts`). Nothing depends on the size of a part or of an object.

The pixels of a part are its object. Sizes and scores of its classes are whole numbers, added up
over tiles; so objects that are too small are dropped after joining, and the class of an object is
that of the greatest sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.geometry import Box, Tile
from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
from maskloom.segcore.objects.faces import neighbours
from maskloom.segcore.objects.merging import Nodes, connected
from maskloom.segcore.objects.tile_overlap import expand, frame_runs, interior_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Shape

QUANTA = 2**16 - 1
"""Class scores are added up in whole parts of one."""


@dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """What a network says of the pixels of a box of an image."""

    seen: Box
    classes: NDArray[np.float32]
    """(y, x, class): probabilities, the background first."""
    vectors: NDArray[np.float32]
    """(y, x, 2): x and y."""
    valid: NDArray[np.bool_]
    """(y, x): whether there is data."""


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """The core of a tile whose maps are in other pixels."""

    nearest: tuple[NDArray[np.int_], NDArray[np.int_]]
    """For each pixel of the core, the index of that of the maps' core that contains its centre."""
    valid: NDArray[np.bool_]
    """(y, x): whether a pixel of the core has data."""


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Pixels of some objects, and their class scores."""

    sizes: NDArray[np.int64]
    votes: NDArray[np.int64]
    """(object, class): sums of scores in `QUANTA`-ths, the background first."""

    @classmethod
    def of(cls, owners: NDArray[np.uint32], classes: NDArray[np.float32], count: int) -> Tally:
        """The tally of owners 0 ... count (y, x), from class scores (y, x, class). That of 0, for
        no owner, is empty.
        """
        from maskloom.segcore.kernels.flow import sum_votes

        sizes = np.zeros(count + 1, np.int64)
        votes = np.zeros((count + 1, classes.shape[-1]), np.int64)
        sum_votes(owners, classes, QUANTA, sizes, votes)
        return cls(sizes, votes)

    @property
    def class_of(self) -> NDArray[np.uint16]:
        """(object,): the class of each, not the background; the first of equals."""
        return np.asarray(self.votes[:, 1:].argmax(axis=1) + 1, np.uint16)

    @property
    def scores(self) -> NDArray[np.float32]:
        """(object,): mean score of all classes but the background over its pixels, 0 to 1."""
        background = self.votes[:, 0] / np.maximum(self.sizes * QUANTA, 1)
        return np.asarray(1 - background, np.float32)

    def __getitem__(self, chosen: NDArray[np.integer]) -> Tally:
        return Tally(self.sizes[chosen], self.votes[chosen])


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The parts that a tile knows, from 1 on."""

    numbers: NDArray[np.uint32]
    """The parts of the box `around` the core; 0: none."""
    core: Box
    around: Box
    """The core and `reach` pixels around it, as far as the image goes."""
    reach: int
    """Pixels between a pixel and a place of its part, at most, along each axis."""
    shape: Shape
    """Of the image."""


def part_fragments(
    parts: Parts,
    owners: NDArray[np.uint32],
    maps: Maps,
    min_size: int,
    shown: Shown | None = None,
) -> Fragments:
    """The objects of one tile, from the part that each pixel of its core belongs to (0: none), and
    from the scores of their classes. Numbers 1 ... n are fragments, higher numbers are parts
    without a pixel in the core.

    With `shown`, parts and maps are those of resampled pixels (`segcore.models.rescaled`), which
    may have pixels of two tiles, and the objects have the pixels of the tile.
    """
    classes = maps.classes[parts.core.relative_to(maps.seen).slices]
    if shown is not None:
        owners = np.where(shown.valid, owners[shown.nearest], np.uint32(0))
        classes = classes[shown.nearest]
    around = parts.around
    count = int(parts.numbers.max(initial=0))
    tally = Tally.of(owners, np.ascontiguousarray(classes), count)
    # One more than the reach, for resampled pixels of two tiles.
    interior = interior_of(Tile((0, 0), parts.core, around), parts.reach + 1, parts.shape)
    run_length, run_value = frame_runs(parts.numbers, interior)
    seen = np.zeros(count + 1, np.bool_)
    seen[run_value] = True
    # The pixels of a part that no other tile sees are all in this core.
    owned = np.where(seen, tally.sizes > 0, tally.sizes >= min_size)
    seen[0] = owned[0] = False
    order = np.concatenate([[0], np.flatnonzero(owned), np.flatnonzero(seen & ~owned)])
    number = np.zeros(count + 1, np.uint32)
    number[order] = np.arange(len(order))
    fragments = int(np.count_nonzero(owned))
    nodes = np.sort(number[np.flatnonzero(seen)])
    known = tally[order[nodes]]
    kept = tally[order[: fragments + 1]]
    class_of, scores = kept.class_of, kept.scores
    class_of[0], scores[0] = 0, 0
    return Fragments(
        number[owners],
        class_of,
        {
            "start": np.array(around.start, np.int64),
            "stop": np.array(around.stop, np.int64),
            "run_length": run_length,
            "run_value": number[run_value],
            "count": np.array([fragments], np.int64),
            "nodes": nodes,
            "sizes": known.sizes,
            "votes": known.votes,
        },
        scores,
    )


def join_parts(grid: Grid, boundaries: Sequence[TileBoundary], min_size: int) -> list[Equivalences]:
    """Join the parts of all tiles, from the boundaries of `part_fragments` in the order of the
    grid; objects of fewer than `min_size` pixels become background.
    """
    # Copies, because the arrays of a boundary may share their memory.
    counts, names, sizes, votes, starts, stops = zip(
        *(
            [
                boundary[name].copy()
                for name in ("count", "nodes", "sizes", "votes", "start", "stop")
            ]
            for boundary in boundaries
        ),
        strict=True,
    )
    nodes = Nodes(list(names))
    boxes = [
        Box(tuple(map(int, start)), tuple(map(int, stop)))
        for start, stop in zip(starts, stops, strict=True)
    ]
    ones, others = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    reach = tuple(-(-halo // side) for halo, side in zip(grid.margin, grid.tile, strict=True))
    for number, other, _ in neighbours(grid, reach):
        overlap = boxes[number] & boxes[other]
        if overlap.size == 0:
            continue
        one, two = (
            expand(each["run_length"], each["run_value"], box, overlap)
            for each, box in (
                (boundaries[number], boxes[number]),
                (boundaries[other], boxes[other]),
            )
        )
        both = (one > 0) & (two > 0)
        # Pairs as single numbers, because there are few among many pixels.
        pairs = np.unique(one[both].astype(np.uint64) << np.uint64(32) | two[both])
        ones.append(nodes.of(number, (pairs >> np.uint64(32)).astype(np.uint32)))
        others.append(nodes.of(other, (pairs & np.uint64(2**32 - 1)).astype(np.uint32)))
    groups = connected(int(nodes.offsets[-1]), np.concatenate(ones), np.concatenate(others))
    total = Tally(
        np.zeros(int(groups.max(initial=-1)) + 1, np.int64),
        np.zeros((int(groups.max(initial=-1)) + 1, votes[0].shape[1]), np.int64),
    )
    np.add.at(total.sizes, groups, np.concatenate(sizes))
    np.add.at(total.votes, groups, np.concatenate(votes))
    kept = total.sizes >= min_size
    class_of = np.where(kept, total.class_of, 0).astype(np.uint16)
    scores, numbers = total.scores, np.where(kept, np.arange(1, len(kept) + 1), 0)
    found = []
    for i, (count, each) in enumerate(zip(counts, names, strict=True)):
        of = groups[nodes.offsets[i] : nodes.offsets[i + 1]][each <= count[0]]
        found.append(
            Equivalences(
                each[each <= count[0]].astype(np.uint32), numbers[of], class_of[of], scores[of]
            )
        )
    return found
