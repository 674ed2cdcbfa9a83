"""The layout of a TIFF: the metadata that a reader needs, from GDAL's header, with limits on its
values.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.orientation import UPRIGHT, turn_shape
from maskloom.segcore.formats.source import (
    MAX_BANDS,
    MAX_PICTURE_PIXELS,
    MAX_PIXELS,
    StoredFile,
)
from maskloom.segcore.formats.tiff.beside import metadata_file, place_beside
from maskloom.segcore.formats.tiff.dataset import TiffDataset
from maskloom.segcore.ground.space import Space

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from maskloom.segcore.formats.tiff.pages import Page
    from maskloom.segcore.geometry import Affine, Shape

_MIN_IS_WHITE = 0
_COLOUR_SYSTEMS = {
    5: "inks (CMYK)",
    6: "YCbCr",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "a mosaic of colour filters",
    32844: "logarithms (LogL)",
    32845: "logarithms (LogLuv)",
    34892: "raw values of a camera",
}
"""Photometric interpretations that GDAL converts to RGB for some depths only."""
_MAX_BLOCK_BYTES = 4 * MAX_PICTURE_PIXELS


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file stores its pixels."""

    shape: Shape
    """As stored, before rotation to upright."""
    dtype: str
    block: Shape
    chunks: Shape
    data: tuple[int, ...]
    """GDAL's numbers of the data bands."""
    alpha: int | None
    masks: tuple[int, ...]
    """GDAL's numbers of the bands that have a mask; a single number if they share it."""
    nodata: tuple[float | None, ...]
    """By data band; None also if the type cannot represent the value in the file."""
    white: int | None
    """The value of black in the first data band if 0 is white. None: 0 is not white."""
    palette: NDArray[np.uint8] | None
    """Red, green, blue and alpha by index."""
    rgb: bool
    """Whether the first three data bands are red, green and blue."""
    space: Space
    orientation: int = UPRIGHT
    names: tuple[str, ...] = ()
    """Description of each data band. Empty: none has one."""
    scaling: tuple[tuple[float, float], ...] = ()
    """Scale and offset of each data band. Empty: the file states none."""
    notes: tuple[str, ...] = ()
    """Notes for users on how the pixels are read."""

    @property
    def bands(self) -> int:
        """Number of data bands as delivered."""
        return len(self.data) if self.palette is None else 3

    @property
    def delivered_shape(self) -> Shape:
        """The upright shape (y, x)."""
        return turn_shape(self.shape, self.orientation)


def read_layout(
    dataset: TiffDataset, source: StoredFile, page: Page, space: Space | None = None
) -> Layout:
    """The layout of an open page. `space` is its placement; None: from the file, or else from the
    files beside it.

    Raises `FormatError` for layouts that are not supported, and the errors of `dataset.errors`.
    """
    metadata = metadata_file(source)
    with contextlib.ExitStack() as stack:
        header = dataset
        if metadata:
            header = stack.enter_context(
                contextlib.closing(TiffDataset.open(source, metadata, dataset.directory))
            )
        layout = header.run(_layout, header.raw, source.location, page)
        if space is None:
            space, notes = header.run(_space, header.raw), layout.notes
            if space.affine is None and not space.gcps:
                beside, said = place_beside(
                    source, header.run(lambda: header.raw.crs.to_wkt() if header.raw.crs else None)
                )
                space, notes = replace(beside, rpcs=space.rpcs or beside.rpcs), (*notes, *said)
            layout = replace(layout, notes=(*notes, *_unplaced(space)))
    own = dataset.run(lambda: _palette(dataset.raw, layout.data, layout.dtype))
    if (
        layout.palette is not None
        and own is not None
        and not page.coloured
        and np.array_equal(layout.palette, own)
    ):
        # GDAL adds a palette of 8 bits to files in which 0 is white, of one bit, and of masks.
        layout = replace(layout, palette=None)
    elif layout.palette is not None:
        layout = replace(layout, white=None)
    masks = dataset.run(lambda: _masks(dataset.raw.mask_flag_enums, layout.data))
    # A georeference refers to stored pixels, and programs that write one ignore the tag, as GDAL
    # does.
    return replace(
        layout, masks=masks, space=space, orientation=UPRIGHT if space.placed else page.orientation
    )


def _unplaced(space: Space) -> Iterator[str]:
    """Notes on why areas are in pixels although the image has a placement."""
    if space.affine is None and space.gcps:
        yield (
            f"it is placed by {len(space.gcps)} ground control points, which the mask keeps; areas "
            "are in px, since they say nothing of "
            "single pixels. Set ground_control: affine for the transform that fits them best, or "
            "warp it first (gdalwarp)"
        )
    elif space.affine is None and space.rpcs:
        yield (
            "it is placed by the rational polynomials (RPC) of its camera, which the mask keeps; "
            "areas are in px. Rectify it first (gdalwarp -rpc)"
        )


def _layout(raw: Any, location: str, page: Page) -> Layout:
    if raw.count > MAX_BANDS:
        raise FormatError(
            f"{location} has {raw.count} bands; the limit is {MAX_BANDS}. Leave it out of `inputs`."
        )
    uses = [use.name for use in raw.colorinterp]
    data = tuple(band for band, use in zip(raw.indexes, uses, strict=True) if use != "alpha")
    if not data:
        raise FormatError(f"{location} has no band but alpha. Leave it out of `inputs`.")
    dtype = raw.dtypes[data[0] - 1]
    if dtype.startswith("complex"):
        raise FormatError(
            f"{location} has complex pixels ({dtype}). Write their magnitude, or their parts as "
            "two bands."
        )
    layout = Layout(
        shape=raw.shape,
        dtype=dtype,
        block=raw.block_shapes[data[0] - 1],
        chunks=raw.shape,
        data=data,
        alpha=next((band for band in raw.indexes if band not in data), None),
        masks=(),
        nodata=tuple(_nodata(raw.nodatavals[band - 1], np.dtype(dtype)) for band in data),
        white=_white(raw, page, dtype),
        palette=_palette(raw, data, dtype),
        rgb=[uses[band - 1] for band in data[:3]] == ["red", "green", "blue"],
        space=Space(),
        names=_names(raw, data),
        scaling=_scaling(raw, data),
        notes=tuple(_notes(raw, page, data, dtype)),
    )
    _refuse_giants(location, layout, raw)
    return replace(layout, chunks=_chunks(raw, layout))


def _white(raw: Any, page: Page, dtype: str) -> int | None:
    """The value of black if 0 is white: the largest number of the bits per sample. None if 0 is not
    white, or for signed numbers and floats.
    """
    if page.photometric != _MIN_IS_WHITE or np.dtype(dtype).kind != "u":
        return None
    bits = raw.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    return int((1 << int(bits)) - 1 if bits else np.iinfo(dtype).max)


def _names(raw: Any, data: Sequence[int]) -> tuple[str, ...]:
    names = tuple((raw.descriptions[band - 1] or "").strip() for band in data)
    return names if any(names) else ()


def _scaling(raw: Any, data: Sequence[int]) -> tuple[tuple[float, float], ...]:
    scaling = tuple((raw.scales[band - 1], raw.offsets[band - 1]) for band in data)
    return scaling if any(pair != (1, 0) for pair in scaling) else ()


def _notes(raw: Any, page: Page, data: Sequence[int], dtype: str) -> Iterator[str]:
    if page.photometric == _MIN_IS_WHITE and np.dtype(dtype).kind != "u":
        yield (
            f"0 means white by its header (MinIsWhite), which has no meaning for {dtype}: the "
            "stored numbers are taken as they are"
        )
    elif page.photometric == _MIN_IS_WHITE and len(data) > 1:
        yield (
            "0 means white by its header (MinIsWhite), which holds for the first band: it is "
            "inverted, the others are not"
        )
    system = _COLOUR_SYSTEMS.get(page.photometric or 0)
    if system is not None and not any(use.name == "red" for use in raw.colorinterp):
        yield (
            f"its bands are {system}, and are taken as they are stored; convert it to RGB if "
            "colours are meant"
        )
    scaled = dict.fromkeys(_scaling(raw, data))
    if scaled:
        # Including the numbers, so that files of one collection with different numbers get separate
        # notes.
        named = ", ".join(
            f"scale {scale:g} and offset {offset:g}"
            for scale, offset in itertools.islice(scaled, 3)
        )
        yield (
            f"its header names {named}: values are taken as stored, and so are thresholds and radii"
        )


def _space(raw: Any) -> Space:
    # Without a geotransform rasterio returns the identity, which no map uses.
    affine: Affine = tuple(raw.transform)[:6]
    rpcs = tuple(sorted(raw.tags(ns="RPC").items()))
    if (
        not raw.transform.is_identity
        and all(map(math.isfinite, affine))
        and raw.transform.determinant != 0
    ):
        return Space(affine, raw.crs.to_wkt() if raw.crs else None, rpcs=rpcs)
    points, crs = raw.gcps
    gcps = tuple((point.col, point.row, point.x, point.y, point.z or 0.0) for point in points)
    if not all(math.isfinite(number) for point in gcps for number in point):
        gcps = ()
    return Space(gcps=gcps, gcp_crs=crs.to_wkt() if gcps and crs else None, rpcs=rpcs)


def _palette(raw: Any, data: Sequence[int], dtype: str) -> NDArray[np.uint8] | None:
    if (
        len(data) > 1
        or raw.colorinterp[data[0] - 1].name != "palette"
        or dtype not in ("uint8", "uint16")
    ):
        return None
    palette = np.zeros((np.iinfo(dtype).max + 1, 4), np.uint8)
    for index, colour in raw.colormap(data[0]).items():
        palette[index] = colour
    return palette


def _masks(flags: Sequence[Sequence[Any]], data: Sequence[int]) -> tuple[int, ...]:
    """The bands whose masks must be read; without masks that GDAL derives from nodata or alpha."""
    from rasterio.enums import MaskFlags

    derived = ({MaskFlags.all_valid}, {MaskFlags.nodata}, {MaskFlags.per_dataset, MaskFlags.alpha})
    own = tuple(band for band in data if set(flags[band - 1]) not in derived)
    return own[:1] if own and MaskFlags.per_dataset in flags[own[0] - 1] else own


def _nodata(value: float | None, dtype: np.dtype[Any]) -> float | None:
    """The nodata value if the type can represent it, otherwise None."""
    if value is None or (math.isnan(value) and dtype.kind == "f"):
        return None if value is None else math.nan
    if dtype.kind == "f":
        return value if abs(value) <= np.finfo(dtype).max else None
    limits = np.iinfo(dtype)
    return (
        value
        if math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max
        else None
    )


def _refuse_giants(location: str, layout: Layout, raw: Any) -> None:
    pixels = math.prod(layout.shape)
    if pixels > MAX_PIXELS:
        raise FormatError(
            f"{location} claims {pixels} pixels; the limit is {MAX_PIXELS}. Cut it into several "
            "files."
        )
    together = raw.count if raw.interleaving is not None and raw.interleaving.name == "pixel" else 1
    size = math.prod(layout.block)
    if (
        size > MAX_PICTURE_PIXELS
        or size * together * np.dtype(layout.dtype).itemsize > _MAX_BLOCK_BYTES
    ):
        raise FormatError(
            f"{location} has blocks of {layout.block[0]} x {layout.block[1]} pixels and {together} "
            "band(s), which must be "
            f"decoded at once; the limit is {MAX_PICTURE_PIXELS} pixels and {_MAX_BLOCK_BYTES} "
            "bytes. Convert it to a tiled TIFF "
            "(gdal_translate -of COG)."
        )


def _chunks(raw: Any, layout: Layout) -> Shape:
    """The shape of a block, or the whole shape if GDAL presents one compressed strip as rows, each
    of which is decoded from the top.
    """
    rows = layout.block[0]
    band = layout.data[0]
    offsets = [raw.get_tag_item(f"BLOCK_OFFSET_0_{i}", "TIFF", bidx=band) for i in (0, 1)]
    if rows == 1 < layout.shape[0] and offsets[0] is not None and offsets[1] is None:
        return layout.shape
    return tuple(min(a, b) for a, b in zip(layout.block, layout.shape, strict=True))
