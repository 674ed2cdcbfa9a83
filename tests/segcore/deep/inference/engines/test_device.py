"""Keras on any backend gives what keras gives: filled up or not, in batches or not, tile by tile.

The backend is that of this process; at night these tests run on JAX too.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.networks import write_mask_rcnn
from golden.pictures import squares
from skimage import data

from maskloom.segcore.deep.inference import runtime
from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.engines import device as devices
from maskloom.segcore.deep.inference.engines import gpus, opening, selection
from maskloom.segcore.deep.inference.engines.batches import Batched
from maskloom.segcore.deep.inference.engines.device import KerasDevice
from maskloom.segcore.deep.inference.engines.gpus import Hardware
from maskloom.segcore.deep.inference.engines.protocol import PatchesOfImage
from maskloom.segcore.deep.inference.files.keras_files import _build
from maskloom.segcore.deep.inference.files.model_cards import card_of_model
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.runtime import import_keras, keras_backend, set_threads
from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.deep.networks.deeplab import Deeplab
from maskloom.segcore.deep.networks.fcn import Fcn
from maskloom.segcore.deep.networks.unet import Unet
from maskloom.segcore.errors import WeightsError
from maskloom.segcore.segmenters import network as segmenters
from maskloom.segcore.testing import segmenters as check

set_threads(1)
keras = import_keras()
PHOTO = data.astronaut()[100:233, 150:327]
CLASSES = ("sky", "land", "water")

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
CARD = Hardware("test card", is_gpu=True)


def saved(recipe: Any, folder: Path) -> tuple[Any, Weights, Card]:
    """A network whose classes all appear, its file and its card."""
    # Without random weights of keras, which JAX compiles for each shape.
    model = _build(lambda: recipe.build(3, 3), 1 << 40, "it")
    random = np.random.default_rng(5)
    for weight in model.weights:
        shape = tuple(weight.shape)
        if "variance" in weight.path:
            weight.assign(random.uniform(0.5, 2, shape))
        elif len(shape) == 1:
            weight.assign(random.normal(0.1, 0.2, shape))
        else:
            weight.assign(random.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape))
    for layer in model.layers:
        if layer.name == "logits" and getattr(layer, "use_bias", False):
            scores = np.log(expected_scores(model, Scaling((20.0,), (1 / 100,)), PHOTO[:128, :128]))
            layer.bias.assign(np.array(layer.bias) - np.median(scores, axis=(0, 1)))
    path = folder / "it.keras"
    model.save(path)
    sha256 = Weights.of(str(path)).sha256
    card = card_of_model(model, "network", CLASSES, Scaling((20.0,), (1 / 100,)), sha256)
    path.with_suffix(".json").write_bytes(replace(card, dtype="uint8").dump())
    return model, Weights.of(str(path)), card


def expected_scores(model: Any, scaling: Scaling, patch: np.ndarray) -> np.ndarray:
    """Scores (y, x, class) of the network for a patch in its own size."""
    scores = model(scaling.apply(patch)[None], training=False)
    return np.asarray(keras.ops.convert_to_numpy(scores))[0]


SMALL = Unet(width=4, depth=2, normalisation="batch")
FILLED = [
    Unet(width=4, depth=2, upsampling="nearest"),
    Unet(width=4, depth=2, upsampling="unpooling"),
    Unet(width=4, depth=2, padding="valid"),
    Fcn(width=4, backbone="vgg16"),
    Fcn(width=8, backbone="resnet18"),
]
AS_THEY_ARE = [
    Unet(width=4, depth=2, upsampling="bilinear"),
    Unet(width=8, depth=2, normalisation="group"),
    Deeplab(width=4, backbone="resnet18", rates=(1, 2)),
]


@pytest.mark.parametrize(
    ("recipe", "fills"),
    [
        *((each, True) for each in (SMALL, *FILLED)),
        *((each, False) for each in AS_THEY_ARE),
    ],
    ids=str,
)
@pytest.mark.nightly
def test_patches_of_many_sizes_give_what_keras_gives_for_each(tmp_path, recipe, fills):
    model, weights, card = saved(recipe, tmp_path)
    device = KerasDevice(weights, card, "float32")
    assert device.fills is fills
    run = Batched(device, card, "it.keras", 4 * 96 * 96)
    reach = card.reach.along(0)
    sizes = [reach.fitting(side + 2 * reach.margin) for side in (64, 32, 80)]
    patches = [data.astronaut()[: sizes[i], 200 : 200 + sizes[j]] for i, j in [(0, 1), (2, 0)]]
    of = PatchesOfImage((max(sizes), max(sizes)), 2)
    labels, scores = (
        dict(run.labels(enumerate(patches), of)),
        dict(run.scores(enumerate(patches), of)),
    )
    for i, patch in enumerate(patches):
        wanted = expected_scores(model, card.scaling, patch)
        np.testing.assert_allclose(scores[i], wanted, atol=2e-5)
        # Filling up changes no bit in theory; libraries sum in another order for other shapes.
        clear = np.diff(np.sort(wanted, axis=-1), axis=-1)[..., -1] > 1e-4
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(labels[i][clear], wanted.argmax(axis=-1)[clear])


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_fewer_bits_keep_most_labels_and_scores_differ(tmp_path, precision):
    model, weights, card = saved(SMALL, tmp_path)
    run = Batched(KerasDevice(weights, card, precision), card, "it.keras", 0)
    patch = PHOTO[:128, :128]
    ((_, labels),) = run.labels([(0, patch)], PatchesOfImage((128, 128), 1))
    ((_, scores),) = run.scores([(0, patch)], PatchesOfImage((128, 128), 1))
    wanted = expected_scores(model, card.scaling, patch)
    assert 0 < np.abs(scores - wanted).max() < 0.05
    assert (labels == wanted.argmax(axis=-1)).mean() > 0.98


def on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processor pass for a GPU at the border to the libraries."""
    monkeypatch.setitem(devices._DEVICES, keras_backend() or "", lambda: CARD)
    monkeypatch.setattr(devices, "_MOST_PIXELS", 4 * 96 * 96)
    monkeypatch.setattr(opening, "_loaded", {})


def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The patches of each batch from now on."""
    sizes, start = [], KerasDevice.start

    def counting(self, gives, pixels, extents):
        sizes.append(len(pixels))
        return start(self, gives, pixels, extents)

    monkeypatch.setattr(KerasDevice, "start", counting)
    return sizes


@pytest.mark.nightly
@pytest.mark.parametrize("changes", [{"flips": "both"}, {"windows": "blended", "patch": 64}])
def test_tiles_change_no_label_of_means_on_a_card(tmp_path, monkeypatch, changes):
    recipe, picture = on_photo(tmp_path, monkeypatch)
    valid, once = picture.valid, check.labelled(recipe.start(), picture)
    batches = started(monkeypatch)
    found = check.labelled(replace(recipe, **changes).start(), picture)
    assert max(batches) > 1
    tiled = check.labelled(replace(recipe, **changes).start(), picture, (100, 60))
    assert np.array_equal(tiled[valid], found[valid])
    assert (found != once)[valid].any()


def test_tiles_change_no_label_on_a_card(tmp_path, monkeypatch):
    recipe, picture = on_photo(tmp_path, monkeypatch)
    model, valid = recipe.start(), picture.valid
    whole = check.labelled(model, picture)
    assert len(np.unique(whole[valid])) > 1
    for tile in [(32, 64), (100, 60)]:
        assert np.array_equal(check.labelled(model, picture, tile)[valid], whole[valid])
    # The same file in the same process, scaled by the image: pixels come as floats.
    by_image = check.fitted(replace(recipe, scaling=ImageScaling("range")), [picture])
    found = check.labelled(by_image, picture)
    assert np.array_equal(check.labelled(by_image, picture, (100, 60))[valid], found[valid])
    assert (found != whole)[valid].any()
    stated = replace(recipe, scaling=by_image.scaling).start()
    assert (check.labelled(stated, picture) == found)[valid].mean() > 0.999


@pytest.mark.nightly
def test_labels_and_scores_agree_on_a_card_and_the_card_is_recorded(tmp_path, monkeypatch):
    recipe, picture = on_photo(tmp_path, monkeypatch)
    model, block = recipe.start(), picture.blocks(recipe.start())[0]
    choice = model.select_engine(block)
    assert (choice["engine"], choice["record"]["device"]) == (keras_backend(), "test card")
    assert model.with_selection(choice).provenance()["device"] == "test card"
    labels, scores = model.segment_and_score(block)
    assert np.array_equal(labels.values, model.segment(block).values)
    assert np.array_equal(scores.argmax(axis=-1), labels.values)


def on_photo(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[segmenters.Network, check.Picture]:
    """A network on a card, in batches of up to four patches, and a photo with a gap."""
    _, weights, _ = saved(SMALL, folder)
    on_a_card(monkeypatch)
    valid = np.ones(PHOTO.shape[:2], bool)
    valid[20:40, 30:90] = False
    return (
        segmenters.Network(
            weights.location, engine=keras_backend() or "auto", precision="float32", patch=64
        ),
        check.Picture(PHOTO, valid, "rgb"),
    )


# Which backend


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(runtime, "_is_installed", lambda name: name in names)
    monkeypatch.delitem(sys.modules, "keras")


def test_the_backend_is_that_of_the_variable_or_the_first_installed(monkeypatch):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    for there, first in [
        (("torch", "jax"), "jax"),
        (("torch",), "torch"),
        (runtime.BACKENDS, "tensorflow"),
        ((), None),
    ]:
        with monkeypatch.context() as changed:
            installed(changed, *there)
            assert keras_backend() == first
            changed.setenv("KERAS_BACKEND", "torch")
            if "torch" in there:
                assert keras_backend() == "torch"
            else:
                with pytest.raises(WeightsError, match=r"pip install 'maskloom\[torch\]'"):
                    keras_backend()
            changed.setenv("KERAS_BACKEND", "openvino")
            with pytest.raises(WeightsError, match="tensorflow, jax, torch; got 'openvino'"):
                keras_backend()


def test_without_any_backend_it_is_said_what_to_install(monkeypatch):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    installed(monkeypatch)
    with pytest.raises(WeightsError, match=r"pip install 'maskloom\[tensorflow\]' \(or \[jax\]"):
        import_keras()


def test_an_engine_of_another_backend_is_refused_once_keras_runs(monkeypatch):
    other = "jax" if keras_backend() != "jax" else "torch"
    monkeypatch.setattr(runtime, "_is_installed", lambda name: True)
    with pytest.raises(WeightsError, match=f"variable KERAS_BACKEND={other}"):
        runtime.use_backend(other)


# GPUs that run nothing


def test_a_gpu_that_a_library_does_not_see_is_told(tmp_path, monkeypatch):
    driver, device_files = tmp_path / "driver", tmp_path / "dev"
    (driver / "0000:01:00.0").mkdir(parents=True)
    (driver / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA L4\nIRQ: 5\n")
    device_files.mkdir()
    monkeypatch.setattr(gpus, "_DRIVER", driver)
    monkeypatch.setattr(gpus, "_DEVICES", device_files)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus.idle_gpu("jax") is None
    (device_files / "nvidia0").touch()
    (device_files / "nvidiactl").touch()
    note = gpus.idle_gpu("jax")
    assert note is not None
    assert "NVIDIA L4" in note
    assert "jax[cuda13]" in note
    _, weights, card = saved(Unet(width=4, depth=1), tmp_path)
    choice = selection.select_engine(
        weights, card, np.zeros((32, 32, 3), np.float32), keras_backend() or "auto", "float32"
    )
    assert "NVIDIA L4" in choice.record["note"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.idle_gpu("jax") is None


# JAX

NEEDS_JAX = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="jax is not installed"
)


@NEEDS_JAX
@pytest.mark.nightly
@pytest.mark.timeout(1500)
@pytest.mark.skipif(keras_backend() == "jax", reason="this is the process on JAX")
def test_all_of_this_holds_on_jax():
    # JAX compiles the others, of many layers, for minutes.
    some = ["-k", "not Fcn and not Deeplab"]
    arguments = ["-q", "-n", "0", "--hypothesis-profile=nightly", *some, __file__]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        env=os.environ | {"KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None  # as if it were not installed
import numpy as np
import maskloom
for argument in sys.argv[1:]:
    image, kind, weights = argument.split()
    found = maskloom.segment(np.load(image), kind, weights=weights)
    np.save(f"{kind}.npy", found.labels)
import keras
print(keras.backend.backend())
"""


@NEEDS_JAX
@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.skipif(keras_backend() != "tensorflow", reason="compares with TensorFlow")
def test_networks_run_without_tensorflow_and_give_its_labels(tmp_path):
    import maskloom

    nuclei = nuclei_like()
    np.save(tmp_path / "nuclei.npy", nuclei)
    np.save(tmp_path / "squares.npy", squares(150, 190))
    kinds = {
        "unet": ("nuclei.npy", "nuclei"),
        "instances": ("nuclei.npy", "nuclei"),
        "mask_rcnn": ("squares.npy", write_mask_rcnn(tmp_path)),
    }
    arguments = [f"{image} {kind} {weights}" for kind, (image, weights) in kinds.items()]
    variables = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_TENSORFLOW, *arguments],
        env=variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["jax"]
    for kind, (image, weights) in kinds.items():
        exactly = {} if kind == "mask_rcnn" else {"engine": "tensorflow", "precision": "float32"}
        pixels = np.load(tmp_path / image)
        expected = maskloom.segment(pixels, kind, weights=weights, **exactly).labels
        found = np.load(tmp_path / f"{kind}.npy")
        assert 0.02 < (expected > 0).mean() < 0.95
        assert (found == expected).mean() > 0.9999


def nuclei_like() -> np.ndarray:
    """Blurred discs on a dark ground, as RGB of eight bits."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:200, :260]
    image = np.full((200, 260), 12.0)
    for y, x in random.integers(10, 190, (14, 2)):
        image += 150 / (1 + np.exp((np.hypot(rows - y, columns - x) - 11) / 1.5))
    noisy = np.clip(image + random.normal(0, 3, image.shape), 0, 255)
    return np.repeat(noisy.astype(np.uint8)[..., None], 3, axis=-1)
