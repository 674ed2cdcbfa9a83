"""Crops of objects: the source around one, with its outline."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.flows.report.collect import LargeObject
from maskloom.flows.report.document import base64_of
from maskloom.segcore.figures.drawing import photo_of
from maskloom.segcore.geometry import Box
from maskloom.tasks.output import Layer, Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("maskloom.run")

_SIDE = 200
"""Pixels of the longer side of a crop."""
_MARGIN = 0.15
"""Of the object's longer side, on each side of it."""
_MOST_PIXELS = 2**24
"""Of a window that is read for a crop."""
_LINES = ((255, 255, 255), (20, 20, 20))


def crop_of(output: Output, of: LargeObject) -> str:
    """The crop as an address that holds it. Empty: the object is too large, in a volume, or its
    image is not there any more.
    """
    try:
        with output.source(of.image_id) as source, output.mask(of.image_id) as mask:
            shape = source.spec.shape
            if len(shape) != 2 or mask.spec.shape != shape:
                return ""
            box = _window(of, (shape[0], shape[1]))
            rows, columns = (b - a for a, b in zip(box.start, box.stop, strict=True))
            if rows * columns > _MOST_PIXELS:
                return ""
            stride = max(1, -(-max(rows, columns) // (2 * _SIDE)))
            return _drawn(source, mask, box, stride, of)
    # The report has a row for the object all the same.
    except Exception as error:  # noqa: BLE001
        log.debug("no crop of an object of %s: %s", of.image_id, error)
        return ""


def _window(of: LargeObject, shape: tuple[int, int]) -> Box:
    """The box of the object with a margin, inside the image."""
    x0, y0, x1, y1 = of.box
    margin = max(4, round(_MARGIN * max(x1 - x0, y1 - y0)))
    return Box(
        (max(0, y0 - margin), max(0, x0 - margin)),
        (min(shape[0], y1 + margin), min(shape[1], x1 + margin)),
    )


def _drawn(source: Layer, mask: Layer, box: Box, stride: int, of: LargeObject) -> str:
    import cv2

    pixels, known = source.read_window(box, stride)
    labels, _ = mask.read_window(box, stride)
    photo = photo_of(pixels, known)
    inside = _inside(labels, of).astype(np.uint8)
    scale = _SIDE / max(photo.shape[:2])
    size = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    photo = np.ascontiguousarray(cv2.resize(photo, size, interpolation=method))
    shown = cv2.resize(inside, size, interpolation=cv2.INTER_NEAREST)
    lines, _ = cv2.findContours(shown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for colour, width in zip(_LINES, (3, 1), strict=True):
        cv2.drawContours(photo, lines, -1, colour, width)
    return f"data:image/webp;base64,{base64_of(_webp(photo))}"


def _inside(labels: NDArray[Any], of: LargeObject) -> NDArray[np.bool_]:
    """The pixels of the object. A mask of classes has no ids: the largest region of its class."""
    from scipy import ndimage

    if labels.dtype == np.uint32:
        return np.asarray(labels == of.object_id)
    regions, number = ndimage.label(labels == of.class_id, np.ones((3, 3)))
    if not number:
        return np.zeros(labels.shape, np.bool_)
    return np.asarray(regions == 1 + np.bincount(regions.ravel())[1:].argmax())


def _webp(picture: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "WEBP", quality=75)
    return out.getvalue()
