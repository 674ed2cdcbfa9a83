"""Parts: what some tiles of one image give, in memory and staged in a file between two jobs.

A staged part is a header (states of the statistics, index of the pieces, previews' lengths) as JSON behind its length, then the previews, then
the pieces' payloads as they go into the mask file: joining parts copies bytes and decodes nothing.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from segcore.preview import PreviewPart
from segcore.raster import Piece, Sink
from segcore.statistic import Statistic
from segcore.storage import Store

States = dict[str, Any]
"""State of each statistic, by its name."""


@dataclass(frozen=True, slots=True)
class Part:
    """What some tiles of one image give."""

    pieces: list[Piece]
    states: States
    previews: list[PreviewPart]

    def dump(self, out: Sink, seconds: float) -> None:
        """Write a header (states, index of the pieces, previews) and the pieces' payloads behind it."""
        previews = [preview.to_bytes() for preview in self.previews]
        header = json.dumps(
            {
                "states": self.states,
                "pieces": [(piece.level, piece.row, piece.column, len(piece.payload)) for piece in self.pieces],
                "previews": [len(preview) for preview in previews],
                "seconds": seconds,
            }
        ).encode()
        out.write(struct.pack("<Q", len(header)))
        out.write(header)
        for payload in (*previews, *(piece.payload for piece in self.pieces)):
            out.write(payload)


@dataclass(frozen=True, slots=True)
class StagedPart:
    """The front of a staged part."""

    states: States
    index: list[tuple[int, int, int, int]]
    """Level, row, column and bytes of each piece, in the order of their payloads."""
    previews: list[PreviewPart]
    seconds: float
    offset: int
    """Where the payloads start."""

    @classmethod
    def load(cls, store: Store, name: str) -> StagedPart:
        """Read the front of the part with this name."""
        with store.open(name) as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
            previews = [PreviewPart.from_bytes(file.read(length)) for length in header["previews"]]
            return cls(header["states"], header["pieces"], previews, header["seconds"], file.tell())

    def pieces(self, store: Store, name: str) -> Iterator[Piece]:
        """Read its pieces one after the other."""
        with store.open(name) as file:
            file.seek(self.offset)
            for level, row, column, size in self.index:
                yield Piece(level, row, column, file.read(size))


def merge_parts(parts: Sequence[Part], statistics: Mapping[str, Statistic]) -> Part:
    """The parts of one image as one."""
    return Part(
        [piece for part in parts for piece in part.pieces],
        reduce(lambda a, b: merge_states(a, b, statistics), (part.states for part in parts)),
        [preview for part in parts for preview in part.previews],
    )


def merge_states(a: States, b: States, statistics: Mapping[str, Statistic]) -> States:
    """What two states of each statistic say together."""
    return {name: statistic.merge(a[name], b[name]) for name, statistic in statistics.items()}
