"""Networks end to end: a whole run against its engine alone: python
tests/benchmarks/bench_networks.py [SIDE] [WIDTH] [PRECISION].

The image is a photograph of SIDE x SIDE pixels (default 4,096), the network a U-Net of depth 4 and
WIDTH channels (default 16), PRECISION is auto by default. The engine that the run has chosen then
labels patches of the same sizes, halos included, in two processes of one thread each, with neither
reading nor writing. Both are warm.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from bench_run import make_image

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.network_model import NetworkModel

PARTS = 2


def label_part(model: NetworkModel, side: int, part: int) -> float:
    """Seconds of every second patch of an image, or of one patch to warm up where `part` is
    negative.
    """
    from maskloom.segcore.deep.inference.engines.opening import configure, open_engine

    configure(1)
    engine = open_engine(model.weights, model.card, model.running)
    spans = model.layout.spans(0, side, (0, side))
    sizes = [(rows.length, columns.length) for rows in spans for columns in spans]
    patch = np.random.default_rng(0).random((1, *max(sizes), model.card.channels), np.float32)
    chosen = sizes[:1] if part < 0 else sizes[part::PARTS]
    started = time.perf_counter()
    for height, width in chosen:
        engine(np.ascontiguousarray(patch[:, :height, :width]))
    return time.perf_counter() - started


def main() -> None:
    """Train nothing: random weights cost the same. Run, then time the engine alone, then print
    both.
    """
    import keras

    from maskloom.flows.inventory import Sharing, take_inventory
    from maskloom.flows.progress.displays import Quiet
    from maskloom.flows.progress.run import RunProgress
    from maskloom.flows.recipes import run as recipes
    from maskloom.flows.segment import segment
    from maskloom.flows.stages import Stages
    from maskloom.segcore.deep.inference.engines.protocol import Choice
    from maskloom.segcore.deep.inference.files.model_cards import card_of_model
    from maskloom.segcore.deep.inference.files.weights import Weights
    from maskloom.segcore.deep.inference.scaling import Scaling
    from maskloom.segcore.deep.networks.recipe import NETWORKS
    from maskloom.segcore.pipeline.worker import prepare_process
    from maskloom.tasks.clusters.local import LocalCluster

    side, width = (
        (int(sys.argv[1]) if len(sys.argv) > 1 else 4096),
        (int(sys.argv[2]) if len(sys.argv) > 2 else 16),
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_image(folder / "image.tif", side)
        for number in range(PARTS):
            make_image(folder / f"small{number}.tif", 1024)
        keras.utils.set_random_seed(0)
        model = NETWORKS["unet"](width=width, depth=4, normalisation="batch").build(3, 4)
        path = folder / "bench.keras"
        model.save(path)
        card = card_of_model(
            model, "unet", ("a", "b", "c", "d"), Scaling(), Weights.of(str(path)).sha256, {}
        )
        path.with_suffix(".json").write_bytes(replace(card, dtype="uint8").dump())
        section = {
            "kind": "unet",
            "weights": str(path),
            "precision": sys.argv[3] if len(sys.argv) > 3 else "auto",
        }
        with LocalCluster(workers=PARTS).open(
            partial(prepare_process, {}), threading.Event()
        ) as fanout:

            def once(source: Path) -> tuple[float, NetworkModel]:
                output = folder / "out"
                document = {
                    "inputs": str(source),
                    "output": str(output),
                    "segmenter": section,
                    "tiling": {"tile": 1024},
                }
                recipe = recipes.make(document, folder)
                inventory = take_inventory(recipe)
                # The choice is made with the first image and kept for later ones, as in a scheduled
                # run.
                started = time.perf_counter()
                segment(recipe, inventory, Stages(), fanout, RunProgress(Quiet()), Sharing())
                seconds = time.perf_counter() - started
                choice = next(
                    iter(json.loads(next(output.glob("runs/*/choices.json")).read_text()).values())
                )
                return seconds, replace(recipe.segmenter, choice=Choice(**choice))

            for number in range(PARTS):
                once(folder / f"small{number}.tif")
            seconds, model = once(folder / "image.tif")
        with ProcessPoolExecutor(PARTS, mp_context=get_context("spawn")) as pool:
            list(pool.map(partial(label_part, model, side), [-1] * PARTS))
            started = time.perf_counter()
            list(pool.map(partial(label_part, model, side), range(PARTS)))
            alone = time.perf_counter() - started
    megapixels = side * side / 1e6
    running = model.running
    print(f"{running.engine} {running.precision}: {json.dumps(dict(running.record))}")
    print(
        f"run    {seconds:6.2f} s  {megapixels / seconds:6.2f} megapixels/s (reading, mask, "
        "preview and tables included)"
    )
    print(
        f"engine {alone:6.2f} s  {megapixels / alone:6.2f} megapixels/s   run/engine "
        f"{alone / seconds:.2f}"
    )


if __name__ == "__main__":
    main()
