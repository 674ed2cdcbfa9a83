"""Choose: what models leave to the machine that runs them (a network's engine and precision),
decided on a worker once for a run.

Every worker then runs alike, and so does the rerun that takes new images: labels must not depend on
who happened to be faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import RunError, TimedOut, WeightsError, WorkerDied
from maskloom.segcore.models.selection import Choices, open_choices
from maskloom.segcore.pipeline.jobs import ChooseJob
from maskloom.segcore.pipeline.worker import choose as choose_on_worker

if TYPE_CHECKING:
    from maskloom.segcore.models.protocols import Fitter, Model
    from maskloom.segcore.pipeline.records import PlannedImage
    from maskloom.tasks.fanout.protocol import Fanout

_IMAGES_TRIED = 8
_DEATHS = 2
"""Images on which trying a model kills before it is the model that kills."""


def choose(fanout: Fanout, model: Fitter | Model, items: Sequence[PlannedImage]) -> Choices:
    """The choices that are open inside the model, tried on the first of the images that can be
    read.

    Raises `WeightsError` where no way suits or the model never ends, and `RunError` where trying
    kills the worker.
    """
    readable = tuple(item for item in items if item.spec is not None and item.failure is None)[
        :_IMAGES_TRIED
    ]
    wanted = open_choices(model)
    jobs = [ChooseJob(chooser, readable) for chooser in wanted.values()]
    made: dict[str, Mapping[str, Any]] = {}
    deaths = 0
    for job, answer in fanout.map(choose_on_worker, jobs):
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
        if answer is not None and job.chooser.open_choice is not None:
            made.setdefault(job.chooser.open_choice, answer)
    return made
