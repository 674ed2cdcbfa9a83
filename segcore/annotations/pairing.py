"""Which truth mask belongs to which image.

Files are compared by their paths below the common folder of their kind, without suffix:

1. If every image has a mask with the same path, those are the pairs. Folders with usual names
   (`images`, `masks` ...) are left out of the paths if that is what makes them equal.
2. Otherwise an image and a mask are a pair if their names are equal and each is the other's best
   match: of all files with that name, the one that shares most folders in the same order (so
   `Tile 3/rgb/part_1.jpg` belongs to `Tile 3/gt/part_1.png`). Images may then lack a mask.
3. A series of files, whose name is a hash, may be the only one in its folder. It then also has the
   name of the folder, and so has a mask that is the only one in its folder: `CT 7/series-...`
   belongs to `CT 7.nii.gz` or `labels/CT 7/liver.nii.gz`.

Ties are refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.formats.content import suffix_of
from maskloom.segcore.formats.dicom.grouping import is_series
from maskloom.segcore.raster.stored import split_part

_SHOWN = 5
_SERIES_SHOWN = 10
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
    truth_of |= _pair_series_by_folder(images, truths, suffixes, truth_of)
    if not truth_of:
        raise RecipeError(
            f"No mask has the name of an image. Images: {_some(_by_name(images, suffixes.image))}. "
            f"Masks: {_some(_by_name(truths, suffixes.truth))}. If the names end differently, give "
            "the ends: `mask_suffix` in a training recipe; --truth-suffix _mask or --image-suffix "
            f"_image for `maskloom evaluate`. {names_for_series(images, images)}".rstrip()
        )
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
    return _pair_named(_by_name(images, suffixes.image), _by_name(truths, suffixes.truth))


def _pair_series_by_folder(
    images: Iterable[str],
    truths: Iterable[str],
    suffixes: NameSuffixes,
    paired: Mapping[str, str],
) -> dict[str, str]:
    """Truth mask of each series that is alone in its folder, by the folder's name; without what is
    `paired` already.
    """
    series = _without(_by_folder(filter(is_series, images), suffixes.image), paired.keys())
    used, found = set(paired.values()), dict[str, str]()
    for named in (_by_name(truths, suffixes.truth), _by_folder(truths, suffixes.truth)):
        found |= _pair_named(_without(series, found.keys()), _without(named, used))
        used |= set(found.values())
    return found


def _pair_named(
    images: Mapping[str, Sequence[str]], truths: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Truth mask of each image, among files by name. Raises `RecipeError` for ties."""
    truth_of: dict[str, str] = {}
    ties = []
    for name, namesakes in images.items():
        found, tied = _pair_namesakes(namesakes, truths.get(name, []))
        truth_of |= found
        ties += tied
    if ties:
        raise RecipeError(
            "Several masks fit one image, or one mask fits several images, and their folders do "
            f"not decide, in {len(ties)} case(s): "
            f"{'; '.join(ties[:_SHOWN])}{'; ...' if len(ties) > _SHOWN else ''}. Name fewer files, "
            "or rename them."
        )
    return truth_of


def names_for_series(wanted: Iterable[str], images: Iterable[str]) -> str:
    """A sentence on the names of masks for the series among `wanted`; empty if there are none.
    `images`: all images, which may be in the same folders.
    """
    folders = _folder_names({split_part(uri)[0] for uri in filter(is_series, images)})
    names = []
    for file in dict.fromkeys(split_part(uri)[0] for uri in filter(is_series, wanted)):
        folder, name = file.rsplit("/", 2)[-2:]
        names.append(
            f"{folders[file]}.nii.gz" if file in folders else f"{name}.nii.gz (in {folder})"
        )
    if not names:
        return ""
    more = ", ..." if len(names) > _SERIES_SHOWN else ""
    return (
        "The mask of a series of files has the name of the series or, if that is the only one in "
        f"its folder, of the folder: for example {', '.join(names[:_SERIES_SHOWN])}{more}."
    )


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


def _by_folder(uris: Iterable[str], end: str) -> dict[str, list[str]]:
    """URIs of the files that are the only one in their folder, by the folder's name."""
    found: dict[str, list[str]] = {}
    for uri, name in _folder_names(uris).items():
        found.setdefault(name.removesuffix(end), []).append(uri)
    return found


def _folder_names(uris: Iterable[str]) -> dict[str, str]:
    """The name of the folder, or of the archive, of each file that is the only one in it. Images in
    one file have their part added, as in `_name`.
    """
    places = {uri: split_part(uri)[0].rpartition("/") for uri in uris}
    files: dict[str, set[str]] = {}
    for folder, _, name in places.values():
        files.setdefault(folder, set()).add(name)
    found = {}
    for uri, (folder, _, _) in places.items():
        if len(files[folder]) == 1:
            part, name = split_part(uri)[1], folder.rpartition("/")[2].removesuffix(".zip")
            found[uri] = f"{name}_{part}" if part else name
    return found


def _without(named: Mapping[str, Sequence[str]], left_out: Collection[str]) -> dict[str, list[str]]:
    return {name: [uri for uri in uris if uri not in left_out] for name, uris in named.items()}


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
    suffix = "" if is_series(uri) else suffix_of(last)
    name = last[: len(last) - len(suffix)].removesuffix(end)
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
