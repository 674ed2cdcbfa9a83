"""The plan of a run: that of the interrupted run, or a new one for the pending images."""

from __future__ import annotations

import platform
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from maskloom.flows.inventory import WRITTEN, Inventory
from maskloom.flows.progress.run import RunProgress
from maskloom.flows.recipes.run import RunRecipe
from maskloom.segcore.pipeline.records import Plan
from maskloom.segcore.storage.records import damaged_record
from maskloom.segcore.storage.store import Store
from maskloom.tasks.describe import describe_sources
from maskloom.tasks.fanout.protocol import Fanout
from maskloom.tasks.memory import WORKER_MEMORY, suitable, without_room
from maskloom.tasks.plan import empty_plan, in_order_of_files, make_shards
from maskloom.tasks.plan_file import read_plan, with_addresses, write_plan

_LIBRARIES = (
    "numpy",
    "scipy",
    "scikit-image",
    "scikit-learn",
    "opencv-python-headless",
    "rasterio",
    "pyarrow",
    "dask",
    "prefect",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "jax",
    "torch",
    "openvino",
    "onnxruntime",
    "onnxruntime-gpu",
)


def plan_run(
    recipe: RunRecipe, inventory: Inventory, fanout: Fanout, progress: RunProgress
) -> Plan:
    """The plan of the interrupted run, or a new one from the headers of the pending images."""
    store, work = Store(recipe.output), recipe.work
    head = inventory.head
    identity = inventory.run_id
    settings, available = recipe.run_settings(identity), recipe.cluster.worker_memory
    interrupted = read_plan(store, identity)
    if interrupted is not None:
        for _ in suitable(settings, interrupted.images, available):
            pass
        return with_addresses(interrupted, inventory.sources)
    read = progress.items("read headers", "files", len(inventory.pending))
    found = describe_sources(
        fanout,
        in_order_of_files(inventory.pending, inventory.committed),
        recipe.format,
        recipe.options,
        lambda: inventory.ids,
        read,
    )
    images = suitable(settings, without_room(found, available), available)
    passed_over = {"passed_over": dict(inventory.passed_over)} if inventory.passed_over else {}
    recorded_settings = {
        **work.settings,
        **passed_over,
        "libraries": _versions(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        WORKER_MEMORY: available,
        WRITTEN: dict(recipe.written),
    }
    plan = empty_plan(replace(work, settings=recorded_settings), head, identity)
    shards = make_shards(identity, images, inventory.committed, work.apart_by_crs)
    write_plan(store, plan, shards)
    written = read_plan(store, identity)
    if written is None:
        raise damaged_record(store, f"runs/{identity}/plan.json")
    return with_addresses(written, inventory.sources)


@cache
def _versions() -> dict[str, Any]:
    # The metadata of a distribution are read and parsed each time.
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
