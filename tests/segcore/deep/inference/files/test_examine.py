"""Files without a card: what is found out of them, and that none of them harms who asks."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.files import examine as examination
from maskloom.segcore.deep.inference.files.examine import examine
from maskloom.segcore.deep.inference.files.model_cards import card_of_model, probe_size
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.errors import RecipeError, WeightsError
from maskloom.segcore.models.protocols import Exactness
from maskloom.segcore.processes import limits
from maskloom.segcore.segmenters.network import Network
from maskloom.segcore.testing import segmenters as check

keras = pytest.importorskip("keras")

from keras import layers  # noqa: E402


def network(classes: int, activation: str | None, size: int | None = None) -> Any:
    image = keras.Input((size, size, 3))
    maps = layers.MaxPooling2D(2)(layers.Conv2D(8, 3, padding="same", activation="relu")(image))
    return keras.Model(
        image, layers.Conv2D(classes, 1, activation=activation)(layers.UpSampling2D(2)(maps))
    )


def card(model: Any, classes: tuple[str, ...] = ()) -> Card:
    return card_of_model(model, "network", classes, Scaling(), "0" * 64)


@pytest.mark.parametrize(
    ("classes", "activation", "output", "names"),
    [
        (3, "softmax", "scores", ("class_0", "class_1", "class_2")),
        (3, None, "logits", ("class_0", "class_1", "class_2")),
        (3, "sigmoid", "logits", ("class_0", "class_1", "class_2")),
        (1, "sigmoid", "sigmoid", ("class_0", "class_1")),
        (1, None, "logits", ("class_0", "class_1")),
    ],
)
def test_what_the_output_means(
    classes: int, activation: str | None, output: str, names: tuple[str, ...]
) -> None:
    found = card(network(classes, activation))
    assert (found.output, found.classes, found.channels, found.reach) == (
        output,
        names,
        3,
        ReceptiveField(2, 2),
    )


def test_what_an_operation_at_the_end_means() -> None:
    image = keras.Input((None, None, 3))
    scores = layers.Conv2D(1, 1)(image)
    assert card(keras.Model(image, keras.ops.sigmoid(scores))).output == "sigmoid"
    assert card(keras.Model(image, layers.Activation("sigmoid")(scores))).output == "sigmoid"
    assert (
        card(
            keras.Model(
                image, keras.Sequential([layers.Conv2D(1, 1), layers.Activation("sigmoid")])(image)
            )
        ).output
        == "sigmoid"
    )
    assert card(keras.Model(image, keras.ops.multiply(scores, 30.0))).output == "logits"


def test_class_ids_of_an_unknown_number_of_classes_are_refused() -> None:
    image = keras.Input((None, None, 3))
    ids = keras.ops.expand_dims(keras.ops.argmax(layers.Conv2D(4, 1)(image), axis=-1), -1)
    with pytest.raises(WeightsError, match="class ids, it seems"):
        card(keras.Model(image, ids))


def test_memory_is_that_of_the_maps_alive_at_once() -> None:
    """The convolution of 8 maps: 3 bands come in, 8 maps go out; up-sampling: 8 / 4 in, 8 out; the
    input is gone by then.
    """
    assert card(network(2, "softmax")).bytes_per_pixel == 1.75 * 4 * (3 + 8)
    skip = keras.Input((None, None, 1))
    wide = layers.Conv2D(10, 1)(layers.Conv2D(20, 1)(skip))
    assert card(
        keras.Model(skip, layers.Concatenate()([wide, skip]))
    ).bytes_per_pixel == 1.75 * 4 * (1 + 20 + 10)


def test_parameters_and_names() -> None:
    found = card(network(2, "softmax"), ("sea", "land"))
    assert found.parameters == 3 * 9 * 8 + 8 + 8 * 2 + 2
    assert found.classes == ("sea", "land")
    with pytest.raises(WeightsError, match="distinguishes 2 classes; got 3 names"):
        card(network(2, "softmax"), ("sea", "land", "sky"))


def test_weights_of_nan_are_refused() -> None:
    model = network(2, "softmax")
    model.layers[1].set_weights(
        [np.full(weight.shape, np.nan) for weight in model.layers[1].get_weights()]
    )
    with pytest.raises(WeightsError, match="NaN"):
        card(model)


def test_more_than_one_image_is_refused() -> None:
    one, two = keras.Input((None, None, 1)), keras.Input((None, None, 1))
    with pytest.raises(WeightsError, match="one image"):
        card(keras.Model([one, two], layers.Add()([one, two])))


def test_patches_to_probe_suit_the_network() -> None:
    assert probe_size(ReceptiveField(107, 16, 92, 12)) == (444, 444)
    assert probe_size(ReceptiveField(None, 3)) == (258, 258)
    assert probe_size(ReceptiveField(None, fixed=(32, 40))) == (32, 40)


def test_a_file_is_examined_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "land.keras"
    network(3, "softmax").save(path)
    weights = Weights.of(str(path))
    found = examine(weights)
    assert found.sha256 == weights.sha256
    assert (found.kind, found.reach, found.output, found.channels) == (
        "network",
        ReceptiveField(2, 2),
        "scores",
        3,
    )
    assert found.scaling == Scaling()


def onnx_file(path: Path, size: int | None, last: str, scales: int = 2) -> Weights:
    """A network with channels first: 3x3, pooled by 2, 3x3, up-sampled, 1x1."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    generator = np.random.default_rng(1)
    shapes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "w3": (5, 4, 1, 1)}
    constants = [
        numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    constants.append(
        numpy_helper.from_array(np.array([1, 1, scales, scales], np.float32), "scales")
    )
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c2"], ["s2"]),
        helper.make_node("Mul", ["c2", "s2"], ["m2"]),
        helper.make_node(
            "Resize",
            ["m2", "", "scales"],
            ["u2"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        helper.make_node("Conv", ["u2", "w3"], ["c3"]),
        helper.make_node(last, ["c3"], ["labels"], axis=1),
    ]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, size, size])
    kind = onnx.TensorProto.INT64 if last == "ArgMax" else onnx.TensorProto.FLOAT
    scores = helper.make_tensor_value_info(
        "labels", kind, [1, 1 if last == "ArgMax" else 5, size, size]
    )
    graph = helper.make_graph(nodes, "net", [image], [scores], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return Weights.of(str(path))


def examined_here(weights: Weights) -> dict[str, Any]:
    """What the other process would answer."""
    request = {"location": weights.location, "sha256": weights.sha256, "trust": weights.trust}
    return examination._answer(json.loads(json.dumps(request)))


@pytest.mark.parametrize("size", [None, 64])
def test_onnx_files_are_measured(tmp_path: Path, size: int | None) -> None:
    weights = onnx_file(tmp_path / "net.onnx", size, "Softmax")
    found = Card.load(examined_here(weights)["card"].encode(), "there")
    # Its graph is not taken apart: what is known are the sizes that it takes.
    fixed = ReceptiveField(None, 1, fixed=(64, 64))
    assert found.reach == (ReceptiveField(None, 2) if size is None else fixed)
    assert (found.channels, len(found.classes), found.output) == (3, 5, "scores")
    assert found.parameters == 4 * 27 + 4 + 4 * 36 + 20 + 4
    # The first convolution: 3 bands in, 4 maps out; at the end 5 maps in, 5 out.
    assert found.bytes_per_pixel == 1.75 * 4 * 10


def test_a_halo_in_the_recipe_makes_onnx_networks_exact_once_it_is_confirmed(
    tmp_path: Path,
) -> None:
    """A row is of its cell of 2, so of the cells beside it, one row more around: (1 + 2) + 1."""
    weights = onnx_file(tmp_path / "net.onnx", None, "Softmax")
    (tmp_path / "net.json").write_text(examined_here(weights)["card"])
    assert Network(weights.location).start().exactness is Exactness.APPROXIMATE
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    picture = check.Picture(pixels, np.ones((64, 64), bool), "rgb")
    model = Network(weights.location, halo=4, engine="onnxruntime", precision="float32").start()
    assert model.exactness is Exactness.EXACT
    (block,) = picture.blocks(model)
    assert model.select_engine(block)["engine"] == "onnxruntime"
    short = Network(weights.location, halo=2, engine="onnxruntime", precision="float32").start()
    with pytest.raises(WeightsError, match="`halo` or its card says 2"):
        short.select_engine(block)
    fixed = onnx_file(tmp_path / "fixed.onnx", 64, "Softmax")
    (tmp_path / "fixed.json").write_text(examined_here(fixed)["card"])
    with pytest.raises(RecipeError, match="one size only, 64 x 64 pixels"):
        Network(fixed.location, halo=4).start()


def renamed(weights: Weights, operator: str, **attributes: Any) -> Weights:
    """The network with one more operator behind what it gives."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(weights.location)
    model.graph.node[-1].output[0] = "found"
    model.graph.node.append(onnx.helper.make_node(operator, ["found"], ["labels"], **attributes))
    model.graph.output[0].type.tensor_type.elem_type = attributes.get("to", onnx.TensorProto.INT64)
    onnx.save(model, weights.location)
    return Weights.of(weights.location)


@pytest.mark.parametrize("size", [None, 64])
@pytest.mark.parametrize("cast", [None, "UINT8", "FLOAT"])
def test_onnx_networks_of_class_ids_are_measured_by_their_scores(
    tmp_path: Path, size: int | None, cast: str | None
) -> None:
    onnx = pytest.importorskip("onnx")
    weights = onnx_file(tmp_path / "net.onnx", size, "ArgMax")
    if cast is not None:
        weights = renamed(weights, "Cast", to=getattr(onnx.TensorProto, cast))
    found = Card.load(examined_here(weights)["card"].encode(), "there")
    assert (found.output, len(found.classes)) == ("labels", 5)
    assert found.reach.stride == (2 if size is None else 1)
    # The last convolution: 4 maps in, 5 out.
    assert found.bytes_per_pixel == 1.75 * 4 * 9


def test_onnx_networks_of_class_ids_tile_exactly_and_give_what_their_scores_give(
    tmp_path: Path,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 37, 3), np.uint8)
    picture = check.Picture(pixels, np.ones((50, 37), bool), "rgb")
    labels = {}
    for last in ("ArgMax", "Softmax"):
        weights = onnx_file(tmp_path / f"{last}.onnx", None, last)
        (tmp_path / f"{last}.json").write_text(examined_here(weights)["card"])
        model = Network(weights.location, patch=32, halo=4, classes=tuple("abcde")).start()
        labels[last] = check.labelled(model, picture)
        assert np.array_equal(labels[last], check.labelled(model, picture, (16, 20)))
        with pytest.raises(RecipeError, match="has 5 classes"):
            Network(weights.location, classes=("a", "b")).start()
    assert len(np.unique(labels["ArgMax"])) > 2
    assert np.array_equal(labels["ArgMax"], labels["Softmax"])


def test_onnx_networks_of_another_kind_are_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    small = onnx_file(tmp_path / "small.onnx", None, "Softmax", 1)
    assert "one for each pixel" in examined_here(small)["error"]
    whole = renamed(
        onnx_file(tmp_path / "whole.onnx", None, "Softmax"), "Cast", to=onnx.TensorProto.INT32
    )
    assert "no ArgMax" in examined_here(whole)["error"]


@pytest.mark.parametrize(("dtype", "offset"), [("uint8", 0), ("int8", 128), ("int32", 0)])
def test_networks_of_whole_numbers_get_pixels_and_not_fractions(
    tmp_path: Path, dtype: str, offset: int
) -> None:
    """Scaled to 0 ... 1, they would be rounded to black and white."""
    onnx = pytest.importorskip("onnx")
    weights = onnx_file(tmp_path / "net.onnx", None, "Softmax")
    model = onnx.load(weights.location)
    model.graph.input[0].type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(
        np.dtype(dtype)
    )
    model.graph.node.insert(
        0, onnx.helper.make_node("Cast", ["image"], ["cast"], to=onnx.TensorProto.FLOAT)
    )
    model.graph.node[1].input[0] = "cast"
    onnx.save(model, weights.location)
    image = keras.Input((None, None, 3), dtype=dtype)
    keras.Model(image, layers.Conv2D(2, 1)(layers.Rescaling(1 / 255)(image))).save(
        tmp_path / "net.keras"
    )
    for path in (tmp_path / "net.onnx", tmp_path / "net.keras"):
        found = Card.load(examined_here(Weights.of(str(path)))["card"].encode(), "there")
        limits = found.scaling.apply(np.array([[0], [255]], np.uint8))
        assert limits.ravel().tolist() == [-offset, 255 - offset]


def test_broken_files_give_an_error_that_names_them(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x09not a graph")
    with pytest.raises(WeightsError, match=r"broken\.onnx"):
        examine(Weights.of(str(path)))


def test_a_process_that_dies_or_hangs_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"x")
    weights = Weights.of(str(path))
    with pytest.raises(WeightsError, match=r"not be examined within 0.01 s"):
        examine(weights, seconds=0.01)
    for stdout in ("", "noise", '{"card": 1'):
        ended = subprocess.CompletedProcess([], -9, stdout, "Killed")
        monkeypatch.setattr(subprocess, "run", lambda *_, ended=ended, **__: ended)
        with pytest.raises(WeightsError, match=r"ended with -9 \(Killed\)"):
            examine(weights)


def test_only_the_answer_goes_to_standard_output(tmp_path: Path) -> None:
    path = tmp_path / "net.txt"
    path.write_bytes(b"x")
    weights = Weights.of(str(path))
    request = json.dumps({"location": weights.location, "sha256": weights.sha256, "trust": False})
    child = subprocess.run(
        [sys.executable, "-m", "maskloom.segcore.deep.inference.files.examine"],
        input=request,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = io.StringIO(child.stdout.strip())
    assert "net.txt" in json.loads(line)["error"]


@pytest.mark.skipif(
    "MASKLOOM_TEST_DATA" not in os.environ, reason="needs the folder of test images"
)
def test_class_maps_of_litert_are_labels_and_not_probabilities() -> None:
    folder = Path(os.environ["MASKLOOM_TEST_DATA"]) / "models" / "coral_deeplab_tflite"
    card = examine(Weights.of(str(folder / "deeplabv3_mnv2_pascal_quant.tflite")))
    assert (card.output, card.channels, card.reach.fixed) == ("labels", 3, (513, 513))
    assert card.scaling.factor == (1.0,)


def endless_onnx(path: Path) -> Path:
    """A network with a loop of 2^62 rounds."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    pixels, flag = [1, 2, None, None], []
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still_on"]),
            helper.make_node("Sin", ["x"], ["sine"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", kinds.INT64, flag),
            helper.make_tensor_value_info("on", kinds.BOOL, flag),
            helper.make_tensor_value_info("x", kinds.FLOAT, pixels),
        ],
        [
            helper.make_tensor_value_info("still_on", kinds.BOOL, flag),
            helper.make_tensor_value_info("sine", kinds.FLOAT, pixels),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w"], ["y"]),
            helper.make_node("Loop", ["rounds", "go", "y"], ["scores"], body=body),
        ],
        "endless",
        [helper.make_tensor_value_info("image", kinds.FLOAT, [1, 3, None, None])],
        [helper.make_tensor_value_info("scores", kinds.FLOAT, pixels)],
        [
            helper.make_tensor("w", kinds.FLOAT, [2, 3, 1, 1], [0.1] * 6),
            helper.make_tensor("rounds", kinds.INT64, flag, [2**62]),
            helper.make_tensor("go", kinds.BOOL, flag, [True]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def comes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 120
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return true


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_network_that_never_ends_does_not_outlive_whoever_examines_it(
    tmp_path: Path, end: signal.Signals
) -> None:
    psutil = pytest.importorskip("psutil")
    path = endless_onnx(tmp_path / "net.onnx")
    program = (
        "from maskloom.segcore.deep.inference.files import examine, weights; "
        f"examine.examine(weights.Weights.of({str(path)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as driver:
        children: list[Any] = []

        def computes() -> bool:
            children[:] = psutil.Process(driver.pid).children()
            return any(
                "onnxruntime" in library.path
                for child in children
                for library in child.memory_maps()
            )

        assert comes_true(computes)
        driver.send_signal(end)
    assert psutil.wait_procs(children, timeout=120)[1] == []


def test_the_time_for_an_examination_is_set_in_the_recipe(tmp_path: Path) -> None:
    weights = Weights.of(str(endless_onnx(tmp_path / "net.onnx")))
    before = limits.configured()
    limits.configure(limits.Limits(examine=0.5))
    try:
        with pytest.raises(
            WeightsError,
            match=r"net\.onnx could not be examined within 0\.5 s.*raise limits\.examine",
        ):
            examine(weights)
    finally:
        limits.configure(before)


def endless_litert(path: Path) -> Path:
    """A network with a loop that never ends, within a branch."""
    tensorflow = pytest.importorskip("tensorflow")
    pytest.importorskip("ai_edge_litert")

    def loop(image: Any) -> Any:
        sums = tensorflow.reduce_sum
        return tensorflow.while_loop(lambda x: sums(x * 0) < 1, lambda x: [x * 0.5 + 1], [image])[0]

    @tensorflow.function(input_signature=[tensorflow.TensorSpec([1, 32, 32, 3])])
    def network(image: Any) -> Any:
        usual = tensorflow.reduce_sum(image) < 1e30
        return tensorflow.cond(usual, lambda: loop(image), lambda: image)

    concrete = [network.get_concrete_function()]
    converter = tensorflow.lite.TFLiteConverter.from_concrete_functions(concrete, network)
    path.write_bytes(converter.convert())
    return path


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # of the converter
@pytest.mark.parametrize("with_card", [False, True])
@pytest.mark.parametrize("made", [endless_onnx, endless_litert])
def test_a_loop_without_end_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[Path], Path], with_card: bool
) -> None:
    monkeypatch.setattr(examination, "LOOP_SECONDS", 3)
    path = made(tmp_path / ("net.onnx" if made is endless_onnx else "net.tflite"))
    weights = Weights.of(str(path))
    if with_card:
        written = Card("network", weights.sha256, 3, ("a", "b"), Scaling(), ReceptiveField(None))
        (tmp_path / "net.json").write_bytes(written.dump())
    with pytest.raises(WeightsError, match=r"net\.\w+ has a loop and did not finish within 3 s"):
        Network(str(path)).start()
