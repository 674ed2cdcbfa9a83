"""The compilation of all loops in strict IEEE arithmetic, so that no processor, compiler
optimisation or tiling changes a bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def strict_njit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`njit` in strict arithmetic. Releases the global interpreter lock, and caches the machine
    code on disk if possible.
    """
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
    except RuntimeError:
        # numba can write neither to the package's folder nor to the user's cache.
        return njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
