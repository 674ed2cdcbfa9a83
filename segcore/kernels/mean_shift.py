"""Compiled loops of the joint mean shift. Import only inside functions.

Positions are relative to the pixel that shifts, not to the edge of an array, and the sums of each
window start from zero, separately in each lane. So a result depends on the surroundings of its
pixel only, bit for bit the same in any tile. Sums of 8-bit numbers are exact for any allowed
radius, of 16-bit numbers up to a radius of 31.
"""

from __future__ import annotations

import math

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit
from maskloom.segcore.kernels.simd import (
    LANES,
    at_most,
    broadcast,
    count_from,
    load_lanes,
    load_one,
    logical_and,
    means,
    none,
    plus_where,
    squared_distance,
    squared_distances,
    total,
)

REST = 0.01
"""A pixel has converged when it shifts by at most this fraction of either radius."""
_LARGEST = np.float32(3e38)


@strict_njit
def _mean(planes, layout, place, values, radii):  # type: ignore[no-untyped-def]
    """(number, mean position, mean values) of the pixels within both radii of a position (y, x) and
    values.

    `layout` is (flat position of the pixel that positions are relative to, numbers per plane,
    numbers per row).
    """
    at, plane, stride = layout
    near, alike, radius = radii
    top, bottom, left = (
        math.ceil(place[0] - radius),
        math.floor(place[0] + radius),
        math.ceil(place[1] - radius),
    )
    count = down = right = broadcast(np.float32(0))
    held = none(values)
    for first in range(left, left + 2 * int(radius) + 1, LANES):
        columns = count_from(np.float32(first))
        across = squared_distances(columns, (place[1],))
        for row in range(top, bottom + 1):
            dy = np.float32(row) - place[0]
            here = load_lanes(planes, at + row * stride + first, plane, values)
            chosen = logical_and(
                at_most(across, near - dy * dy), at_most(squared_distances(here, values), alike)
            )
            count = plus_where(count, chosen, broadcast(np.float32(1)))
            down = plus_where(down, chosen, broadcast(np.float32(row)))
            right = plus_where(right, chosen, columns)
            held = plus_where(held, chosen, here)
    number = total(count)
    return (
        number,
        (np.float32(total(down) / number), np.float32(total(right) / number)),
        means(held, number),
    )


@strict_njit
def _shift(planes, layout, values, radii, most_steps):  # type: ignore[no-untyped-def]
    """(position, values) to which a pixel with these values converges, the position relative to the
    pixel.
    """
    place = (np.float32(0), np.float32(0))
    near, alike = np.float32(REST * REST) * radii[0], np.float32(REST * REST) * radii[1]
    for _ in range(most_steps):
        number, new_place, new_values = _mean(planes, layout, place, values, radii)
        # The window around a mean can be empty: points may be near in position or in value, but
        # none in both.
        if number == 0:
            break
        rests = (
            squared_distance(new_place, place) <= near
            and squared_distance(new_values, values) <= alike
        )
        place, values = new_place, new_values
        if rests:
            break
    return place, values


@strict_njit
def shift_pixels(planes, layout, radii, most_steps, like, modes):  # type: ignore[no-untyped-def]
    """Set `modes` (2 + band, y, x) to the end (y, x, values) of each pixel's path, y and x relative
    to the pixel.

    `planes` are float32, flat, NaN in all channels of ignored pixels, with a margin that contains
    every window. `layout` is (flat position of the first pixel, numbers per plane, numbers per
    row); `radii` are float32: spatial squared, range squared, spatial; `like` holds a float32 for
    each channel.
    """
    origin, plane, stride = layout
    for row in range(modes.shape[1]):
        for column in range(modes.shape[2]):
            at = origin + row * stride + column
            place, values = (
                (np.float32(np.nan), np.float32(np.nan)),
                load_one(planes, at, plane, like),
            )
            if not math.isnan(values[0]):
                place, values = _shift(planes, (at, plane, stride), values, radii, most_steps)
            modes[0, row, column], modes[1, row, column] = place
            for channel in range(modes.shape[0] - 2):
                modes[2 + channel, row, column] = values[channel]


@strict_njit
def _weight(modes, one, other, radii):  # type: ignore[no-untyped-def]
    """The larger of the squared distances in space and in values, in squared radii; infinite for
    ignored pixels.
    """
    (row, column), (next_row, next_column) = one, other
    if math.isnan(modes[2, row, column]) or math.isnan(modes[2, next_row, next_column]):
        return np.float32(np.inf)
    dy = modes[0, next_row, next_column] + np.float32(next_row - row) - modes[0, row, column]
    dx = modes[1, next_row, next_column] + np.float32(next_column - column) - modes[1, row, column]
    unlike = np.float32(0)
    for channel in range(2, modes.shape[0]):
        difference = modes[channel, next_row, next_column] - modes[channel, row, column]
        unlike += difference * difference
    return min(max(unlike / radii[1], (dy * dy + dx * dx) / radii[0]), _LARGEST)


@strict_njit
def weigh_edges(modes, radii, right, down):  # type: ignore[no-untyped-def]
    """Set the weights of the edges from each pixel to the right and down; infinite at the end of
    `modes`.
    """
    for row in range(right.shape[0]):
        for column in range(right.shape[1]):
            here = row, column
            right[row, column] = down[row, column] = np.float32(np.inf)
            if column + 1 < modes.shape[2]:
                right[row, column] = _weight(modes, here, (row, column + 1), radii)
            if row + 1 < modes.shape[1]:
                down[row, column] = _weight(modes, here, (row + 1, column), radii)
