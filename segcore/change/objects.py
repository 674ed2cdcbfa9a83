"""What became of objects: two objects belong together if they have one class and share at least
half of the smaller one.

Objects that belong together, directly or through others, are one group. Its objects on both sides
say what happened:

    before 1, after 1        grown, shrunk, or same (equal area)
    before 0, after 1        appeared
    before 1, after 0        gone
    before 1, after several  split
    before several, after 1  merged
    several on both sides    regrouped
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.change.joint import Joint
    from maskloom.segcore.raster.spec import RasterSpec

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]

LEAST_SHARE = 0.5
"""Of the smaller object."""


def object_changes(joint: Joint, classes: tuple[Ints, Ints], spec: RasterSpec) -> pa.Table:
    """One row per two objects that belong together, and per object that appeared or is gone.

    `joint` pairs ids of objects; 0 is background. `classes` are those of the objects of each pair.
    The columns of a side that has no object are null.
    """
    areas = joint.areas(spec)
    ids_a, pixels_a, area_a, class_a = _sizes(joint.before, classes[0], joint.pixels, areas)
    ids_b, pixels_b, area_b, class_b = _sizes(joint.after, classes[1], joint.pixels, areas)
    both = (joint.before > 0) & (joint.after > 0)
    a = np.searchsorted(ids_a, joint.before[both])
    b = np.searchsorted(ids_b, joint.after[both])
    shared, shared_area = joint.pixels[both], areas[both]
    linked = shared >= LEAST_SHARE * np.minimum(pixels_a[a], pixels_b[b])
    linked &= class_a[a] == class_b[b]
    a, b, shared, shared_area = a[linked], b[linked], shared[linked], shared_area[linked]
    group, events = _groups(a, b, (area_a, area_b))
    alone_a = np.setdiff1d(np.arange(len(ids_a)), a)
    alone_b = np.setdiff1d(np.arange(len(ids_b)), b)
    # -1: no object on this side.
    none_a, none_b = np.full(len(alone_b), -1), np.full(len(alone_a), -1)
    rows_a = np.concatenate([a, alone_a, none_a])
    rows_b = np.concatenate([b, none_b, alone_b])
    zeros = np.zeros(len(alone_a) + len(alone_b))
    all_groups = np.concatenate([group[a], group[alone_a], group[len(ids_a) + alone_b]])
    table = pa.table(
        {
            "event": pa.array(events[all_groups], pa.string()),
            "group": all_groups.astype(np.int64) + 1,
            "object_a": _column(ids_a, rows_a),
            "object_b": _column(ids_b, rows_b),
            "class_id_a": _column(class_a, rows_a),
            "class_id_b": _column(class_b, rows_b),
            "pixel_count_a": _column(pixels_a, rows_a),
            "pixel_count_b": _column(pixels_b, rows_b),
            "area_a": _column(area_a, rows_a),
            "area_b": _column(area_b, rows_b),
            "overlap_pixels": np.concatenate([shared, zeros.astype(np.int64)]),
            "overlap_area": np.concatenate([shared_area, zeros]),
        }
    )
    return table.sort_by(
        [("group", "ascending"), ("object_a", "ascending"), ("object_b", "ascending")]
    )


def _sizes(
    ids: Ints, classes: Ints, pixels: Ints, areas: Floats
) -> tuple[Ints, Ints, Floats, Ints]:
    """The objects of one side in ascending order, their pixels, areas and classes."""
    known = ids > 0
    found, first, number = np.unique(ids[known], return_index=True, return_inverse=True)
    count = np.zeros(len(found), np.int64)
    np.add.at(count, number, pixels[known])
    area = np.zeros(len(found))
    np.add.at(area, number, areas[known])
    return found, count, area, classes[known][first]


def _groups(a: Ints, b: Ints, areas: tuple[Floats, Floats]) -> tuple[Ints, NDArray[np.str_]]:
    """The group of each object, those before first, and what happened to each group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = map(len, areas)
    size = first + second
    links = coo_array((np.ones(len(a), np.int8), (a, first + b)), shape=(size, size))
    number, group = connected_components(links, directed=False)
    before = np.bincount(group[:first], minlength=number)
    after = np.bincount(group[first:], minlength=number)
    grown = np.bincount(group[first:], areas[1], number) - np.bincount(
        group[:first], areas[0], number
    )
    events = np.select(
        [
            before == 0,
            after == 0,
            (before == 1) & (after > 1),
            (before > 1) & (after == 1),
            before > 1,
            grown > 0,
            grown < 0,
        ],
        ["appeared", "gone", "split", "merged", "regrouped", "grown", "shrunk"],
        "same",
    )
    return group.astype(np.int64), events


def _column(values: NDArray[np.generic], rows: Ints) -> pa.Array:
    """Values by row; null where the row is negative."""
    filled = np.append(values, values.dtype.type(0))
    return pa.array(filled[rows], mask=rows < 0)
