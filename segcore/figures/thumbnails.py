"""The small pictures of an image that the report shows: a thumbnail with the mask over it, and a
pair of source and mask for the slider.

They are made where the preview is made, from the same parts, so that a report over thousands of
images decodes none of them. All are WebP: a photograph of 128 pixels takes some 1.6 kB.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.figures.drawing import photo_of
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable
from maskloom.segcore.raster.colours import colours_of_objects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.figures.preview import PreviewPart
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.ground.space import Frame

_PHOTO_QUALITY, _THUMBNAIL_QUALITY = 70, 60
_TINT = 0.5
_TIERS = ((1_000, 160, 400), (10_000, 128, 256))
_SMALLEST = 96


@dataclass(frozen=True, slots=True)
class PictureSizes:
    """Longer sides in pixels."""

    thumbnail: int
    pair: int
    """0: no pair."""

    @classmethod
    def for_images(cls, images: int) -> PictureSizes:
        """The sizes with which a report over so many images stays small enough to open and to
        mail.

        >>> PictureSizes.for_images(40), PictureSizes.for_images(50_000)
        (PictureSizes(thumbnail=160, pair=400), PictureSizes(thumbnail=96, pair=0))
        """
        for most, thumbnail, pair in _TIERS:
            if images <= most:
                return cls(thumbnail, pair)
        return cls(_SMALLEST, 0)


@dataclass(frozen=True, slots=True)
class Pictures:
    """The small pictures of one image, as WebP."""

    thumbnail: bytes
    """The source with the mask over it."""
    source: bytes | None
    """None: no pair."""
    mask: bytes | None
    """The classes in their colours; background and pixels without a class are clear."""


def draw(
    parts: Sequence[PreviewPart],
    shape: Shape,
    class_table: ClassTable,
    stride: int,
    sizes: PictureSizes,
    frame: Frame | None = None,
) -> Pictures:
    """The pictures of an image or volume of this shape from the parts of its preview. `frame` says
    where a scan is in the body.
    """
    photo, mask = _joined(parts, tuple(-(-n // stride) for n in shape[-2:]), class_table)
    if frame is not None:
        photo, mask = (_as_looked_at(each, frame) for each in (photo, mask))
    small, tint = _reduced(photo, sizes.thumbnail), _sampled(mask, sizes.thumbnail)
    opacity = tint[..., 3:] * np.float32(_TINT / 255)
    thumbnail = np.rint(small * (1 - opacity) + tint[..., :3] * opacity).astype(np.uint8)
    source = shown = None
    if sizes.pair:
        source = _webp(_reduced(photo, sizes.pair), quality=_PHOTO_QUALITY, method=2)
        shown = _webp(_sampled(mask, sizes.pair), lossless=True, method=0)
    return Pictures(_webp(thumbnail, quality=_THUMBNAIL_QUALITY, method=2), source, shown)


def _joined(
    parts: Sequence[PreviewPart], shape: Shape, class_table: ClassTable
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The photo (y, x, 3) and the coloured mask (y, x, 4). What no part covers has no data."""
    first = parts[0]
    pixels = np.zeros((*shape, first.pixels.shape[2]), first.pixels.dtype)
    valid, mask = np.zeros(shape, np.bool_), np.zeros((*shape, 4), np.uint8)
    for part in parts:
        place = tuple(slice(a, a + n) for a, n in zip(part.start, part.labels.shape, strict=True))
        pixels[place], valid[place] = part.pixels, part.valid
        mask[place] = _coloured(part.labels, part.valid, class_table)
    photo = photo_of(pixels, valid, percentiles=(2, 98))
    photo[~valid] = 0
    return photo, mask


def _coloured(
    labels: NDArray[np.integer], valid: NDArray[np.bool_], class_table: ClassTable
) -> NDArray[np.uint8]:
    """Labels (y, x) as red, green, blue and opacity (y, x, 4)."""
    if labels.dtype == np.uint32:
        objects = (valid & (labels > 0))[..., None]
        return np.where(objects, np.insert(colours_of_objects(labels), 3, 255, axis=-1), 0).astype(
            np.uint8
        )
    table = np.zeros((len(class_table.names) + 1, 4), np.uint8)
    table[:-1] = _opaque(class_table.colours)
    for number, name in enumerate(class_table.names):
        if name.lower() in BACKGROUND_NAMES:
            table[number] = 0
    known = valid & (labels < len(class_table.names))
    return table[np.where(known, labels, len(class_table.names)).astype(np.intp)]


def _opaque(colours: Sequence[tuple[int, int, int]]) -> NDArray[np.uint8]:
    return np.array([(*colour, 255) for colour in colours], np.uint8).reshape(-1, 4)


def _as_looked_at(picture: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    """The plane of a scan with rows and columns that run to the left, the back or the feet."""
    for axis, step in ((1, frame.affine[0::4]), (0, frame.affine[1::4])):
        if max(step, key=abs) > 0:
            picture = np.flip(picture, axis)
    return picture


def _drawn_shape(shape: Shape, side: int) -> Shape:
    """The shape of the drawing of a picture; none is enlarged."""
    scale = min(1.0, side / max(shape))
    return tuple(max(1, round(n * scale)) for n in shape)


def _reduced(photo: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Each pixel is the mean of those that it covers."""
    import cv2

    size = _drawn_shape(photo.shape[:2], side)[::-1]
    reduced: NDArray[np.uint8] = cv2.resize(
        np.ascontiguousarray(photo), size, interpolation=cv2.INTER_AREA
    )
    return reduced


def _sampled(mask: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Each pixel is the middle one of those that it covers, so that no colour is mixed."""
    rows, columns = (
        (2 * np.arange(n) + 1) * size // (2 * n)
        for n, size in zip(_drawn_shape(mask.shape[:2], side), mask.shape[:2], strict=True)
    )
    return mask[np.ix_(rows, columns)]


def _webp(picture: NDArray[np.uint8], **options: Any) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(out, "WEBP", **options)
    return out.getvalue()
