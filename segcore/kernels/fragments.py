"""Loops over the pixels of fragments."""

from __future__ import annotations

from typing import Any

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit


@strict_njit
def first_positions(values: Any, count: int) -> Any:
    """The first position of each value 1 ... count in the flat array; that of 0 is 0."""
    flat = values.ravel()
    found = np.full(count + 1, -1, np.int64)
    found[0] = 0
    last = 0
    for i in range(flat.size):
        value = flat[i]
        if value != last:
            last = value
            if found[value] < 0:
                found[value] = i
    return found
