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
    target: str | None = None
    """Folder or URI for the files. None: one below the output."""
    per_image: bool = False
    """A file per image, instead of one for all."""

    @property
    def store(self) -> Store:
        """Where files go."""
        return self.output.store if self.target is None else Store(self.target)

    @property
    def folder(self) -> str:
        """Where files go in the store; empty, or ends in a slash."""
        return "export/" if self.target is None else ""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, in words for people."""

    location: str
    summary: str
    """How much, such as `12 polygons of 2 images`."""
    notes: tuple[str, ...] = ()
    """What was left out, and why: a sentence each."""


TARGETS: Registry[Callable[[Request], Exported]] = Registry(
    "target of an export", "maskloom.tasks.export.targets"
)


def export(output: Output, to: str, target: str | None, *, per_image: bool = False) -> Exported:
    """Write an output for other programs, to a folder of its own or one below the output.

    Raises `RecipeError` if there is no such target or it cannot hold these images, `StoreError`.
    """
    try:
        write = TARGETS[to]
    except KeyError as error:
        raise RecipeError(f"--to: {error.args[0]}") from None
    return write(Request(output, target, per_image))


def counted(count: int, what: str) -> str:
    """A number of things in words.

    >>> counted(1, "image"), counted(2, "image")
    ('1 image', '2 images')
    """
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
