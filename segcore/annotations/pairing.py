"""Which truth mask belongs to which image: by the name without suffix, and by the folders above
where several have one name.

An image and a truth are a pair where each is the other's best: of all with its name, the one that
shares most parts of its path in the same order (so `Tile 3/images/part_1.jpg` goes with `Tile
3/masks/part_1.png`). Nobody guesses between equals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from maskloom.segcore.errors import RecipeError

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class NameSuffixes:
    """Ends of names (before the suffix) that do not count: `_mask` of `tile_7_mask.png`."""

    truth: str = ""
    image: str = ""


@dataclass(frozen=True, slots=True)
class MaskPairs:
    """What was found."""

    truth_of: Mapping[str, str]
    """Truth file of each image, by URI."""
    without_truth: tuple[str, ...]
    """Images that have none."""
    without_image: tuple[str, ...]
    """Truth files that belong to no image."""


def pair(images: Sequence[str], truths: Sequence[str], affixes: NameSuffixes) -> MaskPairs:
    """Pair images with truth files, both given by URI. Raises `RecipeError` where nothing matches
    or something matches twice.
    """
    by_name: dict[str, list[str]] = {}
    for truth in truths:
        by_name.setdefault(_name(truth, affixes.truth), []).append(truth)
    names = {image: _name(image, affixes.image) for image in images}
    peers: dict[str, list[str]] = {}
    for image, name in names.items():
        peers.setdefault(name, []).append(image)
    truth_of: dict[str, str] = {}
    doubts = []
    for name, own in peers.items():
        found, doubtful = _pair_namesakes(own, by_name.get(name, []))
        truth_of |= found
        doubts += doubtful
    if doubts:
        raise RecipeError(
            f"{len(doubts)} images have several truth masks, or several images have one, between "
            "which paths do not decide: "
            f"{'; '.join(doubts[:_SHOWN])}{'; ...' if len(doubts) > _SHOWN else ''}. Give fewer by "
            "--truth, or rename them."
        )
    if not truth_of:
        raise RecipeError(
            f"No truth mask has the name of an image. Images: {_few(list(names.values()))}. Truth: "
            f"{_few(list(by_name))}. "
            "If the names end differently, say so: --truth-suffix _mask, --image-suffix _image."
        )
    used = set(truth_of.values())
    return MaskPairs(
        truth_of,
        tuple(image for image in images if image not in truth_of),
        tuple(truth for truth in truths if truth not in used),
    )


def _pair_namesakes(
    images: Sequence[str], truths: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Pairs among files of one name, and the doubtful ones in words."""
    if len(images) == len(truths) == 1:
        return {images[0]: truths[0]}, []
    common = {(image, truth): _common_parts(image, truth) for image in images for truth in truths}
    found, doubts = {}, []
    for image in images:
        best = _best(truths, lambda truth: common[image, truth])  # noqa: B023  called at once
        rivals = _best(images, lambda other: common[other, best[0]]) if best else []  # noqa: B023
        if len(best) > 1 or (image in rivals and len(rivals) > 1):
            doubts.append(
                f"{', '.join(rivals if len(best) == 1 else [image])} with {', '.join(best)}"
            )
        elif rivals == [image]:
            found[image] = best[0]
    return found, list(dict.fromkeys(doubts))


def _best(items: Sequence[str], score: Callable[[str], int]) -> list[str]:
    scores = [score(item) for item in items]
    best = max(scores, default=0)
    return [item for item, each in zip(items, scores, strict=True) if each == best]


def _name(uri: str, end: str) -> str:
    stem, dot, _ = uri.rsplit("/", 1)[-1].rpartition(".")
    return (stem if dot else uri.rsplit("/", 1)[-1]).removesuffix(end)


def _common_parts(one: str, other: str) -> int:
    """Length of the longest common subsequence of the folders of two paths."""
    a, b = one.split("/")[:-1], other.split("/")[:-1]
    row = [0] * (len(b) + 1)
    for part in a:
        previous = row[:]
        for i, known in enumerate(b):
            row[i + 1] = previous[i] + 1 if part == known else max(previous[i + 1], row[i])
    return row[-1]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
