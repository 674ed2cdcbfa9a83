"""Ground control points: the affine transform that fits them. Oracles: rasterio (GDAL),
arithmetic.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import from_gcps

from maskloom.segcore.ground.control import fit_affine, with_fitted_affine
from maskloom.segcore.ground.space import Space

UTM, DEGREES = CRS.from_epsg(32633).to_wkt(), CRS.from_epsg(4326).to_wkt()


def points(
    affine: tuple[float, ...], shape: tuple[int, int], noise: float = 0, seed: int = 0
) -> list[tuple[float, ...]]:
    """A grid of 4 x 5 points under a transform, misplaced by this part of a pixel."""
    a, b, c, d, e, f = affine
    draw = np.random.default_rng(seed).normal(0, noise, (20, 2)) if noise else np.zeros((20, 2))
    places = [(x, y) for y in np.linspace(0, shape[0], 4) for x in np.linspace(0, shape[1], 5)]
    moved = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(places, draw.tolist(), strict=True)]
    return [
        (x, y, a * u + b * v + c, d * u + e * v + f, 0.0)
        for (x, y), (u, v) in zip(places, moved, strict=True)
    ]


@given(
    st.floats(-180, 180),
    st.floats(0.1, 50),
    st.floats(0.1, 50),
    st.floats(0, 0.4),
    st.integers(0, 99),
)
def test_the_fit_is_that_of_gdal(
    angle: float, width: float, height: float, noise: float, seed: int
) -> None:
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    grid = points(
        (width * cos, -height * sin, 500000.0, width * sin, height * cos, 5.3e6),
        (700, 900),
        noise,
        seed,
    )
    found = fit_affine(grid, degrees=False)
    assert found is not None
    expected = from_gcps(
        [GroundControlPoint(row=row, col=column, x=x, y=y) for column, row, x, y, _ in grid]
    )
    np.testing.assert_allclose(found[0], tuple(expected)[:6], rtol=1e-9, atol=1e-6)
    inverse = ~expected
    missed = max(
        np.hypot(*np.subtract(inverse @ (x, y), (column, row))) for column, row, x, y, _ in grid
    )
    assert found[1] == pytest.approx(missed, rel=1e-6, abs=1e-6)


def test_a_grid_that_is_not_rotated_stays_so() -> None:
    for affine in ((0.001, 0.0, 10.0, 0.0, -0.001, 60.0), (0.0, 10.0, 500000.0, -10.0, 0.0, 5.3e6)):
        found = fit_affine(points(affine, (16, 24)), degrees=False)
        assert found is not None
        assert [term == 0 for term in found[0]] == [term == 0 for term in affine]


def test_points_on_both_sides_of_180_degrees_are_neighbours() -> None:
    grid = points((0.01, 0.0, 179.5, 0.0, -0.01, 10.0), (100, 100))
    wrapped = [(column, row, (x + 180) % 360 - 180, y, z) for column, row, x, y, z in grid]
    assert min(point[2] for point in wrapped) < 0 < max(point[2] for point in wrapped)
    found = fit_affine(wrapped, degrees=True)
    assert found is not None
    assert found[0][0] == pytest.approx(0.01)
    assert found[1] < 1e-6


def test_points_that_do_not_fit_are_kept_with_a_reason() -> None:
    grid = points((10.0, 0.0, 500000.0, 0.0, -10.0, 5.3e6), (700, 900))
    space, note = with_fitted_affine(Space(gcps=tuple(grid), gcp_crs=UTM), (700, 900))
    assert (space.affine, space.crs, space.gcps) == (
        pytest.approx((10.0, 0.0, 500000.0, 0.0, -10.0, 5.3e6)),
        UTM,
        (),
    )
    assert space.unit == "m2"
    assert "misses them by at most 0.01 px" in note
    bent = [(column, row, x + (row / 20) ** 2, y, z) for column, row, x, y, z in grid]
    for kept, crs, reason in [
        (bent, UTM, "do not lie on an affine grid"),
        (grid[:5], UTM, "lie on a line"),
        (grid[:2], UTM, "lie on a line"),
        ([grid[0]] * 4, UTM, "lie on a line"),
        (grid, None, "do not say in which coordinate system"),
    ]:
        before = Space(gcps=tuple(kept), gcp_crs=crs)
        space, note = with_fitted_affine(before, (700, 900))
        assert space == before
        assert reason in note
        assert "areas are in px" in note
    placed = Space((10.0, 0.0, 0.0, 0.0, -10.0, 0.0), UTM)
    assert with_fitted_affine(placed, (5, 5)) == (placed, "")
    assert with_fitted_affine(Space(), (5, 5)) == (Space(), "")
