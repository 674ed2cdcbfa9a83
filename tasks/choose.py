"""Engine selection on a worker, once per run.

Every worker then uses the same engine and precision, and so does a rerun with new images: labels
must not depend on which engine happened to be faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import RunError, TimedOut, WeightsError, WorkerDied
from maskloom.segcore.models.selection import Selections, pending_selections
from maskloom.segcore.pipeline.jobs import SelectEngineJob
from maskloom.segcore.pipeline.worker import select_engine as select_on_worker

if TYPE_CHECKING:
    from maskloom.segcore.models.protocols import Fitter, Model
    from maskloom.segcore.pipeline.records import PlannedImage
    from maskloom.tasks.fanout.dask import Fanout

_IMAGES_TRIED = 8
_DEATHS = 2
"""Images whose workers may die before the model is blamed."""


def select_engines(
    fanout: Fanout, model: Fitter | Model, items: Sequence[PlannedImage]
) -> Selections:
    """Make the selections pending inside the model, on the first of the images that can be read.

    Raises `WeightsError` if no engine is suitable or the model never ends, and `RunError` if trying
    it kills the worker.
    """
    readable = tuple(item for item in items if item.spec is not None and item.failure is None)[
        :_IMAGES_TRIED
    ]
    wanted = pending_selections(model)
    jobs = [SelectEngineJob(selector, readable) for selector in wanted.values()]
    made: dict[str, Mapping[str, Any]] = {}
    deaths = 0
    for job, answer in fanout.map(select_on_worker, jobs):
        if isinstance(answer, WorkerDied):
            # One image that kills does not end the run; it becomes a failed row when its own turn
            # comes.
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
