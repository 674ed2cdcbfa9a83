"""Loops over scores: which class is the likeliest, and weighted sums of several."""

from __future__ import annotations

import numpy as np

from maskloom.segcore.kernels.compiling import exactly


@exactly
def likeliest(scores, labels):  # type: ignore[no-untyped-def]
    """The place of the greatest of each pixel's scores (y, x, class), the first of equals, as
    `np.argmax`; into integer `labels` (y, x).

    A NaN is never greatest unless it comes first.
    """
    height, width, classes = scores.shape
    for y in range(height):
        for x in range(width):
            best, at = scores[y, x, 0], 0
            for i in range(1, classes):
                score = scores[y, x, i]
                greater = score > best
                # Choices, not branches: neighbouring classes alternate, and wrong guesses cost more
                # than all else.
                best = score if greater else best
                at = i if greater else at
            labels[y, x] = at


@exactly
def likelier(scores, threshold, labels):  # type: ignore[no-untyped-def]
    """1 where the only score of a pixel (y, x, 1) exceeds the threshold, else 0; into integer
    `labels` (y, x).
    """
    limit = np.float32(threshold)
    height, width, _ = scores.shape
    for y in range(height):
        for x in range(width):
            labels[y, x] = scores[y, x, 0] > limit


@exactly
def add_weighted(scores, row_weights, column_weights, total):  # type: ignore[no-untyped-def]
    """Add scores (y, x, class), each times the weights of its row and its column, to `total`; all
    float32.
    """
    height, width, classes = scores.shape
    for y in range(height):
        for x in range(width):
            weight = row_weights[y] * column_weights[x]
            for i in range(classes):
                total[y, x, i] += weight * scores[y, x, i]
