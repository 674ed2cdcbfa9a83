"""Fits one model to the pixels of many images, in as many rounds as the fitter needs.

Each round observes all images, merges the states and concludes, until the result is a model. States
are exact and independent of order, so they are merged as they arrive. An image that cannot be read
contributes nothing, not even its readable tiles, since those depend on the tiling.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from maskloom.segcore.errors import FitError, ModelMismatch, RunError, WorkerDied
from maskloom.segcore.models.protocols import Fitter, Model, concluded
from maskloom.segcore.pipeline.jobs import ImagesJob, RunSettings
from maskloom.segcore.pipeline.records import Failure, PlannedImage
from maskloom.segcore.pipeline.worker import observe
from maskloom.tasks.batching import fitting_jobs
from maskloom.tasks.fanout.protocol import Fanout
from maskloom.tasks.progress import Progress, Silent


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted model, and the images that could not be used for the fit."""

    model: Model
    failures: dict[str, Failure]
    """By URI."""


class _NoImage(FitError):
    """No image is left to fit a model to."""

    def __init__(self, text: str, failure: Failure | None) -> None:
        super().__init__(text)
        self.failure = failure
        """The failure of the first image."""


class _TemporaryFailure(RunError):
    """An image failed for a reason that may be temporary."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(
            f"The model cannot be fitted now: {failure.error} Run the same command again."
        )
        self.failure = failure


def fit_alone(fanout: Fanout, settings: RunSettings, image: PlannedImage) -> Model | Failure:
    """The model fitted to one image alone, or the failure of the fit."""
    try:
        return fit(fanout, settings, [image], Silent()).model
    except _TemporaryFailure as error:
        return error.failure
    except FitError as error:
        return getattr(error, "failure", None) or Failure.of(error)


def fit(
    fanout: Fanout, settings: RunSettings, images: Collection[PlannedImage], progress: Progress
) -> Fit:
    """Fit the model of the settings to all images together; to a blank model if no pixel is valid.
    Raises `FitError` if the images allow no fit.
    """
    model = settings.model
    failures: dict[str, Failure] = {}
    if isinstance(model, Fitter):
        failures = unsuitable(model, images)
    while isinstance(model, Fitter):
        usable = _Usable(images, frozenset(failures))
        if not usable:
            reason = next(iter(failures.values()), None)
            raise _NoImage(
                f"No image is left to fit the model to. {reason.error if reason else ''}".strip(),
                reason,
            )
        total, failed = _round(fanout, replace(settings, model=model), usable, progress)
        failures.update(failed)
        if total is None:
            first = next(iter(failed.values()))
            raise _NoImage(f"No image could be read to fit the model. {first.error}", first)
        model = concluded(model, total, settings.named)
    return Fit(model, failures)


@dataclass(frozen=True, slots=True)
class _Usable(Collection[PlannedImage]):
    """The images of a round of fitting."""

    images: Collection[PlannedImage]
    failed: frozenset[str]
    """URIs of those that cannot be used."""

    def __iter__(self) -> Iterator[PlannedImage]:
        return (each for each in self.images if each in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def __contains__(self, image: object) -> bool:
        return (
            isinstance(image, PlannedImage)
            and image.spec is not None
            and image.source.uri not in self.failed
        )


def unsuitable(fitter: Fitter, images: Iterable[PlannedImage]) -> dict[str, Failure]:
    """Images that lack bands, or that differ in kind from most (k-means on colours cannot use a
    grey image). Failures by URI.
    """
    failures: dict[str, Failure] = {}
    of_kind: dict[Hashable, list[str]] = {}
    for image in images:
        if image.spec is not None and image.failure is None:
            try:
                kind = fitter.kind_of(fitter.select(image.spec))
                of_kind.setdefault(kind, []).append(image.source.uri)
            except ModelMismatch as error:
                failures[image.source.uri] = Failure.of(error)
    usual = max(of_kind, key=lambda kind: len(of_kind[kind]), default=None)
    for kind, uri in ((kind, uri) for kind, uris in of_kind.items() for uri in uris):
        if kind != usual:
            mismatch = ModelMismatch(
                f"{uri} has {kind} band(s), most images of the collection have {usual}; one "
                "model cannot be fitted to both. Choose `bands` that all images have, set "
                "`fit: image`, or run them separately."
            )
            failures[uri] = Failure.of(mismatch)
    return failures


def _round(
    fanout: Fanout, settings: RunSettings, images: Collection[PlannedImage], progress: Progress
) -> tuple[Any, dict[str, Failure]]:
    fitter = settings.model
    if not isinstance(fitter, Fitter):
        raise TypeError(f"{type(fitter).__name__} has nothing left to fit")
    total: Any = None
    of_image: dict[str, Any] = {}
    failures: dict[str, Failure] = {}
    progress.start("fit", images, settings)
    for job, answer in fanout.map(observe, fitting_jobs(settings, images, fanout.workers)):
        of_job = job.images if isinstance(job, ImagesJob) else (job.image,)
        if isinstance(answer, WorkerDied):
            failures.update((image.source.uri, Failure.of(answer)) for image in of_job)
            continue
        for image, failure in answer.failures:
            if not failure.permanent:
                # Without this image the model would be another one, and no result may depend on a
                # temporary fault.
                raise _TemporaryFailure(failure)
            failures[image.source.uri] = failure
        progress.advance(job)
        if answer.state is None:
            continue
        if isinstance(job, ImagesJob):
            total = answer.state if total is None else fitter.merge(total, answer.state)
        else:
            uri = job.image.source.uri
            of_image[uri] = (
                answer.state if uri not in of_image else fitter.merge(of_image[uri], answer.state)
            )
    for uri, state in of_image.items():
        if uri not in failures:
            total = state if total is None else fitter.merge(total, state)
    return total, failures
