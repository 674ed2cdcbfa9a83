"""Seam audit: whether a table of objects shows traces of the tiling.

Cut objects    A cut object has a side on a seam: an edge of its bounding box is on the line (in
               volumes the plane) between two tiles. By chance that happens on any line, so edges on
               seams are compared with edges on all other lines of the image.
Centroids      Cutting an object gives two centroids beside the seam in place of one; dropping or
               merging objects there gives fewer. The number of centroids in a band along the seams
               is compared with those in the bands of grids shifted away from the seams. Objects
               form clusters, so scores use the spread among the shifted grids, or that of chance if
               it is larger.

Both give a z-score: the difference between seams and interior in standard deviations. A tiling
without traces gives scores of about 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.ground.space import AXES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape

SUSPICIOUS = 4.0
"""Scores from this value on are not due to chance (once in 15,000 audits)."""
_SHIFTS = 8


@dataclass(frozen=True, slots=True)
class SeamAudit:
    """Comparison of the objects at seams with the others."""

    objects: int
    centroids_at_seams: float
    """Centroids per pixel in the band along the seams."""
    centroids_inside: float
    """Centroids per pixel outside of it."""
    cut_at_seams: float
    """Edges of bounding boxes per seam line."""
    cut_inside: float
    """Edges of bounding boxes per other line."""
    centroid_score: float
    """Difference between the centroids at seams and those of shifted grids in standard deviations;
    positive if there are more at seams.
    """
    cut_score: float
    """Excess of edges on seams over those on other lines, in standard deviations."""

    @property
    def ratio(self) -> float:
        """Density of centroids at seams relative to that inside; 1 if there is nothing to
        compare.
        """
        return self.centroids_at_seams / self.centroids_inside if self.centroids_inside > 0 else 1.0

    @property
    def clean(self) -> bool:
        """Whether the objects show no trace of the seams."""
        return self.cut_score < SUSPICIOUS and abs(self.centroid_score) < SUSPICIOUS


def audit_seams(objects: Mapping[str, Any], shape: Shape, tile: Shape, band: int) -> SeamAudit:
    """Compare the objects of an image or volume of `shape` at the seams of tiles of size `tile`
    with those elsewhere.

    `objects` holds columns of the objects table as arrays, in pixels: for each axis its centroid
    (`centroid_x`), first pixel (`bbox_x0`) and one past its last (`bbox_x1`). `band` is the width
    of the band on each side of a seam in pixels; about the radius of an object is the most
    sensitive. Raises `ValueError` if the band leaves no interior.
    """
    if band < 1 or any(
        2 * band >= side for side, whole in zip(tile, shape, strict=True) if side < whole
    ):
        raise ValueError(
            f"band: expected at least 1 and less than half of a tile {tile}; got {band}. Audit "
            "larger tiles or a narrower band."
        )
    columns = {name: np.asarray(values) for name, values in objects.items()}
    centroids = np.stack([columns[f"centroid_{axis}"] for axis in AXES[-len(shape) :]]).astype(
        np.float64
    )
    near, area = _in_band(centroids, shape, tile, (0,) * len(shape), band)
    far, rest = centroids.shape[1] - near, prod(shape) - area
    at_seams, seams, elsewhere, others = _edges(columns, shape, tile)
    cut_inside = elsewhere / others if others else 0.0
    expected = cut_inside * seams
    # Plus one, so that small counts give no large scores.
    spread = np.sqrt(expected * (1 + seams / max(others, 1)) + 1)
    return SeamAudit(
        objects=centroids.shape[1],
        centroids_at_seams=near / area if area else 0.0,
        centroids_inside=far / rest if rest else 0.0,
        cut_at_seams=at_seams / seams if seams else 0.0,
        cut_inside=cut_inside,
        centroid_score=_centroid_score(centroids, shape, tile, band) if area else 0.0,
        cut_score=float((at_seams - expected) / spread),
    )


def _centroid_score(centroids: NDArray[np.float64], shape: Shape, tile: Shape, band: int) -> float:
    """The difference between the density in the band of the seams and those in the bands of shifted
    grids, in standard deviations.
    """
    near, area = _in_band(centroids, shape, tile, (0,) * len(shape), band)
    counts = []
    for step in range(1, _SHIFTS + 1):
        # With shifts of at least twice the band, the bands of seams and of shifted seams do not
        # overlap.
        shift = tuple(
            2 * band + (side - 4 * band) * step // (_SHIFTS + 1) if side > 4 * band else side // 2
            for side in tile
        )
        count, shifted_area = _in_band(centroids, shape, tile, shift, band)
        counts.append(count * area / shifted_area if shifted_area else 0.0)
    expected = float(np.mean(counts))
    chance = expected * (1 + 1 / _SHIFTS) + 1
    return float((near - expected) / np.sqrt(max(chance, float(np.var(counts, ddof=1)))))


def _in_band(
    centroids: NDArray[np.float64], shape: Shape, tile: Shape, shift: Shape, band: int
) -> tuple[int, int]:
    """Number of centroids in the band along the lines of a grid shifted by `shift`, and the
    pixels of that band.
    """
    inside = np.zeros(centroids.shape[1], np.bool_)
    outside_pixels = 1
    for axis, (whole, side, by) in enumerate(zip(shape, tile, shift, strict=True)):
        at = np.zeros(whole, np.bool_)
        for line in range(by or side, whole, side):
            at[max(0, line - band) : line + band] = True
        inside |= at[np.clip(np.floor(centroids[axis] + 0.5).astype(np.int64), 0, whole - 1)]
        outside_pixels *= int(np.count_nonzero(~at))
    return int(np.count_nonzero(inside)), prod(shape) - outside_pixels


def _edges(
    columns: Mapping[str, NDArray[Any]], shape: Shape, tile: Shape
) -> tuple[int, int, int, int]:
    """Edges of boxes on seams, the number of seams, edges on other lines, and the number of those
    lines, without the edges of the image.
    """
    found = np.zeros(4, np.int64)
    for axis, whole, side in zip(AXES[-len(shape) :], shape, tile, strict=True):
        edges = np.concatenate([columns[f"bbox_{axis}0"], columns[f"bbox_{axis}1"]]).astype(
            np.int64
        )
        edges = edges[(edges > 0) & (edges < whole)]
        seams = (whole - 1) // side
        at_seams = int(np.count_nonzero(edges % side == 0))
        found += [at_seams, seams, len(edges) - at_seams, whole - 1 - seams]
    at, lines, elsewhere, others = found.tolist()
    return at, lines, elsewhere, others
