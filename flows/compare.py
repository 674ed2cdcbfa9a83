"""Compare: what several segmenters make of one image, side by side in one picture.

Each segmenter is fitted to and run on the pixels of the image itself (of one larger than a
megapixel, its middle), so what it finds is what a run with the same parameters finds there. Only
the drawing is shrunk. Every cell of the picture shows twice what one found: the boundaries of its
classes or objects over the photo, and below it the mean colour of each. Boundaries are those
between the labels of the drawn pixels, so they stay one pixel wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.flows.recipes.schemas import build
from maskloom.segcore.errors import RecipeError, RunError, StoreError
from maskloom.segcore.geometry import Box, Tile
from maskloom.segcore.models.protocols import SEGMENTERS, ObjectSegmenter
from maskloom.segcore.pipeline.in_memory import Mask, Region, fit_to, segment_scene, select_engines
from maskloom.segcore.pipeline.jobs import DescribeJob
from maskloom.segcore.pipeline.worker import describe
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.spec import Block
from maskloom.segcore.storage.store import filesystem, store_errors, version_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.models.protocols import Fitter, Model
    from maskloom.segcore.raster.spec import RasterSpec

Kind = str | Mapping[str, Any] | list[Any]
"""A segmenter as in a recipe: a kind, or `kind` and parameters, or a list of such, which is an
ensemble.
"""

CLASSICAL: tuple[Kind, ...] = (
    {"kind": "threshold", "method": "otsu"},
    {"kind": "threshold", "method": "local", "window": 51},
    {"kind": "kmeans", "clusters": 5},
    {"kind": "mixture", "components": 5},
    {"kind": "mean_shift", "space": "feature"},
    {
        "kind": "mean_shift",
        "space": "joint",
        "spatial_radius": 7,
        "range_radius": 20,
        "min_size": 50,
    },
    {"kind": "quickshift", "kernel_size": 3, "max_dist": 6, "ratio": 0.5},
)
"""All classical segmenters, with parameters that suit a photo."""

_LARGEST_SIDE = 480
_MOST_PIXELS = 10**6
_CELLS_ACROSS = 4
_NARROWEST = 240
_GAP, _TITLE, _TITLE_SIZE, _TEXT_SIZE = 12, 46, 18, 13
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
_BOUNDARY, _NO_DATA = (255, 220, 0), 54
_NOTE = "above: boundaries\nbelow: mean colour of each class or object"


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A region of an image file that is read once for each choice of bands, however many segmenters
    look at it.
    """

    region: Region
    read: dict[tuple[int, ...], Block] = field(default_factory=dict)
    """The whole region by bands."""

    @property
    def spec(self) -> RasterSpec:
        """The region's header."""
        return self.region.spec

    def block(self, tile: Tile, spec: RasterSpec) -> Block:
        """A copy of a tile of the region. Raises `ReadError`."""
        if spec.bands not in self.read:
            whole = Box.whole(spec.shape)
            self.read[spec.bands] = self.region.block(Tile((0, 0), whole, whole), spec)
        kept, place = self.read[spec.bands], tile.read.slices
        return Block(tile, kept.pixels[place].copy(), kept.valid[place].copy(), spec)


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One segmenter's place in the picture."""

    title: str
    text: str
    over_photo: NDArray[np.uint8]
    """The photo with boundaries."""
    colours: NDArray[np.uint8] | None
    """The mean colour of each class or object. None: the cell is the photo's own."""


def compare(image_path: str, kinds: Sequence[Kind] | None, out_png: Path) -> None:
    """Write the picture of what these segmenters (None: all classical ones) make of an image.

    Raises `RecipeError` for kinds or parameters that there are not, `RunError` or `ImageError`
    where the image cannot be read, `FitError` where it allows no model, `ModelMismatch` where it
    does not suit a segmenter, and `StoreError` where the picture cannot be written.
    """
    if kinds is None:
        kinds = [
            kind for kind in CLASSICAL if isinstance(kind, Mapping) and kind["kind"] in SEGMENTERS
        ]
    sections = [_section(kind) for kind in kinds]
    starts = [_start(section, f"segmenter {number}") for number, section in enumerate(sections, 1)]
    image = _header(image_path)
    scene = Kept(Region.middle(image, _MOST_PIXELS))
    whole = Box.whole(scene.spec.shape)
    photo = _shown(scene.block(Tile((0, 0), whole, whole), scene.spec))
    part = "" if whole.shape == image.shape else f"middle {_size(whole.shape)} of "
    name = image_path.replace("\\", "/").rsplit("/", 1)[-1]
    cells = [Cell(name, f"{part}{_size(image.shape)} pixels", _shrunk(photo), None)]
    for section, start in zip(sections, starts, strict=True):
        model = fit_to(select_engines(start, scene), [scene])
        cells.append(_cell(section, model, segment_scene(model, scene), photo))
    picture = _draw(cells)
    try:
        picture.save(out_png, "PNG")
    except OSError as error:
        raise StoreError(
            f"Cannot write {out_png}: {error}. Check that its folder exists and can be written."
        ) from error


def _section(kind: Kind) -> Mapping[str, Any]:
    if isinstance(kind, str):
        return {"kind": kind}
    return {"kind": "ensemble", "members": kind} if isinstance(kind, list) else kind


def _start(section: Mapping[str, Any], path: str) -> Fitter | Model:
    recipe = build(SEGMENTERS, section, path)
    try:
        started: Fitter | Model = recipe.start()
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    return started


def _header(path: str) -> RasterSpec:
    fs, inner = filesystem(path)
    uri = path if "://" in path else f"file://{inner}"
    try:
        with store_errors(uri):
            info = fs.info(inner)
    except FileNotFoundError as error:
        raise RecipeError(f"{path!r} does not exist. Check its name.") from error
    (item,) = describe(
        DescribeJob((Source(uri, "image", version_of(info), int(info.get("size") or 0)),))
    )
    if item.spec is None:
        raise RunError(item.failure.error if item.failure else f"{uri} cannot be read.")
    return item.spec


def _shown(block: Block) -> NDArray[np.uint8]:
    """The image as people see it: red, green and blue of 8 bits."""
    pixels = (
        block.pixels[..., :3]
        if block.pixels.shape[-1] >= 3
        else np.repeat(block.pixels[..., :1], 3, axis=2)
    )
    shown = np.nan_to_num(pixels.astype(np.float32))
    if block.valid.any() and not (pixels.dtype == np.uint8 and block.spec.interpretation == "rgb"):
        low, high = np.percentile(shown[block.valid], [2, 98])
        shown = np.clip((shown - low) * (255 / max(float(high - low), 1e-9)), 0, 255)
    return np.where(block.valid[..., None], shown, _NO_DATA).astype(np.uint8)


def _cell(section: Mapping[str, Any], model: Model, mask: Mask, photo: NDArray[np.uint8]) -> Cell:
    told = [f"{name} {_told(value)}" for name, value in section.items() if name != "kind"]
    labels = np.where(mask.valid, mask.values.astype(np.int64), -1)
    count = (
        f"{mask.values[mask.valid].max(initial=0)} objects"
        if isinstance(model, ObjectSegmenter)
        else f"{len(model.classes)} classes"
    )
    colours = np.where(mask.valid[..., None], _mean_colours(labels, photo), photo)
    return Cell(
        section["kind"],
        " · ".join([*told, count]),
        _outlined(_sampled(labels), _shrunk(photo)),
        _sampled(colours),
    )


def _told(value: Any) -> str:
    """A parameter in few words: of segmenters inside segmenters their kinds."""
    if isinstance(value, list):
        return ", ".join(map(_told, value))
    return str(value["kind"] if isinstance(value, Mapping) and "kind" in value else value)


def _drawn_shape(shape: Shape) -> Shape:
    """The shape in which a picture of this shape is drawn."""
    scale = min(1.0, _LARGEST_SIDE / max(shape))
    return tuple(max(1, round(n * scale)) for n in shape)


def _shrunk(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photo as it is drawn: each pixel the mean of those that it covers."""
    import cv2

    shrunk: NDArray[np.uint8] = cv2.resize(
        photo, _drawn_shape(photo.shape[:2])[::-1], interpolation=cv2.INTER_AREA
    )
    return shrunk


def _sampled(array: NDArray[Any]) -> NDArray[Any]:
    """Labels or their colours as they are drawn: each pixel as the one in the middle of those that
    it covers.
    """
    shape = array.shape[:2]
    rows, columns = (
        (2 * np.arange(n) + 1) * size // (2 * n)
        for n, size in zip(_drawn_shape(shape), shape, strict=True)
    )
    return array[np.ix_(rows, columns)]


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
    picture = Image.new(
        "RGB", (across * column + _GAP, -(-len(cells) // across) * row + _GAP), _PAPER
    )
    draw = ImageDraw.Draw(picture)
    title, text = (ImageFont.load_default(size=size) for size in (_TITLE_SIZE, _TEXT_SIZE))
    for number, cell in enumerate(cells):
        x, y = _GAP + number % across * column, _GAP + number // across * row
        draw.text((x, y), _fitting(cell.title, title, column - _GAP), _INK, title)
        draw.text((x, y + _TITLE_SIZE + 6), _fitting(cell.text, text, column - _GAP), _FAINT, text)
        picture.paste(Image.fromarray(cell.over_photo), (x, y + _TITLE))
        below = (x, y + _TITLE + height + _GAP // 2)
        if cell.colours is None:
            draw.text(below, _NOTE, _FAINT, text)
        else:
            picture.paste(Image.fromarray(cell.colours), below)
    return picture


def _fitting(text: str, font: Any, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _size(shape: Shape) -> str:
    return " x ".join(str(n) for n in reversed(shape))
