"""Compares the masks of a run with truth masks, one job per image.

Images are read tile by tile, so that a worker holds a tile of an image and its truth. Results are
sorted by their images: they do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskloom.segcore.errors import ImageError, RecipeError, Unavailable, WorkerDied
from maskloom.segcore.evaluation.scoring import (
    EvaluatedImage,
    EvaluationOptions,
    Score,
    TileView,
    TruthMismatch,
    score,
    view,
)

if TYPE_CHECKING:
    from maskloom.tasks.fanout.protocol import Fanout


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """An image to compare with its truth."""

    number: int
    """Position of the image among all."""
    image: EvaluatedImage
    options: EvaluationOptions

    def split(self) -> tuple[ScoreJob, ...]:
        """Itself: it is one image already."""
        return (self,)


@dataclass(frozen=True, slots=True)
class ViewJob:
    """A tile of an image to show beside its truth."""

    image: EvaluatedImage
    options: EvaluationOptions
    tile: int
    """Number of the tile."""

    def split(self) -> tuple[ViewJob, ...]:
        """Itself: it is one image already."""
        return (self,)


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """An image that could not be compared."""

    image_id: str
    reason: str
    usage: bool
    """Whether the options do not suit the image, rather than one of its files being broken."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The results of all images, in their order."""

    scores: tuple[Score, ...]
    failures: tuple[ImageFailure, ...]


def score_images(
    fanout: Fanout,
    images: Iterable[EvaluatedImage],
    options: EvaluationOptions,
    on_progress: Callable[[int], None],
) -> Scored:
    """Compare images with their truths; `on_progress` is called with the number of images done.

    A failure of one image does not stop the others. Raises `Unavailable` if a store fails.
    """
    jobs = (ScoreJob(number, image, options) for number, image in enumerate(images))
    results: dict[int, Score | ImageFailure] = {}
    for job, answer in fanout.map(score_image, jobs):
        results[job.number] = (
            ImageFailure(job.image.image_id, str(answer), usage=False)
            if isinstance(answer, WorkerDied)
            else answer
        )
        on_progress(len(results))
    ordered = [results[number] for number in sorted(results)]
    return Scored(
        tuple(each for each in ordered if isinstance(each, Score)),
        tuple(each for each in ordered if isinstance(each, ImageFailure)),
    )


def view_images(
    fanout: Fanout,
    images: Iterable[EvaluatedImage],
    options: EvaluationOptions,
    tiles: Mapping[str, int],
) -> dict[str, TileView]:
    """A tile of each image, by `image_id`. An image that kills its worker has none."""
    jobs = (ViewJob(image, options, tiles[image.image_id]) for image in images)
    return {
        job.image.image_id: answer
        for job, answer in fanout.map(view_image, jobs)
        if not isinstance(answer, WorkerDied)
    }


def score_image(job: ScoreJob) -> Score | ImageFailure:
    """The score of a job's image, or its failure. Raises `Unavailable`."""
    try:
        return score(job.image, job.options)
    except Unavailable:
        raise
    except (RecipeError, ImageError) as error:
        usage = isinstance(error, RecipeError) and not isinstance(error, TruthMismatch)
        return ImageFailure(job.image.image_id, str(error), usage)


def view_image(job: ViewJob) -> TileView:
    """The view of a job's tile. Raises as `segcore.evaluation.scoring.view`."""
    return view(job.image, job.options, job.tile)
