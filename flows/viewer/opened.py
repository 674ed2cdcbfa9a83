"""An image that is being looked at: its source and mask, contrast, classes and objects.

Source and mask may have gone, or changed, since the run. What is left of them is shown, with the
reason why the other is not.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.flows.viewer.classes import Classes, classes_of
from maskloom.flows.viewer.objects import class_by_object
from maskloom.segcore.annotations.masks import holds_object_ids
from maskloom.segcore.errors import MaskloomError, ReadError
from maskloom.segcore.geometry import Box
from maskloom.segcore.viewing.pictures import Limits, limits_of
from maskloom.segcore.viewing.pyramids import Pyramid
from maskloom.segcore.viewing.volumes import Plane, Volume, planes_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.viewing.readers import Kind
    from maskloom.tasks.output import Output

_SAMPLE = 512
"""Longest side of the level from which the contrast is chosen."""
_EVERY = 256
"""Most pixels of a plane along a side, from which the contrast of a volume is chosen."""

Report = Callable[[float], None]
Layer = Pyramid | Volume


@dataclass(slots=True)
class Opened:
    """An image that is being looked at."""

    output: Output
    image_id: str
    row: Mapping[str, Any]
    spec: RasterSpec
    """Of the source; of the mask if the source cannot be read."""
    source: Layer | None
    mask: Layer | None
    limits: Limits
    span: tuple[float, float]
    """Least and greatest number in the shown bands, as far as a sample shows."""
    classes: Classes
    has_objects: bool
    """Whether the mask holds ids of objects."""
    notes: tuple[str, ...] = ()
    """Why something is not shown, or not as the run saw it."""
    _classes_of: NDArray[np.int32] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The planes of a volume; none of an image."""
        return planes_of(self.spec) if len(self.spec.shape) > 2 else ()

    def classes_of(self, ids: NDArray[np.integer]) -> NDArray[np.int32]:
        """The class of each object id in an array; -1 of background and of unknown objects."""
        with self._lock:
            if self._classes_of is None:
                self._classes_of = class_by_object(self.output, self.image_id)
            known = self._classes_of
        inside = (ids > 0) & (ids < len(known))
        found: NDArray[np.int32] = np.where(inside, known[np.where(inside, ids, 0)], -1)
        return found

    def close(self) -> None:
        """Close its files."""
        for each in (self.source, self.mask):
            if each is not None:
                each.close()


def open_image(
    output: Output, image_id: str, bands: tuple[int, ...] = (), report: Report = lambda _: None
) -> Opened:
    """Open an image with some of its bands; none: the first three. Raises `MaskloomError` if
    neither source nor mask can be read.
    """
    row = output.image(image_id)
    notes: list[str] = []
    mask_spec, mask = _mask(output, image_id, notes, report)
    spec, source, sample = _source(output, image_id, bands, mask_spec, notes, report)
    if mask is None and source is None:
        raise ReadError(" ".join(notes))
    known = mask_spec if spec is None else spec
    assert known is not None
    pixels, valid = sample
    values = pixels[valid].astype(np.float64)
    values = values[np.isfinite(values)]
    together = known.interpretation == "rgb" and pixels.shape[-1] == 3
    return Opened(
        output,
        image_id,
        row,
        known,
        source,
        mask,
        limits_of(pixels, valid, together=together),
        (float(values.min()), float(values.max())) if values.size else (0.0, 255.0),
        classes_of(output.areas(None, of={image_id}).to_pylist()),
        mask_spec is not None and holds_object_ids(mask_spec),
        tuple(notes),
    )


def _mask(
    output: Output, image_id: str, notes: list[str], report: Report
) -> tuple[RasterSpec | None, Layer | None]:
    try:
        spec = output.mask_spec(image_id)
        mask = _layer(spec, "mask", report)
        # Its first pixels: what is cut off or no image shows here.
        mask.read(*_first(mask))
    except (MaskloomError, OSError) as error:
        notes.append(f"The mask cannot be shown: {error} Run the recipe again to make it anew.")
        return None, None
    return spec, mask


def _source(
    output: Output,
    image_id: str,
    bands: tuple[int, ...],
    mask: RasterSpec | None,
    notes: list[str],
    report: Report,
) -> tuple[RasterSpec | None, Layer | None, tuple[NDArray[Any], NDArray[np.bool_]]]:
    nothing = np.zeros((1, 1, 1), np.uint8), np.ones((1, 1), np.bool_)
    try:
        if output.source_has_changed(image_id):
            notes.append(
                "The source has changed since it was segmented, so the mask may not fit it. Run "
                "the recipe again."
            )
        spec = output.source_spec(image_id)
        if mask is not None and spec.shape != mask.shape:
            raise ReadError(f"it has the shape {spec.shape}, its mask {mask.shape}.")
        chosen = bands or spec.bands[: 3 if len(spec.bands) >= 3 else 1]
        source = _layer(spec.select(chosen), "source", report)
        sample = _sample(source, report)
    except FileNotFoundError:
        uri = output.image(image_id)["uri"]
        notes.append(f"The source cannot be shown: {uri} is missing. Was it moved or removed?")
        return mask, None, nothing
    except (MaskloomError, OSError) as error:
        notes.append(f"The source cannot be shown: {error}")
        return mask, None, nothing
    return spec.select(chosen), source, sample


def _layer(spec: RasterSpec, kind: Kind, report: Report) -> Layer:
    return Volume.open(spec, kind) if len(spec.shape) > 2 else Pyramid.open(spec, kind, report)


def _first(layer: Layer) -> tuple[Any, ...]:
    one = Box((0,) * len(layer.spec.shape), (1,) * len(layer.spec.shape))
    return (one,) if isinstance(layer, Volume) else (0, one)


def _sample(source: Layer, report: Report) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The pixels from which the contrast is chosen: of a coarse level, or of the planes that are
    shown first.
    """
    if isinstance(source, Volume):
        planes = planes_of(source.spec)
        parts = []
        for number, plane in enumerate(planes):
            middle = source.spec.shape[plane.across] // 2
            pixels, valid = source.plane(plane, middle, partial(_reported, report, number))
            every = tuple(slice(None, None, max(1, n // _EVERY)) for n in valid.shape)
            parts.append((pixels[every].reshape(-1, pixels.shape[-1]), valid[every].ravel()))
        both = zip(*parts, strict=True)
        pixels, valid = (np.concatenate(each)[None] for each in both)
        return pixels, valid
    level = max(0, math.ceil(math.log2(max(1.0, max(source.spec.shape) / _SAMPLE))))
    return source.read(level, Box.whole(source.shape(level)))


def _reported(report: Report, number: int, done: float) -> None:
    """The share of three planes, where this one is the `number`-th."""
    report((number + done) / 3)
