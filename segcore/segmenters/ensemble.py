"""Ensembles: several segmenters decide together, by vote or by the mean of their scores.

All members are fitted together, in as many rounds as the slowest needs; members that are ready
wait. Class k of the ensemble is class k of every member, so the members must have equally many
classes, and where they name them, the same names in the same order.

- vote: the class with most votes; of classes with equally many votes, that of the earliest member.
- scores: the class with the greatest mean probability; of equals, the first.

The image is read once with all bands that any member needs, and each member sees its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np

from maskloom.segcore.errors import FitError, ModelMismatch, RecipeError
from maskloom.segcore.geometry import widest
from maskloom.segcore.methods.naming import check_names
from maskloom.segcore.models.protocols import (
    MODELS,
    SEGMENTERS,
    Exactness,
    Fitter,
    Requirements,
    Scorer,
    Segmenter,
    SegmenterRecipe,
    caution_of,
    finds_objects,
    fits_each_image,
    gives_scores,
    requirements_of,
)
from maskloom.segcore.raster.spec import Block, Labels

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from maskloom.segcore.models.protocols import Model
    from maskloom.segcore.raster.spec import RasterSpec

Member = Fitter | Segmenter


@SEGMENTERS.register("ensemble")
@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several segmenters that decide together."""

    members: tuple[SegmenterRecipe, ...]
    """The segmenters, at least two, with equally many classes each."""
    by: Literal["auto", "vote", "scores"] = "auto"
    """vote: the class that most members choose. scores: the greatest mean probability. auto: scores
    if every member has them.
    """
    classes: tuple[str, ...] | None = None
    """Names by class id. None: those of the first member that names its classes."""

    units: ClassVar[str] = "what every member promises"
    volumes: ClassVar[str] = "as each member"
    gives_scores: ClassVar[bool] = True
    use_when: ClassVar[str] = (
        "several methods or networks are right in different places; where they vote, their "
        "errors must differ"
    )
    not_when: ClassVar[str] = "its members are variants of one method, whose errors agree"
    reference: ClassVar[str] = "Kittler et al. 1998, doi:10.1109/34.667881"

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ValueError(
                f"members: an ensemble needs at least 2 segmenters; got {len(self.members)}"
            )
        if self.by not in ("auto", "vote", "scores"):
            raise ValueError(f"by: expected auto, vote or scores; got {self.by!r}")
        if self.classes is not None:
            check_names(self.classes)

    def start(self) -> Fitter | Segmenter:
        """Return the fitter of all members, or the model if all are ready.

        Raises `RecipeError` if a member finds objects or classes differ.
        """
        started = [recipe.start() for recipe in self.members]
        members = tuple(
            _semantic(member, member_name, RecipeError)
            for member, member_name in zip(started, self._member_names, strict=True)
        )
        known = [_names_of(member) for member in members]
        self._check_counts(known, RecipeError)
        names = self._given_names() or next(filter(None, known), ())
        return self.advance(EnsembleFitter(self, members, names), RecipeError)

    def advance(
        self, fitter: EnsembleFitter, error: type[FitError | RecipeError]
    ) -> Fitter | Segmenter:
        """Return the fitter itself, or the model if all members are ready.

        Raises `error` if the members do not match.
        """
        ready = tuple(member for member in fitter.members if isinstance(member, Segmenter))
        self._check_counts([_names_of(member) for member in fitter.members], error)
        if len(ready) < len(fitter.members):
            return fitter
        without_scores = [
            member_name
            for member_name, member in zip(self._member_names, ready, strict=True)
            if not isinstance(member, Scorer) or _votes(member)
        ]
        if self.by == "scores" and without_scores:
            raise error(
                f"by: {without_scores[0]} has no scores. Use `by: vote`, or leave that member out."
            )
        by: Literal["vote", "scores"] = "vote" if self.by == "vote" or without_scores else "scores"
        return EnsembleModel(ready, fitter.names or ready[0].classes, by)

    @property
    def _member_names(self) -> list[str]:
        kinds = {registered: name for name, registered in SEGMENTERS.items()}
        return [
            f"member {i} ({kinds.get(type(recipe), type(recipe).__name__)})"
            for i, recipe in enumerate(self.members, 1)
        ]

    def _given_names(self) -> tuple[str, ...]:
        """Names given by the recipe or a member, else (). Raises `RecipeError` if two disagree."""
        named = [("the ensemble", self.classes)] if self.classes is not None else []
        for recipe, member_name in zip(self.members, self._member_names, strict=True):
            names = getattr(recipe, "classes", None)
            if names is not None:
                named.append((member_name, tuple(names)))
        for member_name, names in named[1:]:
            if names != named[0][1]:
                raise RecipeError(
                    f"classes: {member_name} names its classes {list(names)}, {named[0][0]} "
                    f"{list(named[0][1])}. Class k must mean the same "
                    "to all: give the same names in the same order, or name them for the ensemble "
                    "alone."
                )
        return named[0][1] if named else ()

    def _check_counts(
        self, known: Sequence[tuple[str, ...]], error: type[FitError | RecipeError]
    ) -> None:
        counts = [
            (member_name, len(names))
            for member_name, names in zip(self._member_names, known, strict=True)
            if names
        ]
        if self.classes is not None:
            counts.insert(0, ("the ensemble", len(self.classes)))
        for member_name, count in counts[1:]:
            if count != counts[0][1]:
                raise error(
                    f"members: {member_name} has {count} classes, {counts[0][0]} has "
                    f"{counts[0][1]}. All need equally many: set their number "
                    "(`clusters`, `components`, `levels`), or leave that member out."
                )


@dataclass(frozen=True, slots=True)
class EnsembleFitter:
    """Members of which at least one must be fitted."""

    recipe: Ensemble
    members: tuple[Member, ...]
    names: tuple[str, ...]
    """Names of the classes; empty if their number is found by fitting."""

    @property
    def gives_scores(self) -> bool:
        """Whether the members will decide by scores, and all of them have probabilities."""
        return self.recipe.by != "vote" and all(map(gives_scores, self.members))

    @property
    def of_each_image(self) -> bool:
        """Whether all members that are not ready are for one image at a time."""
        return all(fits_each_image(each) for each in self.members if isinstance(each, Fitter))

    @property
    def requirements(self) -> Requirements:
        """The largest halo, and memory and time of all members."""
        return _total_requirements([member.requirements for member in self.members])

    @property
    def expected_classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if their number is found by fitting."""
        return self.names

    def select(self, spec: RasterSpec) -> RasterSpec:
        """Return the image with all bands that any member needs."""
        return _select(self.members, spec)

    def kind_of(self, spec: RasterSpec) -> Hashable:
        """Return what the members that are not ready require images to have in common."""
        kinds = tuple(
            member.kind_of(member.select(spec))
            for member in self.members
            if isinstance(member, Fitter)
        )
        particular = {kind for kind in kinds if kind != ()}
        # A single kind is returned unwrapped, so that messages about it are readable.
        return particular.pop() if len(particular) == 1 else kinds

    def observe(self, block: Block) -> tuple[Any, ...]:
        """Return each member's observation of the block; None for members that are ready."""
        return tuple(
            member.observe(_select_bands(member, block)) if isinstance(member, Fitter) else None
            for member in self.members
        )

    def merge(self, a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
        """Merge the observations of each member."""
        return tuple(
            member.merge(one, other) if isinstance(member, Fitter) else None
            for member, one, other in zip(self.members, a, b, strict=True)
        )

    def finish(self, total: tuple[Any, ...]) -> Fitter | Segmenter:
        """Return the fitter of the next round, or the model.

        Raises `FitError` if a member cannot be fitted or the numbers of classes differ.
        """
        following = tuple(
            _semantic(member.finish(state), f"member {i}", FitError)
            if isinstance(member, Fitter)
            else member
            for i, (member, state) in enumerate(zip(self.members, total, strict=True), 1)
        )
        return self.recipe.advance(replace(self, members=following), FitError)


@MODELS.register("ensemble")
@dataclass(frozen=True, slots=True)
class EnsembleModel:
    """Members that are all ready."""

    members: tuple[Segmenter, ...]
    classes: tuple[str, ...]
    by: Literal["vote", "scores"]

    @property
    def exactness(self) -> Exactness:
        """Exactness of the least exact member."""
        order = list(Exactness)
        return max((member.exactness for member in self.members), key=order.index)

    @property
    def requirements(self) -> Requirements:
        """Largest halo, total memory and time; for scores also two numbers per class."""
        return self._around([member.requirements for member in self.members])

    def requirements_of(self, spec: RasterSpec) -> Requirements:
        """As `requirements`, for such an image."""
        return self._around([requirements_of(member, spec) for member in self.members])

    def _around(self, members: Sequence[Requirements]) -> Requirements:
        whole = _total_requirements(members)
        labels = 8 * len(self.classes) + 8 if self.by == "scores" else len(self.members) * 2 + 8
        return replace(whole, bytes_per_pixel=whole.bytes_per_pixel + labels)

    def select(self, spec: RasterSpec) -> RasterSpec:
        """Return the image with all bands that any member needs."""
        return _select(self.members, spec)

    def segment(self, block: Block) -> Labels:
        """Return the class that the members choose together."""
        if self.by == "vote":
            labels_by_member = [
                member.segment(_select_bands(member, block)).values.astype(self._type, copy=False)
                for member in self.members
            ]
            return Labels(majority(labels_by_member))
        return self._winners(self._total(block))

    @property
    def gives_scores(self) -> bool:
        """Whether the members decide by scores, and all of them have probabilities."""
        return self.by == "scores" and all(map(gives_scores, self.members))

    def scores(self, block: Block) -> NDArray[np.float32]:
        """Return the mean of the members' scores, for an ensemble that decides by them."""
        total = self._total(block)
        total /= np.float32(len(self.members))
        return total

    def segment_and_score(self, block: Block) -> tuple[Labels, NDArray[np.float32]]:
        """Return what `segment` and `scores` return, for an ensemble that decides by scores."""
        total = self._total(block)
        labels = self._winners(total)
        total /= np.float32(len(self.members))
        return labels, total

    @property
    def _type(self) -> type[np.integer]:
        return np.uint8 if len(self.classes) <= 256 else np.uint16

    def _total(self, block: Block) -> NDArray[np.float32]:
        """Return the sum of the members' scores."""
        total: NDArray[np.float32] | None = None
        for member in self.members:
            if not isinstance(member, Scorer):
                raise TypeError(f"{type(member).__name__} has no scores")
            scores = member.scores(_select_bands(member, block))
            total = scores if total is None else np.add(total, scores, out=total)
        if total is None:
            raise TypeError("an ensemble without members has no scores")
        return total

    def _winners(self, total: NDArray[np.float32]) -> Labels:
        """Return the class with the greatest sum."""
        from maskloom.segcore.kernels.scores import argmax_labels

        winner = np.empty(total.shape[:-1], self._type)
        argmax_labels(total, winner)
        return Labels(winner)

    def provenance(self) -> Mapping[str, Any]:
        """Return the rule of decision and the provenance of each member."""
        kinds = {registered: name for name, registered in MODELS.items()}
        members = [
            {"kind": kinds.get(type(member), ""), **member.provenance()} for member in self.members
        ]
        return {"by": self.by, "members": members}

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:
        """Return the warnings of the members."""
        return caution_of(self.members, spec, shares)


def majority(labels_by_member: Sequence[NDArray[np.integer]]) -> NDArray[np.integer]:
    """Most frequent label at each position of arrays (y, x) of one shape.

    Of equally frequent labels, that of the earliest array.
    """
    winner, most = labels_by_member[0].copy(), np.zeros(labels_by_member[0].shape, np.uint8)
    for labels in labels_by_member:
        votes = np.zeros(labels.shape, np.uint8)
        for others in labels_by_member:
            votes += labels == others
        better = votes > most
        np.copyto(winner, labels, where=better)
        np.copyto(most, votes, where=better)
    return winner


def _votes(member: Member) -> bool:
    """Whether a member is an ensemble without scores."""
    return isinstance(member, EnsembleModel) and member.by == "vote"


def _semantic(
    member: Fitter | Model, member_name: str, error: type[FitError | RecipeError]
) -> Member:
    if finds_objects(member):
        raise error(
            f"members: {member_name} finds objects; an ensemble needs segmenters that give every "
            "pixel a class. Leave that member out, or run it alone."
        )
    return cast("Member", member)


def _names_of(member: Member) -> tuple[str, ...]:
    return member.expected_classes if isinstance(member, Fitter) else member.classes


def _total_requirements(requirements: Sequence[Requirements]) -> Requirements:
    halo = widest([each.halo for each in requirements])
    memory, time = (
        sum(each.bytes_per_pixel for each in requirements),
        sum(each.cost for each in requirements),
    )
    return Requirements(
        halo,
        memory,
        time,
        sum(each.process_bytes for each in requirements),
        planar=all(each.planar for each in requirements),
        device="gpu" if any(each.device == "gpu" for each in requirements) else "any",
    )


def _select(members: Sequence[Member], spec: RasterSpec) -> RasterSpec:
    wanted = [member.select(spec) for member in members]
    bands = {band for each in wanted for band in each.bands}
    # In the order of the image, so that red, green and blue stay colours.
    order = [band for band in spec.bands if band in bands]
    chosen = spec.select([*order, *sorted(bands.difference(order))])
    for number, (member, alone) in enumerate(zip(members, wanted, strict=True), 1):
        if member.select(chosen).bands != alone.bands:
            raise ModelMismatch(
                f"{spec.location}: member {number} of the ensemble takes the image's bands "
                f"{list(alone.bands)} alone, but not beside members that need "
                f"{list(chosen.bands)}. Set `bands` for every member."
            )
    return chosen


def _select_bands(member: Member, block: Block) -> Block:
    """Return the block with the member's own bands."""
    spec = member.select(block.spec)
    if spec.bands == block.spec.bands:
        return replace(block, spec=spec)
    channels = [block.spec.bands.index(band) for band in spec.bands]
    return Block(block.tile, np.ascontiguousarray(block.pixels[..., channels]), block.valid, spec)
