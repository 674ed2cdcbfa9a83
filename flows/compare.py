"""Compare: what several segmenters make of one image, side by side in one picture.

The image (of a very large one its middle) is reduced to at most 480 pixels a side, and each segmenter is fitted to and run on that. Every cell of
the picture shows twice what one found: the boundaries of its classes or objects over the photo, and below it the mean colour of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.sections import build
from segcore import segmenters  # noqa: F401  (its import fills the registry)
from segcore.errors import RunError, StoreError
from segcore.geometry import Box, Tile
from segcore.jobs import DescribeJob
from segcore.manifest import Source
from segcore.model import SEGMENTERS, ObjectSegmenter
from segcore.raster import Block
from segcore.scene import Mask, Region, fit_to, segment_scene
from segcore.storage import filesystem, store_errors, version_of
from segcore.work import describe

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from segcore.geometry import Shape
    from segcore.model import Model
    from segcore.raster import RasterSpec

Kind = str | Mapping[str, Any]
"""A segmenter as in a recipe: a kind, or `kind` and parameters."""

CLASSICAL: tuple[Kind, ...] = (
    {"kind": "threshold", "method": "otsu"},
    {"kind": "threshold", "method": "local", "window": 51},
    {"kind": "kmeans", "clusters": 5},
    {"kind": "mixture", "components": 5},
    {"kind": "mean_shift", "space": "feature"},
    {"kind": "mean_shift", "space": "joint", "spatial_radius": 7, "range_radius": 20, "min_size": 50},
    {"kind": "quickshift", "kernel_size": 3, "max_dist": 6, "ratio": 0.5},
)
"""All classical segmenters, with parameters that suit a photo."""

_LARGEST_SIDE = 480
_MOST_PIXELS = 2**26
_CELLS_ACROSS = 4
_NARROWEST = 240
_GAP, _TITLE, _TITLE_SIZE, _TEXT_SIZE = 12, 46, 18, 13
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
_BOUNDARY, _NO_DATA = (255, 220, 0), 54


@dataclass(frozen=True, slots=True)
class Reduced:
    """A region of an image file, shrunk to fit into a cell; one pixel is the mean of those that it covers."""

    region: Region

    @property
    def spec(self) -> RasterSpec:
        """The region's header with the reduced shape."""
        shape = self.region.spec.shape
        scale = min(1.0, _LARGEST_SIDE / max(shape))
        return replace(self.region.spec, shape=tuple(max(1, round(n * scale)) for n in shape))

    def block(self, tile: Tile, spec: RasterSpec) -> Block:
        """A tile of the reduced region. Raises `ReadError`."""
        whole = Box.whole(self.region.spec.shape)
        full = self.region.block(Tile((0, 0), whole, whole), replace(spec, shape=whole.shape))
        pixels, valid = _shrunk(full.pixels, full.valid, self.spec.shape)
        return Block(tile, pixels[tile.read.slices], valid[tile.read.slices], spec)


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One segmenter's place in the picture."""

    title: str
    text: str
    over_photo: NDArray[np.uint8]
    """The photo with boundaries."""
    colours: NDArray[np.uint8] | None
    """The mean colour of each class or object. None: nothing below."""


def compare(image_path: str, kinds: Sequence[Kind] | None, out_png: Path) -> None:
    """Write the picture of what these segmenters (None: all classical ones) make of an image.

    Raises `RecipeError` for kinds or parameters that there are not, `RunError` or `ImageError` where the image cannot be read, `FitError`
    where it allows no model, `ModelMismatch` where it does not suit a segmenter, and `StoreError` where the picture cannot be written.
    """
    if kinds is None:
        kinds = [kind for kind in CLASSICAL if isinstance(kind, Mapping) and kind["kind"] in SEGMENTERS]
    recipes = [build(SEGMENTERS, kind, f"segmenter {number}") for number, kind in enumerate(kinds, 1)]
    scene = Reduced(Region.middle(_header(image_path), _MOST_PIXELS))
    whole = Box.whole(scene.spec.shape)
    block = scene.block(Tile((0, 0), whole, whole), scene.spec)
    photo = _shown(block)
    note = "above: boundaries · below: mean colour of each class or object"
    cells = [Cell(image_path.replace("\\", "/").rsplit("/", 1)[-1], note, photo, None)]
    for kind, recipe in zip(kinds, recipes, strict=True):
        model = fit_to(recipe.start(), [scene])
        cells.append(_cell(kind, model, segment_scene(model, scene), photo))
    picture = _draw(cells)
    try:
        picture.save(out_png, "PNG")
    except OSError as error:
        raise StoreError(f"Cannot write {out_png}: {error}. Check that its folder exists and can be written.") from error


def _header(path: str) -> RasterSpec:
    fs, inner = filesystem(path)
    uri = path if "://" in path else f"file://{inner}"
    try:
        with store_errors(uri):
            info = fs.info(inner)
    except FileNotFoundError as error:
        raise RunError(f"{uri} does not exist. Check its name.") from error
    (item,) = describe(DescribeJob((Source(uri, "image", version_of(info), int(info.get("size") or 0)),)))
    if item.spec is None:
        raise RunError(item.failure.error if item.failure else f"{uri} cannot be read.")
    return item.spec


def _shrunk(pixels: NDArray[Any], valid: NDArray[np.bool_], shape: Shape) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Means of the valid pixels that each pixel of the new shape covers, in the pixels' own type."""
    if valid.shape == shape:
        return pixels, valid
    import cv2

    size = shape[::-1]
    weight = cv2.resize(valid.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    bands = [np.where(valid, pixels[..., band], 0).astype(np.float32) for band in range(pixels.shape[-1])]
    sums = np.stack([cv2.resize(band, size, interpolation=cv2.INTER_AREA) for band in bands], axis=-1)
    means = sums / np.maximum(weight, 1e-6)[..., None]
    return (np.rint(means) if pixels.dtype.kind in "bui" else means).astype(pixels.dtype), weight > 0.5


def _shown(block: Block) -> NDArray[np.uint8]:
    """The image as people see it: red, green and blue of 8 bits."""
    pixels = block.pixels[..., :3] if block.pixels.shape[-1] >= 3 else np.repeat(block.pixels[..., :1], 3, axis=2)
    shown = np.nan_to_num(pixels.astype(np.float32))
    if block.valid.any() and not (pixels.dtype == np.uint8 and block.spec.interpretation == "rgb"):
        low, high = np.percentile(shown[block.valid], [2, 98])
        shown = np.clip((shown - low) * (255 / max(float(high - low), 1e-9)), 0, 255)
    return np.where(block.valid[..., None], shown, _NO_DATA).astype(np.uint8)


def _cell(kind: Kind, model: Model, mask: Mask, photo: NDArray[np.uint8]) -> Cell:
    section = {"kind": kind} if isinstance(kind, str) else kind
    told = [f"{name} {value}" for name, value in section.items() if name != "kind" and not isinstance(value, (list, Mapping))]
    labels = np.where(mask.valid, mask.values.astype(np.int64), -1)
    count = (
        f"{mask.values[mask.valid].max(initial=0)} objects"
        if isinstance(model, ObjectSegmenter)
        else f"{len(model.classes)} classes"
    )
    colours = np.where(mask.valid[..., None], _mean_colours(labels, photo), photo)
    return Cell(section["kind"], " · ".join([*told, count]), _outlined(labels, photo), colours.astype(np.uint8))


def _outlined(labels: NDArray[np.int64], photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photo with a line on the upper or left side of each boundary between labels."""
    edge = np.zeros(labels.shape, np.bool_)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    outlined = photo.copy()
    outlined[edge] = _BOUNDARY
    return outlined


def _mean_colours(labels: NDArray[np.int64], photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each pixel in the mean colour of all pixels of its label."""
    number, index = np.unique(labels, return_inverse=True)
    flat = index.ravel()
    counts = np.bincount(flat, minlength=number.size)
    means = [np.bincount(flat, photo[..., band].ravel(), number.size) / counts for band in range(3)]
    return np.rint(np.stack(means, axis=1)[flat]).astype(np.uint8).reshape(photo.shape)


def _draw(cells: Sequence[Cell]) -> Any:
    from PIL import Image, ImageDraw, ImageFont

    height, width = cells[0].over_photo.shape[:2]
    column, row = max(width, _NARROWEST) + _GAP, _TITLE + 2 * height + 2 * _GAP
    across = min(_CELLS_ACROSS, len(cells))
    picture = Image.new("RGB", (across * column + _GAP, -(-len(cells) // across) * row + _GAP), _PAPER)
    draw = ImageDraw.Draw(picture)
    title, text = (ImageFont.load_default(size=size) for size in (_TITLE_SIZE, _TEXT_SIZE))
    for number, cell in enumerate(cells):
        x, y = _GAP + number % across * column, _GAP + number // across * row
        draw.text((x, y), _fitting(cell.title, title, column - _GAP), _INK, title)
        draw.text((x, y + _TITLE_SIZE + 6), _fitting(cell.text, text, column - _GAP), _FAINT, text)
        picture.paste(Image.fromarray(cell.over_photo), (x, y + _TITLE))
        if cell.colours is not None:
            picture.paste(Image.fromarray(cell.colours), (x, y + _TITLE + height + _GAP // 2))
    return picture


def _fitting(text: str, font: Any, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
