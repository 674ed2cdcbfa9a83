"""Which truth mask belongs to which image.

Files are compared by their paths below the common folder of their kind, without suffix:

1. If every image has a mask with the same path, those are the pairs. Folders with usual names
   (`images`, `masks` ...) are left out of the paths if that is what makes them equal.
2. Otherwise an image and a mask are a pair if their names are equal and each is the other's best
   match: of all files with that name, the one that shares most folders in the same order (so
   `Tile 3/rgb/part_1.jpg` belongs to `Tile 3/gt/part_1.png`). Images may then lack a mask.

Ties are refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.formats.content import suffix_of
from maskloom.segcore.raster.stored import split_part

_SHOWN = 5
_USUAL_FOLDERS = frozenset(
    [
        *("image", "images", "img", "imgs"),
        *("mask", "masks", "label", "labels", "labels_index", "truth", "annotations"),
    ]
)


@dataclass(frozen=True, slots=True)
class NameSuffixes:
    """Ends of file names, before the suffix, to ignore: `_mask` of `tile_7_mask.png`."""

    truth: str = ""
    image: str = ""


@dataclass(frozen=True, slots=True)
class MaskPairs:
    """Images with their truth masks, all given by URI."""

    truth_of: Mapping[str, str]
    """Truth mask of each image that has one."""
    name_of: Mapping[str, str]
    """A short unique name of each of these images."""
    without_truth: tuple[str, ...]
    """Images without a truth mask."""
    without_image: tuple[str, ...]
    """Truth masks without an image."""


def pair(images: Mapping[str, str], truths: Mapping[str, str], suffixes: NameSuffixes) -> MaskPairs:
    """Pair images with truth masks.

    Parameters
    ----------
    images, truths : mappings
        Path of each file below the common folder of its kind, without suffix (its `image_id`), by
        URI.
    suffixes : NameSuffixes
        Ends of names to ignore.

    Raises
    ------
    RecipeError
        If no mask has the name of an image, or several masks (images) fit one image (mask).
    """
    for key in (str, _without_usual_folders):
        ours = _by_path(images, suffixes.image, key)
        theirs = _by_path(truths, suffixes.truth, key)
        if ours is not None and theirs is not None and ours.keys() <= theirs.keys():
            truth_of = {image: theirs[path] for path, image in ours.items()}
            return _pairs(images, truths, truth_of, {uri: key(images[uri]) for uri in images})
    truth_of = _pair_by_name(images, truths, suffixes)
    last = {uri: path.rpartition("/")[2] for uri, path in images.items()}
    return _pairs(
        images, truths, truth_of, last if len({*last.values()}) == len(last) else dict(images)
    )


def _pairs(
    images: Iterable[str],
    truths: Iterable[str],
    truth_of: Mapping[str, str],
    names: Mapping[str, str],
) -> MaskPairs:
    used = set(truth_of.values())
    return MaskPairs(
        truth_of,
        {image: names[image] for image in truth_of},
        tuple(image for image in images if image not in truth_of),
        tuple(truth for truth in truths if truth not in used),
    )


def _pair_by_name(
    images: Iterable[str], truths: Iterable[str], suffixes: NameSuffixes
) -> dict[str, str]:
    """Truth mask of each image, by equal names and common folders."""
    images_by_name, truths_by_name = (
        _by_name(files, end) for files, end in ((images, suffixes.image), (truths, suffixes.truth))
    )
    truth_of: dict[str, str] = {}
    ties = []
    for name, namesakes in images_by_name.items():
        found, tied = _pair_namesakes(namesakes, truths_by_name.get(name, []))
        truth_of |= found
        ties += tied
    if ties:
        raise RecipeError(
            "Several masks fit one image, or one mask fits several images, and their folders do "
            f"not decide, in {len(ties)} case(s): "
            f"{'; '.join(ties[:_SHOWN])}{'; ...' if len(ties) > _SHOWN else ''}. Name fewer files, "
            "or rename them."
        )
    if not truth_of:
        raise RecipeError(
            f"No mask has the name of an image. Images: {_some(images_by_name)}. Masks: "
            f"{_some(truths_by_name)}. If the names end differently, give the ends: `mask_suffix` "
            "in a training recipe; --truth-suffix _mask or --image-suffix _image for `maskloom "
            "evaluate`."
        )
    return truth_of


def _pair_namesakes(
    images: Sequence[str], truths: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Pairs among files of one name, and a text for each tie."""
    if len(images) == len(truths) == 1:
        return {images[0]: truths[0]}, []
    common = {(image, truth): _common_folders(image, truth) for image in images for truth in truths}
    found, ties = {}, []
    for image in images:
        best = _best(truths, lambda truth: common[image, truth])  # noqa: B023  called at once
        rivals = _best(images, lambda other: common[other, best[0]]) if best else []  # noqa: B023
        if len(best) > 1 or (image in rivals and len(rivals) > 1):
            ties.append(
                f"{', '.join(rivals if len(best) == 1 else [image])} with {', '.join(best)}"
            )
        elif rivals == [image]:
            found[image] = best[0]
    return found, list(dict.fromkeys(ties))


def _best(items: Sequence[str], score: Callable[[str], int]) -> list[str]:
    scores = [score(item) for item in items]
    best = max(scores, default=0)
    return [item for item, each in zip(items, scores, strict=True) if each == best]


def _by_path(
    files: Mapping[str, str], end: str, key: Callable[[str], str]
) -> dict[str, str] | None:
    """URIs by their keyed paths; None if two have the same."""
    found = {key(_path(uri, path, end)): uri for uri, path in files.items()}
    return found if len(found) == len(files) else None


def _by_name(uris: Iterable[str], end: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for uri in uris:
        found.setdefault(_name(uri, end), []).append(uri)
    return found


def _path(uri: str, path: str, end: str) -> str:
    """The path of a file below the common folder. Its name is taken from the URI, because paths of
    files that differ in their suffix alone were made distinct.
    """
    folder, slash, _ = path.rpartition("/")
    return f"{folder}{slash}{_name(uri, end)}"


def _name(uri: str, end: str) -> str:
    """The name of an image; one in a file of several is named as in the tables: `scan_t0001`."""
    file, part, _ = split_part(uri)
    last = file.rsplit("/", 1)[-1]
    name = last[: len(last) - len(suffix_of(last))].removesuffix(end)
    return f"{name}_{part}" if part else name


def _without_usual_folders(path: str) -> str:
    *folders, last = path.split("/")
    return "/".join([*(each for each in folders if each.lower() not in _USUAL_FOLDERS), last])


def _common_folders(one: str, other: str) -> int:
    """Length of the longest common subsequence of the folders of two paths."""
    a, b = (split_part(path)[0].split("/")[:-1] for path in (one, other))
    row = [0] * (len(b) + 1)
    for part in a:
        previous = row[:]
        for i, known in enumerate(b):
            row[i + 1] = previous[i] + 1 if part == known else max(previous[i + 1], row[i])
    return row[-1]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
