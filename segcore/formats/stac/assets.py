"""The assets of a STAC item that are read, and what the item says about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.content import claims
from maskloom.segcore.formats.stac.documents import resolved
from maskloom.segcore.raster.dates import from_iso
from maskloom.segcore.storage.addresses import redacted, without_signature

_SIDE_ROLES = frozenset({"thumbnail", "overview", "metadata", "visual", "labels"})
_NAMED = 12


@dataclass(frozen=True, slots=True)
class Band:
    """What an item says about a band."""

    name: str
    """Its names as words: `B04 red`."""
    scaling: tuple[float, float] | None
    """Scale and offset. None: it states none."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of an item."""

    name: str
    """Its key in the item."""
    address: str
    """Where it is read; it may be signed."""
    nodata: float | None
    """The value that means "no data" by the item. None: it states none, or several."""
    bands: tuple[Band, ...]
    """What the item says about its bands. Empty: nothing."""

    @property
    def uri(self) -> str:
        """The address without secrets."""
        return without_signature(self.address)


def acquired(item: Mapping[str, Any]) -> str | None:
    """The date of an item, or the start of its time."""
    said = item.get("properties")
    known = said if isinstance(said, dict) else {}
    return from_iso(known.get("datetime")) or from_iso(known.get("start_datetime"))


def chosen(item: Mapping[str, Any], wanted: Sequence[str], location: str, base: str) -> list[Asset]:
    """The assets that are read, in the order of their bands; those that `wanted` names by their
    keys or the names of their bands, or else those that hold the data. `base` is the address of
    the document. Raises `FormatError`.
    """
    assets = {
        str(name): asset
        for name, asset in item["assets"].items()
        if isinstance(asset, dict) and isinstance(asset.get("href"), str)
    }
    names = [_named(assets, name, location) for name in wanted] or _with_data(assets, location)
    found: dict[str, Asset] = {}
    for name in names:
        try:
            asset = _asset(name, assets[name], base)
        except FormatError as error:
            raise FormatError(f"{location}, asset {name}: {error}.") from None
        # Several names for one file.
        found.setdefault(asset.uri, asset)
    return list(found.values())


def _named(assets: Mapping[str, Any], name: str, location: str) -> str:
    if name in assets:
        return name
    same = [key for key, asset in assets.items() if _names_of_band(asset) & {name}]
    if len(same) == 1:
        return same[0]
    if same:
        raise FormatError(
            f"{location} has several assets with the band {name!r}: {', '.join(same)}. Name one of "
            "them in `assets`."
        )
    raise FormatError(
        f"{location} has no asset {name!r}; it has {_listed(assets)}. Correct `assets`."
    )


def _with_data(assets: Mapping[str, Any], location: str) -> list[str]:
    images = [name for name, asset in assets.items() if _is_image(asset)]
    data = [name for name in images if "data" in _roles(assets[name])]
    others = [name for name in images if not _SIDE_ROLES & _roles(assets[name])]
    if data:
        return data
    if len(others) == 1:
        return others
    if not images:
        raise FormatError(f"{location} has no asset that can be read: {_listed(assets)}.")
    raise FormatError(
        f"{location} does not say which of its assets is the data: {_listed(assets)}. Name those "
        f"to read, e.g. `assets: [{', '.join(others[:4] or images[:1])}]`."
    )


def _asset(name: str, asset: Mapping[str, Any], base: str) -> Asset:
    bands = _bands(asset)
    values = {_number(band.get("nodata", asset.get("nodata"))) for band in bands or [dict(asset)]}
    return Asset(
        name,
        resolved(asset["href"], base),
        values.pop() if len(values) == 1 else None,
        tuple(_band(name if len(bands) == 1 else "", asset, band) for band in bands),
    )


def _band(key: str, asset: Mapping[str, Any], band: Mapping[str, Any]) -> Band:
    """A band of the asset `asset`, whose key names it if it is the only one."""
    said = (
        _number(band.get(part, band.get(f"raster:{part}", asset.get(f"raster:{part}"))))
        for part in ("scale", "offset")
    )
    scale, offset = said
    is_scaled = scale is not None or offset is not None
    return Band(
        " ".join(dict.fromkeys(filter(None, (key, *_names(band))))),
        (1.0 if scale is None else scale, offset or 0.0) if is_scaled else None,
    )


def _is_image(asset: Mapping[str, Any]) -> bool:
    """Whether an asset can be read, by its media type or its name."""
    kind = str(asset.get("type") or "")
    if kind.startswith("image/") and "jp2" not in kind:
        return True
    return not kind and any(name != "stac" for name, _ in claims(asset["href"]))


def _roles(asset: Mapping[str, Any]) -> frozenset[str]:
    roles = asset.get("roles")
    return frozenset(map(str, roles)) if isinstance(roles, list) else frozenset()


def _names_of_band(asset: Mapping[str, Any]) -> frozenset[str]:
    """Names of the only band of an asset; empty if it has several."""
    bands = _bands(asset)
    return frozenset(_names(bands[0])) if len(bands) == 1 else frozenset()


def _names(band: Mapping[str, Any]) -> list[str]:
    said = (band.get(each) for each in ("name", "common_name", "eo:common_name"))
    return [str(name) for name in said if name]


def _bands(asset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bands of an asset: all that lists of several extensions and versions say about each."""
    listed = [asset.get(key) for key in ("eo:bands", "raster:bands", "bands")]
    known = [each for each in listed if isinstance(each, list)]
    return [
        {key: value for one in said if isinstance(one, dict) for key, value in one.items()}
        for said in zip_longest(*known)
    ]


def _number(value: Any) -> float | None:
    """A number as JSON writes it, where NaN is a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    # NaN and infinity are never data.
    return number if math.isfinite(number) else None


def _listed(assets: Mapping[str, Any]) -> str:
    shown = ", ".join(list(assets)[:_NAMED])
    return redacted(shown + (", ..." if len(assets) > _NAMED else "")) or "none"
