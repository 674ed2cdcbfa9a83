"""The search for images: one walk over files, globs, folders and list files on any fsspec store.

A folder means every file below it whose suffix a format claims. A folder that a format reads
as one image is one source, and so are files that a format groups into a series.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from maskloom.segcore import formats
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.source import ABSENT, Grouping, Member, combined_version, members_of
from maskloom.segcore.raster.spec import FORMATS, SeriesFormat
from maskloom.segcore.raster.stored import ReadOptions
from maskloom.segcore.storage.addresses import is_web, redacted, remember_address, without_query
from maskloom.segcore.storage.filesystems import store_errors
from maskloom.tasks.discovery import lists, stac
from maskloom.tasks.discovery.entries import (
    FoundImage,
    existing_name,
    found_file,
    is_hidden,
    place_of,
    refuse_secrets,
    shown_uri,
    target_info,
    uri_of,
)
from maskloom.tasks.discovery.files import info_of
from maskloom.tasks.discovery.series import ReadHeaders

_GLOB = re.compile(r"[*?\[]")
_WEB_GLOB = re.compile(r"[*\[]")
_SUFFIX = re.compile(r"\.\w{1,10}(?:\.(?:gz|bz2|xz|zst))?$")
_STORED_FOLDER = re.compile(r"[^/]\.(zarr|n5)(?:/|$)", re.IGNORECASE)
"""Folders that are one image each."""
_SIDECARS = (".aux.xml", ".qml", ".ovr", ".msk", ".tfw", ".jgw", ".pgw", ".bpw", ".wld", ".prj")
"""Files that belong to an image beside them."""
WITHOUT_SUFFIX = "without a suffix"
_SNIFFED_NAME = re.compile(r"(?:^|/)(?:[^./]+|[^/]*\.\d+)$")
"""Names without a suffix, or with a number in its place: IM0001, CT.1.2.840.7."""
_DEEPEST_LIST = 10


def image_suffixes() -> tuple[str, ...]:
    """All file suffixes that some format claims wherever it finds them."""
    return tuple(
        suffix
        for image_format in FORMATS.values()
        for kind in image_format.kinds
        for suffix in kind.suffixes
        if not kind.named
    )


class Search:
    """One walk over inputs. An input is visited once, even if several lists name it, so lists that
    name lists end.
    """

    def __init__(self, own_outputs: tuple[str, ...]) -> None:
        """`own_outputs`: beginnings of the URIs that a run writes, which are no inputs."""
        self.found: dict[str, FoundImage] = {}
        """By URI."""
        self.folders: set[str] = set()
        """Folders that the inputs name."""
        self.passed_over: Counter[str] = Counter()
        """Number of files in folders that are no input, by suffix if no format claims it, or by
        what they are if they hold no image.
        """
        self.unclaimed: dict[str, tuple[str, str, FoundImage]] = {}
        """Files in folders that may be images by their content, by URI: the folder that an input
        names, the name, and the file.
        """
        self.dates: dict[str, str] = {}
        """When files were acquired by the lists that name them, by URI."""
        self.documents: list[stac.Document] = []
        """Documents of STAC, which `read_stac` reads."""
        self.duplicates = 0
        """Files with the URI of another file that has another address."""
        self._own_outputs, self._visited = own_outputs, set[str]()
        self._named: set[str] = set()
        """Files that an input, or a list, names."""
        self._stored_folders: set[str] = set()
        self._last_folder: tuple[Any, str] | None = None

    @property
    def count(self) -> int:
        """Number of files and documents that may be images."""
        return len(self.found) + len(self.unclaimed) + len(self.documents)

    def add(self, entry: str, chain: tuple[str, ...] = (), acquired: str | None = None) -> None:
        """Add the images of an input; `chain` are the lists that led to it, and `acquired` is the
        date that the last of them states for it.
        """
        refuse_secrets(entry, chain)
        fs, path = place_of(entry)
        if path in chain:
            raise RecipeError(
                f"inputs: the list {entry!r} names itself ({' -> '.join((*chain, path))}). Take it "
                "out of its list."
            )
        key = uri_of(fs, path)
        if key in self._visited:
            return
        fs.invalidate_cache()
        with store_errors(f"list the input {entry!r}"):
            named = self._list(fs, path)
        if named is None or lists.is_list(path):
            # A list may name a million files; what is found once is known by `found`.
            self._visited.add(key)
        if named is not None and lists.is_list(path):
            self._read_list(fs, path, entry, named, chain)
        elif named is not None:
            uri = self._take(fs, posixpath.dirname(without_query(path)), path, named)
            self._named.add(uri)
            if acquired is not None:
                self.dates[uri] = acquired

    def read_stac(self, options: ReadOptions) -> None:
        """Add the items of the documents. Raises `RecipeError`, `StoreError`."""
        for found in stac.items_of(self.documents, options.assets):
            if isinstance(found, stac.NoItem):
                self._pass_over(found.uri)
                continue
            if found.uri.startswith(self._own_outputs):
                continue
            versions = [each.version for each in found.members]
            self.found.setdefault(
                found.uri,
                FoundImage(
                    found.members[0].address,
                    ABSENT if versions == [ABSENT] else combined_version(found.members),
                    sum(each.size for each in found.members),
                    found.members,
                ),
            )
        self.documents.clear()

    def _list(self, fs: Any, path: str) -> Mapping[str, Any] | None:
        """Add the images of a glob or a folder. For any other path, return the store's information
        on it.
        """
        # An existing file is preferred to a glob: names of files may contain brackets.
        pattern = (_WEB_GLOB if is_web(path) else _GLOB).search(without_query(path))
        if pattern and not fs.exists(path):
            self._match(fs, path, pattern.start())
            return None
        info = info_of(fs, path)
        if info.get("type") == "directory" or (is_web(path) and path.endswith("/")):
            self._search_folder(fs, path.rstrip("/"))
            return None
        return info

    def _match(self, fs: Any, path: str, wild: int) -> None:
        root = posixpath.dirname(path[:wild])
        found = {
            name: target_info(fs, info) if info.get("islink") else info
            for name, info in fs.glob(path, detail=True).items()
        }
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
        for name in stac.CATALOGS:
            info = info_of(fs, path := f"{folder}/{name}")
            if (
                info.get("type") == "file"
                and info.get("size")
                and stac.is_catalog(uri_of(fs, path))
            ):
                self._take(fs, folder, path, info)
                return
        before, first = len(self.found) + len(self.unclaimed), len(self.documents)
        self._search_files(fs, folder)
        if len(self.found) + len(self.unclaimed) > before:
            # JSON files beside images are about them.
            for document in self.documents[first:]:
                self._pass_over(document.member.uri)
            del self.documents[first:]

    def _search_files(self, fs: Any, folder: str) -> None:
        suffixes = image_suffixes()
        if isinstance(fs, LocalFileSystem):
            for name, info in self._walk(fs, folder):
                self._consider(fs, folder, name, info, suffixes)
            return
        found = fs.find(folder, detail=True)
        images = self._take_folders(fs, found, folder)
        for name, info in found.items():
            if not name.startswith(images):
                self._consider(fs, folder, name, info, suffixes)

    def _walk(self, fs: Any, folder: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The files below a local folder, one at a time: it may hold a million. Folders that are
        one image are added, without their files.
        """
        markers = formats.folder_markers()
        waiting = [folder]
        while waiting:
            current = waiting.pop()
            if any(posixpath.isfile(f"{current}/{marker}") for marker in markers):
                self._take_folders(fs, fs.find(current, detail=True), folder)
                continue
            # As fsspec does, folders that cannot be read are left out.
            with contextlib.suppress(OSError), os.scandir(current) as entries:
                for entry in entries:
                    info = fs.info(entry)
                    if entry.is_symlink():
                        info = target_info(fs, info)
                    if info["type"] == "directory":
                        waiting.append(info["name"])
                    else:
                        yield info["name"], info

    def _consider(
        self, fs: Any, folder: str, name: str, info: Mapping[str, Any], suffixes: tuple[str, ...]
    ) -> None:
        """Add a file in a folder if it is an image by its name, or may be one by its content."""
        below = name[len(folder) :]
        if is_hidden(below) and not _STORED_FOLDER.search(name):
            return
        if below.lower().endswith(suffixes):
            self._take(fs, folder, name, info)
        elif stac.is_document(name) and not uri_of(fs, name).startswith(self._own_outputs):
            self._take(fs, folder, name, info, named=False)
        elif not uri_of(fs, name).startswith(self._own_outputs):
            if _is_sniffed(name):
                uri, file = found_file(fs, name, info)
                self.unclaimed[uri] = (shown_uri(fs, folder), name, file)
            else:
                self._pass_over(name)

    def _take_folders(
        self, fs: Any, found: Mapping[str, Mapping[str, Any]], root: str
    ) -> tuple[str, ...]:
        """Add the folders that are one image each among listed files. Returns their names, with a
        slash at the end.
        """
        folders = formats.image_folders(found)
        for folder, names in folders.items():
            uri = uri_of(fs, folder)
            if is_hidden(folder[len(root) :]) or uri.startswith(self._own_outputs):
                continue
            members = members_of(fs, {name: found[name] for name in names})
            size = sum(member.size for member in members)
            # If an input names the image itself, its id is the folder's name.
            above = posixpath.dirname(folder) if folder == root else root
            self.folders.add(shown_uri(fs, above))
            version = combined_version(members)
            self.found.setdefault(uri, FoundImage(None, version, size, is_folder=True))
        return tuple(f"{folder}/" for folder in folders)

    def _pass_over(self, name: str) -> None:
        lower = name.lower()
        if stored := _STORED_FOLDER.search(name):
            if name[: stored.end()].rstrip("/") not in self._stored_folders:
                self._stored_folders.add(name[: stored.end()].rstrip("/"))
                self.passed_over[f".{stored[1].lower()}"] += 1
        elif not lower.endswith(_SIDECARS):
            suffix = _SUFFIX.search(posixpath.basename(lower))
            self.passed_over[suffix[0] if suffix else WITHOUT_SUFFIX] += 1

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
        names, dates = lists.read_dated(redacted(entry), content)
        within = (*chain, path)
        del content
        for name in names:
            self.add(existing_name(lists.absolute(name, entry)), within, dates.get(name))

    def _take(
        self, fs: Any, folder: str, name: str, info: Mapping[str, Any], *, named: bool = True
    ) -> str:
        """Add a file; returns its URI. `named`: as in `stac.Document`."""
        uri, file = found_file(fs, name, info)
        if (fs, folder) != self._last_folder:
            self._last_folder = fs, folder
            self.folders.add(shown_uri(fs, folder))
        if uri.startswith(self._own_outputs):
            return uri
        if stac.is_document(name):
            member = Member(uri, file.version, file.size, file.address)
            self.documents.append(stac.Document(member, named=named))
            return uri
        if self.found.setdefault(uri, file).address != file.address:
            self.duplicates += 1
        return uri

    def join_series(self, read_headers: ReadHeaders, options: ReadOptions) -> None:
        """Replace files by the series into which formats group them, and pass over files in folders
        that no format recognises.
        """
        for name, image_format in FORMATS.items():
            if not isinstance(image_format, SeriesFormat):
                continue
            files = self._files_of(name)
            if not files:
                continue
            for file in files:
                remember_address(file.uri, file.address)
            headers = read_headers(name, files, options)
            self._join(image_format.group(files, headers, options))
        for _, path, _ in self.unclaimed.values():
            self._pass_over(path)
        self.unclaimed.clear()

    def _join(self, grouping: Grouping) -> None:
        for series in grouping.series:
            for member in series.members:
                self.found.pop(member.uri, None)
                if (unclaimed := self.unclaimed.pop(member.uri, None)) is not None:
                    self.folders.add(unclaimed[0])
        for uri, what in grouping.passed_over.items():
            self.unclaimed.pop(uri, None)
            # A file that the user names becomes a failed row with the reason.
            if uri not in self._named:
                self.found.pop(uri, None)
                self.passed_over[what] += 1
        for series in grouping.series:
            self.found[series.uri] = FoundImage(
                None,
                combined_version(series.members),
                sum(member.size for member in series.members),
                series.members,
            )

    def _files_of(self, name: str) -> tuple[Member, ...]:
        """The files that may belong to series of a format, in the order of their URIs."""
        claimed = formats.suffixes(name)
        sniffed = any(kind.sniffed for kind in FORMATS[name].kinds)

        def may_belong(uri: str, file: FoundImage) -> bool:
            """Whether a file exists and has a name that such a series may have."""
            path = without_query(uri)
            return (
                file.version != ABSENT
                and not file.is_folder
                and (
                    path.lower().endswith(claimed)
                    or (sniffed and _SNIFFED_NAME.search(path) is not None)
                )
            )

        files = {uri: file for uri, file in self.found.items() if may_belong(uri, file)}
        if sniffed:
            unclaimed = ((uri, file) for uri, (*_, file) in self.unclaimed.items())
            files.update((uri, file) for uri, file in unclaimed if may_belong(uri, file))
        return tuple(
            Member(uri, file.version, file.size, file.address)
            for uri, file in sorted(files.items())
        )


def _is_sniffed(name: str) -> bool:
    """Whether a file whose suffix no format claims may be an image by its content."""
    return _SNIFFED_NAME.search(name) is not None and any(
        kind.sniffed for image_format in FORMATS.values() for kind in image_format.kinds
    )
