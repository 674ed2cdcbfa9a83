"""Loops over class scores: the most likely class, and weighted sums."""

from __future__ import annotations

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit


@strict_njit
def argmax_labels(scores, labels):  # type: ignore[no-untyped-def]
    """Write the class with the highest score (y, x, class), the first of equals, to the integer
    `labels` (y, x), as `np.argmax` does.

    A NaN counts as the highest only if it comes first.
    """
    height, width, classes = scores.shape
    for y in range(height):
        for x in range(width):
            best, at = scores[y, x, 0], 0
            for i in range(1, classes):
                score = scores[y, x, i]
                greater = score > best
                # Selections, not branches: classes alternate between neighbours, and branch
                # mispredictions would cost more than all else.
                best = score if greater else best
                at = i if greater else at
            labels[y, x] = at


@strict_njit
def threshold_labels(scores, threshold, labels):  # type: ignore[no-untyped-def]
    """Write 1 where the only score of a pixel (y, x, 1) exceeds the threshold, otherwise 0, to the
    integer `labels` (y, x).
    """
    limit = np.float32(threshold)
    height, width, _ = scores.shape
    for y in range(height):
        for x in range(width):
            labels[y, x] = scores[y, x, 0] > limit


@strict_njit
def add_weighted(scores, row_weights, column_weights, total):  # type: ignore[no-untyped-def]
    """Add the scores (y, x, class), times the weights of row and column, to `total`; all
    float32.
    """
    height, width, classes = scores.shape
    for y in range(height):
        for x in range(width):
            weight = row_weights[y] * column_weights[x]
            for i in range(classes):
                total[y, x, i] += weight * scores[y, x, i]
