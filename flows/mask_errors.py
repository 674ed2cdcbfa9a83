"""Errors of reading masks, as users see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from maskloom.segcore.errors import ImageError, RecipeError, StoreError, Unavailable


@contextmanager
def mask_errors_for_users() -> Iterator[None]:
    """Errors of reading masks as errors with an exit code for users: a mask that cannot be read is
    wrong usage (`RecipeError`), a store that fails is not (`StoreError`).
    """
    try:
        yield
    except Unavailable as error:
        raise StoreError(f"{error}. Check the store, then run the same command again.") from error
    except ImageError as error:
        raise RecipeError(str(error)) from error
