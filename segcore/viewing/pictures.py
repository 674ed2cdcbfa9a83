"""Pixels and labels as pictures of 8 bits: contrast, class colours, and their files.

Contrast is chosen once for an image, from its coarsest level, so that neighbouring tiles agree.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.raster.colours import object_palette, rows_of_objects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.colours import Colour

Limits = tuple[tuple[float, float], ...]
"""The numbers that are shown black and white, for each shown band."""

_EIGHT_BITS = (0.0, 255.0)
_DARK = 85
"""Pictures of 8 bits whose 98th percentile is below this are stretched."""
_QUALITY = 90
_MOST_PALETTE = 256


def limits_of(
    pixels: NDArray[np.generic],
    valid: NDArray[np.bool_],
    *,
    together: bool,
    percentiles: tuple[float, float] = (2, 98),
) -> Limits:
    """The limits for pixels (y, x, band): those of 8 bits as they are unless they are dark, others
    between two percentiles. `together`: one pair for all bands, which keeps hues.
    """
    bands = int(pixels.shape[-1])
    values = pixels[valid].astype(np.float64)
    values = values[np.isfinite(values).all(axis=-1)]
    if not values.size:
        return tuple(_EIGHT_BITS for _ in range(bands))
    if together or pixels.dtype == np.uint8:
        low, high = (float(each) for each in np.percentile(values, percentiles))
        bright = pixels.dtype == np.uint8 and high >= _DARK
        pair = _EIGHT_BITS if bright else _pair(low, high)
        return tuple(pair for _ in range(bands))
    low, high = np.percentile(values, percentiles, axis=0)
    return tuple(_pair(float(a), float(b)) for a, b in zip(low, high, strict=True))


def shown(pixels: NDArray[np.generic], limits: Limits) -> NDArray[np.uint8]:
    """Pixels (y, x, 1 or 3) of 8 bits: the limits are spread over 0 to 255."""
    if pixels.dtype == np.uint8 and set(limits) == {_EIGHT_BITS}:
        return np.asarray(pixels, np.uint8)
    low, high = np.array(limits, np.float32).T
    with np.errstate(over="ignore", invalid="ignore"):
        spread = (pixels.astype(np.float32) - low) * (255 / (high - low))
    return np.asarray(np.clip(np.nan_to_num(spread), 0, 255), np.uint8)


def encoded(
    picture: NDArray[np.uint8], valid: NDArray[np.bool_], *, exact: bool
) -> tuple[bytes, str]:
    """The file of a picture (y, x, 1 or 3), transparent where it is not valid, and its media type:
    PNG if `exact` or where something is transparent, otherwise JPEG.
    """
    import cv2

    ordered = picture[..., ::-1] if picture.shape[2] == 3 else picture
    if not valid.all():
        colours = np.repeat(ordered, 3, axis=2) if picture.shape[2] == 1 else ordered
        alpha = valid[..., None].astype(np.uint8) * 255
        ordered, exact = np.concatenate([colours, alpha], axis=2), True
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1] if exact else [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    done, content = cv2.imencode(
        ".png" if exact else ".jpg", np.ascontiguousarray(ordered), options
    )
    assert done
    return content.tobytes(), "image/png" if exact else "image/jpeg"


def class_picture(
    labels: NDArray[np.integer],
    valid: NDArray[np.bool_],
    colours: Sequence[Colour],
    hidden: Collection[int],
) -> bytes:
    """PNG of class ids (y, x): a palette whose hidden classes are transparent."""
    count = len(colours)
    index = np.where(valid & (labels < count), labels, count)
    clear = {*hidden, count}
    if count < _MOST_PALETTE:
        return _palette_png(index.astype(np.uint8), [*colours, (0, 0, 0)], clear)
    table = np.array([(*colour, 255) for colour in colours] + [(0, 0, 0, 0)], np.uint8)
    table[[each for each in clear if each <= count], 3] = 0
    return _png(table[index])


def object_picture(ids: NDArray[np.integer], valid: NDArray[np.bool_]) -> bytes:
    """PNG of ids of objects (y, x): neighbours have different colours, background is clear."""
    index = np.where(valid, rows_of_objects(ids), 0).astype(np.uint8)
    return _palette_png(index, object_palette().tolist(), {0})


def borders(labels: NDArray[np.integer], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The valid pixels that touch another label, or what is not valid, at a side."""
    known = np.where(valid, labels.astype(np.int64), -1)
    found = np.zeros(known.shape, np.bool_)
    for axis in range(known.ndim):
        lower = np.take(known, range(known.shape[axis] - 1), axis)
        differs = lower != np.take(known, range(1, known.shape[axis]), axis)
        none = [(0, 0)] * known.ndim
        for side in ((0, 1), (1, 0)):
            none[axis] = side
            found |= np.pad(differs, none)
    return found & valid


def _palette_png(
    index: NDArray[np.uint8], colours: Sequence[Sequence[int]], clear: Collection[int]
) -> bytes:
    from PIL import Image

    image = Image.fromarray(index, "P")
    image.putpalette([part for colour in colours for part in colour])
    out = io.BytesIO()
    alpha = bytes(0 if i in clear else 255 for i in range(len(colours)))
    image.save(out, "PNG", compress_level=1, transparency=alpha)
    return out.getvalue()


def _png(picture: Any) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _pair(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, low + 0.5)
