"""A recipe on a part of one image, in this process and in memory: its result, or the results of
several values of parameters side by side.

What is fitted is fitted to that part alone, so a run, which fits to whole images, may find other
thresholds and centres. What a panel shows is how the method works on such pixels.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.flows.compare import header_of, size_text
from maskloom.flows.progress.displays import display
from maskloom.flows.progress.run import ItemProgress
from maskloom.flows.recipes import run as recipes
from maskloom.flows.recipes.messages import did_you_mean
from maskloom.flows.recipes.run_file import RunFile
from maskloom.flows.recipes.yaml_files import change_keys, load_document, read_value, shown
from maskloom.flows.terminal import count, line
from maskloom.segcore.errors import ImageError, RecipeError, StoreError
from maskloom.segcore.figures.comparison import Cell, draw, label_cell, photo, photo_cell
from maskloom.segcore.figures.scale_bars import pixel_length
from maskloom.segcore.formats import open_image
from maskloom.segcore.geometry import Box, Tile
from maskloom.segcore.models.protocols import Fitter, ObjectSegmenter, fits_each_image
from maskloom.segcore.pipeline.in_memory import Region, fit_to, segment_source
from maskloom.segcore.pipeline.reading import placed
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.storage.filesystems import configure
from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.discovery.discover import discover

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.flows.recipes.run import RunRecipe
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.pipeline.in_memory import Mask
    from maskloom.segcore.raster.spec import Block, RasterSpec, Reader
    from maskloom.segcore.raster.stored import ReadOptions

SIDE = 1024
"""Side of the part in pixels."""
MOST_PANELS = 6
_PLACES = 4
"""Places along each axis among which `auto` chooses."""
_SAMPLED = 4
"""Every so many rows and columns of a place are compared."""
_BINS = 64
_NUMBERS_OF_CLASSES = ("clusters", "components", "levels")
_OF_PIXELS = ("nodata", "features", "values")
"""Keys of a recipe, other than the segmenter, that change which pixels a panel segments."""


@dataclass(frozen=True, slots=True)
class TryRequest:
    """What to try."""

    recipe: Path
    image: str | None = None
    """The image. None: the first readable one of the recipe."""
    crop: str = "auto"
    """auto, middle, or x,y,width,height."""
    vary: tuple[str, ...] = ()
    """Keys and values, as `clusters=3,5,8`."""
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """A variant of the recipe."""

    title: str
    recipe: RunRecipe


def try_out(request: TryRequest, picture: Path, *, quiet: bool = True) -> list[str]:
    """Write the picture, and return lines on what it shows.

    Raises `RecipeError` if the recipe or a value does not suit, `ImageError` if the image cannot be
    read, `FitError` if no model can be fitted to the part, and `StoreError` if the picture cannot
    be written.
    """
    panels, notes = _panels(request)
    first = panels[0].recipe
    prepare_process(first.storage, SerialCluster().worker_threads, first.limits)
    configure(first.storage)
    spec = _header(first, request.image)
    box = _box(placed(spec, _without_features(first.options)), request.crop)
    block = Region(spec, box).block(Tile.whole(box.shape), replace(spec, shape=box.shape))
    plane = tuple(n // 2 for n in box.shape[:-2])
    shown_pixels = photo(block.pixels[plane], block.valid[plane], rgb=spec.interpretation == "rgb")
    name = spec.location.rstrip("/").rsplit("/", 1)[-1]
    cells = [photo_cell(name, _part_text(spec, box), shown_pixels, pixel_length(spec))]
    lines, parts = [], dict[str, _Part]()
    with display(quiet) as display_shown:
        progress = ItemProgress(display_shown, "try", "panels", len(panels))
        for number, panel in enumerate(panels, 1):
            wanted = placed(spec, panel.recipe.options)
            region = parts.setdefault(str(wanted), _Part(Region(wanted, box)))
            cell, text = _cell(panel, region, shown_pixels, plane)
            cells.append(cell)
            lines.append(text)
            progress(number)
    try:
        picture.write_bytes(draw(cells))
    except OSError as error:
        raise StoreError(
            f"Cannot write {picture}: {error.strerror}. Check that its folder exists and can be "
            "written."
        ) from error
    alone = first.fit == "image" or fits_each_image(first.segmenter)
    whole = box.shape == spec.shape and alone
    if isinstance(first.segmenter, Fitter) and not whole:
        notes.append(
            "Fitted to this part alone: a run fits to "
            + ("each whole image" if alone else "all pixels of all images")
            + ", and may find other values."
        )
    return [f"{name}: {_part_text(spec, box)}", *lines, *notes]


# Variants of the recipe


def _panels(request: TryRequest) -> tuple[list[Panel], list[str]]:
    """The recipe for each combination of values, and notes on what was changed besides."""
    folder = request.recipe.resolve().parent
    varied = dict(map(_varied, request.vary))
    if len(varied) < len(request.vary):
        raise RecipeError("--vary: a key is given twice. Give all its values at once.")
    number = int(np.prod([len(values) for values in varied.values()], dtype=np.int64))
    if number > MOST_PANELS:
        raise RecipeError(
            f"--vary: {number} combinations; at most {MOST_PANELS} panels are drawn. Leave out "
            f"{number - MOST_PANELS} of them, or vary one key at a time."
        )
    panels, notes = [], []
    for values in itertools.product(*varied.values()):
        document = load_document(request.recipe, "inputs, output and segmenter")
        change_keys(document, request.changes)
        for key, value in zip(varied, values, strict=True):
            _set(document, key, value)
        if _without_names(document, varied):
            notes.append(
                "`classes` of the recipe name another number of classes, and were left out."
            )
        title = ", ".join(
            f"{key.removeprefix('segmenter.')} {shown_value(value)}"
            for key, value in zip(varied, values, strict=True)
        )
        recipe = recipes.make(document, folder)
        panels.append(Panel(title or recipe.kind, recipe))
    return panels, list(dict.fromkeys(notes))


def shown_value(value: Any) -> str:
    """A value for a title.

    >>> shown_value([1, 2]), shown_value("otsu"), shown_value(True)
    ('1 2', 'otsu', 'true')
    """
    if isinstance(value, list):
        return " ".join(map(shown_value, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _varied(text: str) -> tuple[str, list[Any]]:
    """A key of the recipe and its values."""
    key, equals, values = text.partition("=")
    key = key.strip()
    if not equals or not key or not values.strip():
        raise RecipeError(f"--vary {shown(text)}: expected KEY=A,B,C, e.g. clusters=3,5,8.")
    top = key.partition(".")[0]
    if top in RunFile.model_fields and top not in ("segmenter", *_OF_PIXELS):
        raise RecipeError(
            f"--vary {shown(text)}: all panels show the same part of one image, and {top} changes "
            "none of them. Vary a parameter of the segmenter, e.g. clusters=3,5,8, or "
            f"{', '.join(_OF_PIXELS)}."
        )
    if top not in ("segmenter", *_OF_PIXELS):
        key = f"segmenter.{key}"
    found = read_value(f"[{values}]", f"--vary {shown(text)}")
    return key, list(found)


def _set(document: dict[str, Any], key: str, value: Any) -> None:
    place: Any = document
    *parents, last = key.split(".")
    for parent in parents:
        inner = place.get(parent) if isinstance(place, dict) else None
        if isinstance(inner, str):
            inner = {"kind": inner}
        if inner is None or not isinstance(inner, dict):
            raise RecipeError(
                f"--vary {key}: the recipe has no section {parent!r} with keys."
                + (did_you_mean(parent, place) if isinstance(place, dict) else "")
            )
        place[parent] = inner
        place = inner
    place[last] = value


def _without_names(document: dict[str, Any], varied: Mapping[str, Sequence[Any]]) -> bool:
    """Leave out the names of classes where their number is varied; whether there were any."""
    section = document.get("segmenter")
    numbers = [f"segmenter.{each}" for each in _NUMBERS_OF_CLASSES]
    if not isinstance(section, dict) or not any(key in varied for key in numbers):
        return False
    for each in ("colours",):
        document.pop(each, None)
    return section.pop("classes", None) is not None


# The part of the image


@dataclass(slots=True, eq=False)
class _Part:
    """A part of an image, whose pixels are read once for each choice of bands."""

    region: Region
    _read: dict[tuple[int, ...], Block] | None = None

    @property
    def spec(self) -> RasterSpec:
        """Metadata of the image."""
        return self.region.spec

    def block(self, tile: Tile, spec: RasterSpec) -> Block:
        """As `Region.block`."""
        from maskloom.segcore.raster.spec import Block

        if self._read is None:
            self._read = {}
        if spec.bands not in self._read:
            self._read[spec.bands] = self.region.block(Tile.whole(spec.shape), spec)
        kept, place = self._read[spec.bands], tile.read.slices
        return Block(tile, kept.pixels[place].copy(), kept.valid[place].copy(), spec)


def _header(recipe: RunRecipe, image: str | None) -> RasterSpec:
    """The header of the image to try. Raises `RecipeError`."""
    if image is not None:
        return header_of(image, recipe.format, recipe.options)
    found = discover(recipe.inputs, recipe.output, {}, options=recipe.options).sources
    reason: ImageError | RecipeError | None = None
    for source in found:
        try:
            return header_of(source.uri, recipe.format, recipe.options, source)
        except (ImageError, RecipeError) as error:
            reason = reason or error
    raise RecipeError(f"None of {count(len(found), 'image')} can be read. {reason}")


def _without_features(options: ReadOptions) -> ReadOptions:
    """Options that give the bands of the file: the liveliest place is that of the picture."""
    return replace(options, features=(), values="stored")


def _box(spec: RasterSpec, crop: str) -> Box:
    """The part that is tried: at most `SIDE` pixels along y and x, of volumes the middle plane."""
    middle = tuple(n // 2 for n in spec.shape[:-2])
    after = tuple(n + 1 for n in middle)
    height, width = spec.shape[-2:]
    size = min(SIDE, height), min(SIDE, width)
    if crop == "middle":
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
    elif crop == "auto":
        top, left = _liveliest(spec, size, middle)
    else:
        left, top, *size_xy = _numbers(crop)
        size = size_xy[1], size_xy[0]
        if not (0 <= left < left + size[1] <= width and 0 <= top < top + size[0] <= height):
            raise RecipeError(
                f"--crop {crop}: the image has {width} x {height} pixels. Give x,y,width,height "
                "inside it."
            )
        if max(size) > 4 * SIDE:
            raise RecipeError(f"--crop {crop}: at most {4 * SIDE} pixels to each side are tried.")
    return Box((*middle, top, left), (*after, top + size[0], left + size[1]))


def _numbers(crop: str) -> list[int]:
    parts = crop.split(",")
    if len(parts) != 4 or not all(part.strip().isdigit() for part in parts):
        raise RecipeError(
            f"--crop {shown(crop)}: expected auto, middle, or x,y,width,height in pixels."
            f"{did_you_mean(crop, ('auto', 'middle'))}"
        )
    left, top, width, height = map(int, parts)
    if not width or not height:
        raise RecipeError(f"--crop {crop}: width and height must be at least 1.")
    return [left, top, width, height]


def _liveliest(spec: RasterSpec, size: Shape, middle: Shape) -> tuple[int, int]:
    """Top and left of the place with the largest entropy, among a grid of places."""
    places = [
        (top, left)
        for top in _starts(spec.shape[-2], size[0])
        for left in _starts(spec.shape[-1], size[1])
    ]
    if len(places) == 1:
        return places[0]
    after = tuple(n + 1 for n in middle)
    with open_image(spec) as reader:
        samples = [
            _sampled(reader, Box((*middle, y, x), (*after, y + size[0], x + size[1])), len(middle))
            for y, x in places
        ]
    known = [each for each, _ in samples if len(each)]
    if not known:
        return places[len(places) // 2]
    together = np.concatenate(known)
    edges = [
        np.histogram_bin_edges(np.clip(band, *np.percentile(band, (0.5, 99.5))), _BINS)
        for band in together.T
    ]
    scores = [share * _entropy(each, edges) for each, share in samples]
    return places[int(np.argmax(scores))]


def _starts(length: int, side: int) -> list[int]:
    return sorted({round(i * (length - side) / (_PLACES - 1)) for i in range(_PLACES)})


def _sampled(reader: Reader, box: Box, axes: int) -> tuple[NDArray[np.float64], float]:
    """Some valid pixels of a box, (n, band), and the share of pixels that are valid."""
    pixels, valid = reader.read(box)
    plane = (0,) * axes
    kept = valid[plane][::_SAMPLED, ::_SAMPLED]
    values = pixels[plane][::_SAMPLED, ::_SAMPLED][kept].astype(np.float64)
    return values[np.isfinite(values).all(axis=1)], float(kept.mean())


def _entropy(values: NDArray[np.float64], edges: Sequence[NDArray[np.float64]]) -> float:
    """The mean over bands of the entropy of their values, in bits."""
    found = []
    for band, limits in zip(values.T, edges, strict=True):
        counts = np.histogram(np.clip(band, limits[0], limits[-1]), limits)[0]
        shares = counts[counts > 0] / max(1, counts.sum())
        found.append(float(-(shares * np.log2(shares)).sum()))
    return float(np.mean(found)) if found else 0.0


# Panels


def _cell(
    panel: Panel, region: _Part, picture: NDArray[np.uint8], plane: Shape
) -> tuple[Cell, str]:
    """A panel of the picture, and a line on it."""
    began = time.monotonic()
    model = fit_to(panel.recipe.segmenter, [region])
    mask = segment_source(model, region)
    seconds = time.monotonic() - began
    found = _found(mask, model)
    cell = label_cell(
        panel.title,
        f"{found} · {seconds:.1f} s",
        mask.values[plane],
        mask.valid[plane],
        picture,
    )
    return cell, f"{line(panel.title)}: {_shares(mask, model)} ({seconds:.1f} s)"


def _found(mask: Mask, model: Any) -> str:
    if isinstance(model, ObjectSegmenter):
        return count(int(mask.values[mask.valid].max(initial=0)), "object")
    return count(len(model.classes), "class", "classes")


def _shares(mask: Mask, model: Any) -> str:
    """The number of objects, or the share of each class."""
    if isinstance(model, ObjectSegmenter):
        return _found(mask, model)
    counts = np.bincount(mask.values[mask.valid].ravel(), minlength=len(model.classes))
    total = max(1, int(counts.sum()))
    return ", ".join(
        f"{name} {number / total:.0%}"
        for name, number in zip(model.classes, counts.tolist(), strict=False)
    )


def _part_text(spec: RasterSpec, box: Box) -> str:
    shape = box.shape[-2:]
    whole = size_text(spec.shape)
    if box.shape == spec.shape:
        return f"{whole} pixels"
    place = f" at {box.start[-1]}, {box.start[-2]}" if shape != spec.shape[-2:] else ""
    middle = f"plane {box.start[0]} of " if len(spec.shape) > len("yx") else ""
    return f"{size_text(shape)}{place}, {middle}{whole} pixels"
