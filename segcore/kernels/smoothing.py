"""Compiled loops of smoothing: a pixel chooses its class by its values and by the classes of its
neighbours.

Classes are in an array with a margin of one pixel on all sides, where `NO_VOTE` marks the margin
and pixels without data. Images are volumes of one plane. The pixels of one colour of a chequerboard
have neighbours of the other colour only, so they can be updated in place, in any order.
"""

from __future__ import annotations

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit

NO_VOTE = 255


@strict_njit
def _score(pixel, constant, mean, factor):  # type: ignore[no-untyped-def]
    """The score of one pixel, by the arithmetic of `segcore.kernels.pixels.score_batch`."""
    square = 0.0
    for i in range(mean.size):
        difference = factor[i, 0] * (pixel[0] - mean[0])
        for j in range(1, i + 1):
            difference += factor[i, j] * (pixel[j] - mean[j])
        square += difference * difference
    return constant - 0.5 * square


@strict_njit
def _neighbours(classes, place, near):  # type: ignore[no-untyped-def]
    """Write the classes of the six neighbours of a place to `near`, two for each axis."""
    z, y, x = place
    near[0], near[1] = classes[z - 1, y, x], classes[z + 1, y, x]
    near[2], near[3] = classes[z, y - 1, x], classes[z, y + 1, x]
    near[4], near[5] = classes[z, y, x - 1], classes[z, y, x + 1]


@strict_njit
def _votes(near, own, weights):  # type: ignore[no-untyped-def]
    """Sum of the weights of the neighbours that have a class."""
    votes = 0.0
    for axis in range(3):
        votes += weights[axis] * ((near[2 * axis] == own) + (near[2 * axis + 1] == own))
    return votes


@strict_njit
def smooth_colour(classes, pixels, scorer, class_of, weights, colour):  # type: ignore[no-untyped-def]
    """Update the pixels of one colour (0 or 1) of the chequerboard in `classes`.

    Each gets the class of the component with the highest score plus votes, the first of equals.
    `pixels` is (z, y, x, band), `scorer` (constants, means, factors) as in
    `segcore.kernels.pixels.label_pixels`, `class_of` the class of each component, and `weights` the
    vote of a neighbour along each axis.
    """
    constants, means, factors = scorer
    near = np.empty(6, np.uint8)
    for z in range(pixels.shape[0]):
        for y in range(pixels.shape[1]):
            for x in range((z + y + colour) % 2, pixels.shape[2], 2):
                place = (z + 1, y + 1, x + 1)
                own = classes[place]
                if own == NO_VOTE:
                    continue
                _neighbours(classes, place, near)
                agreed = True
                for other in near:
                    agreed &= (other == own) | (other == NO_VOTE)
                # It was the best class with fewer votes, so it is with all.
                if agreed:
                    continue
                best, chosen = 0.0, 0
                for k in range(constants.size):
                    score = _score(pixels[z, y, x], constants[k], means[k], factors[k])
                    score += _votes(near, class_of[k], weights)
                    if k == 0 or score > best:
                        best, chosen = score, class_of[k]
                classes[place] = chosen


@strict_njit
def count_votes(classes, class_of, weights, out):  # type: ignore[no-untyped-def]
    """Write the votes for each component to `out` (z, y, x, component)."""
    near = np.empty(6, np.uint8)
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                _neighbours(classes, (z + 1, y + 1, x + 1), near)
                for k in range(class_of.size):
                    out[z, y, x, k] = _votes(near, class_of[k], weights)
