"""Measuring the receptive field of a network, its stride and the sizes it accepts.

The measurement runs on a skeleton of a keras network (`skeletons.py`): the same graph with positive
weights and without biases, norms and non-linearities. There an output pixel is nonzero exactly if a
path connects it to a nonzero input pixel; no cancellation, ReLU or lost maximum hides a path. This
is the theoretical receptive field of Araujo, Norris and Sim 2019 ("Computing Receptive Fields of
Convolutional Neural Networks"), determined by experiment: it is valid for any graph, and gives the
field's extent on every side, not its width alone.

- Sizes: the first valid size, and the difference to the output, give the margin.
- Stride: the smallest shift in pixels that input and output share, tested on random pixels.
- Halo: one line (in volumes one plane) of ones for each phase of the stride; the farthest row with
  a nonzero output. Strips are as narrow as the network allows, and as long as a rough measurement
  requires.

All of it is done along one axis after the other: an axis is moved to the front, where its pixels
are called rows. Images have one field for both axes, volumes one for each of the three.

`verified` then checks the result against the network itself, with its own weights: removing rows
must not change the output beyond the halo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.deep.inference.receptive_field.field import AxisReach, ReceptiveField
from maskloom.segcore.errors import WeightsError
from maskloom.segcore.geometry import by_axis, sizes_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape

    Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    """Function from input (image, y, x, channel) to output (image, y, x, class), for volumes with
    an axis z before y.

    Raises `ValueError` for a size that the network does not accept.
    """

LIMIT = 1024
"""A halo beyond this many pixels counts as unbounded: patches would be mostly halo."""
_STRIDES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_PERIOD = 384
"""Least common multiple of `_STRIDES`: sizes that differ by it are accepted or refused alike."""
_LENGTHS = (1, 2, 4, 6)
"""Lengths of strips in periods; the last one holds the limit on both sides."""
_BATCH = 1 << 21
"""Numbers passed to the skeleton at once."""
_IMAGE = 2
_NARROWEST_CUBE, _WIDEST_CUBE = 8, 144
"""Sides of the cubes that are tried: not so narrow that a lopsided kernel leaves them, and up to
the largest stride and a little more, for networks with a margin.
"""


@dataclass(frozen=True, slots=True)
class _Strip:
    """Sizes that a network accepts, with the measured axis first."""

    length: int
    """Along the measured axis, in pixels; at least one period and less than two."""
    others: Shape
    """Along the other axes; as small as possible."""
    margins: Shape
    """Along all axes."""

    @property
    def margin(self) -> int:
        """Along the measured axis."""
        return self.margins[0]

    @property
    def across(self) -> int:
        """Number of pixels of a row."""
        return math.prod(self.others)


def measure(
    network: Network, channels: int, dimensions: int = _IMAGE, limit: int = LIMIT
) -> ReceptiveField:
    """Measure the receptive field of a network, usually a skeleton, that accepts various sizes.

    `dimensions` is 2 for images, 3 for volumes. A halo beyond `limit`, at most 1024 pixels, becomes
    None; the stride is then the step between valid sizes. Raises `WeightsError` if the output is
    not an image.
    """
    views = [_along(network, axis) for axis in range(dimensions)]
    strips = _find_strips(network, channels, dimensions)
    found = [_stride(view, strip, channels) for view, strip in zip(views, strips, strict=True)]
    strides = [
        _smallest_step(view, strip, channels) if stride is None else stride
        for view, strip, stride in zip(views, strips, found, strict=True)
    ]
    if dimensions == _IMAGE:
        strides = [math.lcm(*strides)] * dimensions
    halos: list[int | None] = [None] * dimensions
    if None not in found:
        halos = [
            _halo(view, strip, channels, stride)
            for view, strip, stride in zip(views, strips, strides, strict=True)
        ]
    return _combined(
        [
            AxisReach(
                halo if halo is not None and halo <= limit else None,
                stride,
                strip.margin,
                strip.length % stride,
            )
            for halo, stride, strip in zip(halos, strides, strips, strict=True)
        ]
    )


def measure_sizes(network: Network, channels: int, dimensions: int = _IMAGE) -> ReceptiveField:
    """Measure the valid sizes and the margin of a network without a skeleton.

    The halo is None, unknown. Raises `WeightsError` if the network has no per-pixel scores.
    """
    strips = _find_strips(network, channels, dimensions)
    steps = [
        _smallest_step(_along(network, axis), strip, channels) for axis, strip in enumerate(strips)
    ]
    if dimensions == _IMAGE:
        steps = [math.lcm(*steps)] * dimensions
    return _combined(
        [
            AxisReach(None, step, strip.margin, strip.length % step)
            for step, strip in zip(steps, strips, strict=True)
        ]
    )


def verified(
    field: ReceptiveField, network: Network, channels: int, dimensions: int = _IMAGE
) -> ReceptiveField:
    """Check a receptive field against the network itself.

    Returns it with a larger halo, or None, if the network depends on more than its skeleton does.
    Rows are removed on either side of random pixels, along one axis after the other, and the rest
    of the output is compared. The strips have about twice the length of the halo.
    """
    if field.halo is None:
        return field
    axes = field.axes(dimensions)
    halos: list[int] = []
    for axis, reach in enumerate(axes):
        others = [each for other, each in enumerate(axes) if other != axis]
        seen = _farthest_change(_along(network, axis), reach, others, channels)
        if seen is None:
            return replace(field, halo=None)
        halo = max(reach.halo or 0, seen)
        if 0 < seen < reach.margin + reach.stride and reach.margin:
            # The network pads inside although the output lacks a margin, so the outermost rows are
            # incomplete. See `patches`.
            halo = max(halo, reach.margin + reach.stride)
        halos.append(halo)
    if max(halos) > LIMIT:
        return replace(field, halo=None)
    return replace(field, halo=max(halos) if dimensions == _IMAGE else by_axis(halos))


def measure_fixed_size(network: Network, channels: int, fixed: Shape) -> ReceptiveField:
    """Measure the margin of a network of one fixed size without a skeleton.

    Raises `WeightsError` if it has no per-pixel scores.
    """
    size = sizes_text(fixed)
    try:
        output = network(np.zeros((1, *fixed, channels), np.float32)).shape
    except ValueError as error:
        raise WeightsError(
            f"The network fails on an image of its own size, {size} pixels: {error!s:.300}"
        ) from error
    right = len(output) == len(fixed) + 2
    margin, odd = divmod(fixed[0] - output[1], 2) if right else (-1, 0)
    expected = tuple(side - 2 * margin for side in fixed)
    if margin < 0 or odd or margin >= min(fixed) / 4 or output[1:-1] != expected:
        raise WeightsError(
            f"The network gives {output} for an image of {size} pixels; expected "
            f"({_axes_text(len(fixed))}, scores) of the same sizes, or "
            "less by the same margin at each side. Add an up-sampling layer at its end, or export "
            "it without its head."
        )
    return ReceptiveField(None, 1, margin, 0, fixed)


def _combined(axes: Sequence[AxisReach]) -> ReceptiveField:
    """The field of all axes; that of an image has one number for both."""
    if len(axes) > _IMAGE:
        return ReceptiveField.of_axes(axes)
    halos = [each.halo for each in axes if each.halo is not None]
    widest_halo = max(halos) if len(halos) == len(axes) else None
    return ReceptiveField(widest_halo, axes[0].stride, axes[0].margin, axes[0].residue)


def _along(network: Network, axis: int) -> Network:
    """The network for arrays whose axis `axis` (from 0) comes first."""
    if axis == 0:
        return network

    def moved(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        whole = np.ascontiguousarray(np.moveaxis(batch, 1, 1 + axis))
        return np.moveaxis(network(whole), 1 + axis, 1)

    return moved


def _find_strips(network: Network, channels: int, dimensions: int) -> list[_Strip]:
    """A strip along each axis."""
    if dimensions == _IMAGE:
        return [_find_strip(network, channels)] * dimensions
    refusals = []
    for side in range(_NARROWEST_CUBE, _WIDEST_CUBE + 1):
        try:
            output = network(np.zeros((1, *[side] * dimensions, channels), np.float32)).shape
        except ValueError as error:
            refusals.append(str(error))
            continue
        margins, odd = np.divmod(side - np.array(output[1:-1]), 2)
        # Small cubes may lose all of their voxels inside; a larger one then shows what is wrong.
        if len(output) != dimensions + 2 or odd.any() or margins.min() < 0 or min(output) < 1:
            refusals.append(f"it gives {output} for {side} voxels a side.")
            continue
        strips = [_strip(axis, side, tuple(margins.tolist())) for axis in range(dimensions)]
        # A margin is constant when the volume grows; an output of fewer, larger voxels lacks more.
        if all(
            _runs(_along(network, axis), (strip.length, *strip.others), channels, strip.margins)
            for axis, strip in enumerate(strips)
        ):
            return strips
        refusals.append(f"it gives {output} for {side} voxels a side, and not one for each voxel.")
    raise WeightsError(
        f"The network gives no scores for each voxel of volumes (n, z, y, x, {channels}): "
        f"{refusals[-1]:.300} Expected a network that takes cubes of up to {_WIDEST_CUBE} voxels a "
        "side and gives an output of the same size. Add an up-sampling layer at its end."
    )


def _strip(axis: int, side: int, margins: Shape) -> _Strip:
    others = margins[:axis] + margins[axis + 1 :]
    return _Strip(side + _PERIOD, (side,) * len(others), (margins[axis], *others))


def _find_strip(network: Network, channels: int) -> _Strip:
    """A strip along either axis of an image."""
    refusals = []
    for size in range(_PERIOD, _PERIOD + max(_STRIDES)):
        try:
            output = network(np.zeros((1, size, size, channels), np.float32))
        except ValueError as error:
            refusals.append(str(error))
            continue
        return _strip_from(network, channels, size, output.shape)
    raise WeightsError(
        f"The network takes no image of {_PERIOD} to {size} pixels a side: {refusals[0]:.300} "
        "Expected one that gives scores for each pixel of "
        f"images (n, y, x, {channels}), whose sizes suit strides up to {max(_STRIDES)}."
    )


def _strip_from(network: Network, channels: int, size: int, output: tuple[int, ...]) -> _Strip:
    if (
        len(output) != 4
        or output[1] != output[2]
        or not 0 < output[1] <= size
        or (size - output[1]) % 2
    ):
        raise WeightsError(
            f"The network gives {output} for an image of {size} x {size} pixels; expected (n, y, "
            "x, scores) of the same height and width, or less "
            "by the same margin at each side. Add an up-sampling layer at its end, or export it "
            "without its head."
        )
    margin = (size - output[1]) // 2
    margins = (margin, margin)
    # A margin is constant when the image grows; an output of fewer, larger pixels lacks more.
    if not _runs(network, (size + _PERIOD, size), channels, margins):
        raise WeightsError(
            f"The network gives {output[1]} x {output[2]} scores for {size} x {size} pixels; "
            "expected one for each pixel. "
            "Add an up-sampling layer at its end."
        )
    for width in range(size % 16 or 16, size, 16):
        if width > 2 * margin and _runs(network, (size, width), channels, margins):
            return _Strip(size, (width,), margins)
    return _Strip(size, (size,), margins)


def _runs(network: Network, sizes: Shape, channels: int, margins: Shape) -> bool:
    try:
        output = network(np.zeros((1, *sizes, channels), np.float32))
    except ValueError:
        return False
    expected = tuple(size - 2 * margin for size, margin in zip(sizes, margins, strict=True))
    return output.shape[1:-1] == expected


def _axes_text(dimensions: int) -> str:
    return "n, y, x" if dimensions == _IMAGE else "n, z, y, x"


def _stride(network: Network, strip: _Strip, channels: int) -> int | None:
    """Smallest shift of rows shared by input and output; None if they share no shift."""
    for length in _lengths(strip):
        pixels = _sparse_pixels((1, length + max(_STRIDES), *strip.others, channels))
        still = network(pixels[:, :length])
        # Only the middle: rows near the ends are affected by padding and not on the lattice.
        low = (still.shape[1] - max(_STRIDES)) // 2
        if low < 0:
            continue
        middle = slice(low, low + max(_STRIDES))
        for stride in _STRIDES:
            if stride > low:
                break
            try:
                moved = network(pixels[:, stride : length + stride])
            except ValueError:
                continue
            # All numbers are sums of positive terms, so each is accurate to its last digits, and
            # the smallest counts as much as the largest.
            same = np.allclose(still[:, stride:][:, middle], moved[:, middle], rtol=1e-4, atol=0)
            if (
                same
                and moved[:, middle].any()
                and _runs(network, (length + stride, *strip.others), channels, strip.margins)
            ):
                return stride
    return None


def _sparse_pixels(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Random pixels, mostly 0, so that sums over large fields still differ between positions."""
    generator = np.random.default_rng(0)
    return generator.random(shape, np.float32) * (generator.random(shape, np.float32) < 0.1)


def _smallest_step(network: Network, strip: _Strip, channels: int) -> int:
    """Smallest difference in rows between two valid sizes."""
    for stride in _STRIDES:
        if _runs(network, (strip.length + stride, *strip.others), channels, strip.margins):
            return stride
    return max(_STRIDES)


def _halo(network: Network, strip: _Strip, channels: int, stride: int) -> int | None:
    """Maximum number of rows between an output pixel and an input pixel it depends on.

    None if they do not fit into the longest strip.
    """
    *_, longest = _lengths(strip)
    rough = _rough_halo(network, (longest, *strip.others, channels))
    if rough is None:
        return None
    # The rough measurement uses one phase of the stride; the farthest row may have another.
    length = next((each for each in _lengths(strip) if each // 2 > rough + 2 * stride), longest)
    middle = length // 2 // stride * stride
    most = 0
    for phases in _batches(stride, length * strip.across * channels):
        rows = middle + np.array(phases)
        strips = np.zeros((len(phases), length, *strip.others, channels), np.float32)
        strips[np.arange(len(phases)), rows] = 1
        responses = _nonzero_rows(network(strips))
        # The network may skip some rows altogether (strides of 1x1 kernels).
        seen = responses.any(1)
        first, last = _ends(responses[seen], strip.margin)
        most = max(most, *(rows[seen] - first), *(last - rows[seen]))
    return int(most)


def _rough_halo(network: Network, shape: tuple[int, ...]) -> int | None:
    """Halo from the middle of a strip, measured with all rows on either side of it.

    Kernels with wide gaps cannot skip all of these rows.
    """
    length, middle = shape[0], shape[0] // 2
    strips = np.zeros((2, *shape), np.float32)
    strips[0, middle:], strips[1, :middle] = 1, 1
    responses = _nonzero_rows(network(strips))
    if responses[0, 0] or responses[1, -1]:
        return None
    first, last = _ends(responses, (length - responses.shape[1]) // 2)
    return int(max(0, middle - first[0], last[1] - middle))


def _nonzero_rows(output: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether any number of a row is not zero: (image, row)."""
    return np.asarray((output != 0).any(tuple(range(2, output.ndim))))


def _ends(responses: NDArray[np.bool_], margin: int) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """First and last nonzero row of each strip, as rows of the input."""
    from_end = responses[:, ::-1].argmax(1)
    return responses.argmax(1) + margin, responses.shape[1] - 1 - from_end + margin


def _farthest_change(
    network: Network, reach: AxisReach, others: Sequence[AxisReach], channels: int
) -> int | None:
    """Distance from a cut to the farthest row that changes, 0 if none does.

    None if the strip is too short.
    """
    stride, margin, halo = reach.stride, reach.margin, reach.halo or 0
    length = reach.fitting(2 * margin + 2 * halo + 4 * stride)
    margins = (margin, *(each.margin for each in others))
    least = 1 if len(others) == 1 else _NARROWEST_CUBE
    narrow = tuple(each.fitting(2 * each.margin + least) for each in others)
    widths = (
        tuple(size + steps * each.stride for size, each in zip(narrow, others, strict=True))
        for steps in range(max(1, length // max(each.stride for each in others)))
    )
    across = next(
        (sizes for sizes in widths if _runs(network, (length, *sizes), channels, margins)),
        (length,) * len(others),
    )
    pixels = np.random.default_rng(1).random((1, length, *across, channels), np.float32)
    whole = network(pixels)
    tolerance = 1e-3 * max(float(np.ptp(whole)), 1e-30)
    farthest = 0
    below, above = network(pixels[:, stride:]), network(pixels[:, :-stride])
    for changed in (np.abs(whole[:, stride:] - below), np.abs(whole[:, :-stride] - above)[:, ::-1]):
        rows = np.flatnonzero(_nonzero_rows((changed > tolerance).astype(np.float32))[0])
        if rows.size:
            # Rows of the output start at the margin; the nearest removed row is one before the
            # first.
            farthest = max(farthest, int(rows[-1]) + margin + 1)
            if rows[-1] >= changed.shape[1] - stride:
                return None
    return farthest


def _lengths(strip: _Strip) -> Iterator[int]:
    return (strip.length + (periods - 1) * _PERIOD for periods in _LENGTHS)


def _batches(count: int, size: int) -> Iterator[range]:
    step = max(1, _BATCH // size)
    return (range(start, min(count, start + step)) for start in range(0, count, step))
