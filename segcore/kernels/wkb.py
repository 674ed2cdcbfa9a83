"""Compiled loops that turn rings of coordinates into well-known binary."""

from __future__ import annotations

from typing import Any

from maskloom.segcore.kernels.compiling import strict_njit


@strict_njit
def orient(points: Any, offsets: Any, exterior: Any) -> None:
    """Turn rings around so that exteriors go counter-clockwise (x to the right, y upwards) and
    holes clockwise; first points stay.
    """
    for ring in range(len(exterior)):
        first, last = offsets[ring], offsets[ring + 1]
        total = 0.0
        for i in range(first + 1, last - 1):
            x, y = points[i, 0] - points[first, 0], points[i, 1] - points[first, 1]
            total += (
                x * (points[i + 1, 1] - points[first, 1])
                - (points[i + 1, 0] - points[first, 0]) * y
            )
        if (total > 0) != exterior[ring]:
            i, j = first + 1, last - 1
            while i < j:
                for axis in range(2):
                    points[i, axis], points[j, axis] = points[j, axis], points[i, axis]
                i, j = i + 1, j - 1


@strict_njit
def unwind(longitudes: Any, offsets: Any, broken: Any) -> None:
    """Make longitudes continuous along rings that cross the antimeridian; those that go around a
    pole are `broken`.
    """
    for ring in range(len(broken)):
        first, last = offsets[ring], offsets[ring + 1]
        before, turn = longitudes[first], 0.0
        for i in range(first + 1, last + 1):
            here = longitudes[i] if i < last else longitudes[first]
            if here - before > 180.0:
                turn -= 360.0
            elif here - before < -180.0:
                turn += 360.0
            before = here
            if i < last:
                longitudes[i] = here + turn
        broken[ring] = turn != 0.0


@strict_njit
def _write_number(out: Any, at: Any, number: Any) -> Any:
    for k in range(4):
        out[at + k] = (number >> (8 * k)) & 255
    return at + 4


@strict_njit
def write_wkb(out: Any, starts: Any, rings: Any, exterior: Any, offsets: Any, points: Any) -> None:
    """Write the polygons of each object. Its rings are `rings[i]` to `rings[i + 1]`, each polygon's
    exterior first; no bytes, nothing written.

    `points` holds the bytes of the coordinates, 16 a point.
    """
    for i in range(len(starts) - 1):
        at = starts[i]
        if at == starts[i + 1]:
            continue
        polygons = 0
        for ring in range(rings[i], rings[i + 1]):
            polygons += exterior[ring]
        if polygons > 1:
            out[at] = 1
            at = _write_number(out, _write_number(out, at + 1, 6), polygons)
        for ring in range(rings[i], rings[i + 1]):
            if exterior[ring]:
                stop = ring + 1
                while stop < rings[i + 1] and not exterior[stop]:
                    stop += 1
                out[at] = 1
                at = _write_number(out, _write_number(out, at + 1, 3), stop - ring)
            first, last = offsets[ring], offsets[ring + 1]
            at = _write_number(out, at, last - first + 1)
            for k in range(16 * first, 16 * last):
                out[at] = points[k]
                at += 1
            for k in range(16 * first, 16 * first + 16):
                out[at] = points[k]
                at += 1
