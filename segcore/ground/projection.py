"""Projections: the ground area of a map unit, measured rather than looked up.

The ground density at a point is the ground area in square metres per square unit of the map. It is
measured with PROJ: transform the point to the ellipsoid in space, displace it by a few hundred
metres along two tangents of the ellipsoid, and transform the displaced points back to the map. The
parallelogram that they span gives the Jacobian of the projection. This holds for every projection:
no special formulas, poles or axis units are needed. The relative error is about 1e-11.

PROJ computes all trigonometry point by point, and all other operations are exactly rounded. So the
density at a point has the same bits whatever other points are in the array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from maskloom.segcore.errors import FormatError

if TYPE_CHECKING:
    from pyproj import CRS, Transformer

    from maskloom.segcore.geometry import Affine

Floats = NDArray[np.float64]

_STEPS = (1e-4, 1e-6, 1e-8)
"""Step lengths along the tangents, in radii of the planet. The short ones serve points next to a
cut of the map.
"""
_RETURN = 1e-6
"""Tolerance of the round trip from the map to the ellipsoid and back, in radii of the planet."""


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A map of an ellipsoid, with the ground area of its units."""

    to_base: Transformer
    """From the map (x, y) to longitude and latitude on the map's own datum."""
    to_space: Transformer
    """From longitude and latitude (degrees) and height (metres) to geocentric coordinates in
    metres.
    """
    degrees: float
    """Degrees per angular unit of `to_base`."""
    semi_major: float
    """Semi-axes of the ellipsoid in metres."""
    semi_minor: float
    unit: float
    """Metres per unit of the map; for angular units, at the equator."""
    period: float
    """Length of a full turn in x if x is an angle, in units of the map; otherwise infinite."""
    is_lonlat: bool
    """Whether x and y are longitude and latitude."""

    @property
    def squared_eccentricity(self) -> float:
        """Squared eccentricity of the ellipsoid."""
        return (
            (self.semi_major - self.semi_minor)
            * (self.semi_major + self.semi_minor)
            / self.semi_major**2
        )

    @property
    def squared_radius(self) -> float:
        """Squared radius of the authalic sphere: square metres of the ellipsoid per steradian of
        that sphere.
        """
        e = math.sqrt(self.squared_eccentricity)
        return self.semi_major**2 / 2 + self.semi_minor**2 / 2 * (
            math.atanh(e) / e if e > 0 else 1.0
        )

    def side(self, affine: Affine) -> float:
        """Side of a pixel in radii of the planet, if the map were true to scale."""
        a, b, _, d, e, _ = affine
        return max(math.hypot(a, d), math.hypot(b, e)) * self.unit / self.semi_major

    def locate(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Longitude and latitude, in radians on the map's own datum, of points of the map.

        Same shape as the input. Not finite outside the domain.
        """
        longitude, latitude = self.to_base.transform(x, y)
        with np.errstate(invalid="ignore"):
            return np.asarray(longitude) * math.radians(self.degrees), np.asarray(
                latitude
            ) * math.radians(self.degrees)

    def contains(self, x: Floats, y: Floats) -> NDArray[np.bool_]:
        """Whether points of the map are inside its domain: whether the round trip to the ellipsoid
        returns to them.
        """
        longitude, latitude = self.to_base.transform(x, y)
        back = self.to_base.transform(longitude, latitude, direction="INVERSE")
        with np.errstate(invalid="ignore"):
            across, down = back[0] - x, back[1] - y
            if math.isfinite(self.period):
                across = across - self.period * np.rint(across / self.period)
            near = np.maximum(np.abs(across), np.abs(down)) <= _RETURN * self.semi_major / self.unit
            shown: NDArray[np.bool_] = near & (np.abs(latitude) * self.degrees <= 90 + 1e-12)
            return shown

    def density(self, x: Floats, y: Floats) -> Floats:
        """Ground area in square metres per square unit of the map at points (n,), shape (n,). 0
        outside the domain.
        """
        density = np.zeros(len(x))
        longitude, latitude = self.to_base.transform(x, y)
        space = self.to_space.transform(
            longitude * self.degrees, latitude * self.degrees, np.zeros(len(x))
        )
        place = np.stack(space, axis=-1)
        pending = np.flatnonzero(np.isfinite(place).all(axis=-1))
        for step in _STEPS:
            if not len(pending):
                break
            found, good = self._measure(
                place[pending], np.stack((x[pending], y[pending])), step * self.semi_major
            )
            density[pending[good]] = found[good]
            pending = pending[~good]
        return density

    def _measure(
        self, place: Floats, home: Floats, step: float
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Density at points in space, shape (n, 3), whose map coordinates are `home`, shape (2, n),
        and whether it is reliable.
        """
        u, v = _tangents(
            place / np.array([self.semi_major**2, self.semi_major**2, self.semi_minor**2])
        )
        offsets = step * np.stack((0 * u, u, -u, 2 * u, -2 * u, v, -v, 2 * v, -2 * v))
        moved = (place + offsets).reshape(-1, 3)
        east, middle, north = np.ascontiguousarray(moved.T)
        longitude, latitude, _ = self.to_space.transform(east, middle, north, direction="INVERSE")
        maps = self.to_base.transform(
            longitude / self.degrees, latitude / self.degrees, direction="INVERSE"
        )
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            away = np.stack(maps).reshape(2, 9, -1) - home[:, None, :]
            if math.isfinite(self.period):
                away[0] -= self.period * np.rint(away[0] / self.period)
            near, far = away[:, 1::4] - away[:, 2::4], away[:, 3::4] - away[:, 4::4]
            slope = (8 * near - far) / (12 * step)
            size = np.abs(slope).max(axis=(0, 1))
            # If the map is cut between the points, the two estimates differ. Outside the domain the
            # round trip ends elsewhere.
            smooth = (np.abs(near / (2 * step) - far / (4 * step)) <= 1e-3 * size).all(axis=(0, 1))
            back = (np.abs(away[:, 0]) <= 1e-2 * step * size + 1e-9 * np.abs(home)).all(axis=0)
            found: Floats = 1 / np.abs(slope[0, 0] * slope[1, 1] - slope[0, 1] * slope[1, 0])
            return found, smooth & back & np.isfinite(found)


def _tangents(normal: Floats) -> tuple[Floats, Floats]:
    """Two unit vectors, shape (n, 3), orthogonal to each normal and to each other.

    Duff et al., Building an Orthonormal Basis, Revisited, JCGT 6(1), 2017. Uses exactly rounded
    operations only.
    """
    x, y, z = normal.T / np.sqrt(normal[:, 0] ** 2 + normal[:, 1] ** 2 + normal[:, 2] ** 2)
    sign = np.copysign(1.0, z)
    a = -1.0 / (sign + z)
    b = x * y * a
    return np.stack((1.0 + sign * x * x * a, sign * b, -sign * x), -1), np.stack(
        (b, sign + y * y * a, -y), -1
    )


@lru_cache(maxsize=128)
def projection_of(crs_wkt: str) -> Projection | float:
    """The projection of a CRS. A CRS without a geodetic datum gives the square metres per square
    unit instead.

    Raises `FormatError` if PROJ does not understand the CRS.
    """
    from pyproj import CRS, Transformer
    from pyproj.exceptions import ProjError

    try:
        crs = _horizontal(CRS.from_wkt(crs_wkt))
        base = crs.source_crs if crs.is_derived and crs.is_geographic else crs.geodetic_crs
        if base is None or crs.ellipsoid is None or not (crs.is_geographic or crs.is_projected):
            return float(crs.axis_info[0].unit_conversion_factor ** 2) if crs.axis_info else 1.0
        base = base.to_2d()
        axes = crs.ellipsoid.semi_major_metre, crs.ellipsoid.semi_minor_metre
        to_base = Transformer.from_crs(crs, base, always_xy=True)
        to_space = Transformer.from_pipeline(f"+proj=cart +a={axes[0]!r} +b={axes[1]!r}")
    except ProjError as error:
        raise FormatError(
            f"Expected a coordinate reference system that PROJ understands, got {crs_wkt[:200]!r} "
            f"({error}). "
            "Correct the CRS of the image, or remove it to count in pixels."
        ) from error
    factor, degrees = (
        crs.axis_info[0].unit_conversion_factor,
        math.degrees(base.axis_info[0].unit_conversion_factor),
    )
    unit, period = (
        (factor * axes[0], 2 * math.pi / factor) if crs.is_geographic else (factor, math.inf)
    )
    return Projection(
        to_base, to_space, degrees, *axes, unit, period, crs.is_geographic and not crs.is_derived
    )


def _horizontal(crs: CRS) -> CRS:
    """The two-dimensional part of a CRS, without transformations to other datums."""
    while crs.is_bound or crs.is_compound:
        crs = crs.source_crs if crs.is_bound and crs.source_crs else crs.sub_crs_list[0]
    return crs.to_2d()


@lru_cache(maxsize=128)
def probe_projection(crs_wkt: str) -> tuple[float | None, float | None]:
    """The density of a map if it is constant, else None; and any x of the map if the density
    depends on y alone, else None.

    Measured rather than looked up: whether a projection is equal-area also depends on its
    parameters and on the ellipsoid (PROJ's Mollweide is equal-area on a sphere only). Probes across
    the globe do not mistake another projection for an equal-area one.
    """
    projection = projection_of(crs_wkt)
    assert isinstance(projection, Projection)
    latitudes, longitudes = (
        np.array([-79.0, -66, -51, -36, -21, -6, 5, 20, 35, 52, 67, 78]),
        np.arange(-174.0, 180, 29),
    )
    east, north = (
        probes.ravel() / projection.degrees for probes in np.meshgrid(longitudes, latitudes)
    )
    x, y = projection.to_base.transform(east, north, direction="INVERSE")
    density = projection.density(x, y)
    known = density > 0
    if known.sum() < len(latitudes):
        return None, None
    x, y, density = x[known], y[known], density[known]
    across, down = (
        np.sort(ends)[np.linspace(0, len(ends) - 1, len(latitudes)).astype(int)] for ends in (x, y)
    )
    lines = projection.density(np.tile(across, len(down)), np.repeat(down, len(across))).reshape(
        len(down), len(across)
    )
    same = (lines > 0).all() and (np.ptp(lines, axis=1) <= 1e-9 * lines.min(axis=1)).all()
    column = float(across[len(across) // 2]) if same else None
    if np.ptp(density) <= 1e-8 * density.min():
        exact = projection.unit**2
        return (exact if abs(density[0] / exact - 1) <= 1e-8 else float(np.median(density))), column
    return None, column
