"""Parts: what some tiles of one image give, in memory and staged in a file between two jobs.

A staged part is a header (states of the statistics, index of the pieces, lengths of previews and
measures) as JSON behind its length, then previews and measures, then the pieces' payloads as they
go into the mask file: putting parts together copies bytes and decodes nothing.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from maskloom.segcore.figures.preview import PreviewPart
from maskloom.segcore.geometry import Shape
from maskloom.segcore.masks.protocol import EncodedBlock
from maskloom.segcore.statistics.protocol import Statistic
from maskloom.segcore.storage.store import Sink, Store

States = dict[str, Any]
"""State of each statistic, by its name."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one tile has measured of its objects, packed."""

    rows: bytes
    """Finished rows of the objects that lie in one tile."""
    spanning: bytes
    """Measures of the objects that other tiles have a part in."""


@dataclass(frozen=True, slots=True)
class TileResults:
    """What some tiles of one image give. Each pass over the tiles fills what it knows."""

    pieces: list[EncodedBlock] = field(default_factory=list)
    states: States = field(default_factory=dict)
    previews: list[PreviewPart] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)

    def dump(self, out: Sink, seconds: float) -> None:
        """Write the header, and previews, measures and the pieces' payloads behind it."""
        previews = [preview.to_bytes() for preview in self.previews]
        measured = [blob for each in self.measured for blob in (each.rows, each.spanning)]
        header = json.dumps(
            {
                "states": self.states,
                "pieces": [(piece.level, piece.index, len(piece.payload)) for piece in self.pieces],
                "previews": [len(preview) for preview in previews],
                "measured": [len(blob) for blob in measured],
                "seconds": seconds,
            }
        ).encode()
        out.write(struct.pack("<Q", len(header)))
        out.write(header)
        for payload in (*previews, *measured, *(piece.payload for piece in self.pieces)):
            out.write(payload)


@dataclass(frozen=True, slots=True)
class StagedResults:
    """The front of a staged part."""

    name: str
    states: States
    index: list[tuple[int, Shape, int]]
    """Level, index and bytes of each piece, in the order of their payloads."""
    previews: list[PreviewPart]
    measured: list[int]
    """Bytes of the measures."""
    seconds: float
    offset: int
    """Where the measures start, and behind them the payloads."""

    @classmethod
    def load(cls, store: Store, name: str) -> StagedResults:
        """Read the front of the part with this name."""
        with store.open(name) as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
            previews = [PreviewPart.from_bytes(file.read(length)) for length in header["previews"]]
            return cls(
                name,
                header["states"],
                header["pieces"],
                previews,
                header["measured"],
                header["seconds"],
                file.tell(),
            )

    def pieces(self, store: Store) -> Iterator[EncodedBlock]:
        """Read its pieces one after the other."""
        with store.open(self.name) as file:
            file.seek(self.offset + sum(self.measured))
            for level, index, size in self.index:
                yield EncodedBlock(level, tuple(index), file.read(size))

    def measures(self, store: Store) -> Iterator[Measured]:
        """Read its measures one tile after the other."""
        with store.open(self.name) as file:
            file.seek(self.offset)
            for rows, spanning in zip(self.measured[::2], self.measured[1::2], strict=True):
                yield Measured(file.read(rows), file.read(spanning))


def merge_parts(parts: Sequence[TileResults], statistics: Mapping[str, Statistic]) -> TileResults:
    """The parts of one image as one."""
    return TileResults(
        [piece for part in parts for piece in part.pieces],
        reduce(lambda a, b: merge_states(a, b, statistics), (part.states for part in parts)),
        [preview for part in parts for preview in part.previews],
        [each for part in parts for each in part.measured],
    )


def merge_states(a: States, b: States, statistics: Mapping[str, Statistic]) -> States:
    """What two states of each statistic say together. A pass that counts nothing has no states."""
    if not a or not b:
        return a or b
    return {name: statistic.merge(a[name], b[name]) for name, statistic in statistics.items()}
