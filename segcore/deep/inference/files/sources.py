"""Sources: which files make up the network at a location.

A `.keras` or `.tflite` file is a whole network. An `.onnx` file may keep weights in files
beside it. A folder, or ZIP archive, may be a model in the format of bioimage.io, a SavedModel of
TensorFlow, or hold one file of the other kinds.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from maskloom.segcore.deep.inference.files import bioimageio
from maskloom.segcore.deep.inference.files.folders import (
    Folder,
    archive_of,
    folder_at,
    inside,
)
from maskloom.segcore.errors import WeightsError
from maskloom.segcore.storage.filesystems import filesystem, store_errors

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.files.bioimageio import Description

SUFFIXES = (".keras", ".onnx", ".tflite")
"""Kinds of single files that can be run."""
SINGLE = (*SUFFIXES, ".h5", ".hdf5")
"""Suffixes of what is never a folder."""
SAVED_MODEL = "saved_model.pb"
_VARIABLES = "variables/"
_MOST_BYTES = (1 << 31) - 1
"""ONNX cannot hold more in one piece."""


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one network."""

    main: str
    """Name of the file that an engine opens."""
    contents: Mapping[str, bytes] = field(repr=False)
    """All files that the network needs, by name."""
    description: Description | None = None
    """What the file of a model of bioimage.io says."""

    @property
    def content(self) -> bytes:
        """The bytes of the main file."""
        return self.contents[self.main]

    @property
    def sha256(self) -> str:
        """The digest of a single file; of several, that of their names and digests, and of the
        description.
        """
        digests = {name: hashlib.sha256(each).hexdigest() for name, each in self.contents.items()}
        if self.description is not None:
            digests[""] = self.description.sha256
        if len(digests) == 1:
            return next(iter(digests.values()))
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def suffix_of(name: str) -> str:
    """The suffix of a file in lower case; empty without one."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    return name[name.rfind(".") :].lower() if "." in name else ""


def source_at(location: str) -> Source:
    """Read the network at a location.

    Raises `WeightsError` if it is not one, `FileNotFoundError` if there is nothing, `StoreError` if
    the store does not answer.
    """
    above, _, name = location.replace("\\", "/").rpartition("/")
    top = "/" if location.startswith("/") else "."
    # A folder may be given by the file that describes it.
    whole = above or top if name in (SAVED_MODEL, *bioimageio.NAMES) else location
    folder = None if suffix_of(name) in SINGLE else folder_at(whole)
    if folder is not None:
        return _of_folder(folder)
    fs, path = filesystem(location)
    with store_errors(f"read {location}"):
        content = bytes(fs.cat_file(path))
    if suffix_of(name) == ".onnx":
        return Source(name, _with_external(name, content, lambda: folder_at(above or top)))
    return Source(name, {name: content})


def _of_folder(folder: Folder) -> Source:
    names = folder.names
    for name in bioimageio.NAMES:
        if name in names:
            return _of_bioimageio(folder, name)
    if SAVED_MODEL in names:
        return _of_saved_model(folder)
    single = sorted(name for name in names if "/" not in name and suffix_of(name) in SUFFIXES)
    if len(single) == 1:
        return _of_file(folder, single[0])
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        raise WeightsError(
            f"{folder.location} holds arrays for a network that is defined elsewhere "
            f"(safetensors). Convert it first: maskloom convert {folder.location} -o "
            "NAME.keras"
        )
    if single:
        raise WeightsError(
            f"{folder.location} holds several networks: {', '.join(single)[:200]}. Name one "
            "of them."
        )
    raise WeightsError(
        f"{folder.location} holds no network: expected {' or '.join(bioimageio.NAMES)}, "
        f"{SAVED_MODEL}, or one file ending in {', '.join(SUFFIXES)}; got "
        f"{', '.join(sorted(names))[:200] or 'nothing'}."
    )


def _of_bioimageio(folder: Folder, document: str) -> Source:
    if folder.size(document) > bioimageio.MOST_BYTES:
        raise WeightsError(
            f"{folder.location}: {document} has {folder.size(document)} bytes; expected at most "
            f"{bioimageio.MOST_BYTES}."
        )
    description = bioimageio.read(folder.read(document), f"{folder.location}: {document}")
    entry = description.weights
    name = inside(entry.source, folder.location)
    if suffix_of(name) == ".zip":
        packed = folder.read(name)
        entry.check(packed, folder.location)
        source = _of_saved_model(archive_of(packed, f"{folder.location}: {name}"))
    elif entry.kind == "tensorflow_saved_model_bundle":
        source = _of_saved_model(folder.below(name))
    else:
        entry.check(folder.read(name), folder.location)
        source = _of_file(folder, name)
    return Source(source.main, source.contents, description)


def _of_file(folder: Folder, name: str) -> Source:
    content = folder.read(name)
    if suffix_of(name) == ".onnx":
        return Source(name, _with_external(name, content, lambda: folder))
    return Source(name, {name: content})


def _of_saved_model(folder: Folder) -> Source:
    variables = sorted(name for name in folder.names if name.startswith(_VARIABLES))
    names = [SAVED_MODEL, *variables]
    return Source(SAVED_MODEL, {name: folder.read(name) for name in names})


def _with_external(
    name: str, content: bytes, beside: Callable[[], Folder | None]
) -> dict[str, bytes]:
    """The file itself, and those in which it keeps weights, by their names in the folder."""
    from maskloom.segcore.deep.inference.files.onnx_files import external_files

    contents = {name: content}
    # Only a model that may have such files is looked at before it is examined elsewhere.
    if b"location" not in content or importlib.util.find_spec("onnx") is None:
        return contents
    others = external_files(content)
    folder = beside() if others else None
    if folder is None:
        return contents
    base, total = name.rpartition("/")[0], len(content)
    for each in others:
        path = "/".join(filter(None, (base, inside(each, folder.location))))
        total += folder.size(path)
        if total > _MOST_BYTES:
            raise WeightsError(
                f"{folder.location}: {name} and its other files have more than {_MOST_BYTES} "
                "bytes, which ONNX cannot hold in one piece. Export a smaller network, or one in "
                "float16."
            )
        contents[path] = folder.read(path)
    return contents
