"""Weights: the file or folder of a trained network, identified by its digest.

The digest is taken when the recipe is read and checked whenever the file is loaded, so that all
workers run the same network and it cannot be replaced during a run. Weights installed with the
package are referred to by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Annotated

from maskloom.segcore.deep.inference.card import Card, card_name
from maskloom.segcore.deep.inference.files.sources import (
    SINGLE,
    SUFFIXES,
    Source,
    source_at,
    suffix_of,
)
from maskloom.segcore.errors import StoreError, WeightsError
from maskloom.segcore.storage.addresses import RelativeToRecipe
from maskloom.segcore.storage.filesystems import filesystem, store_errors

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from maskloom.segcore.deep.inference.files.bioimageio import Description

_PACKAGE = "maskloom.segcore.deep.weights"


@dataclass(frozen=True, slots=True)
class Weights:
    """The file or folder of a network and the digest it must have."""

    location: str = field(compare=False)
    """Name of packaged weights, a path or an fsspec URI. Not compared: equal bytes are equal
    weights.
    """
    sha256: str
    trust: bool = False
    """Whether the user trusts a file that can run code when loaded."""

    @classmethod
    def of(cls, location: str, trust: bool = False) -> Weights:
        """Return the weights now at a location. Raises `WeightsError` if they cannot be read."""
        return cls(location, _read(location).sha256, trust)

    @property
    def suffix(self) -> str:
        """Suffix in lower case of the file that an engine opens: one of `SUFFIXES`, `.pb` of a
        SavedModel, or any other.
        """
        suffix = suffix_of(file_name(self.location))
        return suffix if suffix in SINGLE else _suffix_inside(self)

    def source(self) -> Source:
        """Return the files of the network.

        Raises `WeightsError` if one is missing or has changed since the run began.
        """
        source = _read(self.location)
        if source.sha256 != self.sha256:
            raise WeightsError(
                f"{self.location} was changed: expected the digest {self.sha256[:12]}..., got "
                f"{source.sha256[:12]}.... "
                "Put the file back, or start again with the new one."
            )
        return source

    def read(self) -> bytes:
        """Return the bytes of the file that an engine opens. Raises `WeightsError` as `source`."""
        return self.source().content

    def card(self) -> Card | None:
        """Return the card beside the file; None without a card.

        Raises `WeightsError` if it is broken or belongs to another file.
        """
        packaged = _packaged(self.location)
        if packaged is not None:
            where = str(packaged[1])
            content = packaged[1].read_bytes()
        else:
            where = card_name(self.location)
            fs, path = filesystem(where)
            with store_errors(f"read {where}"):
                if not fs.exists(path):
                    return None
                content = fs.cat_file(path)
        card = Card.load(content, where)
        if card.sha256 != self.sha256:
            raise WeightsError(
                f"{where} belongs to other weights than {self.location}: it says "
                f"{card.sha256[:12]}..., the file is {self.sha256[:12]}.... "
                "Copy the weights again if they may be incomplete, put the two files of one "
                "training side by side, or remove the card of a file that was changed on purpose."
            )
        description = None if packaged is not None else self._description()
        if description is not None:
            description.check(card)
        return card

    @property
    def is_described(self) -> bool:
        """Whether the maker of a model in a folder or archive says what it is."""
        return _packaged(self.location) is None and self._description() is not None

    def _description(self) -> Description | None:
        """What the maker of a model in a folder or archive says of it."""
        if suffix_of(file_name(self.location)) in SINGLE:
            return None
        return self.source().description


def packaged_names() -> list[str]:
    """Names of the weights installed with the package."""
    return sorted(
        entry.name.removesuffix(".keras")
        for entry in resources.files(_PACKAGE).iterdir()
        if entry.name.endswith(".keras")
    )


def is_packaged(location: str) -> bool:
    """Whether a location is the name of packaged weights."""
    return location in packaged_names()


WeightsLocation = Annotated[str, RelativeToRecipe(unless=is_packaged)]
"""The name of packaged weights, a path or an fsspec URI."""


def file_name(location: str) -> str:
    """Name of the file at a location, without its folders."""
    return (
        f"{location}.keras"
        if is_packaged(location)
        else location.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    )


def _packaged(location: str) -> tuple[Traversable, Traversable] | None:
    if not is_packaged(location):
        return None
    folder = resources.files(_PACKAGE)
    return folder / f"{location}.keras", folder / f"{location}.json"


@lru_cache(maxsize=8)
def _suffix_inside(weights: Weights) -> str:
    """The suffix of the main file in a folder or archive."""
    return suffix_of(weights.source().main)


def _read(location: str) -> Source:
    packaged = _packaged(location)
    if packaged is not None:
        return Source(packaged[0].name, {packaged[0].name: packaged[0].read_bytes()})
    try:
        return source_at(location)
    except (FileNotFoundError, StoreError) as error:
        known = ", ".join(packaged_names())
        raise WeightsError(
            f"weights: {location} cannot be read ({error}), and no weights of that name come with "
            f"maskloom ({known}). "
            f"Give a file ending in {', '.join(SUFFIXES)}, the folder of a model, or one of these "
            "names."
        ) from error
