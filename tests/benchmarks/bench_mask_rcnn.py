"""How well the small Mask R-CNN learns nuclei: trains on crops, prints AP at an overlap of 0.5 of
masks.

    MASKLOOM_TEST_DATA=... python tests/benchmarks/bench_mask_rcnn.py overfit|held-back STEPS
    [WEIGHTS.keras]

`overfit` trains on six crops of 128 pixels and measures on the same. `held-back` holds back every
fourth image of dsb2018 by name, trains on crops of 256 pixels of the others, turned and mirrored,
and measures on the whole images held back, found by windows as in a run. AP is the mean precision
over recall 0, 0.01 ... 1 of detections by descending score (COCO, all images together); beside it
the share TP / (TP + FP + FN) of a mask at score 0.5 (Data Science Bowl 2018). With a third argument
the network is saved with its card; with 0 steps the one that is there is measured.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from maskloom.segcore.deep.inference.card import Card, card_name
from maskloom.segcore.deep.inference.files.keras_files import load_keras
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.mask_rcnn.detections import Detections
from maskloom.segcore.deep.networks.mask_rcnn.lattice import WindowLattice, mirrored
from maskloom.segcore.deep.networks.mask_rcnn.prediction import Detector
from maskloom.segcore.deep.networks.mask_rcnn.recipe import MaskRcnn
from maskloom.segcore.deep.networks.mask_rcnn.targets import training_batch
from maskloom.segcore.geometry import Box

SIDE, SMALL_SIDE, BATCH, SMALL_BATCH = 256, 128, 4, 2
# Windows as large as the crops that are learned from.
LATTICE = WindowLattice(128, 64)
RECIPE = MaskRcnn(anchors=(12.0, 24.0, 48.0, 96.0), candidates=768, proposals=256, sampled=128)
Pair = tuple[np.ndarray, np.ndarray]


def nuclei() -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Names, scaled RGB images and instance masks, by name."""
    folder = Path(os.environ["MASKLOOM_TEST_DATA"]) / "dsb2018"
    found = []
    for path in sorted((folder / "images").iterdir()):
        image = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
        found.append(
            (
                path.stem,
                image,
                np.asarray(Image.open(folder / "labels" / path.name)).astype(np.int32),
            )
        )
    return found


def crop(pair: Pair, generator: np.random.Generator, side: int) -> Pair:
    """A random crop, turned and mirrored at random; zeros where the image is smaller."""
    image, mask = pair
    start = [int(generator.integers(0, max(1, length - side + 1))) for length in mask.shape]
    window = tuple(slice(first, first + side) for first in start)
    image, mask = image[window], mask[window]
    missing = [(0, side - length) for length in mask.shape]
    image, mask = np.pad(image, (*missing, (0, 0))), np.pad(mask, missing)
    turns = int(generator.integers(4))
    image, mask = np.rot90(image, turns), np.rot90(mask, turns)
    return (image[:, ::-1], mask[:, ::-1]) if generator.integers(2) else (image, mask)


def batch_of(pairs: list[Pair]) -> tuple[dict[str, Any]]:
    """What the network learns from; every id is of class 1."""
    masks = np.stack([mask for _, mask in pairs])
    classes = np.ones(int(masks.max()) + 1, np.int64)
    return training_batch(np.stack([image for image, _ in pairs]), masks, [classes] * len(pairs))


def train(network: Any, batches: Any, steps: int) -> None:
    """Train for so many steps; the learning rate falls to nothing with them, by a cosine."""
    rate = keras.optimizers.schedules.CosineDecay(
        1e-4, steps - 50, alpha=0.01, warmup_target=2e-3, warmup_steps=50
    )
    network.compile(optimizer=keras.optimizers.AdamW(rate, weight_decay=1e-4, global_clipnorm=5.0))
    network.optimizer.build(network.trainable_variables)
    started, used, recent = time.perf_counter(), time.process_time(), []
    for step in range(1, steps + 1):
        recent.append(float(network.train_on_batch(*next(batches))))
        if step % 50 == 0:
            print(
                f"{time.perf_counter() - started:6.0f} s  step {step:5d}  loss "
                f"{np.mean(recent[-50:]):.3f}",
                flush=True,
            )
    minutes, processor = (time.perf_counter() - started) / 60, (time.process_time() - used) / 60
    print(
        f"{steps} steps, {network.count_params():,} parameters, {minutes:.1f} minutes, "
        f"{processor:.1f} minutes of processors"
    )


def found_in(finder: Detector, image: np.ndarray) -> Detections:
    """The detections of a whole image by windows."""

    def find(window: Box) -> Detections:
        inside = window & Box.whole(image.shape[:2])
        return finder.detect(mirrored(image[inside.slices], inside, window))

    shape = image.shape[:2]
    return LATTICE.detections(Box.whole(shape), shape, find, finder.greatest_overlap)


def matches(detections: Detections, truth: np.ndarray) -> np.ndarray:
    """Whether each detection's mask overlaps a true one by 0.5 that no better one has taken."""
    sizes = np.bincount(truth.ravel())
    taken = np.zeros(len(sizes), bool)
    hits = np.zeros(len(detections), bool)
    whole = Box.whole(truth.shape)
    for number in range(len(detections)):
        place, inside = detections.outline(number, whole)
        shared = np.bincount(truth[place][inside], minlength=len(sizes))
        iou = shared / (sizes + inside.sum() - shared)
        iou[taken] = 0
        iou[0] = 0
        best = int(iou.argmax())
        hits[number] = taken[best] = iou[best] >= 0.5
        taken[0] = False
    return hits


def average_precision(scores: np.ndarray, hits: np.ndarray, objects: int) -> float:
    """Mean of the greatest precision at a recall of at least 0, 0.01 ... 1."""
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(hits[order])
    recall, precision = right / objects, right / np.arange(1, len(right) + 1)
    return float(
        np.mean([precision[recall >= least].max(initial=0.0) for least in np.linspace(0, 1, 101)])
    )


def painted_share(detections: Detections, truth: np.ndarray) -> tuple[int, int, int]:
    """True positives, false positives and false negatives of the mask of detections with a score of
    at least 0.5.
    """
    mask = detections[detections.scores >= 0.5].paint(Box.whole(truth.shape))
    table = np.histogram2d(
        mask.ravel(), truth.ravel(), bins=[np.arange(mask.max() + 2), np.arange(truth.max() + 2)]
    )[0]
    union = table.sum(1, keepdims=True) + table.sum(0, keepdims=True) - table
    right = int(np.count_nonzero((table / np.maximum(union, 1))[1:, 1:] > 0.5))
    return right, len(np.unique(mask[mask > 0])) - right, len(np.unique(truth[truth > 0])) - right


def measure(
    network: Any,
    images: list[tuple[str, np.ndarray, np.ndarray]],
    found: Callable[[Detector, np.ndarray], Detections],
) -> None:
    finder = Detector(network, 0.05, 0.5)
    scores, hits, counts = [], [], []
    for name, image, truth in images:
        detections = found(finder, image)
        scores.append(detections.scores)
        hits.append(matches(detections, truth))
        counts.append((len(np.unique(truth[truth > 0])), *painted_share(detections, truth)))
        alone = average_precision(scores[-1], hits[-1], counts[-1][0])
        print(
            f"{name:36s} {counts[-1][0]:4d} objects  AP@0.5 {alone:.3f}  share "
            f"{counts[-1][1] / max(1, sum(counts[-1][1:])):.3f}",
            flush=True,
        )
    objects, right, wrong, missed = np.sum(counts, axis=0)
    every = average_precision(np.concatenate(scores), np.concatenate(hits), int(objects))
    print(
        f"all: {objects} objects, AP@0.5 {every:.3f}, share at score 0.5 "
        f"{right / (right + wrong + missed):.3f}"
    )


def save(network: Any, path: Path) -> None:
    network.save(path)
    card = Card(
        "mask_rcnn",
        hashlib.sha256(path.read_bytes()).hexdigest(),
        3,
        ("background", "nucleus"),
        Scaling(),
        ReceptiveField(halo=None, stride=network.recipe.strides[-1]),
        output="objects",
        parameters=network.count_params(),
    )
    Path(card_name(str(path))).write_bytes(card.dump())


def main() -> None:
    mode, steps = sys.argv[1], int(sys.argv[2])
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    images = nuclei()
    network = RECIPE.build(3, 2) if steps else load_keras(Weights.of(sys.argv[3]))
    if mode == "overfit":
        learned = [
            (name, *crop((image, mask), generator, SMALL_SIDE))
            for name, image, mask in images[3:33:5]
        ]
        tested = learned

        def pick() -> list[Pair]:
            return [
                learned[number][1:] for number in generator.permutation(len(learned))[:SMALL_BATCH]
            ]
    else:
        learned = [each for number, each in enumerate(images) if number % 4 != 3]
        tested = [each for number, each in enumerate(images) if number % 4 == 3]
        # Large images hold more crops than small ones; between one each and one a pixel.
        weights = np.sqrt([mask.size for _, _, mask in learned])

        def pick() -> list[Pair]:
            chosen = generator.choice(len(learned), BATCH, p=weights / weights.sum())
            return [crop(learned[number][1:], generator, SIDE) for number in chosen]

    print(f"{mode}: learns from {len(learned)} images, measured on {len(tested)}")
    if steps:
        train(network, iter(lambda: batch_of(pick()), None), steps)
    if steps and len(sys.argv) > 3:
        save(network, Path(sys.argv[3]))
    measure(network, tested, Detector.detect if mode == "overfit" else found_in)


if __name__ == "__main__":
    main()
