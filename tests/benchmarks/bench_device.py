"""How fast a device runs a network from pixels to labels, against `keras.Model.predict` and against
one compiled call.

    KERAS_BACKEND=jax python tests/benchmarks/bench_device.py small|large [SIDE] [ROUNDS] [BITS]

small: U-Net of 1.9 million weights; large: 31 million. Patches are 8-bit squares of SIDE pixels
(512) without a halo, in memory. BITS is float32 or bfloat16; both, unless given. Four ways take
turns, so that other work slows all alike:

    predict     keras.Model.predict of float32 patches, and arg max in NumPy
    one call    the engine's own compiled call with its transfers, one batch after the other
    engine      `labels` of maskloom's engine: cut, sent ahead, and fetched
    on device   the compiled call alone, its pixels sent before (JAX only)

Each line has megapixels a second and the ratio to predict. On an H100 an experiment measured 345
(small) and 181 (large) for one call; the goal of the engine is 80 % of one call, and 10 times
predict. The card is printed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.engines.device import device_engine
from maskloom.segcore.deep.inference.engines.protocol import PatchesOfImage, Precision
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.runtime import import_keras, set_threads
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.unet import Unet

FORMS = {
    "small": Unet(width=16, depth=4, normalisation="batch"),
    "large": Unet(width=64, depth=4),
}
CLASSES = ("background", "blob", "rim")
BATCHES = 6


def turns(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each work, after one run of each that compiles."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in taken.items()}


def main(name: str, side: int, rounds: int, precisions: tuple[Precision, ...]) -> None:
    """Print a line for each way and precision."""
    set_threads(2)
    keras = import_keras()
    keras.utils.set_random_seed(0)
    network = FORMS[name].build(3, len(CLASSES))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.keras")
        network.save(path)
        weights = Weights.of(str(path))
        card = Card("network", weights.sha256, 3, CLASSES, Scaling(), ReceptiveField(140, 16))
        for precision in precisions:
            measure(network, weights, card, precision, (side, rounds))


def measure(
    network: Any, weights: Weights, card: Card, precision: Precision, sizes: tuple[int, int]
) -> None:
    """Print the lines of one precision."""
    side, rounds = sizes
    engine = device_engine(weights, card, precision)
    random = np.random.default_rng(0)

    def patches() -> tuple[NDArray[np.uint8], PatchesOfImage]:
        count = BATCHES * engine.together((side, side))
        pixels = random.integers(0, 256, (count, side, side, 3), np.uint8)
        return pixels, PatchesOfImage((side, side), count)

    pixels, of = patches()
    # Batches halve if the device lacks memory.
    list(engine.labels(enumerate(pixels), of))
    pixels, of = patches()
    together = engine.together((side, side))
    batches = np.split(pixels, BATCHES)
    extents = np.full((together, 2), side, np.int32)
    start, fetch = engine.device.start, engine.device.fetch
    # Kept: predict on JAX gives away the arrays of the variables.
    works: dict[str, Callable[[], Any]] = {
        "predict": lambda: network.predict(
            card.scaling.apply(pixels), verbose=0, batch_size=together
        ).argmax(axis=-1),
        "one call": lambda: [fetch(start("labels", batch, extents)) for batch in batches],
        "engine": lambda: list(engine.labels(enumerate(pixels), of)),
    }
    if import_keras().backend.backend() == "jax":
        import jax

        sent = [jax.device_put(batch) for batch in batches]
        works["on device"] = lambda: [
            start("labels", batch, extents).block_until_ready() for batch in sent
        ]
    seconds = turns(works, rounds)
    print(f"{engine.hardware.name}, {precision}, {together} patches of {side} x {side} at once")
    for way, taken in seconds.items():
        rate = len(pixels) * side * side / 1e6 / taken
        print(f"  {way:10} {rate:9.2f} megapixels/s, {seconds['predict'] / taken:6.2f} x predict")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        given[0],
        int(given[1]) if len(given) > 1 else 512,
        int(given[2]) if len(given) > 2 else 5,
        (cast("Precision", given[3]),) if len(given) > 3 else ("float32", "bfloat16"),
    )
