"""Scaling of the images of a training: by the same numbers for all, or by numbers found in each.

They are found in all valid pixels of an image, as in inference
(`segcore.deep.inference.image_scaling`), before the first patch is drawn: a patch is scaled by the
numbers of its image, never by its own. In use, the network then gets the same input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import fsspec

from maskloom.segcore.deep.inference.image_scaling import Finder, finder_of
from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.errors import FitError, ImageError, RecipeError
from maskloom.segcore.processes.helpers import spread
from maskloom.segcore.storage.filesystems import configure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from maskloom.segcore.training.dataset import Dataset
    from maskloom.segcore.training.setup import OnProgress

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Scalings:
    """The scaling of each image of a training."""

    how: Scaling | ImageScaling
    found: tuple[Scaling, ...] = ()
    """What an `ImageScaling` found in each image, by number; empty for a `Scaling`."""

    def of(self, number: int) -> Scaling | None:
        """What was found in an image. None: nothing had to be."""
        return self.found[number] if self.found else None

    def apply(self, number: int, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return pixels (..., band) of an image, scaled, as a new float32 array."""
        if isinstance(self.how, Scaling):
            return self.how.apply(pixels)
        return self.how.apply(self.found[number], pixels)


def find_scalings(
    dataset: Dataset,
    how: Scaling | ImageScaling,
    on_progress: OnProgress,
    known: Mapping[int, Scaling],
    processes: int = 1,
) -> Scalings:
    """The scaling of each image, found in it unless it is `known`, by number; `on_progress` is
    called for each image. At most so many `processes` share the work. Raises `RecipeError`, naming
    the image, where nothing can be found.
    """
    if isinstance(how, Scaling):
        return Scalings(how)
    found = dict(known)
    wanted = [number for number in range(len(dataset.pairs)) if number not in found]
    here = partial(_scaling_of, dataset, how)
    prepare = partial(_finder, dict(fsspec.config.conf), dataset, how)
    answers = spread(here, prepare, wanted, processes, [dataset.memory])
    for number, scaling in zip(wanted, answers, strict=True):
        on_progress(number, len(dataset.pairs))
        found[number] = scaling
    return Scalings(how, tuple(found[number] for number in range(len(dataset.pairs))))


def note_on_contrast(scalings: Scalings, dataset: Dataset) -> list[str]:
    """A warning about images whose deviation or range is 0, for the user."""
    names = [
        dataset.pairs[number].name
        for number, found in enumerate(scalings.found)
        if _has_no_spread(scalings.how, found)
    ]
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    note = (
        f"scaling: {len(names)} of {len(dataset.pairs)} images have no contrast in a band "
        f"({', '.join(names[:_SHOWN])}{more}), so scaling by the image shows nothing of it. If "
        "they are not meant to be blank, check them, or add them to `split.leave_out`."
    )
    return [note]


def _finder(
    stores: Mapping[str, Mapping[str, Any]], dataset: Dataset, how: ImageScaling
) -> Callable[[int], Scaling]:
    """The work of a process that finds scalings."""
    configure(stores)
    return partial(_scaling_of, dataset, how)


def _scaling_of(dataset: Dataset, how: ImageScaling, number: int) -> Scaling:
    """The scaling of an image. Raises `RecipeError`."""
    location = dataset.pairs[number].image.location
    try:
        found = _found(dataset, how, number)
        if how.by == "range" and how.clip is None and _has_no_spread(how, found):
            whole = _found(dataset, replace(how, percentiles=(0.0, 100.0)), number)
            _require_range(location, how, found, whole)
    except FitError as error:
        raise RecipeError(
            f"scaling: {location}: {error} Or add the image to `split.leave_out`."
        ) from error
    except ImageError as error:
        raise RecipeError(f"{error} Fix the file, or add it to `split.leave_out`.") from error
    return found


def _found(dataset: Dataset, how: ImageScaling, number: int) -> Scaling:
    step: Finder | Scaling = finder_of(how)
    while isinstance(step, Finder):
        step = step.finish(reduce(step.merge, map(step.observe, dataset.blocks(number))))
    return step


def _has_no_spread(how: Scaling | ImageScaling, found: Scaling) -> bool:
    """Whether the deviation or the range of a band is 0."""
    return isinstance(how, ImageScaling) and 1 / how.eps in found.factor


def _require_range(location: str, how: ImageScaling, found: Scaling, whole: Scaling) -> None:
    """Raise `RecipeError` if the percentiles of a band are equal and its least and greatest value,
    which scale it to `whole`, are not: differences would be divided by nothing but `eps`.
    """
    low, high = how.percentiles
    for offset, factor, of_all in zip(found.offset, found.factor, whole.factor, strict=True):
        if factor == 1 / how.eps != of_all:
            raise RecipeError(
                f"scaling.percentiles: in {location} percentiles {low:g} and {high:g} are both "
                f"{offset:g}, but other values differ; scaled by a range of 0 they would be "
                "enormous. Set percentiles farther apart, a `clip`, or `by: deviation`; or add "
                "the image to `split.leave_out`."
            )
