"""The parts of previews that tiles give, and the preview that they make together.

For an image, a tile gives one `PreviewPart`: for every cell of `stride` x `stride` pixels that
starts in its core, the mean of the source's valid pixels and the most frequent label. At most the
first 16 x 16 pixels of a cell are used. Because cores start at multiples of 16, these belong to one
tile, and the preview is the same for any tiling.

A volume is shown by three planes through its middle, one across each axis. A tile gives a part for
each plane that crosses its core. Cells of the planes across y and x are single voxels, because
cores may start anywhere along z.

`render_preview` joins the parts; `segcore.figures.sheets` draws them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from maskloom.segcore.figures.drawing import NO_DATA, is_faint, limits_of
from maskloom.segcore.figures.planes import Plane
from maskloom.segcore.figures.sheets import Caption, draw_preview
from maskloom.segcore.geometry import Box, Tile
from maskloom.segcore.storage.packing import packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import Block, Interpretation, RasterSpec

Scalar = TypeVar("Scalar", bound=np.generic)

LARGEST_SIDE = 1024
"""Most cells of a preview along an axis."""

Limits = tuple[Any, Any] | None
"""The numbers that are shown black and white, for each band or for all. None: the numbers are shown
as they are.
"""

_AXES = 2
_STRIP = 64
"""Rows of a preview that are stretched together."""
_WINDOW = 16
_PERCENTILES = (2, 98)
_SAMPLE = 2**15
"""Cells that percentiles are taken of, about."""


@packable
@dataclass(frozen=True, slots=True)
class PreviewPart:
    """The part of a preview that belongs to one tile, in cells."""

    start: Shape
    """First cell (y, x) of its plane."""
    pixels: NDArray[np.generic]
    """Means of up to three bands, (y, x, band): uint8 for RGB images of 8 bits, otherwise
    float32.
    """
    valid: NDArray[np.bool_]
    """(y, x): whether a cell has data."""
    labels: NDArray[np.integer]
    """(y, x)."""
    across: int = 0
    """The axis of a volume across which its plane lies: 0 for z, and for images."""


_NOT_OF_A_PLACE = tuple(
    each.name
    for each in fields(PreviewPart)
    if each.name not in ("start", "pixels", "valid", "labels")
)


def in_rows(parts: Iterable[PreviewPart]) -> list[PreviewPart]:
    """The same preview in fewer parts: those that lie side by side become one. An image may have a
    million tiles, of which a part of its own takes half a KiB.
    """
    rows: list[list[PreviewPart]] = []
    ends: dict[object, list[PreviewPart]] = {}
    for part in parts:
        (top, left), (height, width) = part.start, part.labels.shape
        others = [getattr(part, name) for name in _NOT_OF_A_PLACE]
        row = ends.pop((top, height, left, *others), None)
        if row is None:
            row = []
            rows.append(row)
        row.append(part)
        ends[top, height, left + width, *others] = row
    return [row[0] if len(row) == 1 else _side_by_side(row) for row in rows]


def _side_by_side(row: list[PreviewPart]) -> PreviewPart:
    return replace(
        row[0],
        pixels=np.concatenate([part.pixels for part in row], axis=1),
        valid=np.concatenate([part.valid for part in row], axis=1),
        labels=np.concatenate([part.labels for part in row], axis=1),
    )


def preview_stride(shape: Shape) -> int:
    """Side of the cells of an image, or of a plane across z: the smallest power of two with which
    the preview has at most `LARGEST_SIDE` cells along an axis.
    """
    return 1 << (-(-max(shape[-2:]) // LARGEST_SIDE) - 1).bit_length()


def plane_shape(shape: Shape, across: int) -> Shape:
    """Shape in pixels of the plane of a raster across an axis; of an image, its own.

    >>> plane_shape((20, 70, 50), 1), plane_shape((70, 50), 0)
    ((20, 50), (70, 50))
    """
    return shape if len(shape) == _AXES else (*shape[:across], *shape[across + 1 :])


def cells_of(shape: Shape, across: int = 0) -> Shape:
    """Number of cells (y, x) of the plane of a raster of this shape across an axis."""
    plane = plane_shape(shape, across)
    return tuple(-(-n // preview_stride(plane)) for n in plane)


def planes_shown(shape: Shape) -> tuple[int, ...]:
    """The axes across which planes of a raster of this shape are shown; 0 for an image, or a volume
    of one plane.
    """
    return (0, 1, 2) if len(shape) > _AXES and min(shape) > 1 else (0,)


def observe_previews(block: Block, labels: NDArray[np.integer]) -> list[PreviewPart]:
    """The parts of the preview for a tile. `labels` has the shape of its core, whose start is a
    multiple of 16 along the last two axes.
    """
    shape = block.spec.shape
    if len(shape) == _AXES:
        return [observe_preview(block, labels, preview_stride(shape))]
    core = block.tile.core
    crossed = [each for each in planes_shown(shape) if _crosses(core, shape, each)]
    return [
        observe_preview(*_middle_plane(block, labels), preview_stride(shape))
        if across == 0
        else _cross_section(block, labels, across)
        for across in crossed
    ]


def observe_preview(block: Block, labels: NDArray[np.integer], stride: int) -> PreviewPart:
    """The part of the preview of an image for a tile; `stride` is the side of a cell in pixels, and
    `labels` (y, x) covers the core.
    """
    core = block.tile.core
    start = tuple(-(-a // stride) for a in core.start)
    cells = tuple(-(-b // stride) - a for a, b in zip(start, core.stop, strict=True))
    inside = tuple(slice(i * stride - a, None) for i, a in zip(start, core.start, strict=True))
    valid = _windows(block.tile.trim(block.valid)[inside], cells, stride)
    pixels = _windows(block.tile.trim(block.pixels)[inside][..., :3], cells, stride)
    means, any_valid = _means(pixels, valid)
    kept = np.rint(means).astype(np.uint8) if _is_photo(block) else means
    return PreviewPart(start, kept, any_valid, _modes(labels[inside], cells, stride))


def relabel_preview(
    part: PreviewPart, labels: NDArray[np.integer], tile: Tile, shape: Shape
) -> PreviewPart:
    """The part of a tile of a raster of this shape, with new labels of its core."""
    if part.across:
        index = _section(tile.core, shape, part.across)
        return replace(part, labels=np.ascontiguousarray(labels[index]))
    stride = preview_stride(shape)
    if len(shape) > _AXES:
        labels = labels[shape[0] // 2 - tile.core.start[0]]
    inside = tuple(
        slice(i * stride - a, None) for i, a in zip(part.start, tile.core.start[-2:], strict=True)
    )
    return replace(part, labels=_modes(labels[inside], part.labels.shape, stride))


def render_preview(
    parts: Iterable[PreviewPart], spec: RasterSpec, class_table: ClassTable, caption: Caption
) -> bytes:
    """The preview of an image or volume as PNG. Areas that no part covers look like nodata."""
    planes_of: dict[int, list[PreviewPart]] = {}
    for part in parts:
        planes_of.setdefault(part.across, []).append(part)
    joined = {
        across: join(found, cells_of(spec.shape, across)) for across, found in planes_of.items()
    }
    limits = _limits([(pixels, valid) for pixels, valid, _ in joined.values()], spec.interpretation)
    planes = []
    for across in sorted(joined):
        # The numbers of a plane are released as soon as its photo is made.
        pixels, valid, labels = joined.pop(across)
        planes.append(Plane(across, _photo(pixels, valid, limits), valid, labels))
    return draw_preview(planes, spec, class_table, replace(caption, stretched=limits is not None))


def join(
    parts: Sequence[PreviewPart], cells: Shape
) -> tuple[NDArray[np.generic], NDArray[np.bool_], NDArray[np.integer]]:
    """Pixels (y, x, band), valid and labels (y, x) of a whole plane with so many cells (y, x), from
    all its parts.
    """
    first = parts[0]
    pixels = np.zeros((*cells, first.pixels.shape[2]), first.pixels.dtype)
    valid = np.zeros(cells, np.bool_)
    labels = np.full(cells, np.iinfo(first.labels.dtype).max, first.labels.dtype)
    for part in parts:
        place = tuple(slice(a, a + n) for a, n in zip(part.start, part.labels.shape, strict=True))
        pixels[place], valid[place], labels[place] = part.pixels, part.valid, part.labels
    return pixels, valid, labels


# Planes of volumes


def _crosses(core: Box, shape: Shape, across: int) -> bool:
    return core.start[across] <= shape[across] // 2 < core.stop[across]


def _middle_plane(block: Block, labels: NDArray[np.integer]) -> tuple[Block, NDArray[np.integer]]:
    """The middle plane of a volume in a block that contains part of it, and the labels there."""
    tile, middle = block.tile, block.spec.shape[0] // 2
    core, read = (Box(box.start[-2:], box.stop[-2:]) for box in (tile.core, tile.read))
    in_read = middle - tile.read.start[0]
    plane = replace(
        block,
        tile=Tile(tile.index[-2:], core, read),
        pixels=block.pixels[in_read],
        valid=block.valid[in_read],
    )
    return plane, labels[middle - tile.core.start[0]]


def _cross_section(block: Block, labels: NDArray[np.integer], across: int) -> PreviewPart:
    """The part of the middle plane across y or x, of which every `stride`-th voxel is taken."""
    shape, core = block.spec.shape, block.tile.core
    index = _section(core, shape, across)
    stride = preview_stride(plane_shape(shape, across))
    start = tuple(-(-n // stride) for n in plane_shape(core.start, across))
    pixels = block.tile.trim(block.pixels)[index][..., :3]
    kind = np.uint8 if _is_photo(block) else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        kept = pixels.astype(kind)
    valid = block.tile.trim(block.valid)[index].copy()
    return PreviewPart(start, kept, valid, labels[index].copy(), across)


def _section(core: Box, shape: Shape, across: int) -> tuple[int | slice, ...]:
    """The index of the middle plane across an axis in an array of a tile's core."""
    stride = preview_stride(plane_shape(shape, across))
    return tuple(
        shape[axis] // 2 - start if axis == across else slice(-start % stride, None, stride)
        for axis, start in enumerate(core.start)
    )


# Cells


def _is_photo(block: Block) -> bool:
    """Whether the pixels are those of a picture that is made to be looked at."""
    return block.spec.interpretation == "rgb" and block.pixels.dtype == np.uint8


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


# Photos


def _shown_bands(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Three bands that are red, green and blue, or else the first."""
    return pixels if pixels.shape[2] == 3 else pixels[..., :1]


def _limits(
    planes: Sequence[tuple[NDArray[np.generic], NDArray[np.bool_]]], interpretation: Interpretation
) -> Limits:
    """The 2nd and 98th percentile of the valid pixels; None for pictures of 8 bits that can be
    seen as they are.
    """
    photo = planes[0][0].dtype == np.uint8
    every = max(1, sum(valid.size for _, valid in planes) // _SAMPLE)
    found = []
    for pixels, valid in planes:
        shown = _shown_bands(pixels)[valid][::every].astype(np.float32)
        found.append(shown[np.isfinite(shown).all(axis=1)])
    values = np.concatenate(found)
    if not len(values):
        return None if photo else (0, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = limits_of(values, _PERCENTILES, together=interpretation == "rgb")
    return None if photo and not is_faint(low, high) else (low, high)


def _photo(
    pixels: NDArray[np.generic], valid: NDArray[np.bool_], limits: Limits
) -> NDArray[np.uint8]:
    """Red, green and blue (y, x, 3), made in strips of rows: their numbers take many times the
    memory of the photo.
    """
    photo = np.empty((*valid.shape, 3), np.uint8)
    for top in range(0, len(photo), _STRIP):
        rows = slice(top, top + _STRIP)
        shown = _shown_bands(pixels[rows])
        photo[rows] = shown if limits is None else _stretched(shown.astype(np.float32), limits)
    photo[~valid] = NO_DATA
    return photo


def _stretched(shown: NDArray[np.float32], limits: Limits) -> NDArray[np.uint8]:
    """The pixels with the limits spread over 0 to 255."""
    assert limits is not None
    low, high = limits
    # Values that overflow float32 here (undeclared nodata of -3.4e38) are clipped, and NaN is
    # black.
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.where(high > low, 255 / np.where(high > low, high - low, 1), 1)
        spread = np.nan_to_num((shown - low) * scale + np.where(high > low, 0, 128))
    photo: NDArray[np.uint8] = np.rint(np.clip(spread, 0, 255)).astype(np.uint8)
    return photo
