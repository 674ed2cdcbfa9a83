"""The results of tiles of one image, in memory and staged in files between two jobs.

A staged file is a `PackedFile`; it contains the blocks of a mask as in the mask's file, so that
merging results copies bytes and decodes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.figures.preview import PreviewPart, in_rows
from maskloom.segcore.masks.protocol import EncodedBlock
from maskloom.segcore.masks.quantised import Certainty
from maskloom.segcore.objects.two_pass import PackedLabels
from maskloom.segcore.statistics.protocol import Statistic
from maskloom.segcore.storage.packing import PackedFile, pack, packable, unpack
from maskloom.segcore.storage.store import Sink, Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

States = dict[str, Any]
"""State of each statistic, by name."""


@packable
@dataclass(frozen=True, slots=True)
class Staged:
    """The part of a staged file that is read at once."""

    states: States
    places: NDArray[np.int64]
    """(block, 1 + axes) level and index of each block."""
    previews: list[PreviewPart]
    seconds: float
    score_places: NDArray[np.int64]
    """As `places`, of the scores, whose index begins with the class."""
    certainty: Certainty


@dataclass(frozen=True, slots=True)
class TileResults:
    """The results of some tiles of one image. Each pass over the tiles fills some of the fields."""

    blocks: list[EncodedBlock] = field(default_factory=list)
    """Blocks of the mask."""
    states: States = field(default_factory=dict)
    previews: list[PreviewPart] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)
    """For each tile, the finished rows of the objects that are in no other tile, packed."""
    spanning: list[bytes] = field(default_factory=list)
    """For each tile, the measures of the objects that are in several tiles, packed."""
    scores: list[EncodedBlock] = field(default_factory=list)
    """Blocks of the scores."""
    certainty: Certainty = field(default_factory=Certainty)

    def stage(self, seconds: float, out: Sink) -> None:
        """Write a file that `StagedResults` reads. `seconds`: time spent on the tiles."""
        front = Staged(
            self.states,
            _places(self.blocks),
            in_rows(self.previews),
            seconds,
            _places(self.scores),
            self.certainty,
        )
        PackedFile.write(
            {
                "front": [pack(front)],
                "spanning": self.spanning,
                "rows": self.rows,
                "blocks": [block.payload for block in self.blocks],
                "scores": [block.payload for block in self.scores],
            },
            out,
        )


@dataclass(frozen=True, slots=True)
class StagedResults:
    """The staged results of some tiles; blocks and objects are read one at a time."""

    store: Store
    file: PackedFile
    front: Staged

    @classmethod
    def open(cls, store: Store, name: str) -> StagedResults:
        """Read the front of the file with this name. Raises `FileNotFoundError`."""
        file = PackedFile.open(store, name)
        return cls(store, file, unpack(Staged, file.one(store, "front", 0)))

    def blocks(self) -> Iterator[EncodedBlock]:
        """Read its blocks of the mask one after the other."""
        return self._blocks("blocks", self.front.places)

    def scores(self) -> Iterator[EncodedBlock]:
        """Read its blocks of the scores one after the other."""
        return self._blocks("scores", self.front.score_places)

    def _blocks(self, name: str, places: NDArray[np.int64]) -> Iterator[EncodedBlock]:
        payloads = self.file.each(self.store, name)
        for place, payload in zip(places.tolist(), payloads, strict=True):
            level, *index = place
            yield EncodedBlock(level, tuple(index), payload)

    def rows(self) -> Iterator[bytes]:
        """Read `TileResults.rows` one tile after the other."""
        return self.file.each(self.store, "rows")

    def spanning(self) -> Iterator[bytes]:
        """Read `TileResults.spanning` one tile after the other."""
        return self.file.each(self.store, "spanning")


@dataclass(frozen=True, slots=True)
class StagedLabels:
    """The `PackedLabels` of one tile in a staged file."""

    store: Store
    file: PackedFile
    number: int
    """Position of the tile in the file."""
    boundary: bytes

    @property
    def first_positions(self) -> bytes:
        """Read `PackedLabels.first_positions`."""
        return self.file.one(self.store, "first_positions", self.number)

    @staticmethod
    def write(labels: Sequence[PackedLabels], out: Sink) -> None:
        """Stage the labels of some tiles."""
        PackedFile.write(
            {
                "boundary": [each.boundary for each in labels],
                "first_positions": [each.first_positions for each in labels],
                "labels": [each.labels for each in labels],
            },
            out,
        )

    @classmethod
    def read(cls, store: Store, name: str) -> list[StagedLabels]:
        """The tiles of a file written by `write`. Raises `FileNotFoundError`."""
        file = PackedFile.open(store, name)
        boundaries = enumerate(file.all(store, "boundary"))
        return [cls(store, file, number, boundary) for number, boundary in boundaries]


def merge_results(parts: Sequence[TileResults], statistics: Mapping[str, Statistic]) -> TileResults:
    """Merge the results of several ranges of tiles of one image."""
    return TileResults(
        [block for part in parts for block in part.blocks],
        reduce(lambda a, b: merge_states(a, b, statistics), (part.states for part in parts)),
        [preview for part in parts for preview in part.previews],
        [each for part in parts for each in part.rows],
        [each for part in parts for each in part.spanning],
        [block for part in parts for block in part.scores],
        sum((part.certainty for part in parts), Certainty()),
    )


def _places(blocks: Sequence[EncodedBlock]) -> NDArray[np.int64]:
    """Level and index of each block."""
    return np.array([(block.level, *block.index) for block in blocks], np.int64)


def merge_states(a: States, b: States, statistics: Mapping[str, Statistic]) -> States:
    """Merge two states of each statistic. A pass that counts nothing has no states."""
    if not a or not b:
        return a or b
    return {name: statistic.merge(a[name], b[name]) for name, statistic in statistics.items()}
