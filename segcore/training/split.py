"""The division of images into those to train on, to validate on, and to leave out."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.values import check_range

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Split:
    """Which images are trained on. A pattern is compared with the name and the location of an
    image, and may contain * and ?.
    """

    validation: float | tuple[str, ...] = 0.2
    """Fraction of the images, or patterns of the images, for validation. 0: the training images
    validate.
    """
    leave_out: tuple[str, ...] = ()
    """Patterns of images that are not used, kept for a test."""
    group: str | None = None
    """Regular expression whose match in an image's name is its group: images of one group are
    never on both sides.
    """
    group_column: str | None = None
    """Column of the list files in `images` (.csv, .parquet) that has the group of each image."""
    seed: int = 0
    """Seed of the random choice."""
    folds: int | None = None
    """Cross-validation: the images are dealt into this many parts of about the same size, and one
    network is trained for each, which validates it; `validation` is not used.
    """
    fold: int | None = None
    """The only fold to train, from 1. None: all of them."""

    def __post_init__(self) -> None:
        if self.group is not None and self.group_column is not None:
            raise ValueError("group: expected `group` or `group_column`, got both")
        if self.folds is not None:
            check_range("folds", self.folds, 2, 1000)
        if self.fold is not None:
            if self.folds is None:
                raise ValueError("fold: expected `folds`, the number of them, beside it")
            check_range("fold", self.fold, 1, self.folds)
        if isinstance(self.validation, float | int) and not 0 <= self.validation < 1:
            raise ValueError(
                "validation: expected a fraction from 0 to less than 1, or patterns; got "
                f"{self.validation}"
            )
        try:
            re.compile(self.group or "")
        except re.error as error:
            raise ValueError(f"group: {self.group!r} is no regular expression: {error}") from error

    def divide(
        self,
        names: Sequence[str],
        locations: Sequence[str],
        groups: Mapping[str, str] | None = None,
    ) -> tuple[list[int], list[int]]:
        """Numbers of the images to train on and of those to validate on. `groups`: group of each
        location, for `group_column`. Raises `RecipeError` if one side has none.
        """
        group_of = self._groups(names, locations, groups)
        if self.folds is not None:
            held = self._fold(group_of, self.folds)
        elif isinstance(self.validation, tuple):
            held = {
                i
                for i, both in enumerate(zip(names, locations, strict=True))
                if matches(both, self.validation)
            }
        else:
            held = self._drawn(group_of)
        training = [i for i in range(len(names)) if i not in held]
        validation = sorted(held)
        if self.validation == 0 and self.folds is None:
            validation = training
        if not training or not validation:
            empty = "training" if not training else "validation"
            raise RecipeError(
                f"split: {len(names)} image(s) in {len(set(group_of))} group(s) leave none for "
                f"{empty}. "
                "Give more images, another `validation`, or 0 to measure on the training images."
            )
        return training, validation

    @property
    def all_folds(self) -> tuple[Split, ...]:
        """The splits of a cross-validation, whichever fold this is; this one without any."""
        if self.folds is None:
            return (self,)
        return tuple(replace(self, fold=number) for number in range(1, self.folds + 1))

    @property
    def each(self) -> tuple[Split, ...]:
        """The splits to train: this one, or one for each fold."""
        return (self,) if self.fold is not None else self.all_folds

    def _fold(self, groups: Sequence[str], folds: int) -> set[int]:
        """The images of this fold, the first if none is named. Whole groups are dealt, the largest
        first, each to the fold with the fewest images.
        """
        import numpy as np

        sizes = Counter(groups)
        if len(sizes) < folds:
            what = "image" if self.group is self.group_column is None else "group"
            raise RecipeError(
                f"split.folds: {folds} folds need as many {what}s; there "
                f"{'is' if len(sizes) == 1 else 'are'} {len(sizes)}. "
                + (
                    f"Set it to {len(sizes)} or fewer."
                    if len(sizes) > 1
                    else f"Give more {what}s, or remove `folds`."
                )
            )
        order = np.random.default_rng([self.seed, len(sizes)]).permutation(len(sizes))
        names = sorted(sizes)
        filled, fold_of = [0] * folds, dict[str, int]()
        for name in sorted((names[i] for i in order), key=lambda name: -sizes[name]):
            fold_of[name] = filled.index(min(filled))
            filled[fold_of[name]] += sizes[name]
        return {i for i, group in enumerate(groups) if fold_of[group] == (self.fold or 1) - 1}

    def _drawn(self, groups: Sequence[str]) -> set[int]:
        """Whole groups in a random order, until they have enough images."""
        import numpy as np

        distinct = sorted(set(groups))
        order = np.random.default_rng([self.seed, len(distinct)]).permutation(len(distinct))
        wanted = len(groups) * float(self.validation)  # type: ignore[arg-type]
        held: set[int] = set()
        for number in order:
            members = {i for i, group in enumerate(groups) if group == distinct[number]}
            # Always the first group, so that a small fraction of few images is not empty.
            if self.validation == 0 or (held and len(held) + len(members) / 2 > wanted):
                break
            held |= members
        return held

    def _groups(
        self, names: Sequence[str], locations: Sequence[str], groups: Mapping[str, str] | None
    ) -> list[str]:
        """The group of each image. Raises `RecipeError` if one has none."""
        if self.group_column is not None:
            known = groups or {}
            without = [place for place in locations if place not in known]
            if without:
                raise RecipeError(
                    f"split.group_column: {len(without)} of {len(locations)} images have no "
                    f"{self.group_column!r} in the list, for example {without[0]}."
                )
            return [known[place] for place in locations]
        found = [re.search(self.group, name) if self.group is not None else None for name in names]
        return [match.group() if match else name for name, match in zip(names, found, strict=True)]


def matches(texts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether one of the texts, or the part of one after a /, matches one of the patterns.

    >>> matches(["s3://scenes/tile5/a.png"], ["tile5/*"])
    True
    """
    return any(
        fnmatch.fnmatchcase(text, form)
        for text in texts
        for pattern in patterns
        for form in (pattern, f"*/{pattern}")
    )
