"""STAC items as images: those that an input names, and those that collections and catalogs link to.

Documents are read a few at a time, level by level of the links, each once, and what is kept of an
item are its files. Catalogs must be readable; an item that is broken becomes a failed row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from maskloom.segcore.errors import FormatError, RecipeError, Unavailable
from maskloom.segcore.formats.stac.assets import chosen
from maskloom.segcore.formats.stac.documents import (
    CATALOGS,
    SUFFIXES,
    features,
    kind_of,
    links,
    parsed,
    read_bytes,
    resolved,
)
from maskloom.segcore.raster.source import ABSENT, Member
from maskloom.segcore.storage.addresses import (
    address_of,
    redacted,
    remember_address,
    without_query,
    without_signature,
)
from maskloom.segcore.storage.filesystems import filesystem, store_errors, version_of
from maskloom.tasks.discovery.files import info_of

__all__ = ["CATALOGS", "Document", "FoundItem", "NoItem", "is_catalog", "is_document", "items_of"]

_AT_ONCE = 16
"""Documents that are read at the same time."""
_DEEPEST = 32
"""Levels of catalogs."""
_MOST_CATALOGS = 100_000
_LARGE = 2**20
"""Bytes from which a document is searched for several items before it is read as a whole."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document to read."""

    member: Member
    """Its version is empty if it was not looked up yet."""
    chain: tuple[str, ...] = ()
    """The URIs of the catalogs that led to it."""
    is_item: bool = False
    """Whether a catalog links to it as an item."""
    named: bool = True
    """Whether an input, or a catalog, names it. Other files that hold no item are passed over."""


@dataclass(frozen=True, slots=True)
class FoundItem:
    """An item, which is one image."""

    uri: str
    members: tuple[Member, ...]
    """Its document, and the files of its assets. The document alone: it is broken."""


@dataclass(frozen=True, slots=True)
class NoItem:
    """A file that holds no item, and that no input names."""

    uri: str


Found = FoundItem | NoItem


def is_document(path: str) -> bool:
    """Whether a path may be that of a STAC document."""
    return without_query(path).lower().endswith(SUFFIXES)


def member_at(address: str) -> Member:
    """The file at an address, whose version is `ABSENT` if it does not exist. Raises `StoreError`
    if the store does not answer.
    """
    fs, path = filesystem(address)
    with store_errors(f"read {redacted(address)!r}"):
        info = info_of(fs, path)
    uri = without_signature(address)
    version = version_of(info) if info else ABSENT
    size = int(info.get("size") or 0)
    return Member(uri, version, size, None if uri == address else address)


def is_catalog(uri: str) -> bool:
    """Whether a file is a catalog. Raises `StoreError` if the store does not answer."""
    try:
        return kind_of(parsed(read_bytes(uri), uri)) == "catalog"
    except FormatError:
        return False


def items_of(documents: Iterable[Document], assets: Sequence[str]) -> Iterator[Found]:
    """The items of documents, of which `assets` are read. Raises `RecipeError` for a catalog that
    is broken, has no item, or never ends, and `StoreError`.
    """
    waiting, seen, catalogs = list(documents), set[str](), 0
    roots = {each.member.uri: 0 for each in waiting if each.named}
    catalog_roots: set[str] = set()
    depth = 0
    with ThreadPoolExecutor(_AT_ONCE, "stac") as pool:
        while waiting:
            following: list[Document] = []
            waiting = list(_new(waiting, seen))
            for start in range(0, len(waiting), _AT_ONCE):
                some = waiting[start : start + _AT_ONCE]
                for document, (found, linked) in zip(
                    some, pool.map(lambda each: _read(each, assets), some), strict=True
                ):
                    root = (*document.chain, document.member.uri)[0]
                    if linked is not None:
                        catalogs += 1
                        catalog_roots.add(root)
                        _require_end(document, depth, catalogs)
                        following += linked
                    roots[root] = roots.get(root, 0) + len(found)
                    yield from found
            waiting, depth = following, depth + 1
    for root in catalog_roots:
        if not roots.get(root):
            raise RecipeError(
                f"inputs: the STAC catalog {redacted(root)!r} leads to no item. A catalog of files "
                "has links of the relations `item` and `child`; from an API, save the result of a "
                "search as a file and give that."
            )


def _new(documents: Iterable[Document], seen: set[str]) -> Iterator[Document]:
    """Those that were not read yet: catalogs may link to one another."""
    for each in documents:
        if each.member.uri not in seen:
            seen.add(each.member.uri)
            yield each


def _require_end(document: Document, depth: int, catalogs: int) -> None:
    if depth < _DEEPEST and catalogs <= _MOST_CATALOGS:
        return
    limit = f"{_DEEPEST} levels deep" if depth >= _DEEPEST else f"to {_MOST_CATALOGS} others"
    raise RecipeError(
        f"inputs: the STAC catalogs that {redacted(document.chain[0])!r} links to go more than "
        f"{limit}, the last one {redacted(document.member.uri)!r}. Give the collections that you "
        "want."
    )


def _read(
    document: Document, assets: Sequence[str]
) -> tuple[Sequence[Found], list[Document] | None]:
    """The items in a document, and the documents that it links to if it is a catalog."""
    member = document.member
    if not member.version:
        member = member_at(member.address or member.uri)
    remember_address(member.uri, member.address)
    broken: list[Found] = [
        FoundItem(member.uri, (member,)) if document.named else NoItem(member.uri)
    ]
    if member.version == ABSENT:
        if document.chain and not document.is_item:
            raise RecipeError(_of_catalog(document, "does not exist"))
        return broken, None
    try:
        content = read_bytes(member.uri)
        if len(content) > _LARGE and b'"FeatureCollection"' in content:
            return _several(content, member, assets) or broken, None
        found = parsed(content, member.uri)
        kind = kind_of(found)
        if kind == "items":
            return _several(content, member, assets), None
        if kind == "item":
            return [_item(found, member.uri, member, assets)], None
        if kind == "catalog" and not document.is_item:
            return [], list(_linked(found, document))
    except (FormatError, FileNotFoundError, Unavailable) as error:
        if document.chain and not document.is_item:
            raise RecipeError(_of_catalog(document, f"cannot be read: {error}")) from error
    return broken, None


def _of_catalog(document: Document, fault: str) -> str:
    return (
        f"inputs: the STAC catalog {redacted(document.member.uri)!r}, to which "
        f"{redacted(document.chain[-1])!r} links, {fault}"
    )


def _linked(found: dict[str, Any], document: Document) -> Iterator[Document]:
    """The catalogs and items to which a catalog links."""
    base, chain = address_of(document.member.uri), (*document.chain, document.member.uri)
    for relation, href in links(found, "child", "item"):
        try:
            address = resolved(href, base)
        except FormatError as error:
            raise RecipeError(_of_link(document, str(error))) from error
        uri = without_signature(address)
        member = Member(uri, "", 0, None if uri == address else address)
        yield Document(member, chain, relation == "item")


def _of_link(document: Document, fault: str) -> str:
    return f"inputs: the STAC catalog {redacted(document.member.uri)!r}: {fault}."


def _several(content: bytes, member: Member, assets: Sequence[str]) -> list[Found]:
    """The items in a document, of which one at a time is in memory."""
    found: list[Found] = []
    for name, start, stop in features(content, member.uri):
        item = json.loads(content[start:stop])
        if isinstance(item, dict) and kind_of(item) == "item":
            found.append(_item(item, f"{member.uri}/{name}", member, assets))
    return found


def _item(item: dict[str, Any], uri: str, member: Member, assets: Sequence[str]) -> FoundItem:
    """An item with its files; those that do not exist are left out, and reading it says so."""
    try:
        files = [
            each.address for each in chosen(item, assets, redacted(uri), address_of(member.uri))
        ]
    except FormatError:
        # The worker that reads the item finds the same fault, which becomes a failed row.
        return FoundItem(uri, (member,))
    members = (member_at(each) for each in files)
    return FoundItem(uri, (member, *(each for each in members if each.version != ABSENT)))
