"""Every engine gives what keras and plain arithmetic give, patch by patch the same whatever else it
is asked.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.segcore.deep.inference.card import Card, Output
from maskloom.segcore.deep.inference.engines.opening import ENGINES_OF, is_installed, open_engine
from maskloom.segcore.deep.inference.engines.protocol import Choice, Engine
from maskloom.segcore.deep.inference.engines.tensorflow import frozen
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.layouts import (
    from_network,
    layout_of,
    split_pixels,
    to_network,
)
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.runtime import import_keras, set_threads
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.unet import Unet
from maskloom.segcore.errors import WeightsError

set_threads(1)
keras = import_keras()
ROOT = Path(__file__).resolve().parents[5]
DATA = Path(os.environ.get("MASKLOOM_TEST_DATA", "/nowhere"), "models")

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def card(channels: int, classes: int, output: Output = "scores", stride: int = 1) -> Card:
    return Card(
        "network",
        "",
        channels,
        tuple(f"class_{i}" for i in range(classes)),
        Scaling(),
        ReceptiveField(64, stride),
        output,
    )


def opened(weights: Weights, choice: Choice, form: Card) -> Engine:
    if not is_installed(choice.engine):
        pytest.skip(f"{choice.engine} is not installed")
    return open_engine(weights, form, choice)


def patches(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.fixture(scope="module")
def network() -> Any:
    """A small U-Net whose normalisations do something, and whose scores are far from equal."""
    keras.utils.set_random_seed(0)
    built = Unet(width=4, depth=2, normalisation="batch").build(2, 3)
    generator = np.random.default_rng(0)
    for variable in built.variables:
        shape = tuple(variable.shape)
        if "variance" in variable.path:
            variable.assign(generator.uniform(0.5, 2, shape))
        elif len(shape) == 1:
            variable.assign(generator.uniform(0.2, 1, shape))
        else:
            variable.assign(variable.numpy() * 1.5)
    return built


@pytest.fixture(scope="module")
def unet(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    path = tmp_path_factory.mktemp("unet") / "unet.keras"
    network.save(path)
    return Weights.of(str(path))


ON_TENSORFLOW = ("tensorflow", "openvino")
"""Engines of keras files on a processor; see test_device.py for the others."""
KERAS = [
    Choice(engine, precision) for engine in ON_TENSORFLOW for precision in ("float32", "bfloat16")
]


@pytest.fixture(
    scope="module", params=KERAS, ids=lambda choice: f"{choice.engine}-{choice.precision}"
)
def ready(request: pytest.FixtureRequest, unet: Weights) -> tuple[Engine, Choice]:
    """The U-Net in each engine and precision."""
    return opened(unet, request.param, card(2, 3, stride=4)), request.param


def test_engines_give_what_keras_gives(network: Any, ready: tuple[Engine, Choice]) -> None:
    engine, choice = ready
    batch = patches(3, 64, 48, 2)
    found, expected = engine(batch), network.predict(batch, verbose=0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    if choice.precision == "float32":
        np.testing.assert_allclose(found, expected, atol=2e-5)
    else:
        assert np.abs(found - expected).mean() < 0.01
        assert len(np.unique(found)) > found.size / 4, "scores were rounded to eight bits"


def test_nothing_changes_what_a_patch_gives(ready: tuple[Engine, Choice]) -> None:
    engine, _ = ready
    batch = patches(3, 64, 48, 2)
    together = np.array(engine(batch))
    assert engine(patches(1, 96, 128, 2, seed=1)).shape == (1, 96, 128, 3)
    for index in (2, 0, 1):
        np.testing.assert_array_equal(engine(batch[index : index + 1])[0], together[index])
    np.testing.assert_array_equal(engine(batch[::-1])[::-1], together)
    np.testing.assert_array_equal(engine(np.asfortranarray(batch)), together)


def test_pixels_beyond_the_reach_change_no_bit(ready: tuple[Engine, Choice]) -> None:
    # Fast convolutions (Winograd, Fourier) mix neighbouring pixels and would let rounding leak;
    # exact tiling relies on none being used.
    engine, _ = ready
    one, two = patches(2, 96, 96, 2)
    two[48:] = one[48:]
    ours, theirs = np.array(engine(one[None])[0]), np.array(engine(two[None])[0])
    differ = np.flatnonzero((ours != theirs).any(axis=(1, 2)))
    # 10 convolutions at strides 1, 2, 4, 2, 1 see 20 pixels far, and poolings 3 more.
    assert 48 < differ.max() + 1 <= 48 + 23


def test_sizes_and_bands_that_do_not_suit_are_told(ready: tuple[Engine, Choice]) -> None:
    engine, _ = ready
    with pytest.raises(WeightsError, match="Choose other bands"):
        engine(patches(1, 16, 16, 3))
    with pytest.raises(WeightsError, match="0 modulo 4"):
        engine(patches(1, 17, 16, 2))


def test_a_card_of_another_stride_is_told(unet: Weights) -> None:
    engine = open_engine(unet, card(2, 3, stride=2), KERAS[0])
    with pytest.raises(
        WeightsError, match=r"Its card says .* 0 modulo 2; if that is wrong, remove the card"
    ):
        engine(patches(1, 18, 16, 2))


@pytest.mark.parametrize("engine", ON_TENSORFLOW)
def test_bfloat16_sees_pixels_of_more_than_eight_bits(tmp_path: Path, engine: Any) -> None:
    inputs = keras.Input((None, None, 1))
    centred = keras.layers.Conv2D(
        1, 1, kernel_initializer="ones", bias_initializer=keras.initializers.Constant(-0.75)
    )(inputs)
    other = keras.layers.Conv2D(1, 1, kernel_initializer="ones")(
        keras.layers.Activation("tanh")(centred)
    )
    keras.Model(inputs, other).save(tmp_path / "it.keras")
    levels = (0.75 + np.arange(-32, 32) / 1024).astype(np.float32).reshape(1, 8, 8, 1)
    found = opened(
        Weights.of(str(tmp_path / "it.keras")), Choice(engine, "bfloat16"), card(1, 1, "logits")
    )(levels)
    assert len(np.unique(found)) == 64
    np.testing.assert_allclose(found, np.tanh(levels - 0.75), atol=2e-4)


def network_of(kind: str) -> Any:
    dtype = "uint8" if kind == "whole numbers" else "float32"
    inputs = keras.Input((None, None, 1), dtype=dtype)
    layer = keras.layers.Conv2D(4, 3, padding="same", activation="relu")
    if kind == "whole numbers":
        x = layer(keras.layers.Rescaling(1 / 255)(inputs))
    elif kind == "shared":
        x = keras.layers.Concatenate()(
            [layer(inputs), layer(keras.layers.MaxPooling2D(3, 1, padding="same")(inputs))]
        )
    elif kind == "skip":
        x = keras.layers.Concatenate()([layer(inputs), inputs])
    else:
        x = keras.layers.Dropout(0.5)(layer(inputs))
    if kind == "one of several":
        return keras.Sequential([inputs, layer, keras.layers.Conv2D(2, 1), keras.layers.Softmax()])
    endings = {
        "sigmoid": [keras.layers.Conv2D(1, 1, activation="sigmoid")],
        "activation": [keras.layers.Conv2D(2, 3), keras.layers.Activation("softmax")],
    }
    for ending in endings.get(kind, [keras.layers.Conv2D(2, 1, activation="relu")]):
        x = ending(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    "kind", ["whole numbers", "shared", "skip", "one of several", "sigmoid", "activation", "other"]
)
def test_networks_of_every_build_run_in_bfloat16(tmp_path: Path, kind: str) -> None:
    network = network_of(kind)
    network.save(tmp_path / "it.keras")
    batch = patches(1, 24, 24, 1)
    if kind == "whole numbers":
        batch = np.round(batch * 255)
    expected = network(batch.astype("uint8") if kind == "whole numbers" else batch)
    run = open_engine(Weights.of(str(tmp_path / "it.keras")), card(1, expected.shape[-1]), KERAS[1])
    np.testing.assert_allclose(run(batch), expected, atol=0.02)


def test_the_result_cannot_be_written_to(unet: Weights) -> None:
    scores = open_engine(unet, card(2, 3, stride=4), KERAS[0])(patches(1, 16, 16, 2))
    with pytest.raises(ValueError, match="read-only"):
        scores[:] = 0


def test_variables_stay_until_they_are_constants(
    unet: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow's functions hold variables weakly, and the collector may come at any moment."""
    from tensorflow.python.framework import convert_to_constants

    convert = convert_to_constants.convert_variables_to_constants_v2
    monkeypatch.setattr(
        convert_to_constants,
        "convert_variables_to_constants_v2",
        lambda function: (gc.collect(), convert(function))[1],
    )
    assert frozen.__wrapped__(unet, "float32").inputs


def test_a_network_is_loaded_once(unet: Weights) -> None:
    assert open_engine(unet, card(2, 3, stride=4), KERAS[0]) is open_engine(
        Weights(unet.location, unet.sha256),
        card(2, 3, stride=4),
        Choice(*_names(KERAS[0]), {"a": 1}),
    )


def _names(choice: Choice) -> tuple[Any, Any]:
    return choice.engine, choice.precision


def test_engines_for_other_files_are_refused(unet: Weights) -> None:
    with pytest.raises(WeightsError, match="openvino or onnxruntime, or auto"):
        open_engine(unet, card(2, 3, stride=4), Choice("litert", "float32"))


def test_an_engine_that_is_not_installed_says_how_to_get_it(
    unet: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name)
    )
    with pytest.raises(WeightsError, match=r"pip install 'maskloom\[openvino\]'"):
        open_engine(
            Weights(unet.location, "0" * 64), card(2, 3, stride=4), Choice("openvino", "float32")
        )


def test_networks_of_several_inputs_or_of_vectors_are_refused(tmp_path: Path) -> None:
    one, two = keras.Input((None, None, 1)), keras.Input((None, None, 1))
    keras.Model([one, two], keras.layers.Add()([one, two])).save(tmp_path / "two.keras")
    vector = keras.Input((4,))
    keras.Model(vector, keras.layers.Dense(2)(vector)).save(tmp_path / "vector.keras")
    for name in ("two", "vector"):
        with pytest.raises(WeightsError, match="expected one input"):
            open_engine(Weights.of(str(tmp_path / f"{name}.keras")), card(1, 2), KERAS[0])
    image = keras.Input((8, 8, 1))
    keras.Model(image, keras.layers.GlobalAveragePooling2D()(image)).save(
        tmp_path / "classifier.keras"
    )
    with pytest.raises(WeightsError, match="does not segment"):
        open_engine(Weights.of(str(tmp_path / "classifier.keras")), card(1, 1), KERAS[0])(
            patches(1, 8, 8, 1)
        )


# ONNX

CHANNELS, CLASSES = 2, 3


def convolved(patch: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(y, x, band) to (y, x, class) with a kernel (class, band, 3, 3) and zeros around."""
    padded = np.pad(patch.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
    return np.einsum("yxbij,cbij->yxc", windows, kernel.astype(np.float64))


def onnx_file(path: Path, form: str) -> tuple[Weights, np.ndarray]:
    """A convolution of 3 x 3 pixels: channels first, last, first with fixed sizes, or class ids."""
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    kernel = np.random.default_rng(0).standard_normal((CLASSES, CHANNELS, 3, 3)).astype(np.float32)
    nodes = [make.make_node("Conv", ["image", "kernel"], ["scores"], pads=[1, 1, 1, 1])]
    size: list[Any] = [16, 24] if form == "fixed" else ["y", "x"]
    taken, given, kind = [1, CHANNELS, *size], [1, CLASSES, *size], onnx.TensorProto.FLOAT
    if form == "last":
        taken, given = [1, *size, CHANNELS], [1, *size, CLASSES]
        nodes[0].input[0], nodes[0].output[0] = "first", "second"
        nodes = [make.make_node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2]), *nodes]
        nodes.append(make.make_node("Transpose", ["second"], ["scores"], perm=[0, 2, 3, 1]))
    if form == "labels":
        nodes[0].output[0], given, kind = "second", [1, *size], onnx.TensorProto.INT64
        nodes.append(make.make_node("ArgMax", ["second"], ["scores"], axis=1, keepdims=0))
    value = make.make_tensor_value_info
    inputs, outputs = (
        [value("image", onnx.TensorProto.FLOAT, taken)],
        [value("scores", kind, given)],
    )
    graph = make.make_graph(
        nodes, "network", inputs, outputs, [onnx.numpy_helper.from_array(kernel, "kernel")]
    )
    path.write_bytes(
        make.make_model(
            graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9
        ).SerializeToString()
    )
    return Weights.of(str(path)), kernel


@pytest.mark.parametrize("engine", ENGINES_OF[".onnx"])
@pytest.mark.parametrize("form", ["first", "last", "fixed", "labels"])
def test_onnx_files_of_every_layout_give_what_arithmetic_gives(
    tmp_path: Path, engine: Any, form: str
) -> None:
    weights, kernel = onnx_file(tmp_path / "it.onnx", form)
    run = opened(
        weights,
        Choice(engine, "float32"),
        card(CHANNELS, CLASSES, "labels" if form == "labels" else "logits"),
    )
    batch = patches(2, 16, 24, CHANNELS)
    found = np.array(run(batch))
    expected = np.stack([convolved(patch, kernel) for patch in batch])
    if form == "labels":
        expected = expected.argmax(axis=-1)[..., None].astype(np.float64)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(run(batch[1:]), found[1:])
    if form == "fixed":
        with pytest.raises(WeightsError, match=r"\(1, 16, 16, 2\)"):
            run(patches(1, 16, 16, CHANNELS))
    else:
        assert run(patches(1, 31, 18, CHANNELS)).shape[:3] == (1, 31, 18)


def test_openvino_runs_onnx_in_bfloat16(tmp_path: Path) -> None:
    weights, kernel = onnx_file(tmp_path / "it.onnx", "first")
    batch = patches(1, 32, 32, CHANNELS)
    found = opened(weights, Choice("openvino", "bfloat16"), card(CHANNELS, CLASSES, "logits"))(
        batch
    )
    np.testing.assert_allclose(found[0], convolved(batch[0], kernel), atol=0.1)


def test_onnx_runtime_has_no_bfloat16(tmp_path: Path) -> None:
    weights, _ = onnx_file(tmp_path / "it.onnx", "first")
    with pytest.raises(WeightsError, match="float32 only"):
        opened(weights, Choice("onnxruntime", "bfloat16"), card(CHANNELS, CLASSES))


# Layouts


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((1, 3, None, None), "first"),
        ((1, None, None, 3), "last"),
        ((1, 3, 3, 3), "first"),
        ((None, 3, 512, 512), "first"),
        ((1, 512, 3, 3), "last"),
    ],
)
def test_the_layout_is_where_the_channels_are(shape: tuple[int | None, ...], layout: str) -> None:
    assert layout_of(shape, 3, "first") == layout


def test_whole_numbers_are_rounded_and_clipped() -> None:
    patch = np.array([-3.0, 0.4, 0.6, 254.6, 300.0], np.float32).reshape(1, 1, 5, 1)
    assert to_network(patch, "last", np.dtype("uint8")).ravel().tolist() == [0, 0, 1, 255, 255]


def test_layouts_are_undone() -> None:
    patch = patches(1, 4, 5, 3)
    np.testing.assert_array_equal(
        from_network(to_network(patch, "first", np.dtype("f4")), "first", "it"), patch
    )


@pytest.mark.parametrize("bands", [1, 3])
def test_the_parts_of_pixels_add_up(bands: int) -> None:
    patch = patches(1, 8, 8, bands) * 3 - 1
    parts = split_pixels(patch, 2 * bands)
    high, low = parts[..., :bands], parts[..., bands:]
    np.testing.assert_array_equal(high + low, patch)
    assert not np.any(high.copy().view(np.uint32) & 0xFFFF)
    assert np.all(np.abs(low) <= np.abs(patch) / 128)
    assert split_pixels(patch, bands) is patch


# LiteRT


def tflite(name: str) -> Weights:
    path = DATA / name
    if not path.exists():
        pytest.skip("MASKLOOM_TEST_DATA has no models")
    return Weights.of(str(path))


def test_a_quantised_deeplab_finds_the_bird_in_its_photo() -> None:
    from PIL import Image

    weights = tflite("coral_deeplab_tflite/deeplabv3_mnv2_pascal_quant.tflite")
    folder = Path(weights.location).parent
    photo = np.asarray(Image.open(folder / "bird_segmentation.bmp").convert("RGB"), np.float32)
    truth = np.asarray(Image.open(folder / "bird_segmentation_mask.bmp").convert("L"))
    photo, truth = photo[:513, :513], truth[:513, :513]
    labels = opened(weights, Choice("litert", "float32"), card(3, 21, "labels"))(photo[None])[
        0, ..., 0
    ]
    assert set(np.unique(labels)) <= set(range(21))
    bird, found = truth != 0, labels == 3
    assert (bird & found).sum() / (bird | found).sum() > 0.9


def test_litert_takes_one_size_and_gives_the_same_again() -> None:
    weights = tflite("mediapipe_selfie/selfie_segmentation_landscape.tflite")
    run = opened(weights, Choice("litert", "float32"), card(3, 2, "sigmoid"))
    batch = patches(2, 144, 256, 3)
    together = np.array(run(batch))
    assert together.shape == (2, 144, 256, 1)
    np.testing.assert_array_equal(run(batch[1:]), together[1:])
    with pytest.raises(WeightsError, match="144"):
        run(patches(1, 256, 144, 3))


@pytest.mark.parametrize("content", [b"", b"nothing" * 50])
def test_broken_litert_files_are_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "it.tflite"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"it\.tflite"):
        opened(Weights.of(str(path)), Choice("litert", "float32"), card(3, 2))


# Threads and noise


def test_threads_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="threads"):
        set_threads(0)


def in_a_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # This process has silenced TensorFlow for those that it starts.
    environment = {
        name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


WORKER = """
import sys
from maskloom.segcore.deep.inference.engines import opening as engines
from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.inference.engines.protocol import Choice
from maskloom.segcore.deep.inference.files.weights import Weights
import numpy as np
assert not {"tensorflow", "keras", "onnxruntime", "openvino"} & set(sys.modules)
engines.configure(1)
weights = Weights.of(sys.argv[1])
card = Card("network", weights.sha256, 2, ("a", "b", "c"), Scaling(), ReceptiveField(64, 4))
for engine in ("openvino", "tensorflow"):
    if engines.is_installed(engine):
        predict = engines.open_engine(weights, card, Choice(engine, "bfloat16"))
        predict(np.ones((1, 32, 32, 2), np.float32))
import tensorflow
print(tensorflow.config.threading.get_intra_op_parallelism_threads())
print("mine", file=sys.stderr)
"""


@pytest.mark.nightly
def test_a_worker_is_quiet_and_has_the_threads_it_was_told(unet: Weights) -> None:
    done = in_a_process(WORKER, unet.location)
    assert done.stdout.split() == ["1"]
    assert done.stderr.split() == ["mine"]


SIGNALLED = """
import gc, signal, sys
from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.inference.engines.openvino import openvino_runner
from maskloom.segcore.deep.inference.files.weights import Weights

weights = Weights.of(sys.argv[1])
card = Card("network", weights.sha256, CHANNELS, NAMES, Scaling(), ReceptiveField(1, 1))
opened = [openvino_runner(weights, card, "float32") for _ in range(2)]
while opened:
    del opened[0]
    gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("taken"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_a_process_that_is_done_with_openvino_still_takes_signals(tmp_path: Path) -> None:
    """OpenVINO exchanges the stack of signals; of two plug-ins one restored what had gone."""
    pytest.importorskip("openvino")
    weights, _ = onnx_file(tmp_path / "it.onnx", "first")
    names = str(tuple(map(str, range(CLASSES))))
    code = SIGNALLED.replace("CHANNELS", str(CHANNELS)).replace("NAMES", names)
    assert in_a_process(code, weights.location).stdout == "taken\n"


def test_what_others_write_to_standard_error_is_kept() -> None:
    code = (
        "import os, sys; from maskloom.segcore.deep.inference.runtime import quiet\n"
        "with quiet():\n os.write(2, b'I0000 00 x\\nproblem\\n')"
    )
    assert in_a_process(code).stderr == "problem\n"
