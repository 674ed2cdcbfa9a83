"""What images are, from their headers and some of their pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskloom.flows.terminal import count
from maskloom.segcore.errors import FormatError, ImageError
from maskloom.segcore.formats import describe_images, open_image
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import RasterSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.source import Source

Family = Literal[
    "slide", "ct", "volume", "scene", "aerial", "band", "fluorescence", "photo", "grey"
]
"""What images are, as far as it decides the recipe."""

MOST_HEADERS = 50
_WINDOWS, _WINDOW = 12, 512
"""Images of which pixels are read, and the side of what is read."""
_ROWS_SHOWN = 10
_AIR = -500
"""Below this, in CT, is air; other volumes have no such values."""
_MICROSCOPIC, _LARGE = 0.02, 10**7
"""Millimetres of a pixel, and number of pixels, of a picture that is taken for a slide."""
FAMILY_NAMES: Mapping[Family, str] = {
    "slide": "whole slides",
    "ct": "CT volumes",
    "volume": "volumes",
    "scene": "scenes of several bands",
    "aerial": "georeferenced colour pictures",
    "band": "georeferenced rasters of one band",
    "fluorescence": "fluorescence micrographs",
    "photo": "colour photographs",
    "grey": "grey pictures",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """What some pixels of an image say."""

    dark: bool
    """Most pixels are dark and few are bright, as in fluorescence."""
    least: float
    zeros: float
    """Share of pixels that are 0 in all bands."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An image that was looked at."""

    spec: RasterSpec
    family: Family
    sample: Sample | None


def look(
    found: Sequence[Source], report: Callable[[int, int], object]
) -> tuple[list[Seen], list[str]]:
    """What some of the sources are, and why others could not be read."""
    chosen = _spread(found, MOST_HEADERS)
    windows = {id(each) for each in _spread(chosen, _WINDOWS)}
    seen, failures = [], []
    for number, source in enumerate(chosen):
        report(number, len(chosen))
        try:
            headers = [header for _, header in describe_images(source, source.version)]
        except (ImageError, OSError) as error:
            failures.append(str(error))
            continue
        failures += [str(each) for each in headers if isinstance(each, FormatError)]
        readable = [each for each in headers if isinstance(each, RasterSpec)]
        for spec in readable[:1]:
            sample = _sample(spec) if id(source) in windows else None
            seen.append(Seen(spec, "grey", sample))
    # An image without pixels of its own is taken for what its like turned out to be.
    samples = {_like(each.spec): each.sample for each in seen if each.sample is not None}
    return [
        Seen(
            each.spec, _family(each.spec, each.sample or samples.get(_like(each.spec))), each.sample
        )
        for each in seen
    ], failures


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many items, evenly over all."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def _like(spec: RasterSpec) -> tuple[Any, ...]:
    return spec.format, spec.channels, spec.dtype, len(spec.shape), spec.space.crs is None


def _sample(spec: RasterSpec) -> Sample | None:
    """Pixels from the middle of an image. None: they cannot be read."""
    start = tuple(max(0, (n - _WINDOW) // 2) for n in spec.shape[-2:])
    stop = tuple(min(n, a + _WINDOW) for n, a in zip(spec.shape[-2:], start, strict=True))
    middle = tuple(n // 2 for n in spec.shape[:-2])
    try:
        with open_image(spec) as reader:
            values, valid = reader.read(Box((*middle, *start), (*(n + 1 for n in middle), *stop)))
    except (ImageError, OSError):
        return None
    known: NDArray[Any] = values[valid].astype(np.float64)
    known = known[np.isfinite(known).all(axis=1)]
    if not len(known):
        return None
    brightest = known.max(axis=1)
    low, high = np.percentile(brightest, (50, 99.5))
    floor = float(brightest.min())
    dark = high > floor and (low - floor) < 0.25 * (high - floor) and _few_hues(known)
    return Sample(bool(dark), float(known.min()), float((known == 0).all(axis=1).mean()))


def _few_hues(known: NDArray[np.float64]) -> bool:
    """Whether all bands are alike, or all but one are dark: one stain, not a picture at night."""
    if known.shape[1] == 1:
        return True
    spread = np.sort(known.std(axis=0))[::-1]
    alike = float(np.abs(known - known[:, :1]).max()) <= 2
    return alike or bool(spread[0] > 4 * spread[1])


def _family(spec: RasterSpec, sample: Sample | None) -> Family:
    if len(spec.shape) > len("yx"):
        return "ct" if sample is not None and sample.least < _AIR else "volume"
    if spec.format == "slide" or _is_microscopic(spec):
        return "slide"
    coloured = spec.channels == len("rgb") and spec.interpretation == "rgb"
    if spec.space.crs is not None:
        several: Family = "scene" if spec.channels >= len("rgb") else "band"
        return "aerial" if coloured else several
    if sample is not None and sample.dark and spec.channels <= len("rgb"):
        return "fluorescence"
    plain: Family = "scene" if spec.channels > len("rgb") else "grey"
    return "photo" if spec.channels == len("rgb") else plain


def _is_microscopic(spec: RasterSpec) -> bool:
    """Whether it is a large picture in colours whose pixels are some micrometres."""
    metric = spec.space.metric
    return (
        metric is not None
        and max(metric.millimetres) < _MICROSCOPIC
        and spec.interpretation == "rgb"
        and spec.pixels > _LARGE
    )


def zeros_of(chosen: Sequence[Seen]) -> float:
    """Mean share of pixels that are 0 in all bands."""
    shares = [each.sample.zeros for each in chosen if each.sample is not None]
    return float(np.mean(shares)) if shares else 0.0


def table_of(seen: Sequence[Seen], found: Sequence[Source]) -> Iterator[str]:
    """What was seen, in columns: one line for images that are alike."""
    groups: dict[tuple[Any, ...], list[RasterSpec]] = {}
    for each in seen:
        key = (each.family, *_row(each.spec))
        groups.setdefault(key, []).append(each.spec)
    rows = [("images", "size", "bands", "type", "CRS", "pixel", "nodata", "looks like")]
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    for (family, *cells), specs in ordered[:_ROWS_SHOWN]:
        rows.append((str(len(specs)), _sizes(specs), *cells, FAMILY_NAMES[family]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:{n}}" for cell, n in zip(row, widths, strict=True)).rstrip()
    if len(ordered) > _ROWS_SHOWN:
        yield f"... and {len(ordered) - _ROWS_SHOWN} more kinds"
    yield f"{len(seen)} of {count(len(found), 'image')} looked at"


def _row(spec: RasterSpec) -> tuple[str, ...]:
    metric = spec.space.metric
    size = "unknown" if metric is None else str(metric)
    if spec.space.affine is not None and spec.space.crs is not None:
        a, _, _, d, *_ = spec.space.affine
        size = f"{(a * a + d * d) ** 0.5:.6g} {_unit(spec.space.crs)}"
    return (
        f"{spec.channels}{' rgb' if spec.interpretation == 'rgb' else ''}",
        spec.dtype,
        "none" if spec.space.crs is None else _crs(spec.space.crs),
        size,
        "none" if spec.nodata is None else f"{spec.nodata:g}",
    )


def _crs(wkt: str) -> str:
    from pyproj import CRS

    if wkt.startswith(("LOCAL_CS", "ENGCRS", "ENGINEERINGCRS")):
        return "local"
    try:
        found = CRS.from_wkt(wkt)
        code = found.to_authority(min_confidence=70)
    except Exception:  # noqa: BLE001  (a name for people: any text will do)
        return wkt.partition('"')[2].partition('"')[0][:24] or "unnamed"
    return ":".join(code) if code else found.name[:24]


def _unit(wkt: str) -> str:
    return "deg" if wkt.startswith(("GEOGCRS", "GEOGCS")) else "m"


def _sizes(specs: Sequence[RasterSpec]) -> str:
    sizes = sorted({tuple(reversed(spec.shape)) for spec in specs})
    first, last = (" x ".join(map(str, each)) for each in (sizes[0], sizes[-1]))
    return first if len(sizes) == 1 else f"{first} to {last}"


def notes_of(
    common: Family, seen: Sequence[Seen], failures: Sequence[str], found: Sequence[Source]
) -> Iterator[str]:
    """What users should know before they use a recipe for images of the family `common`."""
    others = Counter(each.family for each in seen if each.family != common)
    if others:
        told = ", ".join(f"{n} like {FAMILY_NAMES[family]}" for family, n in others.items())
        yield (
            f"The inputs are of several kinds: the recipe is for {FAMILY_NAMES[common]}, but "
            f"{told}. Give each kind a recipe of its own."
        )
    if failures:
        yield f"{count(len(failures), 'image')} could not be read: {failures[0]}"
    if len(found) > MOST_HEADERS:
        more = count(len(found) - MOST_HEADERS, "more image was", "more images were")
        yield f"{more} not looked at; `maskloom plan` reads all headers."
