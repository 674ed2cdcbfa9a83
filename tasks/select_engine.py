"""Engine selection: a network's engine and precision, tried on one worker, fixed for the run.

All workers then use the same, and so does a later run on new images: labels must not depend on
which engine was faster on which machine.
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
    from maskloom.tasks.fanout.protocol import Fanout

_IMAGES_TRIED = 8
_DEATHS = 2
"""Images on which a trial kills its worker before the model is to blame."""


def select_engines(
    fanout: Fanout, model: Fitter | Model, images: Sequence[PlannedImage]
) -> Selections:
    """Make the selections pending inside the model, by trials on the first readable images.

    Raises `WeightsError` where no engine suits or a trial hangs, and `RunError` where it kills the
    worker.
    """
    readable = tuple(image for image in images if image.spec is not None and image.failure is None)[
        :_IMAGES_TRIED
    ]
    wanted = pending_selections(model)
    jobs = [SelectEngineJob(selector, readable) for selector in wanted.values()]
    made: dict[str, Mapping[str, Any]] = {}
    deaths = 0
    for job, answer in fanout.map(select_on_worker, jobs):
        if isinstance(answer, WorkerDied):
            # One image that kills does not end the run; it becomes a failed row when it is
            # segmented.
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
