"""Folders of a model of others: a folder at any location, or a ZIP archive.

The names in a folder, and those that a file in it gives to others, are untrusted: none may lead out
of it. An archive is never unpacked to a disk, and what it may unfold to is bounded.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from maskloom.segcore.errors import WeightsError
from maskloom.segcore.storage.filesystems import filesystem, is_local, store_errors

if TYPE_CHECKING:
    import fsspec

_DEPTH = 2
"""Levels of a folder that are listed; files below them are found by their names only."""
_MOST_ENTRIES = 10_000
_SLACK, _MOST_EXPANSION = 1 << 26, 8
"""Bytes to which any archive may unfold, and the factor on its own size beyond that. Weights
hardly compress.
"""
_ELSEWHERE = re.compile(r"^[A-Za-z][\w+.-]*:|^[/~]|\\|\0")


class Folder(Protocol):
    """The files of a model."""

    @property
    def location(self) -> str:
        """Its path or URI, for messages."""
        ...

    @property
    def names(self) -> Collection[str]:
        """Its files, relative to it, as far as they are listed."""
        ...

    def size(self, name: str) -> int:
        """The size of a file in bytes. Raises `WeightsError` if there is none of this name."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises `WeightsError` if it cannot be read."""
        ...

    def below(self, name: str) -> Folder:
        """The folder of this name in it."""
        ...


def folder_at(location: str) -> Folder | None:
    """The folder or ZIP archive at a location; None for any other file, or none.

    Raises `WeightsError` for a broken archive, `StoreError` if the store does not answer.
    """
    fs, path = filesystem(location)
    with store_errors(f"look at {location}"):
        if location.lower().endswith(".zip") and fs.isfile(path):
            return archive_of(bytes(fs.cat_file(path)), location)
        return _Directory(location, fs, path) if fs.isdir(path) else None


def inside(name: str, folder: str) -> str:
    """A name given in a file of others, as a path inside the folder.

    Raises `WeightsError` if it leads out of the folder.

    >>> inside("./weights/a.onnx", "models/roads")
    'weights/a.onnx'
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or _ELSEWHERE.search(name):
        raise WeightsError(
            f"{folder} names a file outside: {name[:100]!r}. Expected all files of a model inside "
            "its folder, with names relative to it. Download or export the whole model again."
        )
    return str(PurePosixPath(*parts))


def archive_of(content: bytes, location: str) -> Folder:
    """The folder in a ZIP archive. Raises `WeightsError` if it is broken or hostile."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise WeightsError(
            f"{location} is truncated or damaged: {error}. Copy it again."
        ) from error
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    names = [inside(entry.filename, location) for entry in entries]
    if len(entries) > _MOST_ENTRIES or len(set(names)) < len(names):
        raise WeightsError(
            f"{location} holds {len(entries)} files, or several of one name; expected the files of "
            f"one model, at most {_MOST_ENTRIES}. Download it again."
        )
    most, unfolded = _SLACK + _MOST_EXPANSION * len(content), sum(e.file_size for e in entries)
    if unfolded > most:
        raise WeightsError(
            f"{location} would unfold to {unfolded} bytes, more than {most}. Unpack it yourself if "
            "you trust its maker, and give the folder."
        )
    # An archive made of a folder has the folder in every name.
    tops = {name.partition("/")[0] for name in names}
    prefix = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""
    found = {name.removeprefix(prefix): entry for name, entry in zip(names, entries, strict=True)}
    return _Archive(location, archive, found)


def _missing(name: str, location: str) -> WeightsError:
    return WeightsError(
        f"{location} names the file {name[:100]!r}, which is not there. Download the whole model, "
        "not its description alone."
    )


@dataclass(frozen=True, slots=True)
class _Directory:
    """A `Folder` of any store."""

    location: str
    fs: fsspec.AbstractFileSystem
    path: str

    @property
    def names(self) -> Collection[str]:
        with store_errors(f"list {self.location}"):
            found = self.fs.find(self.path, maxdepth=_DEPTH)
        return {str(name)[len(self.path.rstrip("/")) + 1 :] for name in found}

    def size(self, name: str) -> int:
        path = self._path(name)
        with store_errors(f"look at {path}"):
            if not self.fs.isfile(path):
                raise _missing(name, self.location)
            return int(self.fs.size(path))

    def read(self, name: str) -> bytes:
        self.size(name)
        with store_errors(f"read {self._path(name)}"):
            return bytes(self.fs.cat_file(self._path(name)))

    def below(self, name: str) -> Folder:
        return _Directory(f"{self.location.rstrip('/')}/{name}", self.fs, self._path(name))

    def _path(self, name: str) -> str:
        path = f"{self.path.rstrip('/')}/{inside(name, self.location)}"
        if is_local(self.location) and not Path(path).resolve().is_relative_to(
            Path(self.path).resolve()
        ):
            raise WeightsError(
                f"{self.location}: {name[:100]!r} is a link that leads out of the folder. Copy the "
                "folder with the files themselves (cp -rL), and give the copy."
            )
        return path


@dataclass(frozen=True, slots=True)
class _Archive:
    """A `Folder` in a ZIP archive, in memory."""

    location: str
    archive: zipfile.ZipFile
    entries: dict[str, zipfile.ZipInfo] = field(repr=False)

    @property
    def names(self) -> Collection[str]:
        return self.entries.keys()

    def size(self, name: str) -> int:
        return self._entry(name).file_size

    def read(self, name: str) -> bytes:
        entry = self._entry(name)
        if entry.flag_bits & 1:
            raise WeightsError(f"{self.location}: {name} is encrypted. Unpack it yourself.")
        try:
            return self.archive.read(entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise WeightsError(
                f"{self.location} is truncated or damaged: {error}. Copy it again."
            ) from error

    def below(self, name: str) -> Folder:
        start = f"{inside(name, self.location)}/"
        entries = {
            each.removeprefix(start): entry
            for each, entry in self.entries.items()
            if each.startswith(start)
        }
        return _Archive(f"{self.location}: {name}", self.archive, entries)

    def _entry(self, name: str) -> zipfile.ZipInfo:
        entry = self.entries.get(inside(name, self.location))
        if entry is None:
            raise _missing(name, self.location)
        return entry
