"""Models that want pixels of one size: images with other pixels are resampled for them.

A network that was trained on pixels of 0.5 um knows objects of so many pixels. An image of 0.25 um
is shown to it with half as many pixels along each side, and each pixel gets the label of the
resampled pixel that contains its centre.

The resampled pixels are one grid of the whole image: their number along an axis is the rounded
number that the sizes give, so that they cover the image exactly. The value of each is computed from
the places of the grid alone, by the same operations in the same order, so it is equal to the last
bit for any tiling; so then are the labels of an exact model.

Values are interpolated linearly between neighbours; for fewer pixels the triangle of weights is
widened by the factor, so that no pixel is skipped (as `antialias` of Pillow and scikit-image does).
Pixels without data have no weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.geometry import Box, Tile, per_axis
from maskloom.segcore.ground.space import MILLIMETRES
from maskloom.segcore.models.planes import (
    score_by_plane,
    segment_and_score_by_plane,
    segment_by_plane,
)
from maskloom.segcore.models.protocols import (
    MODELS,
    Exactness,
    Requirements,
    Scorer,
    caution_of,
    caution_of_objects,
    gives_scores,
    labels_and_scores,
)
from maskloom.segcore.raster.spec import Block, Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.models.typical import TypicalObjects
    from maskloom.segcore.raster.spec import RasterSpec

FARTHEST = 4.0
"""Greatest factor between the pixels of an image and those that a model wants. Beyond it, objects
of one cannot be those of the other.
"""
FAR = 2.0
"""Pixels that differ by a greater factor, where they are shown as they are, deserve a warning."""
ALIKE = 1.1
"""Pixels that differ by a smaller factor are taken as they are: training varies scales by more."""
_SIDE = 1024
"""Side of the squares, in resampled pixels, that are worked on at a time; bounds memory."""


@MODELS.register("rescaled")
@dataclass(frozen=True, slots=True)
class Rescaled:
    """A model of classes that sees images at its pixel size. Images that state no size are shown as
    they are.
    """

    model: Scorer
    pixel_size: float
    """Side of the pixels that the model wants, in um."""

    @property
    def exactness(self) -> Exactness:
        """That of the model."""
        return self.model.exactness

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the model."""
        return self.model.classes

    @property
    def requirements(self) -> Requirements:
        """Those of the model, with its halo in the finest pixels that it may get."""
        inner = self.model.requirements
        side = _SIDE + 2 * self._halo
        return replace(
            inner,
            halo=math.ceil(FARTHEST * (self._halo + 2)) + 1,
            process_bytes=inner.process_bytes + side**2 * (inner.bytes_per_pixel + 16),
        )

    def requirements_of(self, spec: RasterSpec) -> Requirements:
        """As `requirements`, with the halo for such an image."""
        return replace(self.requirements, halo=self.halo_of(spec))

    def density_of(self, spec: RasterSpec) -> float:
        """Number of resampled pixels in the place of one of such an image."""
        axes = self._axes(spec)
        return 1.0 if axes is None else 1 / (axes[0].ratio * axes[1].ratio)

    def halo_of(self, spec: RasterSpec, margin: int = 0) -> int:
        """The halo in pixels of such an image, for a core with a margin of resampled pixels."""
        axes, halo = self._axes(spec), self._halo + margin
        if axes is None:
            return halo
        # The outermost resampled pixels of a core contain the centre of one of its pixels. Images
        # with a greater factor are refused, but planned before.
        ratio = min(FARTHEST, max(axis.ratio for axis in axes))
        return math.ceil(ratio * (halo + 0.5) + max(1.0, ratio))

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the model's bands. Raises `ModelMismatch` if it does not suit, or if its
        pixels have quite another size.
        """
        selected = self.model.select(spec)
        sides = pixel_sides(spec)
        if sides is not None:
            far = max(max(side / self.pixel_size, self.pixel_size / side) for side in sides)
            if far > FARTHEST:
                raise ModelMismatch(
                    f"{spec.location} has pixels of {_words(sides)}; the network was trained on "
                    f"{self.pixel_size:g} um, and nothing in the image has the size that it knows. "
                    "Choose another `level` of a slide, correct `pixel_size` of the recipe, or set "
                    "`pixel_size: any` of the segmenter to show pixels as they are."
                )
        return selected

    @segment_by_plane
    def segment(self, block: Block) -> Labels:
        """The label of the resampled pixel at the centre of each pixel of the core."""
        axes = self._axes(block.spec)
        if axes is None:
            return self.model.segment(block)
        labels: NDArray[np.integer] | None = None
        for place, inner, nearest in _resampled(block, axes, self._halo):
            found = self.model.segment(inner).values
            if labels is None:
                labels = np.zeros(block.valid.shape, found.dtype)
            labels[place] = found[nearest]
        assert labels is not None, "a core has pixels"
        return Labels(labels)

    @property
    def gives_scores(self) -> bool:
        """Whether the model gives probabilities."""
        return gives_scores(self.model)

    @segment_and_score_by_plane
    def segment_and_score(self, block: Block) -> tuple[Labels, NDArray[np.float32]]:
        """What `segment` and `scores` return."""
        axes = self._axes(block.spec)
        if axes is None:
            return labels_and_scores(self.model, block)
        labels: NDArray[np.integer] | None = None
        whole = self._no_scores(block)
        for place, inner, nearest in _resampled(block, axes, self._halo):
            found, scores = labels_and_scores(self.model, inner)
            if labels is None:
                labels = np.zeros(block.valid.shape, found.values.dtype)
            labels[place], whole[place] = found.values[nearest], scores[nearest]
        assert labels is not None, "a core has pixels"
        return Labels(labels), whole

    @score_by_plane
    def scores(self, block: Block) -> NDArray[np.float32]:
        """The scores of the resampled pixel at the centre of each pixel of the core."""
        axes = self._axes(block.spec)
        if axes is None:
            return self.model.scores(block)
        whole = self._no_scores(block)
        for place, inner, nearest in _resampled(block, axes, self._halo):
            whole[place] = self.model.scores(inner)[nearest]
        return whole

    def resampled(self, block: Block, margin: int) -> Resampled | None:
        """The core of a block of an image in the model's pixels, with `margin` of them around it.
        None: the image is shown as it is.
        """
        axes = self._axes(block.spec)
        if axes is None:
            return None
        spec, (y, x) = _resampled_spec(block.spec, axes), block.tile.core.slices
        rows, columns = axes[0].nearest(y.start, y.stop), axes[1].nearest(x.start, x.stop)
        core = Box((int(rows[0]), int(columns[0])), (int(rows[-1]) + 1, int(columns[-1]) + 1))
        read = core.grow((self._halo + margin,) * 2) & Box.whole(spec.shape)
        pixels, valid = _values(block, axes, read)
        inner = Block(Tile(block.tile.index, core, read), pixels, valid, spec)
        down, across = np.ix_(rows - core.start[0], columns - core.start[1])
        return Resampled(inner, (down, across))

    def provenance(self) -> Mapping[str, Any]:
        """The model's, and the size of pixel that it wants."""
        return {**self.model.provenance(), "pixel_size": f"{self.pixel_size:g} um"}

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:
        """The model's warning, and that the image was resampled."""
        sides = pixel_sides(spec)
        # The model sees pixels of its own size, whatever the image states.
        inner = caution_of([self.model], _without_size(spec), shares)
        if self._axes(spec) is None or sides is None:
            return inner
        own = (
            f"shown to the network with pixels of {self.pixel_size:g} um, those of its training; "
            f"the image has {_words(sides)}"
        )
        return own if inner is None else f"{own}; {inner}"

    def caution_of_objects(self, spec: RasterSpec, typical: TypicalObjects) -> str | None:
        """The model's warning about objects of these sizes in its own pixels."""
        axes = self._axes(spec)
        ratio = 1.0 if axes is None else axes[0].ratio * axes[1].ratio
        of_model = {name: size / ratio for name, size in typical.sizes.items()}
        return caution_of_objects(self.model, spec, replace(typical, sizes=of_model))

    def _no_scores(self, block: Block) -> NDArray[np.float32]:
        """Those of pixels outside the core: the first class."""
        whole = np.zeros((*block.valid.shape, len(self.classes)), np.float32)
        whole[..., 0] = 1
        return whole

    @property
    def _halo(self) -> int:
        """Number of resampled pixels around a pixel that decide its label."""
        return max(per_axis(self.model.requirements.halo, len("yx")))

    def _axes(self, spec: RasterSpec) -> tuple[_Axis, _Axis] | None:
        """How the axes are resampled; None: not at all."""
        sides = pixel_sides(spec)
        if sides is None or all(1 / ALIKE <= side / self.pixel_size <= ALIKE for side in sides):
            return None
        y, x = (
            _Axis(size, max(1, round(size * side / self.pixel_size)))
            for size, side in zip(spec.shape[-2:], sides, strict=True)
        )
        return y, x


@dataclass(frozen=True, slots=True, eq=False)
class Resampled:
    """The core of a block in other pixels."""

    block: Block
    nearest: tuple[NDArray[np.int_], NDArray[np.int_]]
    """The index, in the core of this block, of the pixel at the centre of each of the original
    core.
    """


@dataclass(frozen=True, slots=True)
class _Axis:
    """An axis of an image, and the pixels that take the place of its own."""

    size: int
    count: int
    """Number of resampled pixels."""

    @property
    def ratio(self) -> float:
        """Pixels of the image in one resampled pixel."""
        return self.size / self.count

    @property
    def reach(self) -> float:
        """How far from its centre a resampled pixel looks, in pixels of the image."""
        return max(1.0, self.ratio)

    def nearest(self, start: int, stop: int) -> NDArray[np.int_]:
        """The resampled pixel that contains the centre of each pixel of the image."""
        places = (np.arange(start, stop) + 0.5) * self.count / self.size
        return np.minimum(places.astype(np.int_), self.count - 1)

    def centres(self, start: int, stop: int) -> NDArray[np.int_]:
        """The pixel of the image that contains the centre of each resampled pixel."""
        places = (np.arange(start, stop) + 0.5) * self.ratio
        return np.minimum(places.astype(np.int_), self.size - 1)

    def weights(self, start: int, stop: int) -> tuple[NDArray[np.int_], NDArray[np.float32]]:
        """The pixels of the image that each resampled pixel is made of, and their weights, both of
        the shape (pixel, part). Beyond the border the last pixel is repeated.
        """
        centres = (np.arange(start, stop) + 0.5) * self.ratio - 0.5
        first = np.ceil(centres - self.reach).astype(np.int_)
        parts = first[:, np.newaxis] + np.arange(math.floor(2 * self.reach) + 1)
        distances = np.abs(parts - centres[:, np.newaxis]) / self.reach
        weights = np.maximum(0.0, 1.0 - distances).astype(np.float32)
        return np.clip(parts, 0, self.size - 1), weights


def _resampled(
    block: Block, axes: tuple[_Axis, _Axis], halo: int
) -> Iterator[tuple[tuple[slice, slice], Block, tuple[NDArray[np.int_], NDArray[np.int_]]]]:
    """The core of a block in squares of the resampled grid: the slices of the block that get
    labels, the resampled block, and for each of these pixels its index in that block.
    """
    core, read = block.tile.core, block.tile.read
    spec = _resampled_spec(block.spec, axes)
    whole = Box.whole(spec.shape)
    squares = [
        list(_squares(axis, start, stop))
        for axis, start, stop in zip(axes, core.start, core.stop, strict=True)
    ]
    for top, bottom in squares[0]:
        for left, right in squares[1]:
            inner_core = Box((top, left), (bottom, right))
            inner_read = inner_core.grow((halo, halo)) & whole
            pixels, valid = _values(block, axes, inner_read)
            inner = Block(Tile((0, 0), inner_core, inner_read), pixels, valid, spec)
            place, nearest = [], []
            for k, axis in enumerate(axes):
                near = axis.nearest(core.start[k], core.stop[k])
                first, last = np.searchsorted(near, (inner_core.start[k], inner_core.stop[k]))
                offset = core.start[k] - read.start[k]
                place.append(slice(offset + int(first), offset + int(last)))
                nearest.append(near[first:last] - inner_read.start[k])
            rows, columns = np.ix_(*nearest)
            yield (place[0], place[1]), inner, (rows, columns)


def _resampled_spec(spec: RasterSpec, axes: tuple[_Axis, _Axis]) -> RasterSpec:
    """The image in the resampled pixels, without their size."""
    shape = tuple(axis.count for axis in axes)
    return replace(_without_size(spec), shape=shape, chunks=shape)


def _squares(axis: _Axis, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The resampled pixels of a range of the image, cut where squares of the grid end."""
    first, last = (int(each) for each in axis.nearest(start, stop)[[0, -1]])
    for square in range(first // _SIDE * _SIDE, last + 1, _SIDE):
        yield max(square, first), min(square + _SIDE, last + 1)


def _values(
    block: Block, axes: tuple[_Axis, _Axis], box: Box
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The resampled pixels (y, x, band) of a box, and where they are data.

    Pixels of the image outside the block are replaced by the nearest ones in it; the caller must
    not depend on them.
    """
    read, (height, width) = block.tile.read, block.valid.shape
    (rows, row_weights), (columns, column_weights) = (
        axis.weights(a, b) for axis, a, b in zip(axes, box.start, box.stop, strict=True)
    )
    rows = np.clip(rows - read.start[0], 0, height - 1)
    columns = np.clip(columns - read.start[1], 0, width - 1)
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    known = block.valid[top:bottom, left:right, np.newaxis]
    values = np.where(known, block.pixels[top:bottom, left:right], 0).astype(np.float32)
    values = np.concatenate([values, known.astype(np.float32)], axis=-1)
    values = _weighted(values, rows - top, row_weights)
    values = _weighted(values.swapaxes(0, 1), columns - left, column_weights).swapaxes(0, 1)
    centres = [
        np.clip(axis.centres(a, b) - origin, 0, length - 1)
        for axis, a, b, origin, length in zip(
            axes, box.start, box.stop, read.start, block.valid.shape, strict=True
        )
    ]
    valid: NDArray[np.bool_] = block.valid[np.ix_(*centres)]
    total = values[..., -1:]
    means = values[..., :-1] / np.where(total > 0, total, 1)
    return np.where(valid[..., np.newaxis], means, 0).astype(np.float32), valid


def _weighted(
    values: NDArray[np.float32], parts: NDArray[np.int_], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Weighted sums along the first axis; part by part, so that each sum has one order."""
    total = np.zeros((len(parts), *values.shape[1:]), np.float32)
    for part, weight in zip(parts.T, weights.T, strict=True):
        total += values[part] * weight[:, np.newaxis, np.newaxis]
    return total


def pixel_sides(spec: RasterSpec) -> tuple[float, float] | None:
    """The sides (y, x) of the pixels of an image, or of a plane, in um; None if they are not
    stated.
    """
    metric = spec.space.metric
    if metric is None:
        return None
    y, x = (side * MILLIMETRES[metric.unit] / MILLIMETRES["um"] for side in metric.spacing[-2:])
    return y, x


def other_pixels(spec: RasterSpec, wanted: float | None, name: str) -> str | None:
    """A warning if an image that is shown as it is states pixels of quite another size than those
    that a network, shown as `name`, was trained on (`wanted`, in um). None: no warning.
    """
    sides = pixel_sides(spec)
    if sides is None or wanted is None:
        return None
    if all(1 / FAR <= side / wanted <= FAR for side in sides):
        return None
    return (
        f"{name} was trained on pixels of {wanted:g} um, and the image has {_words(sides)}, shown "
        "as they are: objects have another size than it knows"
    )


def _without_size(spec: RasterSpec) -> RasterSpec:
    return replace(spec, space=replace(spec.space, metric=None, affine=None, crs=None))


def _words(sides: tuple[float, float]) -> str:
    y, x = sides
    return f"{x:.4g} um" if math.isclose(x, y, rel_tol=1e-3) else f"{x:.4g} x {y:.4g} um"
