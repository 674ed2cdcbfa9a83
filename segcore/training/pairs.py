"""Pairs: each image with its mask, checked by their headers.

Names are compared without their suffix: first with the folders below the inputs' common one, then
without folders called images, masks or labels, then by the file's name alone; the first way that
finds a mask for every image counts. Masks may be more than images, so that part of a collection can
be trained on; how many are not used is told, since a wrong pattern for images looks the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskloom.segcore import formats
from maskloom.segcore.deep.inference.card import Scaling
from maskloom.segcore.errors import ImageError, RecipeError
from maskloom.segcore.raster.spec import FORMATS, RasterSpec
from maskloom.segcore.storage.store import filesystem, store_errors
from maskloom.segcore.training.recipe import matches

if TYPE_CHECKING:
    from maskloom.segcore.raster.source import Source
    from maskloom.segcore.training.recipe import TrainingRecipe
    from maskloom.segcore.training.setup import OnProgress

_SHOWN = 5
_HEAD_BYTES = 512
_CHUNK_BYTES = 2**22
_PLAIN_FOLDERS = frozenset(
    {
        "image",
        "images",
        "img",
        "imgs",
        "mask",
        "masks",
        "label",
        "labels",
        "labels_index",
        "truth",
        "annotations",
    }
)
_FACTORS = {"uint8": 1 / 255, "uint16": 1 / 65535}


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its mask."""

    name: str
    image: RasterSpec
    """With the bands that the network looks at."""
    mask: RasterSpec


def find_pairs(
    images: Sequence[Source], masks: Sequence[Source], recipe: TrainingRecipe, told: OnProgress
) -> tuple[list[Pair], list[str]]:
    """The pairs in the order of their names, without those that the recipe leaves out, and what
    people should know; `told` hears of each pair.

    Raises `RecipeError` where an image has no mask, where both are of different sizes, or images of
    different bands.
    """
    left_out = recipe.split.leave_out
    ours = [source for source in images if not matches((source.image_id, source.uri), left_out)]
    ids = {source.uri: source.image_id for source in masks}
    if recipe.mask_suffix:
        strange = [source for source in masks if not source.image_id.endswith(recipe.mask_suffix)]
        masks = [source for source in masks if source.image_id.endswith(recipe.mask_suffix)]
        if not masks:
            raise RecipeError(
                f"mask_suffix: no mask's name ends in {recipe.mask_suffix!r}; there are such as "
                f"{strange[0].uri}."
            )
        ids = {source.uri: source.image_id.removesuffix(recipe.mask_suffix) for source in masks}
    # A mask in the folder of the images is found among them too.
    ours = [source for source in ours if source.uri not in ids]
    theirs = [source for source in masks if not matches((ids[source.uri], source.uri), left_out)]
    if not ours or not theirs:
        raise RecipeError(
            f"images: there is nothing left to train with (images: {len(ours)}, masks: "
            f"{len(theirs)}). Name others, or leave out fewer."
        )
    paired, unused = _paired(
        {source.uri: source.image_id for source in ours},
        {source.uri: ids[source.uri] for source in theirs},
    )
    versions = {source.uri: source.version for source in (*images, *masks)}
    pairs: list[Pair] = []
    for name, image, mask in paired:
        told(len(pairs), len(paired))
        pair = Pair(
            name,
            _described(image, versions[image], recipe.bands),
            _described(mask, versions[mask], None),
        )
        _require_same_shape(pair)
        pairs.append(pair)
    _require_same_bands(pairs)
    return pairs, [
        f"{len(unused)} of {len(theirs)} masks have no image and are not used: {_some(unused)}."
    ] if unused else []


def scaling_of(pairs: Sequence[Pair], wanted: Scaling | None) -> Scaling:
    """The wanted scaling, checked, or the one that the images' type suggests. Raises
    `RecipeError`.
    """
    channels = pairs[0].image.channels
    if wanted is not None:
        for name, numbers in (("offset", wanted.offset), ("factor", wanted.factor)):
            if len(numbers) not in (1, channels):
                raise RecipeError(
                    f"scaling.{name}: expected one number, or {channels}, one a band; got "
                    f"{len(numbers)}."
                )
        return wanted
    first = pairs[0].image
    for pair in pairs:
        if pair.image.dtype != first.dtype:
            raise RecipeError(
                f"scaling: {first.location} is {first.dtype}, {pair.image.location} is "
                f"{pair.image.dtype}. "
                "Write them in one type, or set `scaling` so that it suits both."
            )
    if first.dtype not in _FACTORS:
        raise RecipeError(
            f"scaling: the images are {first.dtype}, such as {first.location}; there is no usual "
            "range of that. "
            "Set scaling: {offset: [...], factor: [...]} so that (value - offset) * factor lies "
            "about from 0 to 1 or -1 to 1."
        )
    return Scaling((0.0,), (_FACTORS[first.dtype],))


def data_digest(pairs: Sequence[Pair], told: OnProgress) -> str:
    """SHA-256 over the names and bytes of all images and masks; `told` hears of each pair."""
    whole = hashlib.sha256()
    for number, pair in enumerate(pairs):
        told(number, len(pairs))
        whole.update(pair.name.encode())
        for location in (pair.image.location, pair.mask.location):
            part = hashlib.sha256()
            fs, path = filesystem(location)
            with store_errors(f"read {location}"), fs.open(path, "rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    part.update(chunk)
            whole.update(part.digest())
    return whole.hexdigest()


def _paired(
    images: Mapping[str, str], masks: Mapping[str, str]
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """(name, image, mask) of each image, from the ids of both by their locations; and masks that no
    image has.
    """
    best: tuple[int, dict[str, str], dict[str, str]] | None = None
    for key in _KEYS:
        ours, theirs = _by_key(images, key), _by_key(masks, key)
        if ours is None or theirs is None:
            continue
        common = ours.keys() & theirs.keys()
        if len(common) == len(ours):
            return [(name, ours[name], theirs[name]) for name in sorted(ours)], [
                theirs[name] for name in sorted(theirs.keys() - ours.keys())
            ]
        if best is None or len(common) > best[0]:
            best = len(common), ours, theirs
    if best is None:
        raise RecipeError(
            "images: several files have the same name without its suffix, so it is not clear which "
            "mask is whose. Rename them."
        )
    _, ours, theirs = best
    alone, unused = (
        [ours[name] for name in sorted(ours.keys() - theirs.keys())],
        sorted(theirs.keys() - ours.keys()),
    )
    spare = f" Masks without an image: {_some(theirs[name] for name in unused)}." if unused else ""
    raise RecipeError(
        f"images: {len(alone)} of {len(ours)} without a mask: {_some(alone)}.{spare}\n"
        "A mask has the name of its image, apart from the suffix and `mask_suffix`. Add what is "
        "missing, or name it in `split.leave_out`."
    )


def _by_key(ids: Mapping[str, str], key: Callable[[str], str]) -> dict[str, str] | None:
    """Locations by key; None where two have the same."""
    found = {key(name): location for location, name in ids.items()}
    return found if len(found) == len(ids) else None


def _without_plain_folders(name: str) -> str:
    *folders, last = name.split("/")
    return "/".join([*(folder for folder in folders if folder.lower() not in _PLAIN_FOLDERS), last])


_KEYS: tuple[Callable[[str], str], ...] = (
    str,
    _without_plain_folders,
    lambda name: name.rsplit("/", 1)[-1],
)


def _described(location: str, version: str, bands: Sequence[int] | None) -> RasterSpec:
    fs, path = filesystem(location)
    try:
        with store_errors(f"read {location}"):
            head = bytes(fs.cat_file(path, start=0, end=_HEAD_BYTES))
        name = formats.format_of(location, head)
        return FORMATS[name].describe(location, version).select(bands)
    except FileNotFoundError as error:
        raise RecipeError(f"{location}: there is no such file.") from error
    except ImageError as error:
        raise RecipeError(f"{error} Mend it, or name it in `split.leave_out`.") from error


def _require_same_shape(pair: Pair) -> None:
    if pair.image.shape != pair.mask.shape:
        ours, theirs = (
            " x ".join(map(str, reversed(spec.shape))) for spec in (pair.image, pair.mask)
        )
        raise RecipeError(
            f"{pair.mask.location} is {theirs} pixels, its image {pair.image.location} is {ours}. "
            "Write the mask in the size of its image, or name it in `split.leave_out`."
        )


def _require_same_bands(pairs: Sequence[Pair]) -> None:
    first = pairs[0].image
    for pair in pairs:
        if pair.image.channels != first.channels:
            raise RecipeError(
                f"{pair.image.location} has {pair.image.channels} band(s), {first.location} has "
                f"{first.channels}. "
                "A network takes one number of bands: set `bands`, or convert the images."
            )


def _some(locations: Iterable[str]) -> str:
    names = list(locations)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
