"""JSON documents of STAC: items, collections, catalogs, and results of searches.

SpatioTemporal Asset Catalog 0.9 to 1.1, https://github.com/radiantearth/stac-spec. Documents are
foreign: their size, depth and links are bounded, and no error of theirs is more than a message.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote, urljoin

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.storage.addresses import has_password, is_signed, is_web, redacted
from maskloom.segcore.storage.filesystems import is_local

Kind = Literal["item", "items", "catalog", "other"]
LARGEST = 2**28
"""Most bytes of a document."""
SUFFIXES = (".json", ".geojson")
CATALOGS = ("catalog.json", "collection.json")
"""Names of the document that makes the folder around it a catalog."""
_FEATURE = re.compile(r"\.(?:geo)?json/([^/]+)$")
_SPACE = re.compile(r"\s*")


def is_feature(uri: str) -> bool:
    """Whether a URI names an item in a document of several: the address of the document, and the
    id of the item.

    >>> is_feature("found/search.json/S2A_T33"), is_feature("items/S2A_T33.json")
    (True, False)
    """
    return _FEATURE.search(uri) is not None


def read_bytes(uri: str) -> bytes:
    """The content of a document. Raises `FormatError` if it is too large, and `Unavailable`."""
    file = StoredFile.of(uri)
    with_size = file.store.info(file.path).get("size")
    if with_size is not None and int(with_size) > LARGEST:
        raise FormatError(
            f"{redacted(uri)} has {int(with_size) >> 20} MiB, more than the {LARGEST >> 20} MiB of "
            "JSON that are read at once. Cut it into several."
        )
    content = file.read(0, LARGEST + 1)
    if len(content) > LARGEST:
        raise FormatError(f"{redacted(uri)} is larger than {LARGEST >> 20} MiB. Cut it.")
    return content


def parsed(content: bytes, uri: str) -> dict[str, Any]:
    """The JSON object in a document. Raises `FormatError`."""
    try:
        found = json.loads(content)
    except RecursionError:
        raise FormatError(f"{redacted(uri)} is nested too deeply for a STAC document.") from None
    except ValueError as error:
        raise FormatError(f"{redacted(uri)} is no JSON: {error}. Save it again.") from None
    if not isinstance(found, dict):
        raise FormatError(f"{redacted(uri)} holds no STAC item: it is no JSON object.")
    return found


def kind_of(found: Mapping[str, Any]) -> Kind:
    """What a JSON object is."""
    kind = found.get("type")
    if kind == "Feature" and isinstance(found.get("assets"), dict):
        return "item"
    if kind == "FeatureCollection" and isinstance(found.get("features"), list):
        features = found["features"]
        return "items" if features and all(map(_is_item, features[:1])) else "other"
    # Before version 1.0, catalogs had no type.
    if kind in ("Catalog", "Collection") or (kind is None and "stac_version" in found):
        return "catalog"
    return "other"


def _is_item(found: Any) -> bool:
    return isinstance(found, dict) and kind_of(found) == "item"


def links(found: Mapping[str, Any], *relations: str) -> Iterator[tuple[str, str]]:
    """The links of a document: relation and address as written."""
    listed = found.get("links")
    for link in listed if isinstance(listed, list) else ():
        if isinstance(link, dict) and link.get("rel") in relations:
            href = link.get("href")
            if isinstance(href, str) and href:
                yield str(link["rel"]), href


def resolved(href: str, base: str) -> str:
    """The address of a link in the document at `base`. Raises `FormatError` for one that must not
    be followed.

    >>> resolved("./B02.tif", "https://host/a/item.json?sig=x")
    'https://host/a/B02.tif'
    >>> resolved("../b/B02.tif", "s3://bucket/a/item.json"), resolved("B02.tif", "a/item.json")
    ('s3://bucket/b/B02.tif', 'a/B02.tif')
    """
    address = _joined(href, base)
    if "::" in address:
        raise FormatError(f"the link {redacted(href)!r} chains stores, which is not followed")
    if has_password(address):
        raise FormatError(f"the link {redacted(href)!r} holds a password; keep it out of items")
    if is_signed(address) and not is_web(address):
        raise FormatError(f"the link {redacted(href)!r} is signed, but not by https://")
    if is_local(address) and not is_local(base):
        raise FormatError(
            f"the link {redacted(href)!r} of a document on a server leads to a file of this machine"
        )
    return address.removeprefix("file://")


def _joined(href: str, base: str) -> str:
    if is_web(base) and "://" not in href:
        return urljoin(base, href)
    if "://" in href or href.startswith("/"):
        return href
    protocol, mark, path = base.rpartition("://")
    joined = posixpath.join(posixpath.dirname(path), href)
    if mark:
        # `..` cannot leave a bucket.
        host, _, rest = joined.partition("/")
        return f"{protocol}{mark}{host}{posixpath.normpath(f'/{rest}')}"
    return posixpath.normpath(joined)


def features(content: bytes, uri: str) -> Iterator[tuple[str, int, int]]:
    """The items in a document of several, one after the other: the name of each, unique in the
    document and safe in a path, and where its bytes begin and end. Raises `FormatError`.
    """
    # One letter a byte, so that places in the text are those in the file.
    text = content.decode("latin-1")
    seen: dict[str, int] = {}
    try:
        for start, stop in _elements(text, "features"):
            found = json.loads(content[start:stop])
            identity = found.get("id") if isinstance(found, dict) else None
            name = quote(str(identity or "item"), safe="")[:200]
            seen[name] = seen.get(name, 0) + 1
            yield name if seen[name] == 1 else f"{name}_{seen[name]}", start, stop
    except RecursionError:
        raise FormatError(f"{redacted(uri)} is nested too deeply for a STAC document.") from None
    except (ValueError, IndexError) as error:
        raise FormatError(f"{redacted(uri)} is no JSON: {error}. Save it again.") from None


def _elements(text: str, key: str) -> Iterator[tuple[int, int]]:
    """Where the elements of the array under a key of the outermost object begin and end."""
    decoder = json.JSONDecoder()

    def skip(at: int) -> int:
        found = _SPACE.match(text, at)
        assert found is not None
        return found.end()

    at = skip(text.index("{") + 1)
    while text[at] != "}":
        name, at = decoder.raw_decode(text, at)
        at = skip(skip(at) + 1)
        if name != key or text[at] != "[":
            _, at = decoder.raw_decode(text, at)
        else:
            at = skip(at + 1)
            while text[at] != "]":
                _, stop = decoder.raw_decode(text, at)
                yield at, stop
                at = skip(stop)
                at = skip(at + 1) if text[at] == "," else at
            at += 1
        at = skip(at)
        at = skip(at + 1) if text[at] == "," else at


@lru_cache(maxsize=2)
def _places(uri: str, _version: str) -> Mapping[str, tuple[int, int]]:
    """Where each item of a document, of this version, begins and ends."""
    return {name: (start, stop) for name, start, stop in features(read_bytes(uri), uri)}


def item_at(location: str, version: str, document: str = "") -> tuple[dict[str, Any], str]:
    """The item at a location, and the URI of its document: a document of its own, or one among
    several in `document`. Raises `FormatError`, `Unavailable`.
    """
    found = _FEATURE.search(location) if document != location else None
    if found is None:
        item = parsed(read_bytes(location), location)
        require_item(item, location)
        return item, location
    document = document or location[: found.start(1) - 1]
    place = _places(document, version).get(found[1])
    if place is None:
        raise FormatError(f"{redacted(document)} has no item {found[1]!r} any longer.")
    item = parsed(StoredFile.of(document).read(*place), document)
    require_item(item, location)
    return item, document


def require_item(found: Mapping[str, Any], uri: str) -> None:
    """Raise `FormatError` unless a JSON object is an item."""
    kind = kind_of(found)
    if kind == "item":
        return
    what = {
        "items": "it holds several items. Give it to `maskloom run` or `segment`",
        "catalog": "it is a catalog or collection. Give it to `maskloom run` or `segment`",
        "other": "it is no Feature with assets. Leave it out of `inputs`",
    }[kind]
    raise FormatError(f"{redacted(uri)} is no STAC item: {what}.")
