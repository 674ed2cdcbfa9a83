"""Compiled loops of smoothing: a pixel chooses its class by its values and by the classes of its
neighbours.

Classes are in an array with a margin of one pixel on all sides, where `NO_VOTE` marks the margin
and pixels without data. Images are volumes of one plane. The pixels of one colour of a chequerboard
have neighbours of the other colour only, so they can be updated in place, in any order.
"""

from __future__ import annotations

from maskloom.segcore.kernels.compiling import strict_njit

NO_VOTE = 255


@strict_njit
def _score(pixels, place, scorer, k):  # type: ignore[no-untyped-def]
    """The score of component k for one pixel, by the arithmetic of
    `segcore.kernels.pixels.score_batch`.
    """
    constants, means, factors = scorer
    z, y, x = place
    square = 0.0
    for i in range(means.shape[1]):
        difference = factors[k, i, 0] * (pixels[z, y, x, 0] - means[k, 0])
        for j in range(1, i + 1):
            difference += factors[k, i, j] * (pixels[z, y, x, j] - means[k, j])
        square += difference * difference
    return constants[k] - 0.5 * square


@strict_njit
def _neighbours(classes, place):  # type: ignore[no-untyped-def]
    """The classes of the six neighbours of a place, two for each axis."""
    z, y, x = place
    return (
        classes[z, y + 1, x + 1],
        classes[z + 2, y + 1, x + 1],
        classes[z + 1, y, x + 1],
        classes[z + 1, y + 2, x + 1],
        classes[z + 1, y + 1, x],
        classes[z + 1, y + 1, x + 2],
    )


@strict_njit
def _votes(near, own, weights):  # type: ignore[no-untyped-def]
    """Sum of the weights of the neighbours that have a class."""
    across = weights[0] * ((near[0] == own) + (near[1] == own))
    along = weights[1] * ((near[2] == own) + (near[3] == own))
    return across + along + weights[2] * ((near[4] == own) + (near[5] == own))


@strict_njit
def smooth_colour(classes, pixels, scorer, class_of, weights, colour):  # type: ignore[no-untyped-def]
    """Update the pixels of one colour (0 or 1) of the chequerboard in `classes`.

    Each gets the class of the component with the highest score plus votes, the first of equals.
    `pixels` is (z, y, x, band), `scorer` (constants, means, factors) as in
    `segcore.kernels.pixels.label_pixels`, `class_of` the class of each component, and `weights` the
    vote of a neighbour along each axis.
    """
    for z in range(pixels.shape[0]):
        for y in range(pixels.shape[1]):
            for x in range((z + y + colour) % 2, pixels.shape[2], 2):
                own = classes[z + 1, y + 1, x + 1]
                if own == NO_VOTE:
                    continue
                near = _neighbours(classes, (z, y, x))
                differing = 0
                for other in near:
                    differing += (other != own) & (other != NO_VOTE)
                # It was the best class with fewer votes, so it is with all.
                if differing == 0:
                    continue
                best, chosen = 0.0, 0
                for k in range(class_of.size):
                    score = _score(pixels, (z, y, x), scorer, k)
                    score += _votes(near, class_of[k], weights)
                    if k == 0 or score > best:
                        best, chosen = score, class_of[k]
                classes[z + 1, y + 1, x + 1] = chosen


@strict_njit
def count_votes(classes, class_of, weights, out):  # type: ignore[no-untyped-def]
    """Write the votes for each component to `out` (z, y, x, component)."""
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                near = _neighbours(classes, (z, y, x))
                for k in range(class_of.size):
                    out[z, y, x, k] = _votes(near, class_of[k], weights)
