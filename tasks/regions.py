"""Fits segmenters to a region of an image and runs them there in memory, one job each.

Audits and comparisons segment the same region several times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskloom.segcore.errors import RunError, WorkerDied
from maskloom.segcore.pipeline.in_memory import Mask, fit_to, segment_source, with_selection
from maskloom.segcore.processes import limits

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.models.protocols import Fitter, Model
    from maskloom.segcore.pipeline.in_memory import ImageSource
    from maskloom.tasks.fanout.protocol import Fanout


@dataclass(frozen=True, slots=True)
class RegionSelectionJob:
    """A segmenter whose engines are to be selected on a region."""

    segmenter: Fitter | Model
    region: ImageSource

    def split(self) -> tuple[RegionSelectionJob, ...]:
        """Itself: it is one region already."""
        return (self,)


@dataclass(frozen=True, slots=True)
class RegionJob:
    """A segmenter to fit to a region and to run on it."""

    number: int
    """Position of the job among all."""
    name: str
    """For messages."""
    segmenter: Fitter | Model
    region: ImageSource
    tile: Shape | None = None
    """Shape of the tiles. None: the region is one tile."""

    def split(self) -> tuple[RegionJob, ...]:
        """Itself: it is one region already."""
        return (self,)


@dataclass(frozen=True, slots=True, eq=False)
class SegmentedRegion:
    """The result of a `RegionJob`."""

    model: Model
    mask: Mask


def select_engines_on(
    fanout: Fanout, segmenter: Fitter | Model, region: ImageSource
) -> Fitter | Model:
    """The segmenter with its engines selected on a worker. Raises `RunError` if the selection kills
    the worker.
    """
    ((_, answer),) = fanout.map(select_in_region, [RegionSelectionJob(segmenter, region)])
    if isinstance(answer, WorkerDied):
        raise _killed("The segmenter cannot be tried", answer)
    return answer


def segment_regions(
    fanout: Fanout, jobs: Sequence[RegionJob], on_progress: Callable[[int], None]
) -> list[SegmentedRegion]:
    """The results in the order of the jobs; `on_progress` is called with the number of jobs done.

    Raises `FitError` and the other errors of segmenters, and `RunError` if a job kills its worker.
    """
    results: dict[int, SegmentedRegion] = {}
    for job, answer in fanout.map(segment_region, jobs):
        if isinstance(answer, WorkerDied):
            raise _killed(f"{job.name} cannot be run", answer)
        results[job.number] = answer
        on_progress(len(results))
    return [results[number] for number in sorted(results)]


def select_in_region(job: RegionSelectionJob) -> Fitter | Model:
    """The segmenter of a job with its engines selected."""
    return with_selection(job.segmenter, job.region)


def segment_region(job: RegionJob) -> SegmentedRegion:
    """The model of a job, fitted to its region, and the mask."""
    pixels = job.region.spec.pixels
    limits.begin_work(pixels)
    model = fit_to(with_selection(job.segmenter, job.region), [job.region], job.tile)
    limits.begin_work(pixels)
    return SegmentedRegion(model, segment_source(model, job.region, job.tile))


def _killed(failed: str, error: WorkerDied) -> RunError:
    return RunError(f"{failed}: {error} Look for a lack of memory (cluster.memory).")
