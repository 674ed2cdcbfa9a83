"""Wide integers: integers of up to 95 bits in two int64 columns, for exact sums over objects of any
size.

The last axis of an array holds (high, low), which mean high * 2**32 + low. In normal form low
is 0 to 2**32 - 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

_LOW = 2**32 - 1


def as_wide(numbers: Integers) -> Integers:
    """Plain integers in normal form."""
    return np.stack([numbers >> 32, numbers & _LOW], axis=-1)


def normalised(wide: Integers) -> Integers:
    """The same numbers in normal form."""
    return np.stack([wide[..., 0] + (wide[..., 1] >> 32), wide[..., 1] & _LOW], axis=-1)


def product(small: Integers, large: Integers) -> Integers:
    """Products in normal form: 0 <= small < 2**31, 0 <= large < 2**63."""
    low = small * (large & _LOW)
    return np.stack([small * (large >> 32) + (low >> 32), low & _LOW], axis=-1)


def as_floats(wide: Integers) -> NDArray[np.float64]:
    """The nearest float64 of numbers in normal form below 2**85."""
    return np.asarray(wide[..., 0] * 2.0**32 + wide[..., 1], np.float64)


def as_integers(wide: Integers) -> list[int]:
    """Numbers in an array (n, 2) as Python's integers."""
    return [(high << 32) + low for high, low in wide.reshape(-1, 2).tolist()]
