"""What must not grow with the number of images: memory of the driver, and calls of the store for
each image. Times are measured by tests/benchmarks/bench_soak.py.
"""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskloom.flows import segment as flow
from maskloom.flows.inventory import Sharing, take_inventory
from maskloom.flows.progress.displays import Quiet
from maskloom.flows.progress.run import RunProgress
from maskloom.flows.recipes import run as recipes
from maskloom.flows.stages import Stages
from maskloom.segcore.pipeline.records import ImageResult, PlannedImage
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.storage.store import Store
from maskloom.tasks import plan as planning
from maskloom.tasks import plan_file
from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.last_run import LastRun
from maskloom.tasks.plan import Fingerprint, empty_plan, make_shards
from maskloom.tasks.plan_file import read_plan, write_plan

WORK = Fingerprint("name", "f1", {})


def planned(count: int) -> Iterator[PlannedImage]:
    """So many images, made one at a time."""
    for i in range(count):
        uri = f"s3://a-bucket/with/some/folders/{i:09d}.png"
        spec = RasterSpec(uri, "picture", (16, 16), (1,), "uint8", (16, 16), f"v{i}", 1)
        yield PlannedImage(Source(uri, f"{i:09d}", f"v{i}", 85), spec)


def peak_of_plan(store: Store, count: int) -> int:
    """Bytes in use at most while a plan of so many images is written, and read shard by shard."""
    gc.collect()
    tracemalloc.start()
    identity = f"run-{count}"
    shards = make_shards(identity, planned(count), {}, apart_by_crs=False)
    write_plan(store, empty_plan(WORK, LastRun(), identity), shards)
    plan = read_plan(store, identity)
    assert plan is not None
    assert sum(1 for _ in plan.images) == len(plan.images) == count
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_a_plan_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_file, "ROW_GROUP", 250)
    monkeypatch.setattr(planning, "SHARD_IMAGES", 50)
    store = Store(str(tmp_path))
    peak_of_plan(store, 1)  # what is imported and cached once
    few, many = peak_of_plan(store, 1_000), peak_of_plan(store, 5_000)
    # An image whose header is in memory takes a kilobyte.
    assert (many - few) / 4_000 < 150
    metadata = pq.read_metadata(tmp_path / "runs" / "run-5000" / "plan.parquet")
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sum(groups) == 5_000
    assert max(groups) <= 250 + 50


class Watching(RunProgress):
    """Counts the images and results that are alive whenever a job is done."""

    def __init__(self) -> None:
        super().__init__(Quiet())
        self.most = 0

    def advance(self, job: object) -> None:
        alive = sum(isinstance(each, PlannedImage | ImageResult) for each in gc.get_objects())
        self.most = max(self.most, alive)


@pytest.fixture
def run_of(tmp_path):
    """A run over so many tiny pictures in this process, watched."""
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)

    def run(count: int) -> int:
        folder = tmp_path / f"in-{count}"
        folder.mkdir()
        for i in range(count):
            Image.fromarray(pixels).save(folder / f"{i}.png")
        document = {
            "inputs": str(folder),
            "output": str(tmp_path / f"out-{count}"),
            "segmenter": {"kind": "threshold", "value": 100},
            "cluster": "serial",
        }
        recipe, progress = recipes.make(document, Path(tmp_path)), Watching()
        with SerialCluster().opened(partial(prepare_process, {}), threading.Event()) as fanout:
            inventory = take_inventory(recipe, to_write=True)
            outcome = flow.segment(recipe, inventory, Stages(), fanout, progress, Sharing())
        assert (outcome.done, outcome.failed) == (count, 0)
        return progress.most

    return run


def test_images_and_results_alive_in_the_driver_do_not_grow_with_the_run(run_of, monkeypatch):
    monkeypatch.setattr(flow, "SHARDS_AT_ONCE", 1)
    monkeypatch.setattr(planning, "SHARD_IMAGES", 4)
    monkeypatch.setattr(plan_file, "ROW_GROUP", 4)
    assert run_of(24) <= run_of(8)


def test_an_image_costs_the_same_calls_of_the_store_however_many_there_are(run_of, monkeypatch):
    calls: Counter[str] = Counter()

    def counted(name: str) -> None:
        before = getattr(Store, name)

        def call(self: Store, *arguments: object, **options: object) -> object:
            calls[name] += 1
            return before(self, *arguments, **options)

        monkeypatch.setattr(Store, name, call)

    for name in ("exists", "read", "open", "listed", "remove", "publish_new", "writing"):
        counted(name)
    totals = []
    for count in (4, 14, 24):
        calls.clear()
        run_of(count)
        totals.append(calls.copy())
    ten, more = ({name: b[name] - a[name] for name in b} for a, b in pairwise(totals))
    assert ten == more, "the cost of an image grows with their number"
    # A mask and a preview are written; the tables are written by the shard.
    assert {name: number for name, number in ten.items() if number} == {"writing": 20}
