"""Loops over pixels for the distribution of their values: whole numbers only, so that sums over
tiles are exact whatever the tiling.

Pixels are (pixel, band); `valid` says for each pixel whether it counts. Results have one row for
each band, or one row for all bands together.
"""

from __future__ import annotations

from maskloom.segcore.kernels.compiling import strict_njit


@strict_njit
def count_codes(codes, valid, tables):  # type: ignore[no-untyped-def]
    """Count codes of 16 bits into `tables` (row, 2**16)."""
    alone = tables.shape[0] > 1
    for i in range(codes.shape[0]):
        if valid[i]:
            for band in range(codes.shape[1]):
                tables[band if alone else 0, codes[i, band]] += 1


@strict_njit
def _key(word):  # type: ignore[no-untyped-def]
    """The bits of a float32 as a whole number in the same order."""
    return 0xFFFFFFFF - word if word >> 31 else word + 0x80000000


@strict_njit
def count_first_bits(bits, valid, tables):  # type: ignore[no-untyped-def]
    """Count the first 16 bits of the keys of float32s, given as their bits, into `tables`
    (row, 2**16). Infinite values and NaN are passed over.
    """
    alone = tables.shape[0] > 1
    for i in range(bits.shape[0]):
        if valid[i]:
            for band in range(bits.shape[1]):
                word = int(bits[i, band])
                if (word >> 23) & 0xFF != 0xFF:
                    tables[band if alone else 0, _key(word) >> 16] += 1


@strict_njit
def count_last_bits(bits, valid, firsts, tables):  # type: ignore[no-untyped-def]
    """Count the last 16 bits of the keys of float32s whose first 16 bits are `firsts` (row, k) into
    `tables` (row, k, 2**16).
    """
    alone = tables.shape[0] > 1
    for i in range(bits.shape[0]):
        if valid[i]:
            for band in range(bits.shape[1]):
                row, key = band if alone else 0, _key(int(bits[i, band]))
                for k in range(firsts.shape[1]):
                    if firsts[row, k] == key >> 16:
                        tables[row, k, key & 0xFFFF] += 1


@strict_njit
def sum_exactly(bits, valid, sums):  # type: ignore[no-untyped-def]
    """Add up float32s, given as their bits, into `sums` (row, 256, 4), by exponent.

    A value is a whole number of 24 bits times a power of 2, which the exponent names. Columns: how
    many there are, the sum of these whole numbers with their signs, and the sums of the lower and
    the upper half of their squares. Infinite values and NaN are passed over. No sum overflows below
    2**39 pixels.
    """
    alone = sums.shape[0] > 1
    for i in range(bits.shape[0]):
        if valid[i]:
            for band in range(bits.shape[1]):
                row = band if alone else 0
                word = int(bits[i, band])
                exponent = (word >> 23) & 0xFF
                if exponent == 0xFF:
                    continue
                number = word & 0x7FFFFF
                if exponent:
                    number |= 0x800000
                else:
                    # Numbers next to 0 have no hidden bit, and the exponent of the least that do.
                    exponent = 1
                square = number * number
                sums[row, exponent, 0] += 1
                sums[row, exponent, 1] += -number if word >> 31 else number
                sums[row, exponent, 2] += square & 0xFFFFFF
                sums[row, exponent, 3] += square >> 24
