"""The rules by which a recipe follows from what was seen, each with its reason."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from maskloom.flows.starting.looking import Family, Seen, zeros_of
from maskloom.flows.terminal import pixels
from maskloom.segcore.geometry import DEFAULT_TILE

if TYPE_CHECKING:
    from maskloom.segcore.raster.source import Source
    from maskloom.segcore.raster.spec import RasterSpec

_FEW_PIXELS = 50_000_000
"""Below this, worker processes would take longer to start than they save."""
_MANY_BANDS = 16


@dataclass(frozen=True, slots=True)
class Line:
    """A key of the recipe, with why it has this value."""

    key: str
    value: Any
    why: tuple[str, ...] = ()
    """One line for the key; then lines commented out below it: what was not chosen."""
    inner: Mapping[str, str] = field(default_factory=dict)
    """Why a key below this one has its value, by its name."""


def lines_of(
    name: str,
    inputs: list[str],
    found: Sequence[Source],
    chosen: Sequence[Seen],
    seen: Sequence[Seen],
) -> Iterator[Line]:
    """The keys of a recipe for the images `chosen`, of one family, among all `seen`."""
    family = chosen[0].family
    mixed = len({each.family for each in seen}) > 1 or _band_counts(chosen) > 1
    yield Line("name", name)
    yield Line(
        "inputs",
        inputs[0] if len(inputs) == 1 else inputs,
        ("other kinds of images are among them: name the files of one kind",) if mixed else (),
    )
    yield Line("output", f"{name}-masks", ("masks, tables and the report; beside this file",))
    yield from _FAMILIES[family](chosen)
    yield from _fit(family, mixed)
    yield from _place(family, chosen)
    yield _tiling(chosen)
    yield _cluster(found, seen)


def _band_counts(chosen: Sequence[Seen]) -> int:
    return len({each.spec.file_bands for each in chosen})


def _slide(_: Sequence[Seen]) -> Iterator[Line]:
    yield Line(
        "segmenter",
        {"kind": "threshold", "method": "otsu", "above": False, "classes": ["glass", "tissue"]},
        (
            "tissue against glass, to begin with",
            "segmenter:                     # nuclei by their colour; with level: 0.5 um",
            "  kind: watershed",
            "  of:",
            "    {kind: threshold, method: multi-otsu, band: 1, classes: [nucleus, tissue, glass]}",
            "  parts: [nucleus]",
            "  distance: 16                 # pixels: more than the radius of the largest nucleus",
            "  min_size: 60",
        ),
        {"method": "the threshold of least variance within the two", "above": "tissue is darker"},
    )
    yield Line("level", "8 um", ("the coarsest level with pixels no larger: enough for mm2",))


def _ct(_: Sequence[Seen]) -> Iterator[Line]:
    yield Line(
        "segmenter",
        {"kind": "threshold", "value": 200, "classes": ["other", "bone"]},
        (
            "values below -500 were seen: Hounsfield units, where bone is above 200",
            "segmenter:                     # air and lung: below -400",
            "  {kind: threshold, value: -400, above: false, classes: [other, air]}",
            "segmenter:                     # the largest connected bone alone, marrow filled in",
            "  kind: connected_parts",
            "  of: {kind: threshold, value: 200, classes: [other, bone]}",
            "  largest: 1",
            "  fill_holes: true",
        ),
    )


def _volume(chosen: Sequence[Seen]) -> Iterator[Line]:
    zeros = zeros_of(chosen)
    yield Line(
        "segmenter",
        {"kind": "mixture", "components": 3, "covariance": "tied", "smoothness": 1.0},
        (
            "tissues of different brightness, such as those of a brain in MRI",
            "segmenter: {kind: threshold, method: otsu, classes: [dark, bright]}",
            "segmenter:                     # bright bodies that touch, one row each",
            "  kind: watershed",
            "  of: {kind: threshold, method: otsu, classes: [background, body]}",
            "  distance: 12                 # voxels: more than the radius of the largest",
        ),
        {
            "components": "add names, darkest first: classes: [csf, grey matter, white matter]",
            "covariance": "noise is the same in all tissues",
            "smoothness": "neighbours vote, against noise",
        },
    )
    if zeros > 0.2:
        yield Line("nodata", 0, (f"{zeros:.0%} of the middle is exactly 0: outside of the body",))


def _scene(chosen: Sequence[Seen]) -> Iterator[Line]:
    bands, why, kept = _bands(chosen[0].spec)
    section: dict[str, Any] = {"kind": "kmeans", "clusters": 5}
    inner = {
        "clusters": "to compare: maskloom try RECIPE --vary clusters=3,5,8",
        "bands": why,
    }
    if bands is not None:
        section["bands"] = bands
    alternatives = [
        "classes by reflectance, without labels",
        *kept,
        "segmenter: {kind: kmeans, clusters: auto}     # the number by Calinski-Harabasz",
        "segmenter: {kind: mixture, components: 5}     # where classes differ in spread",
    ]
    if bands is None:
        alternatives.insert(1, f"bands: all {chosen[0].spec.channels}{why and f', {why}'}")
    yield Line("segmenter", section, tuple(alternatives), inner)
    yield Line("", None, _NAMING)


def _aerial(_: Sequence[Seen]) -> Iterator[Line]:
    yield Line(
        "segmenter",
        {"kind": "kmeans", "clusters": 5},
        (
            "classes by colour, without labels",
            "segmenter:                     # regions of even colour, as polygons, one row each",
            "  kind: mean_shift",
            "  space: joint",
            "  spatial_radius: 6            # pixels",
            "  range_radius: 12             # in units of the pixels' values",
            "  min_size: 100                # pixels",
        ),
        {"clusters": "to compare: maskloom try RECIPE --vary clusters=3,5,8"},
    )
    yield Line("", None, _NAMING)


def _photo(chosen: Sequence[Seen]) -> Iterator[Line]:
    yield from _aerial(chosen)


def _band(_: Sequence[Seen]) -> Iterator[Line]:
    yield Line(
        "segmenter",
        {"kind": "threshold", "method": "otsu", "classes": ["low", "high"]},
        (
            "one band: below and above one value, which is found from the pixels",
            "segmenter: {kind: threshold, value: 0.3, classes: [low, high]}   # a value you know",
            "segmenter: {kind: kmeans, clusters: 4}                           # more classes",
        ),
    )


def _fluorescence(_: Sequence[Seen]) -> Iterator[Line]:
    yield Line(
        "segmenter",
        {
            "kind": "watershed",
            "of": {"kind": "threshold", "method": "otsu", "classes": ["background", "nucleus"]},
            "distance": 24,
            "prominence": 2.0,
            "min_size": 30,
        },
        (
            "bright spots on a dark ground: nuclei, split where they touch, one row each",
            "segmenter:        # the network in the box: slower; better on dim and touching nuclei",
            "  {kind: instances, weights: nuclei, min_size: 30}",
        ),
        {
            "distance": "pixels: more than the radius of the largest nucleus",
            "prominence": "how much narrower a neck must be to be cut, in pixels",
            "min_size": "pixels: smaller spots are specks",
        },
    )


def _grey(_: Sequence[Seen]) -> Iterator[Line]:
    yield Line(
        "segmenter",
        {"kind": "threshold", "method": "otsu", "classes": ["dark", "bright"]},
        (
            "one grey value: dark against bright",
            "segmenter:                     # where the light is uneven",
            "  {kind: threshold, method: local, window: 101, classes: [dark, bright]}",
            "segmenter: {kind: kmeans, clusters: 4}     # more than two shades",
        ),
    )


_NAMING = (
    "Once you have seen which cluster is which (they come in the order of brightness), name them:",
    "  segmenter: {kind: kmeans, classes: [water, forest, crop, soil, urban]}",
    "Usual names have usual colours; other ones, by name or #rrggbb:",
    "  colours: {water: steelblue, crop: gold}",
)
_FAMILIES: Mapping[Family, Callable[[Sequence[Seen]], Iterator[Line]]] = {
    "slide": _slide,
    "ct": _ct,
    "volume": _volume,
    "scene": _scene,
    "aerial": _aerial,
    "band": _band,
    "fluorescence": _fluorescence,
    "photo": _photo,
    "grey": _grey,
}
_OWN_FIT: Mapping[Family, str] = {
    "slide": "stains differ from slide to slide",
    "volume": "the brightness of MRI has no unit: grey of one scan is white of another",
    "fluorescence": "exposures differ",
    "photo": "light and colours differ from picture to picture",
    "grey": "exposures differ",
}


def _fit(family: Family, mixed: bool) -> Iterator[Line]:
    if family == "ct":
        return  # a fixed value needs no fit
    if family in _OWN_FIT or mixed:
        why = "images of several kinds cannot be fitted together" if mixed else _OWN_FIT[family]
        yield Line(
            "fit", "image", (why, "fit: collection               # class 1 means the same in all")
        )
    else:
        why = "class 1 means the same in all of them"
        yield Line("fit", "collection", (why, "fit: image                    # a model for each"))


def _place(family: Family, chosen: Sequence[Seen]) -> Iterator[Line]:
    """What is missing to measure in physical units, and values that mean "no data"."""
    spec, zeros = chosen[0].spec, zeros_of(chosen)
    if spec.space.unit == "px":
        yield Line(
            "",
            None,
            (
                "the files do not say how large a pixel is, so areas are in px; to state it:",
                "pixel_size: 0.5 um",
            ),
        )
    if family in ("scene", "aerial", "band") and spec.nodata is None and zeros > 0.05:
        told = f"{zeros:.0%} of the pixels looked at are 0 in all bands. If that is no data:"
        yield Line("", None, (told, "nodata: 0"))


def _tiling(chosen: Sequence[Seen]) -> Line:
    largest = max(max(each.spec.shape) for each in chosen)
    many = max(each.spec.channels for each in chosen) > _MANY_BANDS
    tile = DEFAULT_TILE // 2 if many else DEFAULT_TILE
    fits = "every image looked at fits into one" if largest <= tile else "for memory alone"
    bands = "; half of the default, for the many bands" if many else ""
    return Line("tiling", {"tile": tile}, (f"{fits}{bands}: no tile changes a result",))


def _cluster(found: Sequence[Source], seen: Sequence[Seen]) -> Line:
    total = sum(each.spec.pixels for each in seen) / len(seen) * len(found)
    about = f"about {pixels(total, 'megapixels')} in all"
    if total <= _FEW_PIXELS:
        return Line(
            "cluster",
            "serial",
            (f"{about}: workers would take longer to start", "cluster: {kind: local, workers: 2}"),
        )
    workers = os.cpu_count() or 1
    return Line(
        "cluster",
        {"kind": "local", "workers": workers},
        (
            f"{about}: one worker a core of this machine",
            "cluster: {kind: slurm, workers: 20, memory: 8 GiB, interface: ib0, folder: /shared}",
        ),
    )


def _bands(spec: RasterSpec) -> tuple[list[int] | None, str, list[str]]:
    """The bands that hold data (None: all), why, and lines on the bands as the file names them."""
    names = _band_names(spec)
    if not any(names):
        return None, "the file does not name them", []
    odd = re.compile(r"\b(qa|scl|mask|alpha|cloud|cld|snw|prob|quality|aot|wvp)", re.IGNORECASE)
    kept = [n for n, name in zip(spec.bands, names, strict=False) if not odd.search(name)]
    told = ", ".join(f"{n} {name}" for n, name in zip(spec.bands, names, strict=False))
    lines = [f"bands as the file names them: {told[:300]}"]
    if not kept or len(kept) == len(names):
        return None, "", lines
    left = ", ".join(name for n, name in zip(spec.bands, names, strict=False) if n not in kept)
    return kept, f"without {left[:60]}, which is no reflectance", lines


def _band_names(spec: RasterSpec) -> list[str]:
    """Descriptions of the bands of a TIFF on a disk; empty texts where there are none."""
    if spec.format not in ("geotiff", "tiff") or "://" in spec.location:
        return []
    import rasterio

    try:
        with rasterio.open(spec.location) as file:
            described = [file.descriptions[n - 1] or "" for n in spec.bands]
    except (rasterio.errors.RasterioError, IndexError):
        return []
    return ["".join(c for c in text if c.isprintable())[:24] for text in described]
