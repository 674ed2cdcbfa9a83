"""What an export is asked for, and the registry of its targets.

A target takes one file and one decorator: a function of a `Request` in `tasks/export/targets`, or
in another distribution by an entry point of the group `maskloom.targets`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.registry import Registry
from maskloom.segcore.storage.store import Store

if TYPE_CHECKING:
    from maskloom.tasks.output import Output


@dataclass(frozen=True, slots=True)
class Request:
    """What to write, and where."""

    output: Output
    store: Store
    folder: str = ""
    """Where files go in the store; empty, or ends in a slash."""
    per_image: bool = False
    """A file per image, instead of one for all."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    location: str
    images: int
    features: int
    passed_over: tuple[str, ...] = ()
    """Images that have no outlines: volumes and failed ones."""


TARGETS: Registry[Callable[[Request], Exported]] = Registry(
    "target of an export", "maskloom.tasks.export.targets"
)


def export(output: Output, to: str, folder: str | None, *, per_image: bool = False) -> Exported:
    """Write an output for other programs, to a folder of its own or `export` of the output.

    Raises `RecipeError` if there is no such target or it cannot hold these images, `StoreError`.
    """
    try:
        write = TARGETS[to]
    except KeyError as error:
        raise RecipeError(f"--to: {error.args[0]}") from None
    if folder is None:
        return write(Request(output, output.store, "export/", per_image))
    return write(Request(output, Store(folder), "", per_image))
