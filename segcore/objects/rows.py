"""Rows of objects in the order of their ids, so the order in a table does not depend on the tiling.

Ids count objects by their first pixels. So the objects that begin in one layer of tiles along the
first axis (in images: one row of tiles) have lower ids than those that begin in the next, and only
a layer of tiles must be sorted at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

_ID = "object_id"


def rows_in_order(tiles: Iterable[pa.Table], spanning: pa.Table, across: int) -> Iterator[pa.Table]:
    """All rows by ascending id, in several tables.

    `tiles` holds, in the order of the tiles, `across` of them per layer, the rows of objects that
    are in one tile only; `spanning` holds those of objects in several tiles.
    """
    rest = spanning.sort_by(_ID)
    waiting = rest.slice(0, 0)
    source = iter(tiles)
    while row := list(islice(source, across)):
        begun = pa.concat_tables(row)
        if len(begun):
            before = _first_from(rest, pc.min(begun[_ID]).as_py())
            yield pa.concat_tables([waiting, rest.slice(0, before)]).sort_by(_ID)
            rest, waiting = rest.slice(before), begun
    yield pa.concat_tables([waiting, rest]).sort_by(_ID)


def _first_from(table: pa.Table, least: int) -> int:
    """Number of rows of a sorted table with lower ids."""
    return int(pc.sum(pc.less(table[_ID], least)).as_py() or 0)
