"""Masks in colours, alone and over their source: tints with borders, or outlines of objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.figures.drawing import PAPER, hatched
from maskloom.segcore.figures.planes import Plane
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable
from maskloom.segcore.raster.colours import colours_of_objects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.figures.drawing import Pixels

_TINT, _SATURATION, _BORDER_SHADE = 0.45, 0.35, 0.55
_MOST_BORDERS = 0.2
"""Share of border pixels above which borders would hide the picture."""
_LARGE = 150
"""Pixels of an object on the sheet from which on its outline is two pixels wide."""


def coloured(
    labels: NDArray[np.integer], valid: NDArray[np.bool_], class_table: ClassTable
) -> Pixels:
    """Labels (y, x) in their colours (y, x, 3); pixels without a class are hatched."""
    if labels.dtype == np.uint32:
        return with_hatching(colours_of_objects(labels), valid)
    colours = np.array([*class_table.colours, PAPER], np.uint8)
    known = valid & (labels < len(class_table.names))
    found = colours[np.where(known, labels, len(colours) - 1)]
    return with_hatching(found, known)


def over_source(plane: Plane, mask: Pixels, class_table: ClassTable) -> Pixels:
    """Objects outlined in their colours over the photo; or the photo tinted by its classes, with
    borders in a darker shade. Background stays as it is. `mask` (y, x, 3): see `coloured`.
    """
    labels = plane.labels
    if labels.dtype == np.uint32:
        shown = plane.photo.copy()
        inner = plane.valid & (labels > 0) & _rims(labels)
        shown[inner] = mask[inner]
        return with_hatching(shown, plane.valid)
    shown = _tinted(plane.photo, mask)
    names = class_table.names
    plain = np.array([name.lower() in BACKGROUND_NAMES for name in names] + [True])
    known = plane.valid & (labels < len(names))
    kept = plain[np.where(known, labels, len(names))]
    shown[kept] = plane.photo[kept]
    owners = _owners(labels, known, plain)
    borders = owners >= 0
    if borders.mean() <= _MOST_BORDERS:
        shades = np.rint(np.array(class_table.colours) * _BORDER_SHADE).astype(np.uint8)
        shown[borders] = shades[owners[borders]]
    return with_hatching(shown, plane.valid)


def _tinted(photo: Pixels, mask: Pixels) -> Pixels:
    """The photo in half-grey, so that tints are distinct whatever its colours, under the mask."""
    import cv2

    grey = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    dull = cv2.addWeighted(photo, _SATURATION, grey, 1 - _SATURATION, 0)
    tinted: Pixels = cv2.addWeighted(dull, 1 - _TINT, mask, _TINT, 0)
    return tinted


def _rims(ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels with another id at one of their four sides; two pixels wide where objects are large
    enough to be seen between.
    """
    objects = max(1, len(np.unique(ids)) - 1)
    width = 2 if np.count_nonzero(ids) > _LARGE * objects else 1
    rims = np.zeros(ids.shape, np.bool_)
    for step in range(1, width + 1):
        for axis in (0, 1):
            near, far = ([slice(None)] * 2 for _ in range(2))
            near[axis], far[axis] = slice(None, -step), slice(step, None)
            differ = ids[tuple(near)] != ids[tuple(far)]
            rims[tuple(near)] |= differ
            rims[tuple(far)] |= differ
    return rims


def _owners(
    labels: NDArray[np.integer], known: NDArray[np.bool_], plain: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """The class whose colour each border pixel has, -1 elsewhere. Borders are one pixel wide, on
    the upper or left side, and there is none with pixels without a class.
    """
    ids = np.where(known, labels.astype(np.int32), -1)
    # A border with the background has the colour of the other class.
    rank = np.where(plain[ids], -1, ids)
    owners = np.full(ids.shape, -1, np.int32)
    for ours, theirs in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        border = (ids[ours] != ids[theirs]) & known[ours] & known[theirs]
        found = np.maximum(rank[ours], rank[theirs])
        np.maximum(owners[ours], found, out=owners[ours], where=border)
    return owners


def with_hatching(picture: Pixels, valid: NDArray[np.bool_]) -> Pixels:
    """The picture (y, x, 3), hatched where `valid` (y, x) is False."""
    if valid.all():
        return picture
    return np.where(valid[..., None], picture, hatched(picture.shape[:2]))
