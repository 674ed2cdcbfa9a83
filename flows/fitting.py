"""The model of a run, with the engines selected and the classes fitted now, or as recorded."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import partial

from maskloom.flows.inventory import Inventory
from maskloom.segcore.models.files import dump_model, model_of
from maskloom.segcore.models.protocols import is_blank
from maskloom.segcore.models.selection import with_selections
from maskloom.segcore.pipeline.jobs import RunSettings
from maskloom.segcore.pipeline.records import Plan, PlannedImage
from maskloom.segcore.storage.store import Store
from maskloom.tasks.commits.recorded import CHOICES, MODEL, record, recorded, require_model
from maskloom.tasks.fanout.protocol import Fanout
from maskloom.tasks.fit import fit
from maskloom.tasks.plan_file import with_changed
from maskloom.tasks.progress import Progress
from maskloom.tasks.select_engine import select_engines

log = logging.getLogger("maskloom.run")


def with_engines(
    settings: RunSettings, plan: Plan, inventory: Inventory, fanout: Fanout, progress: Progress
) -> RunSettings:
    """The settings with the engine and precision that an earlier run selected, or selected now."""
    store = Store(settings.output)
    load = partial(with_selections, settings.model)
    model = recorded(store, plan, inventory.committed, CHOICES, load)
    if model is not None:
        return replace(settings, model=model)
    progress.start("load the network and try engines", [], settings)
    selections = select_engines(fanout, settings.model, plan.images)
    if not selections:
        return replace(settings, model=load(selections))
    for selection in selections.values():
        if note := selection["record"].get("note"):
            log.warning("%s.", note)
    content = json.dumps(selections, indent=1).encode()
    return replace(settings, model=record(store, plan, CHOICES, content, load))


def with_model(
    settings: RunSettings, plan: Plan, inventory: Inventory, fanout: Fanout, progress: Progress
) -> tuple[RunSettings, Plan]:
    """The settings with the fitted model, and the plan, in which images that cannot be fitted are
    marked as failed.
    """
    store = Store(settings.output)
    known = recorded(store, plan, inventory.committed, MODEL, model_of)
    if known is not None:
        return replace(settings, model=known), plan
    require_model(store, plan, inventory.committed)
    if all(image.spec is None for image in plan.images):
        return settings, plan
    fitted = fit(fanout, settings, plan.images, progress)
    model = fitted.model
    if is_blank(model):
        # Not recorded, so that the next run, whose images may have valid pixels, fits a model.
        log.warning(
            "No image has a valid pixel: there is nothing to fit, and all masks are nodata."
        )
    else:
        model = record(store, plan, MODEL, dump_model(model).encode(), model_of)
    failures = fitted.failures

    def marked(image: PlannedImage) -> PlannedImage:
        return (
            replace(image, failure=failures[image.source.uri])
            if image.source.uri in failures and image.failure is None
            else image
        )

    return replace(settings, model=model), with_changed(plan, marked) if failures else plan
