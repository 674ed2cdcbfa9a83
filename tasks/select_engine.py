"""Selects the engine and precision of a network by trials on one worker.

All workers then use the same selection, and so do later runs on new images: labels must not depend
on which engine is faster on which machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import RunError, TimedOut, WeightsError, WorkerDied
from maskloom.segcore.models.selection import Selections, pending_selections
from maskloom.segcore.pipeline.jobs import SelectEngineJob
from maskloom.segcore.pipeline.worker import select_engine as select_on_worker

if TYPE_CHECKING:
    from maskloom.segcore.models.protocols import Fitter, Model
    from maskloom.segcore.pipeline.records import PlannedImage
    from maskloom.tasks.fanout.protocol import Fanout

_IMAGES_TRIED = 8
_DEATHS = 2
"""Number of images whose trial kills its worker after which the model is taken to be at fault."""


def select_engines(
    fanout: Fanout, model: Fitter | Model, images: Iterable[PlannedImage]
) -> Selections:
    """Make the pending selections of a model, by trials on the first readable images.

    Raises `WeightsError` if no engine suits or a trial hangs, and `RunError` if trials kill their
    workers.
    """
    usable = (image for image in images if image.spec is not None and image.failure is None)
    readable = tuple(islice(usable, _IMAGES_TRIED))
    wanted = pending_selections(model)
    jobs = [SelectEngineJob(selector, readable) for selector in wanted.values()]
    made: dict[str, Mapping[str, Any]] = {}
    deaths = 0
    for job, answer in fanout.map(select_on_worker, jobs):
        if isinstance(answer, WorkerDied):
            # A single image that kills its worker does not end the run; it becomes a failed row
            # when it is segmented.
            deaths += 1
            if deaths < min(len(readable), _DEATHS):
                continue
            if isinstance(answer, TimedOut):
                raise WeightsError(f"The network cannot be tried: {answer}")
            raise RunError(
                f"The network cannot be tried: {answer} Look for a lack of memory (cluster.memory, "
                "segmenter.patch)."
            )
        if answer is not None and job.selector.pending_selection is not None:
            made.setdefault(job.selector.pending_selection, answer)
    return made
