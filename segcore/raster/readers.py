"""What readers have in common."""

from __future__ import annotations

from typing import Self


class NothingToClose:
    """Base of readers that hold nothing open."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to close."""
