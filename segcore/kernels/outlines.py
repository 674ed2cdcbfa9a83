"""Areas on the ellipsoid: of zones, and of patches with an outline of points. In strict arithmetic,
point by point.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit


@strict_njit
def _between(low: Any, high: Any, squared: Any) -> Any:
    """Area between two latitudes in radians, per radian of longitude, in units of half the squared
    semi-minor axis.

    Snyder, Map Projections, 1987, equation 3-12: the area from the equator to the latitude with
    sine s is s/(1-e²s²) + atanh(e·s)/e. Differences of both terms are taken in closed form, because
    they are nearly equal at the two edges of a narrow zone.
    """
    s, t = math.sin(low), math.sin(high)
    step = 2.0 * math.cos((low + high) / 2) * math.sin((high - low) / 2)
    first = step * (1.0 + squared * s * t) / ((1.0 - squared * s * s) * (1.0 - squared * t * t))
    if squared <= 0.0:
        return first + step
    e = math.sqrt(squared)
    return first + math.atanh(e * step / (1.0 - squared * s * t)) / e


@strict_njit
def zones(low: Any, high: Any, squared: Any, out: Any) -> None:
    """Write the areas between latitudes in radians, in the units of `_between`, never negative."""
    for i in range(len(out)):
        out[i] = abs(_between(low[i], high[i], squared))


@strict_njit
def _triangle(points: Any, a: Any, b: Any, c: Any) -> Any:
    """Solid angle of a spherical triangle, positive if counter-clockwise as seen from outside.

    Van Oosterom and Strackee, The Solid Angle of a Plane Triangle, 1983; computed from differences,
    so small triangles keep their digits.
    """
    ux, uy, uz = (
        points[b, 0] - points[a, 0],
        points[b, 1] - points[a, 1],
        points[b, 2] - points[a, 2],
    )
    vx, vy, vz = (
        points[c, 0] - points[a, 0],
        points[c, 1] - points[a, 1],
        points[c, 2] - points[a, 2],
    )
    volume = (
        points[a, 0] * (uy * vz - uz * vy)
        + points[a, 1] * (uz * vx - ux * vz)
        + points[a, 2] * (ux * vy - uy * vx)
    )
    near = 1.0
    for i, j in ((a, b), (b, c), (c, a)):
        near += (
            points[i, 0] * points[j, 0] + points[i, 1] * points[j, 1] + points[i, 2] * points[j, 2]
        )
    return 2.0 * math.atan2(volume, near)


@strict_njit
def patches(longitudes: Any, latitudes: Any, squared: Any, angles: Any, gaps: Any) -> None:
    """Measure patches of the ellipsoid on its authalic sphere, where areas equal those of the
    ellipsoid.

    Row i of `longitudes` and `latitudes` (n, point), in radians, follows an outline, which the
    great circle from its last point to its first closes. Writes the solid angles of the polygons
    through every fourth, every second and every point to `angles` (n, 3). Writes to `gaps` (n, 3)
    the longest step between two points, the step that closes the outline, and the distance of that
    step from a meridian, all in radii.
    """
    count = longitudes.shape[1]
    whole = _between(0.0, math.pi / 2, squared)
    points = np.empty((count, 3))
    for i in range(len(angles)):
        for k in range(count):
            # 1 - sin of the authalic latitude, without the cancellation of the sine at the poles.
            cap = _between(abs(latitudes[i, k]), math.pi / 2, squared) / whole
            radius = math.sqrt(max(cap * (2.0 - cap), 0.0))
            points[k, 0], points[k, 1] = (
                radius * math.cos(longitudes[i, k]),
                radius * math.sin(longitudes[i, k]),
            )
            points[k, 2] = math.copysign(1.0 - cap, latitudes[i, k])
        for level in range(3):
            stride, total = 4 >> level, 0.0
            for k in range(stride, count - 1, stride):
                total += _triangle(points, 0, k, k + stride)
            angles[i, level] = total
        longest = 0.0
        for k in range(count - 1):
            longest = max(longest, _distance(points, k, k + 1))
        last = count - 1
        gaps[i, 0], gaps[i, 1] = longest, _distance(points, last, 0)
        gaps[i, 2] = abs(points[last, 0] * points[0, 1] - points[last, 1] * points[0, 0])


@strict_njit
def _distance(points: Any, a: Any, b: Any) -> Any:
    return math.sqrt(
        (points[a, 0] - points[b, 0]) ** 2
        + (points[a, 1] - points[b, 1]) ** 2
        + (points[a, 2] - points[b, 2]) ** 2
    )
