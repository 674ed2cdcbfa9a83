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
def softmax(logits, sharpness, scores):  # type: ignore[no-untyped-def]
    """Write the probabilities of logits (y, x, class) times `sharpness` to `scores`, of the same
    shape.
    """
    height, width, classes = logits.shape
    for y in range(height):
        for x in range(width):
            most = logits[y, x, 0]
            for i in range(1, classes):
                most = max(most, logits[y, x, i])
            total = 0.0
            for i in range(classes):
                total += np.exp((logits[y, x, i] - most) * sharpness)
            for i in range(classes):
                scores[y, x, i] = np.exp((logits[y, x, i] - most) * sharpness) / total


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


@strict_njit
def quantise(scores, valid, most, nodata, quanta, values):  # type: ignore[no-untyped-def]
    """Write the scores (pixel, class) as whole numbers up to `most`, rounded to the nearest and
    halves up, to `values` (class, pixel); `nodata` where a pixel is not valid.

    Returns the sums over the valid pixels of entropy, as a share of the greatest possible one, and
    of margin (greatest minus second score), of each pixel in whole `quanta`-ths.
    """
    pixels, classes = scores.shape
    greatest = np.log(classes) if classes > 1 else 1.0
    entropies, margins = np.int64(0), np.int64(0)
    for i in range(pixels):
        if not valid[i]:
            for k in range(classes):
                values[k, i] = nodata
            continue
        entropy, first, second = 0.0, 0.0, 0.0
        for k in range(classes):
            score = float(scores[i, k])
            # NaN, too, becomes 0.
            score = min(score, 1.0) if score > 0.0 else 0.0
            values[k, i] = np.int64(np.floor(score * most + 0.5))
            if score > 0.0:
                entropy -= score * np.log(score)
            if score > first:
                first, second = score, first
            elif score > second:
                second = score
        entropies += np.int64(np.floor(min(entropy / greatest, 1.0) * quanta + 0.5))
        margins += np.int64(np.floor((first - second) * quanta + 0.5))
    return entropies, margins


@strict_njit
def halve_means(values, nodata, halved):  # type: ignore[no-untyped-def]
    """Write the mean of each 2 x 2 pixels of `values` (y, x), uint8, to `halved`, rounded to the
    nearest and halves up. Pixels of nodata, and places beyond the border, do not count.
    """
    height, width = values.shape
    for y in range(halved.shape[0]):
        for x in range(halved.shape[1]):
            total, count = 0, 0
            for j in range(2 * y, min(2 * y + 2, height)):
                for i in range(2 * x, min(2 * x + 2, width)):
                    if values[j, i] != nodata:
                        total += values[j, i]
                        count += 1
            halved[y, x] = (2 * total + count) // (2 * count) if count else nodata


@strict_njit
def temper(scores, exponent):  # type: ignore[no-untyped-def]
    """Raise the scores (pixel, class) to a power and divide them by their sum, in place."""
    pixels, classes = scores.shape
    for i in range(pixels):
        greatest = 0.0
        for k in range(classes):
            greatest = max(greatest, float(scores[i, k]))
        if not greatest > 0.0:
            continue
        total = 0.0
        for k in range(classes):
            total += (float(scores[i, k]) / greatest) ** exponent
        for k in range(classes):
            scores[i, k] = (float(scores[i, k]) / greatest) ** exponent / total
