"""Loops over pixels and their values: counting, sampling, scoring.

Colours of 3 x 8 bits are counted and labelled through tables with one entry a colour. The entry's
place is the colour's Morton code (the bits of red, green and blue interleaved): near colours are
near in memory, and every cube of the colour space whose side is a power of two is one run of the
table.
"""

from __future__ import annotations

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit

PAGE_BITS = 12
"""Colours are counted in pages of 2**12 table entries: cubes of 16 x 16 x 16 colours."""
BATCH = 512
"""Pixels that are scored together, so that the inner loops run over the processor's vectors and
stay in its first cache.
"""
_SPREAD = np.array(
    [sum(((value >> bit) & 1) << (3 * bit) for bit in range(8)) for value in range(256)], np.uint32
)
RED, GREEN, BLUE = _SPREAD << np.uint32(2), _SPREAD << np.uint32(1), _SPREAD


# ---- counting
# --------------------------------------------------------------------------------------------------


@strict_njit
def colour_keys(pixels, valid, keys):  # type: ignore[no-untyped-def]
    """Morton codes of the valid pixels of a (y, x, 3) uint8 block; returns how many were written to
    `keys`.
    """
    n = 0
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            keys[n] = RED[pixels[y, x, 0]] | GREEN[pixels[y, x, 1]] | BLUE[pixels[y, x, 2]]
            n += valid[y, x]
    return n


@strict_njit
def count_colours(pixels, valid, table, touched):  # type: ignore[no-untyped-def]
    """Count the valid pixels of a (y, x, 3) uint8 block into a table of 2**24; mark the pages that
    were touched.
    """
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            if valid[y, x]:
                key = RED[pixels[y, x, 0]] | GREEN[pixels[y, x, 1]] | BLUE[pixels[y, x, 2]]
                table[key] += np.uint32(1)
                touched[key >> PAGE_BITS] = 1


@strict_njit
def count_keys(keys, table, touched):  # type: ignore[no-untyped-def]
    """Count ready keys below 2**24 into a table; mark the pages that were touched."""
    for key in keys:
        table[key] += np.uint32(1)
        touched[key >> PAGE_BITS] = 1


@strict_njit
def drain(table, touched, keys, counts):  # type: ignore[no-untyped-def]
    """Move the touched pages' counts to sorted (keys, counts), and leave table and marks all zero;
    returns their number.
    """
    n = 0
    for page in range(touched.size):
        if touched[page]:
            touched[page] = 0
            for i in range(page << PAGE_BITS, (page + 1) << PAGE_BITS):
                if table[i]:
                    keys[n] = i
                    counts[n] = table[i]
                    table[i] = 0
                    n += 1
    return n


@strict_njit
def run_lengths(ordered, keys, counts):  # type: ignore[no-untyped-def]
    """Distinct values of a sorted array and how often each occurs; returns their number."""
    n = -1
    for i in range(ordered.size):
        if i == 0 or ordered[i] != ordered[i - 1]:
            n += 1
            keys[n] = ordered[i]
            counts[n] = 0
        counts[n] += 1
    return n + 1


@strict_njit
def merge_counts(keys_a, counts_a, keys_b, counts_b, keys, counts):  # type: ignore[no-untyped-def]
    """Merge two sorted (keys, counts) into a third; returns its length."""
    i, j, n = 0, 0, 0
    while i < keys_a.size and j < keys_b.size:
        a, b = keys_a[i], keys_b[j]
        from_a, from_b = a <= b, b <= a
        keys[n] = a if from_a else b
        # Products instead of choices: which key comes next cannot be guessed, and a wrong guess
        # costs more than all else.
        counts[n] = counts_a[i] * from_a + counts_b[j] * from_b
        i += from_a
        j += from_b
        n += 1
    for rest in range(i, keys_a.size):
        keys[n] = keys_a[rest]
        counts[n] = counts_a[rest]
        n += 1
    for rest in range(j, keys_b.size):
        keys[n] = keys_b[rest]
        counts[n] = counts_b[rest]
        n += 1
    return n


@strict_njit
def split_keys(keys, colours):  # type: ignore[no-untyped-def]
    """Red, green and blue (rows of `colours`) of Morton codes."""
    for i in range(keys.size):
        key = keys[i]
        for channel in range(3):
            bits = (key >> (2 - channel)) & 0x249249
            bits = (bits | bits >> 2) & 0x0C30C3
            bits = (bits | bits >> 4) & 0x00F00F
            colours[channel, i] = (bits | bits >> 8) & 0xFF


@strict_njit
def count_values(values, valid, low, tables):  # type: ignore[no-untyped-def]
    """Count the valid integers `values`, all of them in the tables' range from `low` on.

    There are four tables, so that runs of one value do not wait for one another.
    """
    whole = values.size & ~3
    for i in range(0, whole, 4):
        tables[0, np.uint64(np.int64(values[i]) - low)] += valid[i]
        tables[1, np.uint64(np.int64(values[i + 1]) - low)] += valid[i + 1]
        tables[2, np.uint64(np.int64(values[i + 2]) - low)] += valid[i + 2]
        tables[3, np.uint64(np.int64(values[i + 3]) - low)] += valid[i + 3]
    for i in range(whole, values.size):
        tables[0, np.uint64(np.int64(values[i]) - low)] += valid[i]


@strict_njit
def count_bins(values, valid, edges, counts):  # type: ignore[no-untyped-def]
    """Count the valid finite `values` into equal bins, closed on the left, the last one on both
    sides.
    """
    last = counts.size - 1
    scale = counts.size / (float(edges[-1]) - float(edges[0]))
    for i in range(values.size):
        value = values[i]
        if valid[i] and edges[0] <= value <= edges[-1]:
            # The guess may be one off; the edges decide, as in numpy.histogram.
            at = min(int((float(value) - float(edges[0])) * scale), last)
            while at > 0 and value < edges[at]:
                at -= 1
            while at < last and value >= edges[at + 1]:
                at += 1
            counts[at] += 1


# ---- drawing
# --------------------------------------------------------------------------------------------------


@strict_njit
def splitmix(state):  # type: ignore[no-untyped-def]
    """The output function of splitmix64 (Steele, Lea, Flood 2014)."""
    z = np.uint64(state) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@strict_njit
def hash_places(parents, first, hashes):  # type: ignore[no-untyped-def]
    """Hashes of the places `first` and on along an axis: a row of `hashes` for each hash in
    `parents`, that of the place along the axes before.
    """
    for i in range(hashes.shape[0]):
        for k in range(hashes.shape[1]):
            hashes[i, k] = splitmix(parents[i] ^ splitmix(np.uint64(first + k)))


@strict_njit
def draw(valid, rows, first, limit, found):  # type: ignore[no-untyped-def]
    """Write the priorities of the valid pixels (y, x) that are at most `limit` to `found`: (hashes,
    flat positions). `rows` are the hashes of the rows, `first` is the first column.

    Returns their number, or -1 if it exceeds the size of `found`.
    """
    hashes, places = found
    n = 0
    for y in range(valid.shape[0]):
        row = rows[y]
        for x in range(valid.shape[1]):
            priority = splitmix(row ^ np.uint64(first + x))
            if valid[y, x] and priority <= limit:
                if n == hashes.size:
                    return -1
                hashes[n] = priority
                places[n] = y * valid.shape[1] + x
                n += 1
    return n


# ---- scoring
# --------------------------------------------------------------------------------------------------


@strict_njit
def score_batch(x, n, constant, mean, factor, diagonal, out):  # type: ignore[no-untyped-def]
    """Set `out` to constant - |factor (x - mean)|**2 / 2 for n columns of x; factor is lower
    triangular.
    """
    difference = np.empty(BATCH)
    for p in range(n):
        out[p] = 0.0
    for i in range(mean.size):
        first = i if diagonal else 0
        for p in range(n):
            difference[p] = factor[i, first] * (x[first, p] - mean[first])
        for j in range(first + 1, i + 1):
            for p in range(n):
                difference[p] += factor[i, j] * (x[j, p] - mean[j])
        for p in range(n):
            out[p] += difference[p] * difference[p]
    for p in range(n):
        out[p] = constant - 0.5 * out[p]


@strict_njit
def label_pixels(pixels, scorer, diagonal, out):  # type: ignore[no-untyped-def]
    """The best class of each row of `pixels` (n, channels), the first of equals; `scorer` is
    (constants, means, factors).
    """
    constants, means, factors = scorer
    channels = pixels.shape[1]
    x = np.empty((channels, BATCH))
    score = np.empty(BATCH)
    best = np.empty(BATCH)
    label = np.empty(BATCH, np.int64)
    for start in range(0, pixels.shape[0], BATCH):
        n = min(BATCH, pixels.shape[0] - start)
        for j in range(channels):
            for p in range(n):
                x[j, p] = pixels[start + p, j]
        for p in range(n):
            label[p] = 0
        score_batch(x, n, constants[0], means[0], factors[0], diagonal, best)
        for k in range(1, constants.size):
            score_batch(x, n, constants[k], means[k], factors[k], diagonal, score)
            for p in range(n):
                better = score[p] > best[p]
                label[p] = k if better else label[p]
                best[p] = score[p] if better else best[p]
        for p in range(n):
            out[start + p] = label[p]


@strict_njit
def _best_class(colour, scorer, diagonal):  # type: ignore[no-untyped-def]
    """The class of one colour, by the arithmetic of `label_pixels`."""
    constants, means, factors = scorer
    best, label = -np.inf, 0
    for k in range(constants.size):
        square = 0.0
        for i in range(3):
            difference = factors[k, i, i] * (colour[i] - means[k, i])
            if not diagonal and i > 0:
                difference = factors[k, i, 0] * (colour[0] - means[k, 0])
                for j in range(1, i + 1):
                    difference += factors[k, i, j] * (colour[j] - means[k, j])
            square += difference * difference
        score = constants[k] - 0.5 * square
        if score > best:
            best, label = score, k
    return label


@strict_njit
def label_colours(pixels, scorer, diagonal, memo, out):  # type: ignore[no-untyped-def]
    """Classes of a (y, x, 3) uint8 block from `memo` (class + 1 by Morton code; 0: not
    computed yet, filled on first use).
    """
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            red, green, blue = pixels[y, x, 0], pixels[y, x, 1], pixels[y, x, 2]
            key = RED[red] | GREEN[green] | BLUE[blue]
            known = memo[key]
            if known == 0:
                known = np.uint8(
                    _best_class((float(red), float(green), float(blue)), scorer, diagonal) + 1
                )
                memo[key] = known
            out[y, x] = known - 1
