"""How fast networks run: `keras.Model.predict` against every engine and precision, and against what
`choose` takes.

    python tests/benchmarks/bench_inference.py small|large|valid [threads] [seconds a round]

small: U-Net of 1.9 million weights; large: 31 million; valid: small without padding, on patches of
572. Patches are fields of 512 pixels of blobs, rims and background under noise. The network is
trained on such fields first, so that labels are no coin tosses. predict and the engines take turns,
so that other work on the machine slows all alike; the median of each is printed with its ratio to
predict, and the labels that equal those of predict, on patches that it was not trained on.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.engines import opening as engines
from maskloom.segcore.deep.inference.engines.protocol import Choice
from maskloom.segcore.deep.inference.engines.selection import (
    available_engines,
    labels_of,
    select_engine,
)
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.runtime import import_keras
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.unet import Unet

FORMS = {
    "small": Unet(width=16, depth=4, normalisation="batch"),
    "large": Unet(width=64, depth=4),
    "valid": Unet(width=16, depth=4, padding="valid", normalisation="batch"),
}
STEPS = {"small": 120, "large": 40, "valid": 80}
ROUNDS, PATCHES = 7, 4
CLASSES = ("background", "blob", "rim")


def fields(count: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, side, side, 1) of 0 to 1 and their class ids."""
    generator = np.random.default_rng(seed)
    truth = np.empty((count, side, side), np.uint8)
    for labels in truth:
        smooth = ndimage.gaussian_filter(generator.standard_normal((side, side)), 9)
        blob = smooth > smooth.std() / 2
        labels[:] = blob + (blob & ~ndimage.binary_erosion(blob, iterations=3))
    level = np.array([0.3, 0.55, 0.8], np.float32)[truth]
    return np.clip(level + generator.normal(0, 0.1, level.shape), 0, 1).astype(np.float32)[
        ..., None
    ], truth


def trained(keras: Any, name: str) -> Any:
    """The network after a few steps on small fields."""
    keras.utils.set_random_seed(0)
    form, margin = FORMS[name], 92 if name == "valid" else 0
    network = form.build(1, len(CLASSES))
    side = 128 if not margin else 236
    images, truth = fields(64, side, 1)
    truth = truth[:, margin : side - margin, margin : side - margin]
    network.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    history = network.fit(
        images, truth, batch_size=4, epochs=max(1, STEPS[name] // 16), verbose=0
    ).history
    print(
        f"{network.count_params():,} weights; accuracy in training {history['accuracy'][-1]:.4f}",
        flush=True,
    )
    return network


def turns(works: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median seconds of each work, in rounds."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - begin)
        if time.perf_counter() - started > seconds:
            break
    return {name: statistics.median(values) for name, values in taken.items()}


def main(name: str, threads: int, seconds: float) -> None:
    """Prints one line a way to run the network."""
    engines.configure(threads)
    keras = import_keras()
    network = trained(keras, name)
    side, margin = (572, 92) if name == "valid" else (512, 0)
    images, _ = fields(PATCHES, side, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.keras")
        network.save(path)
        weights = Weights.of(str(path))
        reach = ReceptiveField(140, 16, margin, side % 16 if margin else 0)
        card = Card("unet", weights.sha256, 1, CLASSES, Scaling(), reach)
        begin = time.perf_counter()
        choice = select_engine(weights, card, images[0])
        print(
            f"choose: {time.perf_counter() - begin:.1f} s, {choice.engine} {choice.precision}",
            flush=True,
        )
        expected = network.predict(images, verbose=0, batch_size=PATCHES).argmax(axis=-1)
        for engine in available_engines(weights):
            for precision in ("float32", "bfloat16"):
                run = engines.open_engine(weights, card, Choice(engine, precision))
                same = np.mean(
                    [
                        labels_of(np.array(run(image[None])[0]), "scores") == labels
                        for image, labels in zip(images, expected, strict=True)
                    ]
                )
                works = {
                    "predict": lambda: network.predict(images, verbose=0, batch_size=PATCHES),
                    "engine": lambda run=run: [run(image[None]) for image in images],
                }
                median = turns(works, seconds)
                speeds = {key: expected.size / 1e6 / value for key, value in median.items()}
                mark = " <- chosen" if Choice(engine, precision) == choice else ""
                print(
                    f"{engine:10} {precision:8} {speeds['engine']:7.3f} megapixels/s, predict "
                    f"{speeds['predict']:7.3f}, "
                    f"ratio {speeds['engine'] / speeds['predict']:5.2f}, equal labels "
                    f"{same:.5f}{mark}",
                    flush=True,
                )


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        arguments[0],
        int(arguments[1]) if len(arguments) > 1 else 2,
        float(arguments[2]) if len(arguments) > 2 else 60.0,
    )
