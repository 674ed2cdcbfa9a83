"""Choose: what models leave to the machine that runs them (a network's engine and precision), decided on a worker once for a run.

Every worker then runs alike, and so does the rerun that takes new images: labels must not depend on who happened to be faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from segcore.choices import Choices, open_choices
from segcore.errors import RunError, WorkerDied
from segcore.jobs import ChooseJob
from segcore.work import choose as choose_on_worker

if TYPE_CHECKING:
    from segcore.manifest import Item
    from segcore.model import Fitter, Model
    from tasks.fanout import Fanout

_IMAGES_TRIED = 8


def choose(fanout: Fanout, model: Fitter | Model, items: Sequence[Item]) -> Choices:
    """The choices that are open inside the model, tried on the first of the images that can be read.

    Raises `WeightsError` where no way suits, and `RunError` where trying kills the worker.
    """
    readable = tuple(item for item in items if item.spec is not None and item.failure is None)[:_IMAGES_TRIED]
    wanted = open_choices(model)
    jobs = [ChooseJob(chooser, readable) for chooser in wanted.values()]
    made = {}
    for job, answer in fanout.map(choose_on_worker, jobs):
        if isinstance(answer, WorkerDied):
            raise RunError(f"The network cannot be tried: {answer} Look for a lack of memory (cluster.memory, segmenter.patch).")
        if answer is not None and job.chooser.open_choice is not None:
            made[job.chooser.open_choice] = answer
    return made
