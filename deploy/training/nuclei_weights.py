"""Make the weights `nuclei` in the box from arrays that were trained in PyTorch.

    NUCLEI=nuclei-images python deploy/training/nuclei_weights.py ARRAYS.npz FOLDER

ARRAYS hold a U-Net of depth n with batch normalisation: `down.K.0` and `down.K.3` are the
convolutions of level K (0 uppermost, n the bottom), `down.K.1` and `down.K.4` their normalisations,
`up.K` the transposed convolution to level K, `join.K` the convolutions after it, which see
[upsampled, skip], and `head` the last convolution, to the log-odds of the foreground, x and y. The
card describes the images of deploy/training/nuclei.yaml.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import maskloom
from maskloom.flows.recipes.training import TrainingRun, load
from maskloom.flows.train import sources
from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.files.model_cards import card_of_model
from maskloom.segcore.deep.inference.runtime import import_keras
from maskloom.segcore.deep.networks.unet import Unet
from maskloom.segcore.deep.networks.vectors import build_with_vectors
from maskloom.segcore.training.export import shares_of, sizes_of
from maskloom.segcore.training.run import Prepared, prepare

RECIPE = Path(__file__).with_name("nuclei.yaml")
EPSILON, KERAS_EPSILON = 1e-5, 1e-3
"""What batch normalisation adds to a variance in PyTorch, and in Keras."""
CLASSES = ("background", "nucleus")
PIXEL_SIZE = 0.5
LARGEST = 100
"""Side in pixels that 27,691 of the 27,719 nuclei do not exceed. Of the largest, 139 pixels, each
tile of 2,048 would read a tenth more."""
SCORES = {"nucleus": [0.8951, 0.9739]}
"""The least and the median of the median scores of the nuclei in each of the 637 images, by the
segmenter `instances`."""
ABOUT = {
    "name": "nuclei",
    "licence": "CC0-1.0",
    "pixel_size": (
        "Nominal, since the training images (BBBC038) state no size: in the fluorescence images "
        "the median nucleus is 17 pixels across (8 um at 0.5 um); in the middle 80 % of all images "
        "it is 11 to 47."
    ),
}
DATA = {
    "name": "BBBC038, Data Science Bowl 2018 (CC0)",
    "training_images": 589,
    "validation_images": 48,
    "validation": (
        "Not known: 48 of the 637 images of this digest were drawn at random to choose settings, "
        "589 were trained on. Images near-identical to training images are among them."
    ),
    "measured_on": "27 images that are not among the 637, but like them, measured by their trainer",
}
METRICS = {
    "ap50": 0.819,
    "ap": 0.609,
    "by_kind": {"fluorescence": {"ap50": 0.875}, "other, mostly stained": {"ap50": 0.686}},
    "told": (
        "Mean over images, 27 held-out images (19 fluorescence, 7 stained tissue, 1 bright field), "
        "one seed; the 90 % interval of ap50 is about +- 0.05."
    ),
}
TRAINED = (
    "8,553 steps of 32 patches of 256 pixels in PyTorch: AdamW 3e-3, cosine, bfloat16; "
    "cross-entropy and Dice of the foreground, squared error of x, y and of their steps"
)


def network(arrays: dict[str, np.ndarray]) -> Any:
    """The network of these arrays: logits of background and nucleus, then x and y."""
    depth = max(int(name.split(".")[1]) for name in arrays if name.startswith("down."))
    width = len(arrays["up.0.bias"])
    recipe = Unet(width=width, depth=depth, normalisation="batch")
    model = build_with_vectors(recipe, 3, len(CLASSES), 2)
    for level in range(depth):
        _fill(model, f"down{level}", arrays, f"down.{level}")
        _fill(model, f"up{level}", arrays, f"join.{level}", joined=True)
        # Both libraries put the kernel of an input pixel at twice its place.
        kernel, bias = (arrays[f"up.{level}.{part}"] for part in ("weight", "bias"))
        model.get_layer(f"up{level}_transposed").set_weights([kernel.transpose(2, 3, 1, 0), bias])
    _fill(model, "bottom", arrays, f"down.{depth}")
    # Log-odds f are the logits 0 of the background and f of the nucleus.
    kernel, bias = arrays["head.weight"].transpose(2, 3, 1, 0), arrays["head.bias"]
    model.get_layer("logits").set_weights(
        [np.concatenate([np.zeros_like(kernel[..., :1]), kernel], -1), np.append(0, bias)]
    )
    return model


def _fill(
    model: Any, name: str, arrays: dict[str, np.ndarray], source: str, *, joined: bool = False
) -> None:
    """Give a block of two convolutions its arrays."""
    for number, (convolution, norm) in enumerate((("0", "1"), ("3", "4")), 1):
        kernel = arrays[f"{source}.{convolution}.weight"].transpose(2, 3, 1, 0)
        if joined and number == 1:
            # Ours sees [skip, upsampled].
            kernel = np.concatenate(np.split(kernel, 2, axis=2)[::-1], axis=2)
        model.get_layer(f"{name}_conv{number}").set_weights([kernel])
        gamma, beta, mean, variance = (
            arrays[f"{source}.{norm}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        # The factor makes up for the other epsilon.
        gamma *= np.sqrt((variance + KERAS_EPSILON) / (variance + EPSILON))
        model.get_layer(f"{name}_norm{number}").set_weights([gamma, beta, mean, variance])


def stored(model: Any) -> bytes:
    """The network as a `.keras` file with kernels in float16, which keras reads as float32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        halved = io.BytesIO()
        with (
            h5py.File(io.BytesIO(parts["model.weights.h5"])) as whole,
            h5py.File(halved, "w") as file,
        ):
            whole.visititems(lambda name, item: _copy(name, item, file))
        parts["model.weights.h5"] = halved.getvalue()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return content.getvalue()


def _copy(name: str, item: Any, file: h5py.File) -> None:
    if isinstance(item, h5py.Group):
        group = file.require_group(name)
        for key, value in item.attrs.items():
            group.attrs[key] = value
    else:
        # Normalisations are few numbers, and every digit of theirs counts for a whole map.
        file.create_dataset(name, data=item[()].astype(np.float16 if item.ndim > 1 else np.float32))


def card(model: Any, content: bytes, run: TrainingRun, data: Prepared) -> Card:
    """The card of the network, with shares and sizes of the nuclei of all images."""
    counts, everything = data.setup.class_counts, range(len(data.setup.dataset.pairs))
    import keras

    about = {
        **ABOUT,
        "purpose": run.recipe.purpose,
        "data": {"sha256": data.data, **DATA},
        "bands": [1, 2, 3],
        "shares": shares_of(CLASSES, counts.shares(everything)),
        **sizes_of(CLASSES, counts.typical_sizes(everything)),
        "scores": SCORES,
        "largest_object": LARGEST,
        "metrics": METRICS,
        "trained": TRAINED,
        "versions": {"maskloom": maskloom.__version__, "keras": keras.__version__},
    }
    digest = hashlib.sha256(content).hexdigest()
    found = card_of_model(model, "unet", CLASSES, data.setup.scalings.how, digest, about, vectors=2)
    return dataclasses.replace(
        found,
        dtype="uint8",
        interpretation="rgb",
        pixel_size=PIXEL_SIZE,
        network=dataclasses.asdict(run.recipe.network),
    )


class Silent:
    """A monitor that shows nothing."""

    def checked(self, what: str, done: int, of: int) -> None:
        """See `ProgressMonitor`."""


def main(arrays: str, folder: str) -> None:
    """Write `nuclei.keras` and its card."""
    import_keras()
    changes = ["split.leave_out=[]", "initial=null", f"output={Path(folder).resolve()}"]
    run = load(RECIPE, changes)
    data = prepare(run.recipe, sources(run), run.settings, Silent(), lambda: False)
    with np.load(arrays) as found:
        model = network(dict(found))
    content = stored(model)
    Path(folder, "nuclei.keras").write_bytes(content)
    Path(folder, "nuclei.json").write_bytes(card(model, content, run, data).dump())


if __name__ == "__main__":
    main(*sys.argv[1:3])
