"""Measuring the receptive field of a network, its stride and the sizes it accepts.

The measurement runs on a skeleton of a keras network (`skeletons.py`): the same graph with positive
weights and without biases, norms and non-linearities. There an output pixel is nonzero exactly if a
path connects it to a nonzero input pixel; no cancellation, ReLU or lost maximum hides a path. This
is the theoretical receptive field of Araujo, Norris and Sim 2019 ("Computing Receptive Fields of
Convolutional Neural Networks"), determined by experiment: it is valid for any graph, and gives the
field's extent on every side, not its width alone.

- Sizes: the first valid height and width, and the difference to the output, give the margin.
- Stride: the smallest shift in pixels that input and output share, tested on random pixels.
- Halo: one line of ones for each phase of the stride; the farthest row, then column, with a nonzero
  output. Strips are as narrow as the network allows, and as long as a rough measurement requires.

`verified` then checks the result against the network itself, with its own weights: removing rows
must not change the output beyond the halo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.deep.inference.card import ReceptiveField
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    """Function from input (image, y, x, channel) to output (image, y, x, class).

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


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes that a network accepts."""

    height: int
    """At least one period and less than two, in pixels."""
    width: int
    """As small as possible, in pixels."""
    margin: int


def measure(network: Network, channels: int, limit: int = LIMIT) -> ReceptiveField:
    """Measure the receptive field of a network, usually a skeleton, that accepts various sizes.

    A halo beyond `limit`, at most 1024 pixels, becomes None; the stride is then the step between
    valid sizes. Raises `WeightsError` if the output is not an image.
    """
    sizes = _find_sizes(network, channels)
    transposed = _transposed(network)
    strides = [_stride(each, sizes, channels) for each in (network, transposed)]
    stride = math.lcm(*(each or 1 for each in strides))
    if None in strides:
        stride = math.lcm(stride, _smallest_step(network, sizes, channels))
        return ReceptiveField(None, stride, sizes.margin, sizes.height % stride)
    halos = [_halo(each, sizes, channels, stride) for each in (network, transposed)]
    widest = None if None in halos else max(each for each in halos if each is not None)
    return ReceptiveField(
        widest if widest is not None and widest <= limit else None,
        stride,
        sizes.margin,
        sizes.height % stride,
    )


def measure_sizes(network: Network, channels: int) -> ReceptiveField:
    """Measure the valid sizes and the margin of a network without a skeleton.

    The halo is None, unknown. Raises `WeightsError` if the network has no per-pixel scores.
    """
    sizes = _find_sizes(network, channels)
    step = _smallest_step(network, sizes, channels)
    return ReceptiveField(None, step, sizes.margin, sizes.height % step)


def verified(field: ReceptiveField, network: Network, channels: int) -> ReceptiveField:
    """Check a receptive field against the network itself.

    Returns it with a larger halo, or None, if the network depends on more than its skeleton does.
    Rows, then columns, are removed on either side of random pixels, and the rest of the output is
    compared. The strips have about twice the length of the halo.
    """
    if field.halo is None:
        return field
    seen = [_farthest_change(each, field, channels) for each in (network, _transposed(network))]
    if None in seen:
        return replace(field, halo=None)
    farthest = max(each for each in seen if each is not None)
    halo = max(field.halo, farthest)
    if 0 < farthest < field.margin + field.stride and field.margin:
        # The network pads inside although the output lacks a margin, so the outermost rows are
        # incomplete. See `patches`.
        halo = max(halo, field.margin + field.stride)
    return replace(field, halo=halo if halo <= LIMIT else None)


def measure_fixed_size(network: Network, channels: int, fixed: tuple[int, int]) -> ReceptiveField:
    """Measure the margin of a network of one fixed size without a skeleton.

    Raises `WeightsError` if it has no per-pixel scores.
    """
    try:
        output = network(np.zeros((1, *fixed, channels), np.float32)).shape
    except ValueError as error:
        raise WeightsError(
            f"The network fails on an image of its own size, {fixed[0]} x {fixed[1]} pixels: "
            f"{error!s:.300}"
        ) from error
    margin, odd = divmod(fixed[0] - output[1], 2) if len(output) == 4 else (-1, 0)
    if margin < 0 or odd or margin >= min(fixed) / 4 or output[2] != fixed[1] - 2 * margin:
        raise WeightsError(
            f"The network gives {output} for an image of {fixed[0]} x {fixed[1]} pixels; expected "
            "(n, y, x, scores) of the same height and width, or "
            "less by the same margin at each side. Add an up-sampling layer at its end, or export "
            "it without its head."
        )
    return ReceptiveField(None, 1, margin, 0, fixed)


def _find_sizes(network: Network, channels: int) -> _Sizes:
    refusals = []
    for size in range(_PERIOD, _PERIOD + max(_STRIDES)):
        try:
            output = network(np.zeros((1, size, size, channels), np.float32))
        except ValueError as error:
            refusals.append(str(error))
            continue
        return _sizes_from(network, channels, size, output.shape)
    raise WeightsError(
        f"The network takes no image of {_PERIOD} to {size} pixels a side: {refusals[0]:.300} "
        "Expected one that gives scores for each pixel of "
        f"images (n, y, x, {channels}), whose sizes suit strides up to {max(_STRIDES)}."
    )


def _sizes_from(network: Network, channels: int, size: int, output: tuple[int, ...]) -> _Sizes:
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
    # A margin is constant when the image grows; an output of fewer, larger pixels lacks more.
    if not _runs(network, size + _PERIOD, size, channels, margin):
        raise WeightsError(
            f"The network gives {output[1]} x {output[2]} scores for {size} x {size} pixels; "
            "expected one for each pixel. "
            "Add an up-sampling layer at its end."
        )
    for width in range(size % 16 or 16, size, 16):
        if width > 2 * margin and _runs(network, size, width, channels, margin):
            return _Sizes(size, width, margin)
    return _Sizes(size, size, margin)


def _runs(network: Network, height: int, width: int, channels: int, margin: int) -> bool:
    try:
        output = network(np.zeros((1, height, width, channels), np.float32))
    except ValueError:
        return False
    return output.shape[1:3] == (height - 2 * margin, width - 2 * margin)


def _transposed(network: Network) -> Network:
    return lambda batch: network(np.ascontiguousarray(batch.transpose(0, 2, 1, 3))).transpose(
        0, 2, 1, 3
    )


def _stride(network: Network, sizes: _Sizes, channels: int) -> int | None:
    """Smallest shift of rows shared by input and output; None if they share no shift."""
    for length in _lengths(sizes):
        pixels = _sparse_pixels((1, length + max(_STRIDES), sizes.width, channels))
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
                and _runs(network, length + stride, sizes.width, channels, sizes.margin)
            ):
                return stride
    return None


def _sparse_pixels(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Random pixels, mostly 0, so that sums over large fields still differ between positions."""
    generator = np.random.default_rng(0)
    return generator.random(shape, np.float32) * (generator.random(shape, np.float32) < 0.1)


def _smallest_step(network: Network, sizes: _Sizes, channels: int) -> int:
    """Smallest difference in pixels between two valid sizes."""
    for stride in _STRIDES:
        size = sizes.height + stride
        if _runs(network, size, size, channels, sizes.margin):
            return stride
    return max(_STRIDES)


def _halo(network: Network, sizes: _Sizes, channels: int, stride: int) -> int | None:
    """Maximum number of rows between an output pixel and an input pixel it depends on.

    None if they do not fit into the longest strip.
    """
    *_, longest = _lengths(sizes)
    rough = _rough_halo(network, (longest, sizes.width, channels))
    if rough is None:
        return None
    # The rough measurement uses one phase of the stride; the farthest row may have another.
    length = next((each for each in _lengths(sizes) if each // 2 > rough + 2 * stride), longest)
    middle = length // 2 // stride * stride
    most = 0
    for phases in _batches(stride, length * sizes.width * channels):
        rows = middle + np.array(phases)
        strips = np.zeros((len(phases), length, sizes.width, channels), np.float32)
        strips[np.arange(len(phases)), rows] = 1
        responses = (network(strips) != 0).any((2, 3))
        # The network may skip some rows altogether (strides of 1x1 kernels).
        seen = responses.any(1)
        first, last = _ends(responses[seen], sizes.margin)
        most = max(most, *(rows[seen] - first), *(last - rows[seen]))
    return int(most)


def _rough_halo(network: Network, shape: tuple[int, int, int]) -> int | None:
    """Halo from the middle of a strip, measured with all rows on either side of it.

    Kernels with wide gaps cannot skip all of these rows.
    """
    length, middle = shape[0], shape[0] // 2
    strips = np.zeros((2, *shape), np.float32)
    strips[0, middle:], strips[1, :middle] = 1, 1
    responses = (network(strips) != 0).any((2, 3))
    if responses[0, 0] or responses[1, -1]:
        return None
    first, last = _ends(responses, (length - responses.shape[1]) // 2)
    return int(max(0, middle - first[0], last[1] - middle))


def _ends(responses: NDArray[np.bool_], margin: int) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """First and last nonzero row of each strip, as rows of the input."""
    from_end = responses[:, ::-1].argmax(1)
    return responses.argmax(1) + margin, responses.shape[1] - 1 - from_end + margin


def _farthest_change(network: Network, field: ReceptiveField, channels: int) -> int | None:
    """Distance from a cut to the farthest row that changes, 0 if none does.

    None if the strip is too short.
    """
    stride, margin, halo = field.stride, field.margin, field.halo or 0
    length = 2 * margin + 2 * halo + 4 * stride
    length += (field.residue - length) % stride
    first = 2 * margin + 1
    widths = range(first + (field.residue - first) % stride, length, stride)
    width = next(
        (width for width in widths if _runs(network, length, width, channels, margin)), length
    )
    pixels = np.random.default_rng(1).random((1, length, width, channels), np.float32)
    whole = network(pixels)
    tolerance = 1e-3 * max(float(np.ptp(whole)), 1e-30)
    farthest = 0
    below, above = network(pixels[:, stride:]), network(pixels[:, :-stride])
    for changed in (np.abs(whole[:, stride:] - below), np.abs(whole[:, :-stride] - above)[:, ::-1]):
        rows = np.flatnonzero((changed > tolerance).any((0, 2, 3)))
        if rows.size:
            # Rows of the output start at the margin; the nearest removed row is one before the
            # first.
            farthest = max(farthest, int(rows[-1]) + margin + 1)
            if rows[-1] >= changed.shape[1] - stride:
                return None
    return farthest


def _lengths(sizes: _Sizes) -> Iterator[int]:
    return (sizes.height + (periods - 1) * _PERIOD for periods in _LENGTHS)


def _batches(count: int, size: int) -> Iterator[range]:
    step = max(1, _BATCH // size)
    return (range(start, min(count, start + step)) for start in range(0, count, step))
