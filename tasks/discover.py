"""Discover: the recipe's inputs as a list of sources, each with its version and its own name.

Inputs are files, globs, folders (every file below whose suffix a format claims) and lists
(`tasks.lists`) on any fsspec store. A folder that a format reads as one image is one source, and so
are files that a format groups into a series. `image_id` is the path of a source below the inputs'
common folder, without its suffix and made safe for file names. The common folder is that of the
inputs as the recipe states them, so an id does not change when other images arrive.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import logging
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskloom.segcore import formats
from maskloom.segcore.errors import RecipeError, StoreError
from maskloom.segcore.raster.source import (
    ABSENT,
    Member,
    Source,
    combined_version,
    learn_addresses,
    members_of,
)
from maskloom.segcore.raster.spec import FORMATS, SeriesFormat
from maskloom.segcore.storage.addresses import (
    is_signed,
    is_web,
    redacted,
    remember_address,
    require_no_password,
    without_query,
    without_signature,
)
from maskloom.segcore.storage.filesystems import filesystem, is_local, store_errors, version_of
from maskloom.segcore.storage.store import STAGING
from maskloom.tasks import lists

log = logging.getLogger(__name__)

_GLOB = re.compile(r"[*?\[]")
_WEB_GLOB = re.compile(r"[*\[]")
_SUFFIXED = re.compile(r"\.(\w+)/")
_SUFFIX = re.compile(r"\.\w{1,10}(?:\.(?:gz|bz2|xz|zst))?$")
_STORED_FOLDER = re.compile(r"[^/]\.(zarr|n5)(?:/|$)", re.IGNORECASE)
"""Folders that are one image."""
_UNSAFE = re.compile(r"[^\w.\-]")
_SIDECARS = (".aux.xml", ".ovr", ".msk", ".tfw", ".jgw", ".pgw", ".bpw", ".wld", ".prj")
"""Files that belong to an image beside them."""
_WITHOUT_SUFFIX = "without a suffix"
_LONGEST_NAME = 150
_DEEPEST_LIST = 10
_NAMED = 3
_NAMED_SUFFIXES = 20
_NAMES_COMPARED = 10_000


_TIFF_INSIDE = (
    ".svs",
    ".ndpi",
    ".scn",
    ".bif",
    ".qptiff",
    ".lsm",
    ".stk",
    ".tf8",
    ".tif8",
    ".geotiff",
)
"""Suffixes, claimed by no format, of files that are TIFF by their content."""


@dataclass(frozen=True, slots=True)
class Found:
    """What inputs give."""

    sources: list[Source]
    """Sorted by URI, each once."""
    passed_over: Mapping[str, int]
    """How many files of folders no format claims, by suffix."""


def discover(inputs: Sequence[str], output: str, known: Mapping[str, str]) -> Found:
    """All sources of these inputs; nothing that a run writes below `output`.

    `known` maps the URIs of earlier runs to their image ids, which stay. Raises `RecipeError` where
    the inputs give nothing that exists, where a list cannot be read or names itself, and where an
    address holds a password; `StoreError` where a store cannot be listed.
    """
    search = _Search(
        tuple(
            f"{output}/{folder}/"
            for folder in ("masks", "previews", "tables", "runs", "evaluation", STAGING)
        )
    )
    idle = []
    for entry in inputs:
        before = len(search.found)
        search.add(entry)
        if len(search.found) == before:
            idle.append(entry)
    if not search.found:
        raise RecipeError(
            f"inputs: {_some(inputs)} {'matches' if len(inputs) == 1 else 'match'} no image. "
            f"{told(search.passed_over)}"
            "Give a file, a glob such as "
            f"'scenes/**/*.tif', a folder with images ({' '.join(image_suffixes())}), or a list "
            f"file with a column `{lists.COLUMN}`."
        )
    sources = _sources(search, known)
    if all(source.version == ABSENT for source in sources):
        raise RecipeError(f"inputs: {_absent([source.uri for source in sources], idle)}")
    for entry in idle:
        log.warning(
            "The input %r adds no image: it matches none, or only images that other inputs give "
            "too.",
            redacted(entry),
        )
    if search.alike:
        log.warning(
            "Inputs that differ only in the signature or the fragment of their URL are one image "
            "each: %d left out.",
            search.alike,
        )
    return Found(sources, search.passed_over)


def told(passed_over: Mapping[str, int]) -> str:
    """The files that were passed over, in a sentence with a space behind it; empty where there are
    none.

    >>> told({".nii.gz": 12, ".dcm": 1})
    'Passed over in folders, since no format claims such files: 12 .nii.gz, 1 .dcm. '
    """
    counts = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{count} {suffix}" for suffix, count in counts[:_NAMED_SUFFIXES]]
    if kinds := len(counts[_NAMED_SUFFIXES:]):
        named.append(f"{sum(count for _, count in counts[_NAMED_SUFFIXES:])} of {kinds} more kinds")
    return (
        f"Passed over in folders, since no format claims such files: {', '.join(named)}. "
        if named
        else ""
    )


def advice(passed_over: Mapping[str, int]) -> str:
    """What to do about files that were passed over and may be images all the same; empty where
    there are none of them.

    >>> advice({".svs": 2}), advice({".dcm": 2})
    ("A file or glob that names them, such as '*.svs', is tried as what its content is.", '')
    """
    suffix = next((suffix for suffix in _TIFF_INSIDE if suffix in passed_over), None)
    return (
        f"A file or glob that names them, such as '*{suffix}', is tried as what its content is."
        if suffix
        else ""
    )


def image_suffixes() -> tuple[str, ...]:
    """All file suffixes that some format claims."""
    return tuple(suffix for name in FORMATS for suffix in formats.suffixes(name))


@dataclass(frozen=True, slots=True)
class _Found:
    address: str | None
    """Where it is read, if not at its URI."""
    version: str
    size: int
    members: tuple[Member, ...] = ()
    is_folder: bool = False


class _Search:
    """One walk over inputs. Each is looked at once, however many lists name it, so lists of lists
    end.
    """

    def __init__(self, ours: tuple[str, ...]) -> None:
        self.found: dict[str, _Found] = {}
        self.folders: set[str] = set()
        """Folders that the inputs name."""
        self.passed_over: Counter[str] = Counter()
        self.alike = 0
        """Files whose URI another file has that is read elsewhere."""
        self._ours, self._seen = ours, set[str]()
        self._stored: set[str] = set()

    def add(self, entry: str, chain: tuple[str, ...] = ()) -> None:
        """Take in what an input gives; `chain` are the lists that led to it."""
        _refuse_secrets(entry, chain)
        fs, path = _place(entry)
        if path in chain:
            raise RecipeError(
                f"inputs: the list {entry!r} names itself ({' -> '.join((*chain, path))}). Take it "
                "out of its list."
            )
        key = str(fs.unstrip_protocol(path))
        if key in self._seen:
            return
        self._seen.add(key)
        fs.invalidate_cache()
        with store_errors(f"list the input {entry!r}"):
            named = self._list(fs, path)
        if named is not None and lists.is_list(path):
            self._read_list(fs, path, entry, named, chain)
        elif named is not None:
            self._take(fs, posixpath.dirname(without_query(path)), path, named)

    def _list(self, fs: Any, path: str) -> Mapping[str, Any] | None:
        """Take in the content of a glob or a folder; the store's information on any other path."""
        # An existing file wins over a glob: real names do contain brackets.
        pattern = (_WEB_GLOB if is_web(path) else _GLOB).search(without_query(path))
        if pattern and not fs.exists(path):
            self._match(fs, path, pattern.start())
            return None
        info = _info(fs, path)
        if info.get("type") == "directory" or (is_web(path) and path.endswith("/")):
            self._search_folder(fs, path.rstrip("/"))
            return None
        return info

    def _match(self, fs: Any, path: str, wild: int) -> None:
        root = posixpath.dirname(path[:wild])
        found = fs.glob(path, detail=True)
        images: tuple[str, ...] = ()
        for name, info in found.items():
            folder = name.rstrip("/")
            if (
                info["type"] == "directory"
                and folder.lower().endswith(formats.folder_suffixes())
                and not name.startswith(images)
            ):
                images += self._take_folders(fs, fs.find(folder, detail=True), root)
        for name, info in found.items():
            if info["type"] == "file" and not name.startswith(images):
                self._take(fs, root, name, info)

    def _search_folder(self, fs: Any, folder: str) -> None:
        suffixes = image_suffixes()
        found = fs.find(folder, detail=True)
        images = self._take_folders(fs, found, folder)
        for name, info in found.items():
            below = name[len(folder) :]
            if name.startswith(images) or (_is_hidden(below) and not _STORED_FOLDER.search(name)):
                continue
            if below.lower().endswith(suffixes):
                self._take(fs, folder, name, info)
            elif not _uri(fs, name).startswith(self._ours):
                self._pass_over(name)

    def _take_folders(
        self, fs: Any, found: Mapping[str, Mapping[str, Any]], root: str
    ) -> tuple[str, ...]:
        """Take in the folders that are one image each among listed files, and return them, each
        with a slash behind it.
        """
        folders = formats.image_folders(found)
        for folder, names in folders.items():
            uri = _uri(fs, folder)
            if _is_hidden(folder[len(root) :]) or uri.startswith(self._ours):
                continue
            members = members_of(fs, {name: found[name] for name in names})
            size = sum(member.size for member in members)
            # Where an input names the image itself, its id is the folder's name.
            above = posixpath.dirname(folder) if folder == root else root
            self.folders.add(_written_uri(fs, above))
            version = combined_version(members)
            self.found.setdefault(uri, _Found(None, version, size, is_folder=True))
        return tuple(f"{folder}/" for folder in folders)

    def _pass_over(self, name: str) -> None:
        lower = name.lower()
        if stored := _STORED_FOLDER.search(name):
            if name[: stored.end()].rstrip("/") not in self._stored:
                self._stored.add(name[: stored.end()].rstrip("/"))
                self.passed_over[f".{stored[1].lower()}"] += 1
        elif not lower.endswith(_SIDECARS):
            suffix = _SUFFIX.search(posixpath.basename(lower))
            self.passed_over[suffix[0] if suffix else _WITHOUT_SUFFIX] += 1

    def _read_list(
        self, fs: Any, path: str, entry: str, info: Mapping[str, Any], chain: tuple[str, ...]
    ) -> None:
        if not info:
            raise RecipeError(f"inputs: the list {entry!r} does not exist. Check its name.")
        if len(chain) == _DEEPEST_LIST:
            raise RecipeError(
                f"inputs: lists name one another more than {_DEEPEST_LIST} deep: "
                f"{' -> '.join((*chain, path))}."
            )
        if int(info.get("size") or 0) > lists.LARGEST:
            raise RecipeError(
                f"inputs: the list {entry!r} is larger than {lists.LARGEST >> 20} MiB. Cut it into "
                "several."
            )
        with store_errors(f"read the list {entry!r}"):
            content = fs.cat_file(path)
        for name in lists.read_list(redacted(entry), content):
            self.add(_existing(lists.absolute(name, entry)), (*chain, path))

    def _take(self, fs: Any, folder: str, name: str, info: Mapping[str, Any]) -> None:
        address = _uri(fs, name)
        uri = without_signature(address).encode("utf-8", "backslashreplace").decode()
        self.folders.add(_written_uri(fs, folder))
        if uri.startswith(self._ours):
            return
        version = version_of(info) if info else ABSENT
        file = _Found(None if address == uri else address, version, int(info.get("size") or 0))
        if self.found.setdefault(uri, file).address != file.address:
            self.alike += 1

    def join_series(self) -> None:
        """Put series in the place of their files, as formats group them."""
        for name, image_format in FORMATS.items():
            if not isinstance(image_format, SeriesFormat):
                continue
            claimed = formats.suffixes(name)
            files = tuple(
                Member(uri, file.version, file.size, file.address)
                for uri, file in sorted(self.found.items())
                if file.version != ABSENT and without_query(uri).lower().endswith(claimed)
            )
            for file in files:
                remember_address(file.uri, file.address)
            for series in image_format.group(files):
                for member in series.members:
                    del self.found[member.uri]
                self.found[series.uri] = _Found(
                    None,
                    combined_version(series.members),
                    sum(member.size for member in series.members),
                    series.members,
                )


def _sources(search: _Search, known: Mapping[str, str]) -> list[Source]:
    search.join_series()
    uris = sorted(search.found)
    ids = _image_ids(uris, _common(sorted(search.folders)), known)
    sources = []
    for uri in uris:
        found = search.found[uri]
        source = Source(
            uri,
            ids[uri],
            found.version,
            found.size,
            found.address,
            found.members,
            found.is_folder,
        )
        learn_addresses(source)
        sources.append(source)
    return sources


def _written_uri(fs: Any, path: str) -> str:
    return redacted(without_signature(str(fs.unstrip_protocol(path))))


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _place(entry: str) -> tuple[Any, str]:
    """The file system of an input and the path in it. One local file has one path, however it is
    reached.
    """
    try:
        fs, path = filesystem(entry)
    except StoreError as error:
        raise RecipeError(f"inputs: {error}") from error
    return fs, os.path.normpath(path) if "file" in fs.protocol else path


def _refuse_secrets(entry: str, chain: tuple[str, ...]) -> None:
    where = f"inputs: {redacted(entry)!r}" + (f" in the list {chain[-1]!r}" if chain else "")
    require_no_password(entry, where)
    if is_signed(entry) and not is_web(entry):
        raise RecipeError(
            f"{where}: only addresses that begin with https:// may be signed; leave the secret "
            "parameter out."
        )


def _info(fs: Any, path: str) -> Mapping[str, Any]:
    """The store's information on a file; empty for one that is named but absent, which becomes a
    failed row with a clear reason.
    """
    try:
        info: Mapping[str, Any] = fs.info(path)
    except FileNotFoundError as error:
        # fsspec reports a missing file also where a web server does not answer, or not to us. The
        # reason shows when the file is read.
        answer = getattr(error.__cause__, "status", None)
        return (
            {} if error.__cause__ is None or answer in (404, 410) else {"size": 0, "type": "file"}
        )
    except (NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return {}
        raise
    return info


def _existing(name: str) -> str:
    """A name of a list whose bytes are not UTF-8: as it is where such a file is there, else as a
    spreadsheet means it.
    """
    plain = lists.spelled(name)
    return (
        name
        if plain == name or (is_local(name) and filesystem(name)[0].exists(filesystem(name)[1]))
        else plain
    )


def _absent(uris: Sequence[str], idle: Sequence[str]) -> str:
    """That no input exists, and what may have been meant; `idle` are inputs that give no image."""
    close = _close_to(uris[0])
    hint = f" Did you mean {close!r}?" if close else ""
    also = (
        f", and {_some(idle)} {'matches' if len(idle) == 1 else 'match'} no image" if idle else ""
    )
    if len(uris) == 1:
        return (
            f"{uris[0]!r} does not exist{also}.{hint} Check {'the names' if idle else 'its name'}."
        )
    return (
        f"none of the {len(uris)} files {_some(uris)} exists{also}.{hint} Check their names and "
        "the folder that they are below."
    )


def _close_to(uri: str) -> str | None:
    """A name in the same folder that resembles an absent one."""
    folder, name = posixpath.split(uri)
    try:
        fs, path = filesystem(folder)
        if not is_local(uri) or not fs.isdir(path):
            return None
        names = [
            posixpath.basename(each.rstrip("/"))
            for each in fs.ls(path, detail=False)[:_NAMES_COMPARED]
        ]
    except (OSError, StoreError):
        return None
    return next(iter(difflib.get_close_matches(name, names, n=1)), None)


def _some(entries: Sequence[str]) -> str:
    return ", ".join(repr(redacted(entry)) for entry in entries[:_NAMED]) + (
        ", ..." if len(entries) > _NAMED else ""
    )


def _uri(fs: Any, path: str) -> str:
    return path if "file" in fs.protocol else str(fs.unstrip_protocol(path))


def _common(folders: Sequence[str]) -> str:
    protocols = {folder.partition("://")[0] for folder in folders}
    return (
        posixpath.commonpath([folder.partition("://")[2] for folder in folders])
        if len(protocols) == 1
        else ""
    )


def _image_ids(uris: Sequence[str], root: str, known: Mapping[str, str]) -> dict[str, str]:
    ids = {uri: known[uri] for uri in uris if uri in known}
    taken = {image_id.casefold() for image_id in known.values()}
    for uri in uris:
        if uri in ids:
            continue
        path = _below(uri.partition("://")[2] or uri, root)
        stem, suffix = posixpath.splitext(path)
        # Suffixes with two dots are known by the formats alone.
        if (claimed := formats.suffix_of(uri)).count(".") > 1 and path.lower().endswith(claimed):
            stem, suffix = path[: -len(claimed)], path[-len(claimed) :]
        # A folder named like an image must not take the name of that image's mask.
        folder, _, name = stem.rpartition("/")
        plain = safe_name(_SUFFIXED.sub(r"_\1/", f"{folder}/") + name)
        candidates = (
            plain,
            f"{plain}_{safe_name(suffix[1:])}" if suffix else plain,
            f"{plain}_{hashlib.sha256(uri.encode()).hexdigest()[:10]}",
        )
        # Case-insensitive, since some file systems and all colleagues are.
        ids[uri] = next(name for name in candidates if name.casefold() not in taken)
        taken.add(ids[uri].casefold())
    return ids


def _below(path: str, root: str) -> str:
    return (
        path[len(root) :].lstrip("/")
        if root and path.startswith(root.rstrip("/") + "/")
        else path.lstrip("/")
    )


def safe_name(path: str) -> str:
    """A path made safe for every file system: letters, digits, `_`, `-`, `.` and `/`, no hidden or
    relative parts.

    >>> safe_name("a b/../ü:x")
    'a_b/_./ü_x'
    """
    parts = [
        _UNSAFE.sub("_", unicodedata.normalize("NFC", part)) for part in path.split("/") if part
    ]
    parts = ["_" + part[1:] if part.startswith(".") else part for part in parts] or ["_"]
    return "/".join(
        part
        if len(part.encode()) <= _LONGEST_NAME
        else f"{part[:60]}_{hashlib.sha256(part.encode()).hexdigest()[:10]}"
        for part in parts
    )
