"""Previews: small pictures of an image overlaid with its mask.

Each tile gives a `PreviewPart`: for every cell of `stride` x `stride` pixels that starts in its
core, the mean of the source's valid pixels and the most frequent label. At most the first 16 x 16
pixels of a cell are used. Because cores start at multiples of 16, these belong to one tile, and the
preview is the same for any tiling. `render_preview` joins the parts, stretches images that are not
RGB pictures, tints the classes, draws their borders, and adds the legend below. The preview of
a volume shows its middle plane; where the position in the body is known, as radiologists look at
it: the patient's right, front or head comes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from maskloom.segcore.figures.drawing import SWATCH, canvas, draw_legend, font, lines_of, png
from maskloom.segcore.geometry import Box, Tile
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable
from maskloom.segcore.raster.colours import object_palette, rows_of_objects
from maskloom.segcore.storage.packing import packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.ground.space import Frame
    from maskloom.segcore.raster.spec import Block, Interpretation

Scalar = TypeVar("Scalar", bound=np.generic)

LARGEST_SIDE = 1024
"""Longer side of a preview in pixels, without the legend."""

Limits = tuple[Any, Any] | None
"""The numbers that are shown black and white, for each band or for all. None: nothing to spread."""

_AXES = 2
_STRIP = 64
"""Rows of a preview that are drawn together."""
_WINDOW = 16
_TINT = 0.4
_SATURATION = 0.35
_BORDER_SHADE = 0.55
_NODATA_GREYS = (48, 60)
_CHECK_SIDE = 8

_LEGEND_FONT, _LEGEND_GAP = 13, 7
_LEGEND_PAPER, _LEGEND_INK = (24, 24, 24), (225, 225, 225)
_NARROWEST_LEGEND = 96
_LONGEST_LEGEND = 16


@packable
@dataclass(frozen=True, slots=True)
class PreviewPart:
    """The part of a preview that belongs to one tile, in preview pixels."""

    start: Shape
    """First pixel (y, x)."""
    pixels: NDArray[np.generic]
    """Means of up to three bands, (y, x, band): uint8 for RGB images of 8 bits, otherwise
    float32.
    """
    valid: NDArray[np.bool_]
    """(y, x): whether a cell has data."""
    labels: NDArray[np.integer]
    """(y, x)."""


def preview_stride(shape: Shape) -> int:
    """Side of the cells that become one preview pixel: the smallest power of two for which the
    longer side of the preview is at most `LARGEST_SIDE`.
    """
    return 1 << (-(-max(shape[-2:]) // LARGEST_SIDE) - 1).bit_length()


def is_shown(tile: Tile, shape: Shape) -> bool:
    """Whether the preview of a raster of this shape shows the tile: that of a volume shows its
    middle plane.
    """
    middle = zip(tile.core.start, tile.core.stop, shape[:-2], strict=False)
    return all(start <= length // 2 < stop for start, stop, length in middle)


def observe_preview(block: Block, labels: NDArray[np.integer], stride: int) -> PreviewPart:
    """The part of the preview for a tile that `is_shown`. `labels` covers its core, whose start is
    a multiple of 16 along the last two axes.
    """
    if labels.ndim > _AXES:
        block, labels = _middle_plane(block, labels)
    core = block.tile.core
    start = tuple(-(-a // stride) for a in core.start)
    cells = tuple(-(-b // stride) - a for a, b in zip(start, core.stop, strict=True))
    inside = tuple(slice(i * stride - a, None) for i, a in zip(start, core.start, strict=True))
    valid = _windows(block.tile.trim(block.valid)[inside], cells, stride)
    pixels = _windows(block.tile.trim(block.pixels)[inside][..., :3], cells, stride)
    means, any_valid = _means(pixels, valid)
    shown_as_is = block.spec.interpretation == "rgb" and pixels.dtype == np.uint8
    kept = np.rint(means).astype(np.uint8) if shown_as_is else means
    return PreviewPart(start, kept, any_valid, _modes(labels[inside], cells, stride))


def relabel_preview(
    part: PreviewPart, labels: NDArray[np.integer], tile: Tile, shape: Shape, stride: int
) -> PreviewPart:
    """The part of a tile of a raster of this shape, with new labels of its core."""
    labels = labels[_in_middle(tile.core, shape)]
    inside = tuple(
        slice(i * stride - a, None) for i, a in zip(part.start, tile.core.start[-2:], strict=True)
    )
    return replace(part, labels=_modes(labels[inside], part.labels.shape, stride))


def render_preview(
    parts: Iterable[PreviewPart],
    shape: Shape,
    interpretation: Interpretation,
    class_table: ClassTable,
    stride: int,
    frame: Frame | None = None,
) -> bytes:
    """The preview of an image or volume of this shape as PNG. Areas that no part covers look like
    nodata. `frame` says where a scan is in the body.
    """
    pixels, valid, labels = _join(parts, tuple(-(-n // stride) for n in shape[-2:]))
    picture = _picture(pixels, valid, labels, interpretation, class_table)
    if frame is not None:
        picture = _as_looked_at(picture, frame)
    strip = (
        None if labels.dtype == np.uint32 else _draw_legend(class_table, labels, picture.shape[1])
    )
    return png(picture if strip is None else np.vstack([picture, strip]), compression=1)


def _as_looked_at(picture: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    """The plane of a scan with rows and columns that run to the left, the back or the feet."""
    for axis, step in ((1, frame.affine[0::4]), (0, frame.affine[1::4])):
        if max(step, key=abs) > 0:
            picture = np.flip(picture, axis)
    return np.ascontiguousarray(picture)


def _in_middle(box: Box, shape: Shape) -> tuple[int, ...]:
    """The index of the middle plane of a volume of this shape in an array of a box; nothing in an
    image.
    """
    return tuple(length // 2 - start for start, length in zip(box.start, shape[:-2], strict=False))


def _middle_plane(block: Block, labels: NDArray[np.integer]) -> tuple[Block, NDArray[np.integer]]:
    """The middle plane of a volume in a block that contains part of it, and the labels there."""
    tile, shape = block.tile, block.spec.shape
    core, read = (Box(box.start[-2:], box.stop[-2:]) for box in (tile.core, tile.read))
    in_read = _in_middle(tile.read, shape)
    plane = replace(
        block,
        tile=Tile(tile.index[-2:], core, read),
        pixels=block.pixels[in_read],
        valid=block.valid[in_read],
    )
    return plane, labels[_in_middle(tile.core, shape)]


def _windows(array: NDArray[Scalar], cells: Shape, stride: int) -> NDArray[Scalar]:
    """The windows of all cells, (y, window y, x, window x, ...); 0 beyond the image."""
    beyond = [(0, n * stride - size) for n, size in zip(cells, array.shape, strict=False)]
    if any(after for _, after in beyond):
        array = np.pad(array, beyond + [(0, 0)] * (array.ndim - 2))
    rows, columns = cells
    side = min(stride, _WINDOW)
    return array.reshape(rows, stride, columns, stride, *array.shape[2:])[:, :side, :, :side]


def _means(
    pixels: NDArray[np.generic], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Mean of the valid pixels of each window (y, x, band), and whether it has any (y, x)."""
    kind = {"uint8": "uint16", "uint16": "uint32"}.get(pixels.dtype.name, "float64")
    if valid.all():
        counts = np.full(valid.shape[::2], valid.shape[1] * valid.shape[3])
    else:
        pixels = np.where(valid[..., None], pixels, pixels.dtype.type(0))
        counts = _sums(valid[..., None], "uint16")[..., 0]
    # Infinite and NaN pixels, and sums and means beyond float32, stay as they are; the stretch
    # leaves out values that are not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        return (_sums(pixels, kind) / np.maximum(counts, 1)[..., None]).astype(
            np.float32
        ), counts > 0


def _sums(windows: NDArray[np.generic], kind: str) -> NDArray[Any]:
    # Explicit loops fix the order of floating-point sums; NumPy's own order depends on the shape of
    # the tile.
    rows, side, columns, _, bands = windows.shape
    by_column = np.zeros((rows, columns, side, bands), kind)
    for y in range(side):
        by_column += windows[:, y]
    total = np.zeros((rows, columns, bands), kind)
    for x in range(side):
        total += by_column[:, :, x]
    return total


def _modes(labels: NDArray[np.integer], cells: Shape, stride: int) -> NDArray[np.integer]:
    """The most frequent label of each window, by halving as in the masks' overviews."""
    from maskloom.segcore.kernels.overviews import halve

    if stride == 1 or 0 in cells:
        return labels[: cells[0], : cells[1]]
    rows, columns = (n * stride for n in cells)
    whole = np.pad(
        labels, ((0, rows - labels.shape[0]), (0, columns - labels.shape[1])), mode="edge"
    )
    side = min(stride, _WINDOW)
    modes = _windows(whole, cells, stride).reshape(cells[0] * side, cells[1] * side)
    while modes.shape != cells:
        modes = halve(modes)
    return modes


def _join(
    parts: Iterable[PreviewPart], shape: Shape
) -> tuple[NDArray[np.generic], NDArray[np.bool_], NDArray[np.integer]]:
    placed = list(parts)
    first = placed[0]
    pixels = np.zeros((*shape, first.pixels.shape[2]), first.pixels.dtype)
    valid = np.zeros(shape, np.bool_)
    labels = np.full(shape, np.iinfo(first.labels.dtype).max, first.labels.dtype)
    for part in placed:
        place = tuple(slice(a, a + n) for a, n in zip(part.start, part.labels.shape, strict=True))
        pixels[place], valid[place], labels[place] = part.pixels, part.valid, part.labels
    return pixels, valid, labels


def _picture(
    pixels: NDArray[np.generic],
    valid: NDArray[np.bool_],
    labels: NDArray[np.integer],
    interpretation: Interpretation,
    class_table: ClassTable,
) -> NDArray[np.uint8]:
    """The pixels tinted by their classes, made in strips of rows: their numbers take 30 times the
    memory of the picture.
    """
    # The bands of an RGB picture share one stretch, which keeps its hues.
    limits = _limits(pixels, valid, axis=None if interpretation == "rgb" else 0)
    picture = np.empty((*labels.shape, 3), np.uint8)
    for top in range(0, len(picture), _STRIP):
        # With one row more: a border is drawn on its upper side.
        rows = slice(top, top + _STRIP + 1)
        shown = _show(pixels[rows], valid[rows], limits, top)
        tinted = _overlay(shown, valid[rows], labels[rows], class_table)
        picture[top : top + _STRIP] = tinted[:_STRIP]
    return picture


def _shown_bands(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Three bands that are red, green and blue, or else the first."""
    return pixels if pixels.shape[2] == 3 else pixels[..., :1]


def _show(
    pixels: NDArray[np.generic], valid: NDArray[np.bool_], limits: Limits, top: int
) -> NDArray[np.float32]:
    """Red, green and blue from 0 to 255 of the rows from `top` on; pixels without data are a dark
    checkerboard.
    """
    height, width, _ = pixels.shape
    shown = _shown_bands(pixels).astype(np.float32)
    if pixels.dtype != np.uint8:
        shown = _stretched(shown, limits)
    if shown.shape[2] == 1:
        shown = np.repeat(shown, 3, axis=2)
    if valid.all():
        return shown
    rows, columns = np.ogrid[top : top + height, :width]
    checks = np.where((rows // _CHECK_SIDE + columns // _CHECK_SIDE) % 2, *_NODATA_GREYS)
    return np.where(valid[..., None], shown, checks[..., None]).astype(np.float32)


def _limits(pixels: NDArray[np.generic], valid: NDArray[np.bool_], axis: int | None) -> Limits:
    """The 2nd and 98th percentile of the valid pixels. None: no pixel is finite in float32, or the
    numbers are shown as they are.
    """
    if pixels.dtype == np.uint8:
        return None
    shown = _shown_bands(pixels).astype(np.float32, copy=False)
    values = shown[valid & np.isfinite(shown).all(axis=2)]
    if not len(values):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.percentile(values, [2, 98], axis=axis)
    return low, high


def _stretched(shown: NDArray[np.float32], limits: Limits) -> NDArray[np.float32]:
    """The pixels with the limits spread over 0 to 255."""
    if limits is None:
        # Infinite ones become white or black.
        return np.clip(np.nan_to_num(shown), 0, 255)
    low, high = limits
    # Values that overflow float32 here (undeclared nodata of -3.4e38) are clipped, and NaN is
    # black.
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.where(high > low, 255 / np.where(high > low, high - low, 1), 1)
        spread = np.nan_to_num((shown - low) * scale + np.where(high > low, 0, 128))
    return np.asarray(np.clip(spread, 0, 255), np.float32)


def _overlay(
    picture: NDArray[np.float32],
    valid: NDArray[np.bool_],
    labels: NDArray[np.integer],
    class_table: ClassTable,
) -> NDArray[np.uint8]:
    """The picture with every class tinted in its colour and outlined in a darker shade of it; the
    background is unchanged.
    """
    ids = np.where(valid & (labels != np.iinfo(labels.dtype).max), labels.astype(np.int64), -1)
    index, table = _colours(ids, labels.dtype, class_table)
    # Tints are distinct on half-grey pixels, whatever the colours of the image. Row -1 of each
    # table is for pixels that are unchanged.
    own = np.array([(1 - _TINT) * _SATURATION] * len(table) + [1], np.float32)
    grey = np.array([(1 - _TINT) * (1 - _SATURATION)] * len(table) + [0], np.float32)
    tint = np.vstack([_TINT * table, np.zeros((1, 3), np.float32)])
    brightness = (picture[..., 0] + picture[..., 1] + picture[..., 2]) / 3
    shown = picture * own[index][..., None] + (brightness * grey[index])[..., None] + tint[index]
    owner = _border_owners(ids, index)
    shown[owner >= 0] = _BORDER_SHADE * table[owner[owner >= 0]]
    return np.rint(shown).astype(np.uint8)


def _colours(
    ids: NDArray[np.int64], dtype: np.dtype[np.integer], class_table: ClassTable
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The row of each pixel's colour in a table (-1: leave the pixel unchanged), and the table."""
    if dtype == np.uint32:
        table = object_palette().astype(np.float32)
        return np.where(ids > 0, rows_of_objects(ids), -1), table
    table = np.array(class_table.colours, np.float32).reshape(-1, 3)
    rows = np.array(
        [-1 if name.lower() in BACKGROUND_NAMES else i for i, name in enumerate(class_table.names)]
        + [-1]
    )
    known = (ids >= 0) & (ids < len(table))
    return rows[np.where(known, ids, -1)], table


def _border_owners(ids: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of each border pixel's colour, -1 elsewhere. Borders are one pixel wide, on the upper
    or left side.
    """
    owner = np.full(ids.shape, -1)
    for ours, theirs in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        border = (ids[ours] != ids[theirs]) & (ids[ours] >= 0) & (ids[theirs] >= 0)
        owner[ours] = np.where(
            border, np.maximum(owner[ours], np.maximum(index[ours], index[theirs])), owner[ours]
        )
    return owner


def _draw_legend(
    class_table: ClassTable, labels: NDArray[np.integer], width: int
) -> NDArray[np.uint8] | None:
    """A strip (y, x, 3) with the colour and the name of each class (of many, only of those
    present); None if there is no room.
    """
    if width < _NARROWEST_LEGEND:
        return None
    letters, classes = font(_LEGEND_FONT), range(len(class_table.names))
    shown = (
        classes
        if len(classes) <= _LONGEST_LEGEND
        else np.intersect1d(labels, classes)[:_LONGEST_LEGEND].tolist()
    )
    entries = [(class_table.names[i], class_table.colours[i]) for i in shown]
    widths = [SWATCH + int(letters.getlength(name)) + 3 * _LEGEND_GAP for name, _ in entries]
    places, bottom = lines_of(widths, width, _LEGEND_GAP, SWATCH + _LEGEND_GAP)
    image, pen = canvas(width, bottom, _LEGEND_PAPER)
    draw_legend(pen, places, entries, font=letters, ink=_LEGEND_INK, text_at=SWATCH + _LEGEND_GAP)
    return np.asarray(image)
