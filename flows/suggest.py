"""A recipe for given images: what their headers and some pixels say, and a commented recipe that
suits it.

At most 50 headers are read, spread over all inputs, and of a dozen images one window of at most
512 x 512 pixels. The rules are short and stand in the recipe as comments, with what was not chosen
commented out, so that whoever knows better need only move a `#`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml

from maskloom.flows.recipes import run as recipes
from maskloom.flows.recipes.run_file import DEFAULT_TILE
from maskloom.flows.recipes.yaml_files import change_keys
from maskloom.flows.terminal import count, pixels
from maskloom.segcore.errors import FormatError, ImageError, RecipeError
from maskloom.segcore.formats import describe_images, open_image
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.tasks.discovery.discover import discover

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.source import Source

Family = Literal[
    "slide", "ct", "volume", "scene", "aerial", "band", "fluorescence", "photo", "grey"
]
"""What images are, as far as it decides the recipe."""

_HEADERS, _WINDOWS, _WINDOW = 50, 12, 512
_ROWS_SHOWN = 10
_FEW_PIXELS = 50_000_000
"""Below this, worker processes would take longer to start than they save."""
_MANY_BANDS = 16
_WIDTH = 100
_NAMES: Mapping[Family, str] = {
    "slide": "whole slides",
    "ct": "CT volumes",
    "volume": "volumes",
    "scene": "satellite or aerial scenes of several bands",
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


@dataclass(frozen=True, slots=True)
class Line:
    """A key of the recipe, with why it has this value."""

    key: str
    value: Any
    why: tuple[str, ...] = ()
    """One line for the key; then lines commented out below it: what was not chosen."""
    inner: Mapping[str, str] = field(default_factory=dict)
    """Why a key below this one has its value, by its name."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A recipe and what it follows from."""

    table: tuple[str, ...]
    recipe: str
    notes: tuple[str, ...]


def suggest(
    inputs: Sequence[str],
    target: Path,
    changes: Sequence[str] = (),
    report: Callable[[int, int], object] = lambda _, __: None,
) -> Suggestion:
    """Look at the inputs and write a recipe for them into the file `target`, which must not exist.
    `report` is called with the number of headers read, and of all that will be.

    Raises `RecipeError` if there is no image, none can be read, a change does not suit, or the file
    exists.
    """
    folder = target.resolve().parent
    if target.exists():
        raise RecipeError(f"{target} exists and stays as it is. Name another file with -o.")
    if not folder.is_dir():
        raise RecipeError(f"The folder {folder} does not exist. Make it, or name another with -o.")
    found = discover([_absolute(entry) for entry in inputs], "", {}).sources
    seen, failures = _look(found, report)
    if not seen:
        raise RecipeError(f"None of the {len(failures)} headers read is readable. {failures[0]}")
    common = Counter(each.family for each in seen).most_common(1)[0][0]
    chosen = [each for each in seen if each.family == common]
    name = _name(target, inputs)
    lines = list(_lines(name, _relative(inputs, folder), found, chosen, seen))
    document = {each.key: each.value for each in lines}
    change_keys(document, changes)
    text = _text(_head(common, chosen, seen, found), lines, document)
    recipes.make(yaml.safe_load(text), folder)
    _write(target, text)
    return Suggestion(
        tuple(_table(seen, found)), text, tuple(_notes(common, seen, failures, found))
    )


def _write(target: Path, text: str) -> None:
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RecipeError(f"{target} exists and stays as it is.") from error
    except OSError as error:
        raise RecipeError(
            f"Cannot write {target}: {error.strerror}. Name a file with -o."
        ) from error


def _absolute(entry: str) -> str:
    return entry if "://" in entry else os.path.abspath(Path(entry).expanduser())


def _relative(inputs: Sequence[str], folder: Path) -> list[str]:
    """The inputs as the recipe in this folder names them."""
    named = []
    for entry in inputs:
        if "://" in entry:
            named.append(entry)
            continue
        place = _absolute(entry)
        below = os.path.relpath(place, folder)
        named.append(place if below.startswith("..") else below)
    return named


def _name(target: Path, inputs: Sequence[str]) -> str:
    """A name for the runs: that of the file, or of the first input where the file is `recipe`."""
    stem = target.stem
    if stem == "recipe":
        place = re.split(r"[*?\[]", inputs[0], maxsplit=1)[0].rstrip("/")
        stem = Path(_absolute(place) if place else ".").stem
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:50] or "recipe"


def _look(
    found: Sequence[Source], report: Callable[[int, int], object]
) -> tuple[list[Seen], list[str]]:
    """What some of the sources are, and why others could not be read."""
    chosen = _spread(found, _HEADERS)
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
    micrometres = spec.space.metric is not None and max(spec.space.metric.millimetres[-2:]) < 0.02
    if len(spec.shape) > 2:
        hounsfield = sample is not None and sample.least < -500
        return "ct" if hounsfield else "volume"
    if spec.format == "slide" or (
        micrometres and spec.interpretation == "rgb" and spec.pixels > 10**7
    ):
        return "slide"
    if spec.space.crs is not None:
        if spec.interpretation == "rgb" and spec.channels == 3:
            return "aerial"
        return "scene" if spec.channels >= 3 else "band"
    if sample is not None and sample.dark and (spec.channels <= 3):
        return "fluorescence"
    if spec.channels >= 4:
        return "scene"
    return "photo" if spec.channels == 3 else "grey"


# What the recipe says


def _head(
    family: Family, chosen: Sequence[Seen], seen: Sequence[Seen], found: Sequence[Source]
) -> list[str]:
    looked = f"{len(seen)} of {count(len(found), 'header')}"
    some = f"{len(chosen)} of them {'look' if len(chosen) > 1 else 'looks'} like"
    lines = [
        f"Written by `maskloom init` from {looked}: {some} {_NAMES[family]}.",
        "Look first:   maskloom try THIS_FILE",
        "Then:         maskloom plan THIS_FILE, maskloom run THIS_FILE",
    ]
    return lines


def _lines(
    name: str,
    inputs: list[str],
    found: Sequence[Source],
    chosen: Sequence[Seen],
    seen: Sequence[Seen],
) -> Iterator[Line]:
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
            "segmenter:                 # nuclei by their colour; with level: 0.5 um",
            "  kind: watershed",
            "  of: {kind: threshold, method: multi-otsu, band: 1, classes: [nucleus, tissue, glass]}",
            "  parts: [nucleus]",
            "  distance: 16             # pixels: more than the radius of the largest nucleus",
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
            "segmenter:                 # air and lung: below -400",
            "  {kind: threshold, value: -400, above: false, classes: [other, air]}",
            "segmenter:                 # the largest connected bone alone, marrow filled in",
            "  kind: connected_parts",
            "  of: {kind: threshold, value: 200, classes: [other, bone]}",
            "  largest: 1",
            "  fill_holes: true",
        ),
    )


def _volume(chosen: Sequence[Seen]) -> Iterator[Line]:
    zeros = _zeros(chosen)
    yield Line(
        "segmenter",
        {"kind": "mixture", "components": 3, "covariance": "tied", "smoothness": 1.0},
        (
            "tissues of different brightness, such as those of a brain in MRI",
            "segmenter: {kind: threshold, method: otsu, classes: [dark, bright]}",
            "segmenter:                 # bright bodies that touch, one row each",
            "  kind: watershed",
            "  of: {kind: threshold, method: otsu, classes: [background, body]}",
            "  distance: 12             # voxels: more than the radius of the largest",
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
        "clusters": "to compare: maskloom try THIS_FILE --vary clusters=3,5,8",
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
            "segmenter:                 # regions of even colour, as polygons, one row each",
            "  {kind: mean_shift, space: joint, spatial_radius: 6, range_radius: 12, min_size: 100}",
        ),
        {"clusters": "to compare: maskloom try THIS_FILE --vary clusters=3,5,8"},
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
            "segmenter:                 # the U-Net in the box: slower, better on dim and crowded nuclei",
            "  kind: watershed",
            "  of: {kind: unet, weights: nuclei}",
            "  distance: 32",
            "  prominence: 2",
            "  min_size: 30",
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
            "segmenter:                 # where the light is uneven",
            "  {kind: threshold, method: local, window: 101, classes: [dark, bright]}",
            "segmenter: {kind: kmeans, clusters: 4}     # more than two shades",
        ),
    )


_NAMING = (
    "names and colours, once you have seen which cluster is which (in the order of brightness):",
    "  classes: [water, forest, crop, soil, urban]      # a key of segmenter",
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
        yield Line("fit", "image", (why, "fit: collection         # class 1 means the same in all"))
    else:
        why = "class 1 means the same in all of them"
        yield Line("fit", "collection", (why, "fit: image              # a model for each"))


def _place(family: Family, chosen: Sequence[Seen]) -> Iterator[Line]:
    """What is missing to measure in physical units, and values that mean "no data"."""
    spec, zeros = chosen[0].spec, _zeros(chosen)
    if spec.space.unit == "px":
        yield Line(
            "",
            None,
            (
                "the files do not say how large a pixel is, so areas are in px; to state it:",
                "pixel_size: 0.5 um",
            ),
        )
    if family != "volume" and spec.nodata is None and zeros > 0.05:
        told = f"{zeros:.0%} of the pixels looked at are 0 in all bands. If that is no data:"
        yield Line("", None, (told, "nodata: 0"))


def _zeros(chosen: Sequence[Seen]) -> float:
    shares = [each.sample.zeros for each in chosen if each.sample is not None]
    return float(np.mean(shares)) if shares else 0.0


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


# The recipe as text


def _text(head: Sequence[str], lines: Sequence[Line], document: Mapping[str, Any]) -> str:
    parts = [f"# {each}" for each in head]
    known = {each.key: each for each in lines}
    for each in lines:
        if not each.key:
            parts += ["", *(f"# {text}" for text in each.why)] if each.why else []
        elif each.key not in _PLAIN:
            parts += ["", *_entry(each, document[each.key])]
        else:
            parts += _entry(each, document[each.key])
    for key in document.keys() - known.keys():
        parts += ["", *_entry(Line(key, document[key], ("as said by --set",)), document[key])]
    return "\n".join(parts) + "\n"


_PLAIN = ("name", "inputs", "output", "fit")


def _entry(each: Line, value: Any) -> Iterator[str]:
    """The lines of a key: its reason, it, and what was not chosen."""
    same = value == each.value
    why = (each.why if same else ("as said by --set", *each.why[1:])) or ("",)
    reason, *others = why
    if isinstance(value, dict) and len(value) > 2:
        if reason:
            yield f"# {reason}"
        yield f"{each.key}:"
        for key, item in value.items():
            told = each.inner.get(key, "") if same or _has(each.value, key, item) else ""
            yield from _commented(f"  {key}: {_flow(item)}", told)
    elif isinstance(value, dict) and each.inner:
        yield f"# {reason}"
        told = next(iter(filter(None, (each.inner.get(key, "") for key in value))), "")
        yield from _commented(f"{each.key}: {_flow(value)}", told)
    else:
        yield from _commented(f"{each.key}: {_flow(value)}", reason)
    for other in others:
        yield f"# {other}"


def _has(value: Any, key: str, item: Any) -> bool:
    return isinstance(value, dict) and value.get(key) == item


def _commented(text: str, why: str) -> Iterator[str]:
    if not why:
        yield text
    elif len(text) + len(why) + 4 <= _WIDTH:
        yield f"{text:30}  # {why}"
    else:
        indent = " " * (len(text) - len(text.lstrip()))
        yield f"{indent}# {why}"
        yield text


def _flow(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


# What is printed


def _table(seen: Sequence[Seen], found: Sequence[Source]) -> Iterator[str]:
    """What was seen, in columns: one line for images that are alike."""
    groups: dict[tuple[Any, ...], list[RasterSpec]] = {}
    for each in seen:
        key = (each.family, *_row(each.spec))
        groups.setdefault(key, []).append(each.spec)
    rows = [("images", "size", "bands", "type", "CRS", "pixel", "nodata", "looks like")]
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    for (family, *cells), specs in ordered[:_ROWS_SHOWN]:
        rows.append((str(len(specs)), _sizes(specs), *cells, _NAMES[family]))
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


def _notes(
    common: Family, seen: Sequence[Seen], failures: Sequence[str], found: Sequence[Source]
) -> Iterator[str]:
    others = Counter(each.family for each in seen if each.family != common)
    if others:
        told = ", ".join(f"{n} like {_NAMES[family]}" for family, n in others.items())
        yield (
            f"The inputs are of several kinds: the recipe is for {_NAMES[common]}, but {told}. "
            "Give each kind a recipe of its own."
        )
    if failures:
        yield f"{count(len(failures), 'image')} could not be read: {failures[0]}"
    if len(found) > _HEADERS:
        more = count(len(found) - _HEADERS, "more image was", "more images were")
        yield f"{more} not looked at; `maskloom plan` reads all headers."
