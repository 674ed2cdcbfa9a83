"""Feeding of a training: python tests/benchmarks/bench_training.py FOLDER [BATCH] [PRECISION].

FOLDER has `images` and `labels`, one number per object. First the check of all images and masks,
without and with what an earlier one has left; then the patches a second that one core draws; then
training of a U-Net of depth 4 and 16 channels (1.94 million weights) on patches of 256: on one
constant batch, fed by a thread, and fed by processes, in turn: two, or on a GPU as many as maskloom
takes of its own accord (there the constant batch lies on the card). A ratio of 1 means that the
network never waits. The ratio of the processor's seconds is not spoiled by other work on the
machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice, repeat
from pathlib import Path
from statistics import median
from typing import Any

import cv2

AUGMENTATION = [
    "flip",
    "rotate90",
    {"kind": "scale", "by": 0.6},
    "elastic",
    *("gain", "brightness", "colour", "gamma"),
    {"kind": "invert", "fraction": 0.1},
    *("noise", "blur"),
]
"""Of NUCLEI, all of them."""
ROUNDS = 7
STEPS = int(os.environ.get("STEPS", "6"))
"""Steps a round; a GPU takes more than a queue of batches holds only if there are some hundreds."""


class Silent:
    """A monitor that shows nothing."""

    def checked(self, what: str, done: int, of: int) -> None:
        """Nothing."""


def timed(trainer: Any, batches: Iterable[Any]) -> tuple[float, float]:
    """Seconds on the wall and of this process for some steps."""
    wall, busy = time.perf_counter(), time.process_time()
    for arguments in batches:
        float(trainer.train_on_batch(*arguments))
    return time.perf_counter() - wall, time.process_time() - busy


def main() -> None:
    """Measure and print."""
    from maskloom.flows import train as flow
    from maskloom.flows.recipes import training as recipes
    from maskloom.segcore.deep.inference.runtime import import_keras
    from maskloom.segcore.storage.store import Store
    from maskloom.segcore.training.feeding import (
        Drawing,
        Feed,
        ProcessFeed,
        ThreadFeed,
        feeding,
        on_device,
        runs_on_accelerator,
    )
    from maskloom.segcore.training.loop import TrainingLoop
    from maskloom.segcore.training.run import prepare
    from maskloom.segcore.training.sampling import Sampler, SamplingOptions

    folder = Path(sys.argv[1]).absolute()
    batch = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    import_keras()
    with tempfile.TemporaryDirectory() as output:
        os.environ["MASKLOOM_CACHE"] = f"{output}/cache"
        run = recipes.make(
            {
                "name": "bench",
                "images": str(folder / "images"),
                "masks": str(folder / "labels"),
                "output": f"{output}/model",
                "network": {"kind": "unet", "width": 16, "depth": 4, "normalisation": "batch"},
                "classes": ["background", "object"],
                "labels": {"kind": "instances"},
                "bands": [1, 2, 3],
                "training": {
                    "patch": 256,
                    "batch": batch,
                    "augmentation": AUGMENTATION,
                    "precision": sys.argv[3] if len(sys.argv) > 3 else "float32",
                },
            },
            folder,
        )
        for what in ("first", "second"):
            started = time.perf_counter()
            sources = flow.sources(run)
            prepared = prepare(run.recipe, sources, run.settings, Silent(), lambda: False)
            seconds = time.perf_counter() - started
            print(f"check of {len(sources[0])} images, {what} start: {seconds:.2f} s", flush=True)
        setup = prepared.setup
        cv2.setNumThreads(1)
        for name, augmentation in (("none", ()), ("all", setup.recipe.augmentation)):
            options = SamplingOptions(setup.patch_shape, batch, 0.5, 0, augmentation)
            sampler = Sampler(
                setup.dataset, setup.class_counts, setup.training, setup.scalings, options
            )
            sampler.batch(1, 0)
            busy = time.process_time()
            for step in range(40):
                sampler.batch(0, step)
            rate = 40 * batch / (time.process_time() - busy)
            print(f"one core draws, augmentation {name}: {rate:.0f} patches/s", flush=True)
        loop = TrainingLoop(setup, prepared.task, Store(f"{output}/model"))
        drawing = Drawing(sampler, prepared.task.arguments)
        constant, on_gpu = drawing(0, 0), runs_on_accelerator()
        if on_gpu:
            constant = on_device(constant)
        timed(loop._trainer, repeat(constant, 3))
        several: Any = (
            feeding(drawing, 10**6, setup.recipe.training)
            if on_gpu
            else closing(ProcessFeed(drawing, 10**6, 2))
        )
        with several as processes:

            def constantly(_: int) -> Iterator[Any]:
                return repeat(constant, STEPS)

            def fed_by(feed: Feed, number: int) -> Iterator[Any]:
                with closing(feed.batches(0, number * STEPS)) as batches:
                    yield from islice(batches, STEPS)

            ways = {
                "constant batch": constantly,
                "a thread": lambda number: fed_by(ThreadFeed(drawing, 10**6), number),
                "processes": lambda number: fed_by(processes, number),
            }
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for number in range(ROUNDS):
                for name, way in ways.items():
                    found[name].append(timed(loop._trainer, way(number)))
        walls = {name: [wall for wall, _ in each] for name, each in found.items()}
        for name, each in walls.items():
            ratios = [a / b for a, b in zip(walls["constant batch"], each, strict=True)]
            busy = median(seconds for _, seconds in found[name])
            print(
                f"{name}: {STEPS * batch / median(each):.1f} patches/s, "
                f"{median(ratios):.3f} of the constant batch "
                f"({busy / STEPS / batch * 1000:.1f} ms of this process a patch)",
                flush=True,
            )


if __name__ == "__main__":
    main()
