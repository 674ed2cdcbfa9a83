"""How all loops are compiled: in strict IEEE arithmetic, so that neither the processor, nor what
the compiler makes of it, nor the cut into tiles changes a bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def exactly(function: Callable[..., Any]) -> Callable[..., Any]:
    """`njit` in strict arithmetic that releases the lock and keeps the machine code on disk where
    there is a place for it.
    """
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
    except (
        RuntimeError
    ):  # numba's word for: neither the package's folder nor the user's cache can be written
        return njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
