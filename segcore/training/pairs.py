"""The images of a training with their masks, checked by their headers.

`segcore.annotations.pairing` finds the mask of each image. Every image must have one. There may be
more masks than images, so that part of a collection can be trained on; a note reports how many are
unused, because a wrong pattern for images looks the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import fsspec

from maskloom.segcore import formats
from maskloom.segcore.annotations.pairing import NameSuffixes, names_for_series, pair
from maskloom.segcore.annotations.places import fit
from maskloom.segcore.annotations.polygons.collect import LabelledGrid, collect
from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.errors import FormatError, ImageError, RecipeError
from maskloom.segcore.processes.helpers import spread
from maskloom.segcore.storage.filesystems import configure, filesystem, store_errors
from maskloom.segcore.training.labels import Polygons
from maskloom.segcore.training.split import matches

if TYPE_CHECKING:
    from maskloom.segcore.annotations.pairing import MaskPairs
    from maskloom.segcore.annotations.places import Turn
    from maskloom.segcore.annotations.polygons.masks import PolygonMask
    from maskloom.segcore.raster.source import Source
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.training.recipe import TrainingRecipe
    from maskloom.segcore.training.setup import OnProgress, Start

_SHOWN = 5
_CHUNK_BYTES = 2**22
_FACTORS = {"uint8": 1 / 255, "uint16": 1 / 65535}


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its mask."""

    name: str
    image: RasterSpec
    """With the bands that the network looks at."""
    mask: RasterSpec | PolygonMask
    turn: Turn | None = None
    """The order of the mask's voxels on the grid of the image. None: as stored."""


def find_pairs(
    images: Sequence[Source],
    masks: Sequence[Source],
    recipe: TrainingRecipe,
    on_progress: OnProgress,
    processes: int = 1,
) -> tuple[list[Pair], list[str]]:
    """The pairs in the order of their names, without those that the recipe leaves out, and notes
    for the user; `on_progress` is called for each pair. At most so many `processes` share the work.

    Raises `RecipeError` if an image has no mask, the sizes or places of both differ, or the bands
    or the axes of images differ.
    """
    if isinstance(recipe.labels, Polygons):
        return _with_polygons(images, masks, recipe, recipe.labels, on_progress)
    found = _paired(images, masks, recipe)
    sources = {source.uri: source for source in (*images, *masks)}
    names = sorted(found.name_of.items(), key=lambda item: item[1])
    both = [(sources[image], sources[found.truth_of[image]]) for image, _ in names]
    describe = partial(_describer, dict(fsspec.config.conf), recipe.bands)
    described = spread(describe(), describe, both, processes)
    pairs: list[Pair] = []
    for _, name in names:
        on_progress(len(pairs), len(names))
        image, mask = next(described)
        pairs.append(Pair(name, image, mask, turn_onto_image(image, mask)))
    _require_same_axes(pairs)
    _require_same_bands(pairs)
    unused = sorted(found.without_image)
    if not unused:
        return pairs, []
    count = len(unused) + len(pairs)
    note = f"{len(unused)} of {count} masks have no image and are not used: {_some(unused)}."
    return pairs, [note]


def _paired(images: Sequence[Source], masks: Sequence[Source], recipe: TrainingRecipe) -> MaskPairs:
    """The pairs by name, without those that the recipe leaves out. Raises `RecipeError` if an image
    has no mask.
    """
    end = recipe.mask_suffix
    named = [source for source in masks if source.image_id.endswith(end)]
    if masks and not named:
        raise RecipeError(
            f"mask_suffix: no mask's name ends in {end!r}; one of them is {masks[0].uri}."
        )
    # A folder that holds both lists the masks among the images too.
    mask_uris = {source.uri for source in named}
    wanted = [
        source
        for source in images
        if source.uri not in mask_uris and not _left_out(source, source.image_id, recipe)
    ]
    truths = [
        source
        for source in named
        if not _left_out(source, source.image_id.removesuffix(end), recipe)
    ]
    if not wanted or not truths:
        raise RecipeError(
            f"images: there is nothing left to train with (images: {len(wanted)}, masks: "
            f"{len(truths)}). Name others, or leave out fewer."
        )
    found = pair(
        {source.uri: source.image_id for source in wanted},
        {source.uri: source.image_id for source in truths},
        NameSuffixes(truth=end),
    )
    if found.without_truth:
        spare = found.without_image
        also = f" Masks without an image: {_some(spare)}." if spare else ""
        raise RecipeError(
            f"images: {len(found.without_truth)} of {len(wanted)} without a mask: "
            f"{_some(found.without_truth)}.{also}\n"
            "A mask has the name of its image, apart from the suffix and `mask_suffix`. Add the "
            "missing masks, or add the images to `split.leave_out`. "
            f"{names_for_series(found.without_truth, [each.uri for each in wanted])}".rstrip()
        )
    return found


def _with_polygons(
    images: Sequence[Source],
    files: Sequence[Source],
    recipe: TrainingRecipe,
    labels: Polygons,
    on_progress: OnProgress,
) -> tuple[list[Pair], list[str]]:
    """The pairs of images and their polygons; see `find_pairs`."""
    wanted = [source for source in images if not _left_out(source, source.image_id, recipe)]
    grids = {}
    for number, source in enumerate(sorted(wanted, key=lambda each: each.image_id)):
        on_progress(number, len(wanted))
        spec = _described(source, recipe.bands)
        grids[source.uri] = LabelledGrid(source.image_id, spec)
    if not grids:
        raise RecipeError(
            "images: there is nothing left to train with. Name others, or leave out fewer."
        )
    found = collect(
        {file.uri: file.image_id for file in files},
        grids,
        labels.rules(recipe.classes),
        NameSuffixes(truth=recipe.mask_suffix),
    )
    pairs = [
        Pair(grid.image_id, grid.spec, found.masks[uri])
        for uri, grid in grids.items()
        if uri in found.masks
    ]
    _require_same_bands(pairs)
    return pairs, list(found.notes)


def _left_out(source: Source, name: str, recipe: TrainingRecipe) -> bool:
    return matches((name, source.uri), recipe.split.leave_out)


def scaling_of(
    pairs: Sequence[Pair], wanted: Scaling | ImageScaling | None
) -> Scaling | ImageScaling:
    """The wanted scaling, checked, or the usual one for the images' type. Raises `RecipeError`."""
    if isinstance(wanted, ImageScaling):
        if wanted.of != "image":
            raise RecipeError(
                "scaling.of: expected image in a training; fit follows the `fit` of a run. To "
                "scale all images by the same numbers, give them as `offset` and `factor`."
            )
        return wanted
    channels = pairs[0].image.channels
    if wanted is not None:
        for name, numbers in (("offset", wanted.offset), ("factor", wanted.factor)):
            if len(numbers) not in (1, channels):
                raise RecipeError(
                    f"scaling.{name}: expected one number, or {channels}, one per band; got "
                    f"{len(numbers)}."
                )
        return wanted
    first = pairs[0].image
    for each in pairs:
        if each.image.dtype != first.dtype:
            raise RecipeError(
                f"scaling: {first.location} is {first.dtype}, {each.image.location} is "
                f"{each.image.dtype}. "
                "Write them in one type, or set `scaling` so that it suits both, for example "
                "{by: deviation}."
            )
    if first.dtype not in _FACTORS:
        raise RecipeError(
            f"scaling: the images are {first.dtype} (for example {first.location}), a type without "
            "a usual range. "
            "Set scaling: {offset: [...], factor: [...]} so that (value - offset) * factor is "
            "about from 0 to 1 or -1 to 1, or scale each image by its own values, for example "
            "{by: deviation}."
        )
    return Scaling((0.0,), (_FACTORS[first.dtype],))


def usual_scaling(pairs: Sequence[Pair], start: Start) -> Scaling | ImageScaling | None:
    """The scaling that weights of another training ask for. None: there is none for the images'
    type.
    """
    image = pairs[0].image
    return start.scaling_for(image.channels, _FACTORS.get(image.dtype))


def files_of(pair: Pair) -> list[str]:
    """Locations of the files of an image and of its mask."""
    return [
        location for spec in (pair.image, pair.mask) for location in spec.files or (spec.location,)
    ]


def file_digests(
    pairs: Sequence[Pair],
    on_progress: OnProgress,
    known: Mapping[str, str] | None = None,
    processes: int = 1,
) -> dict[str, str]:
    """SHA-256 over the bytes of each file of these pairs, by location, but for those that are
    `known`; `on_progress` is called for each pair. At most so many `processes` share the work.
    """
    digests = dict(known or {})
    # A file may hold many images.
    wanted = dict[str, int]()
    for number, each in enumerate(pairs):
        wanted |= {
            location: number
            for location in files_of(each)
            if location not in digests and location not in wanted
        }
    prepare = partial(_digester, dict(fsspec.config.conf))
    found = spread(_digest_of, prepare, list(wanted), processes)
    for location, number in wanted.items():
        on_progress(number, len(pairs))
        digests[location] = next(found)
    return digests


def data_digest(pairs: Sequence[Pair], digests: Mapping[str, str]) -> str:
    """SHA-256 over the names and bytes of all images and masks, from the digests of their files."""
    whole = hashlib.sha256()
    for each in pairs:
        whole.update(each.name.encode())
        for location in files_of(each):
            whole.update(bytes.fromhex(digests[location]))
    return whole.hexdigest()


def _digester(stores: Mapping[str, Mapping[str, Any]]) -> Callable[[str], str]:
    """The work of a process that reads files."""
    configure(stores)
    return _digest_of


def _digest_of(location: str) -> str:
    """SHA-256 over the bytes of a file, or of all files of a folder in the order of their names."""
    fs, path = filesystem(location)
    part, is_folder = hashlib.sha256(), location.lower().endswith(formats.folder_suffixes())
    with store_errors(f"read {location}"):
        for name in sorted(fs.find(path)) if is_folder else [path]:
            with fs.open(name, "rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    part.update(chunk)
    return part.hexdigest()


def _describer(
    stores: Mapping[str, Mapping[str, Any]], bands: Sequence[int] | None
) -> Callable[[tuple[Source, Source]], tuple[RasterSpec, RasterSpec]]:
    """The work of a process that reads the headers of images and their masks."""
    configure(stores)

    def both(sources: tuple[Source, Source]) -> tuple[RasterSpec, RasterSpec]:
        return _described(sources[0], bands), _described(sources[1], None)

    return both


def _described(source: Source, bands: Sequence[int] | None) -> RasterSpec:
    try:
        [(_, header)] = formats.describe_images(source, source.version)
        if isinstance(header, FormatError):
            raise header
        return header.select(bands)
    except ImageError as error:
        raise RecipeError(f"{error} Fix the file, or add it to `split.leave_out`.") from error


def turn_onto_image(image: RasterSpec, mask: RasterSpec) -> Turn:
    """The order of a mask's voxels on the grid of its image. Raises `RecipeError` if their sizes
    differ, or the mask lies elsewhere in the scanner.
    """
    fits = fit(mask, image)
    if not fits.same_shape:
        ours, theirs = (" x ".join(map(str, reversed(spec.shape))) for spec in (image, mask))
        raise RecipeError(
            f"{mask.location} is {theirs} pixels, its image {image.location} is {ours}. "
            "Write the mask in the size of its image, or name it in `split.leave_out`."
        )
    if fits.elsewhere:
        raise RecipeError(
            f"{mask.location} has the size of its image {image.location}, but its header places it "
            f"elsewhere: {fits.elsewhere}; its labels would be learned at wrong voxels. Resample "
            "the mask to the image's grid, or name it in `split.leave_out`."
        )
    return fits.turn


def _require_same_axes(pairs: Sequence[Pair]) -> None:
    first = pairs[0].image
    for each in pairs:
        if len(each.image.shape) != len(first.shape):
            volume, image = (
                (each, pairs[0]) if len(each.image.shape) > len(first.shape) else (pairs[0], each)
            )
            raise RecipeError(
                f"images: {volume.image.location} is a volume, {image.image.location} an image. "
                "Train on either; name the others in `split.leave_out`."
            )


def _require_same_bands(pairs: Sequence[Pair]) -> None:
    first = pairs[0].image
    for each in pairs:
        if each.image.channels != first.channels:
            raise RecipeError(
                f"{each.image.location} has {each.image.channels} band(s), {first.location} has "
                f"{first.channels}. "
                "A network takes one number of bands: set `bands`, or convert the images."
            )


def _some(locations: Iterable[str]) -> str:
    names = list(locations)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
