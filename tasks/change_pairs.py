"""Which images of two outputs, or of one output by date, are pairs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from maskloom.segcore import formats
from maskloom.segcore.errors import RecipeError

if TYPE_CHECKING:
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.tasks.output import Output

By = Literal["id", "place"]
_COLUMNS = ("image_id", "run_id", "status", "mask_uri", "total_pixels", "acquired")
_DAY = timedelta(days=1)
_AT_ONCE = 16
"""Headers that are read at once."""


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """An image with a mask."""

    image_id: str
    run_id: str
    mask: str
    """URI of the mask."""
    pixels: int
    acquired: datetime | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images of one place, or an image that is left over for a reason."""

    name: str
    before: MaskedImage
    after: MaskedImage | None
    problem: str = ""
    """Why they cannot be compared."""

    @property
    def days(self) -> float | None:
        """Days between both. None: a date is not known."""
        if self.after is None or self.before.acquired is None or self.after.acquired is None:
            return None
        return (self.after.acquired - self.before.acquired) / _DAY


@dataclass(frozen=True, slots=True)
class Paired:
    """The pairs of two outputs, and the images of one that have no partner in the other."""

    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()


def images_of(output: Output) -> list[MaskedImage]:
    """The images of an output that have a mask, in the order of their ids."""
    table = output.images()
    rows = table.select([name for name in _COLUMNS if name in table.column_names]).to_pylist()
    return sorted(
        (
            MaskedImage(
                row["image_id"],
                row["run_id"],
                output.store.uri(row["mask_uri"]),
                row["total_pixels"] or 0,
                row.get("acquired"),
            )
            for row in rows
            if row["status"] == "ok"
        ),
        key=lambda image: image.image_id,
    )


def by_id(a: Sequence[MaskedImage], b: Sequence[MaskedImage]) -> Paired:
    """Images with the same id; of two outputs with one image each, these."""
    others = {image.image_id: image for image in b}
    if len(a) == len(b) == 1 and a[0].image_id not in others:
        return Paired((_pair(a[0], b[0]),))
    pairs = [_pair(each, others[each.image_id]) for each in a if each.image_id in others]
    known = {pair.name for pair in pairs}
    return Paired(
        tuple(pairs),
        tuple(each.image_id for each in a if each.image_id not in known),
        tuple(each.image_id for each in b if each.image_id not in known),
    )


def by_place(a: Sequence[MaskedImage], b: Sequence[MaskedImage]) -> Paired:
    """Images whose masks lie on the same grid: size, transform and CRS."""
    here, there = _by_grid(a), _by_grid(b)
    pairs: list[Pair] = []
    for place in here:
        ours, theirs = here[place], there.get(place, [])
        if not theirs:
            continue
        if len(ours) == len(theirs) == 1:
            pairs.append(_pair(ours[0], theirs[0]))
            continue
        reason = (
            f"its place has more than one image: {len(ours)} in the first output, {len(theirs)} in "
            "the second; pair them by id"
        )
        pairs += [Pair(each.image_id, each, None, reason) for each in ours]
    return Paired(
        tuple(sorted(pairs, key=lambda pair: pair.name)),
        tuple(each.image_id for place in here for each in here[place] if place not in there),
        tuple(each.image_id for place in there for each in there[place] if place not in here),
    )


def by_date(images: Sequence[MaskedImage], key: str | None) -> Paired:
    """Each image with the next one of the same place by date.

    `key`: a regular expression; images of a place are those for whose ids it finds the same text
    (of its first group, if it has one). None: those on the same grid. Raises `RecipeError` if it is
    no regular expression.
    """
    if key is None:
        places: Mapping[Any, list[MaskedImage]] = _by_grid(images)
        unmatched: list[MaskedImage] = []
    else:
        places, unmatched = _by_key(images, key)
    pairs = [
        Pair(each.image_id, each, None, f"--key {key!r} finds nothing in its id")
        for each in unmatched
    ]
    alone = []
    for group in places.values():
        undated = [each for each in group if each.acquired is None]
        pairs += [Pair(each.image_id, each, None, "its date is not known") for each in undated]
        dated = sorted(
            (each for each in group if each.acquired is not None),
            key=lambda each: (each.acquired, each.image_id),
        )
        if len(dated) == 1:
            alone.append(dated[0].image_id)
        for one, other in pairwise(dated):
            equal = one.acquired == other.acquired
            reason = f"both have the same date, {one.acquired:%Y-%m-%d %H:%M:%S}" if equal else ""
            pairs.append(replace(_pair(one, other), problem=reason))
    return Paired(tuple(sorted(pairs, key=lambda pair: pair.name)), tuple(alone))


def _pair(a: MaskedImage, b: MaskedImage) -> Pair:
    same = a.image_id == b.image_id
    name = a.image_id if same else f"{a.image_id}_to_{b.image_id.rpartition('/')[2]}"
    return Pair(name, a, b)


def _by_key(
    images: Sequence[MaskedImage], key: str
) -> tuple[dict[str, list[MaskedImage]], list[MaskedImage]]:
    try:
        pattern = re.compile(key)
    except re.error as error:
        raise RecipeError(f"--key {key!r}: this is no regular expression: {error}.") from error
    places, unmatched = defaultdict[str, list[MaskedImage]](list), []
    for image in images:
        found = pattern.search(image.image_id)
        if found is None:
            unmatched.append(image)
        else:
            places[found[1 if pattern.groups else 0] or ""].append(image)
    return places, unmatched


def _by_grid(images: Sequence[MaskedImage]) -> dict[Any, list[MaskedImage]]:
    places = defaultdict[Any, list[MaskedImage]](list)
    with ThreadPoolExecutor(_AT_ONCE, "headers") as pool:
        specs = pool.map(formats.describe, [image.mask for image in images])
        for image, spec in zip(images, specs, strict=True):
            places[_grid(image, spec)].append(image)
    return places


def _grid(image: MaskedImage, spec: RasterSpec) -> Any:
    """What images of one place have in common; an image without a place has it alone."""
    space = spec.space
    if not space.placed:
        return image.mask
    return spec.shape, space.crs, space.affine, space.frame, space.gcps, space.rpcs
