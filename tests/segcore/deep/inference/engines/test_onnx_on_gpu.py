"""ONNX networks with scaling and arg max inside give what plain arithmetic gives, and a provider
for GPUs that does not start leaves the processor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage import data

from maskloom.segcore.deep.inference.card import Card, Output
from maskloom.segcore.deep.inference.engines import gpus, opening, selection
from maskloom.segcore.deep.inference.engines import onnx as engines
from maskloom.segcore.deep.inference.engines.batches import Batched
from maskloom.segcore.deep.inference.engines.onnx_half import in_half
from maskloom.segcore.deep.inference.engines.protocol import Choice, PatchesOfImage
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.errors import WeightsError

onnx = pytest.importorskip("onnx")
ReferenceEvaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
runtime = pytest.importorskip("onnxruntime")
SCALING = Scaling((10.0, 20.0), (1 / 50, 1 / 100))
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 12, 16, 2), np.uint8)


def network(path: Path, layout: str, classes: int, kind: str = "float32") -> tuple[Weights, Any]:
    """A file that weighs the bands of each pixel, and the weights (class, band)."""
    make = onnx.helper
    weights = np.random.default_rng(1).standard_normal((classes, 2)).astype(np.float32)
    taken = make.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [make.make_node("Cast", ["image"], ["x"], to=onnx.TensorProto.FLOAT)]
    if layout == "first":
        nodes.append(make.make_node("Conv", ["x", "w"], ["scores"]))
        values = weights[:, :, None, None]
        shapes = [["n", 2, "y", "x"], ["n", classes, "y", "x"]]
    else:
        nodes.append(make.make_node("MatMul", ["x", "w"], ["scores"]))
        values = weights.T
        shapes = [["n", "y", "x", 2], ["n", "y", "x", classes]]
    info = make.make_tensor_value_info
    graph = make.make_graph(
        nodes,
        "it",
        [info("image", taken, shapes[0])],
        [info("scores", onnx.TensorProto.FLOAT, shapes[1])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(values), "w")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return Weights.of(str(path)), weights


def card(output: Output, classes: int = 3) -> Card:
    names = tuple(f"class_{i}" for i in range(classes))
    return Card("network", "", 2, names, SCALING, ReceptiveField(0), output)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize(("output", "given"), [("scores", 3), ("logits", 1), ("sigmoid", 1)])
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_pixels_go_in_and_labels_come_out(tmp_path, layout, output, given, kind):
    weights, by = network(tmp_path / "it.onnx", layout, given, kind)
    form = card(output, max(2, given))
    device = engines.OnnxDevice(weights.read(), form, "it.onnx")
    run = Batched(device, form, "it.onnx", 2 * PIXELS[0, ..., 0].size)
    of = PatchesOfImage(PIXELS.shape[1:-1], len(PIXELS))
    inputs = SCALING.apply(PIXELS)
    if kind == "uint8":
        inputs = np.clip(np.rint(inputs), 0, 255)
    expected = inputs @ by.T
    scores = dict(run.scores(enumerate(PIXELS), of))
    labels = dict(run.labels(enumerate(PIXELS), of))
    limit = {"logits": 0.0, "sigmoid": 0.5}.get(output)
    for i, wanted in enumerate(expected):
        np.testing.assert_allclose(scores[i], wanted, atol=1e-4)
        found = wanted.argmax(axis=-1) if limit is None else wanted[..., 0] > limit
        np.testing.assert_array_equal(labels[i], found)
    assert labels[0].dtype == np.uint8


def a_card(monkeypatch: pytest.MonkeyPatch, *providers: str) -> None:
    there = [*providers, "CPUExecutionProvider"]
    monkeypatch.setattr(runtime, "get_available_providers", lambda: there)
    for module in (gpus, engines, opening, selection):
        monkeypatch.setattr(module, "nvidia_gpus", lambda: ("NVIDIA L4",))
    monkeypatch.setattr(opening, "_loaded", {})
    engines._cuda_starts.cache_clear()


def test_a_provider_that_does_not_start_is_told_once_and_the_processor_runs(
    tmp_path, monkeypatch, caplog
):
    """As ONNX Runtime does it: a session has the providers that started, and no error."""
    a_card(monkeypatch, gpus.CUDA)
    weights, by = network(tmp_path / "it.onnx", "last", 3)
    with caplog.at_level(logging.WARNING):
        run = opening.open_engine(weights, card("scores"), Choice("onnxruntime", "float32"))
        with pytest.raises(WeightsError, match=r"float16 is for GPUs.*on the processor"):
            opening.open_engine(weights, card("scores"), Choice("onnxruntime", "float16"))
    assert caplog.text.count("does not start") == 1
    inputs = SCALING.apply(PIXELS)
    np.testing.assert_allclose(run(inputs[:1]), inputs[:1] @ by.T, atol=1e-4)


def test_precisions_are_those_of_the_providers(tmp_path, monkeypatch):
    weights, _ = network(tmp_path / "it.onnx", "last", 3)
    patch = SCALING.apply(PIXELS[0])

    def select(precision: Any) -> Choice:
        return selection.select_engine(weights, card("logits"), patch, "onnxruntime", precision)

    monkeypatch.setattr(selection, "nvidia_gpus", lambda: ())
    with pytest.raises(WeightsError, match="float16 is for NVIDIA GPUs, and this process has none"):
        select("float16")
    a_card(monkeypatch)  # the wheel for processors
    with pytest.raises(WeightsError, match="pip install onnxruntime-gpu in place of onnxruntime"):
        select("float16")
    a_card(monkeypatch, gpus.CUDA)
    with pytest.raises(WeightsError, match="float32 and float16 on GPUs; got bfloat16"):
        opening.open_engine(weights, card("scores"), Choice("onnxruntime", "bfloat16"))
    assert names_of(engines.providers_for("float16", b"")) == [gpus.CUDA, "CPUExecutionProvider"]


def names_of(providers: list[Any]) -> list[str]:
    return [each if isinstance(each, str) else each[0] for each in providers]


def test_tensorrt_keeps_what_it_compiles_for_each_model_apart(tmp_path, monkeypatch):
    """It names its files by the structure of a model, which others of one training have too."""
    monkeypatch.setenv("MASKLOOM_CACHE", str(tmp_path))
    a_card(monkeypatch, gpus.TENSORRT, gpus.CUDA)
    one, two, again = (engines.providers_for("float16", model) for model in (b"1", b"2", b"1"))
    assert names_of(one) == [gpus.TENSORRT, gpus.CUDA, "CPUExecutionProvider"]
    folders = [each[0][1]["trt_engine_cache_path"] for each in (one, two, again)]
    assert folders[0] == folders[2] != folders[1]
    assert all(Path(folder).is_dir() for folder in folders)
    # Types are those of the model; else TensorRT chooses where to compute in 16 bits.
    assert "trt_fp16_enable" not in one[0][1]
    assert gpus.TENSORRT not in names_of(engines.providers_for("float32", b"1"))


# float16


def layers(path: Path, spread: float = 1.0, gain: float = 1.0) -> tuple[Weights, Any]:
    """A network of four convolutions whose inner weights spread by `spread`, and whose logits are
    multiplied by `gain`; with a skip, a resized branch by sizes in maps, and constants of all
    kinds.
    """
    make, array, random = onnx.helper, onnx.numpy_helper, np.random.default_rng(3)
    kernels = {
        "k1": random.normal(0, 0.5, (8, 2, 3, 3)),
        "k2": random.normal(0, 0.2 * spread, (8, 8, 3, 3)),
        "k3": random.normal(0, 0.3 / spread, (8, 16, 1, 1)),
        "k4": random.normal(0, gain, (3, 8, 1, 1)),
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        make.make_node("Conv", ["image", "k1"], ["a"], **pads),
        make.make_node("Relu", ["a"], ["b"]),
        make.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        make.make_node("Conv", ["c", "k2"], ["d"], **pads),
        make.make_node("Constant", [], ["slope"], value=array.from_array(np.float32([0.1]))),
        make.make_node("PRelu", ["d", "slope"], ["e"]),
        make.make_node("Shape", ["b"], ["sizes"]),
        make.make_node("Resize", ["e", "", "", "sizes"], ["f"], mode="linear"),
        make.make_node("Concat", ["b", "f"], ["g"], axis=1),
        make.make_node("Conv", ["g", "k3"], ["h"]),
        make.make_node("Relu", ["h"], ["i"]),
        make.make_node("Conv", ["i", "k4"], ["scores"]),
    ]
    info, kind = make.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = make.make_graph(
        nodes,
        "layers",
        [info("image", kind, ["n", 2, "y", "x"])],
        [info("scores", kind, ["n", 3, "y", "x"])],
        [array.from_array(values.astype(np.float32), name) for name, values in kernels.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return Weights.of(str(path)), model


def in_float16(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The lowered model as ONNX defines it. ONNX Runtime on processors leaves out casts."""
    evaluator = ReferenceEvaluator(in_half(model))
    return lambda batch: from_first(evaluator.run(None, {"image": to_first(batch)})[0])


def to_first(batch: np.ndarray) -> np.ndarray:
    return np.moveaxis(batch, -1, 1)


def from_first(batch: np.ndarray) -> np.ndarray:
    return np.moveaxis(batch, 1, -1)


def runs(weights: Weights, form: Card) -> list[Batched]:
    """The network on the processor in float32 and in float16."""
    content = weights.read()
    return [
        Batched(engines.OnnxDevice(content, form, "it", precision), form, "it", 4 * 24 * 32)
        for precision in ("float32", "float16")
    ]


@pytest.mark.parametrize(("dtype", "gain"), [("uint8", 1.0), ("uint16", 1e6)])
def test_float16_keeps_labels_of_all_pixels_and_of_logits_beyond_its_range(tmp_path, dtype, gain):
    """Pixels of 16 bits and logits of 1e6 do not fit into float16: the ends are in float32."""
    weights, model = layers(tmp_path / "it.onnx", gain=gain)
    most = np.iinfo(dtype).max
    rough = np.random.default_rng(0).integers(0, most, (4, 6, 8, 2), endpoint=True)
    pixels = np.kron(rough, np.ones((1, 4, 4, 1))).astype(dtype)
    form = replace(card("logits"), scaling=Scaling((most / 2,), (2 / most,)))
    whole, half = runs(weights, form)
    of = PatchesOfImage(pixels.shape[1:-1], len(pixels))
    scores, close = (dict(run.scores(enumerate(pixels), of)) for run in (whole, half))
    labels, kept = (dict(run.labels(enumerate(pixels), of)) for run in (whole, half))
    assert 0 < np.abs(scores[0] - close[0]).max() < 2e-3 * np.abs(scores[0]).max()
    assert gain == 1.0 or np.abs(scores[0]).max() > 65504
    assert np.mean([labels[i] == kept[i] for i in labels]) >= 0.999
    assert len(np.unique(kept[0])) == 3
    exactly = in_float16(model)(form.scaling.apply(pixels[:1]))[0]
    assert np.mean(exactly.argmax(axis=-1) == labels[0]) >= 0.999
    # A patch alone, as in a batch.
    alone = PatchesOfImage(pixels.shape[1:-1], 1)
    ((_, single),) = half.labels([(2, pixels[2])], alone)
    np.testing.assert_array_equal(single, kept[2])
    # Scaled pixels, as where windows are blended.
    np.testing.assert_allclose(half(form.scaling.apply(pixels))[1], close[1], rtol=1e-6)


def test_only_the_middle_of_a_network_is_lowered(tmp_path):
    _, model = layers(tmp_path / "it.onnx")
    lowered = in_half(model)
    onnx.checker.check_model(lowered, full_check=True)
    kinds = {
        each.name: each.type.tensor_type.elem_type
        for each in onnx.shape_inference.infer_shapes(lowered, strict_mode=True).graph.value_info
    }
    taken = {tuple(node.output): list(node.input) for node in lowered.graph.node}
    in_float32 = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT}
    # The first layer, the input of the last, and a constant that nothing takes any more.
    assert in_float32 == {"a", "i", "slope"}
    assert taken["scores",] == ["i", "k4"]
    assert sum(node.op_type == "Cast" for node in lowered.graph.node) == 2
    names = {each.name for each in lowered.graph.initializer}
    assert names == {"k1", "maskloom_half_k2", "maskloom_half_k3", "k4", "maskloom_half_slope"}


def test_weights_beyond_float16_stay_as_they_are_and_maps_beyond_it_are_told(tmp_path, monkeypatch):
    _, model = layers(tmp_path / "it.onnx", spread=1e6)
    names = {each.name for each in in_half(model).graph.initializer}
    assert {"k2", "maskloom_half_k3"} <= names
    weights, model = layers(tmp_path / "maps.onnx", spread=1e5)
    run = in_float16(model)
    monkeypatch.setattr(selection, "open_engine", lambda *_: run)
    patch = SCALING.apply(PIXELS[0]) * 100
    with (
        np.errstate(all="ignore"),
        pytest.raises(WeightsError, match="65504, the largest of float16"),
    ):
        selection.run_once(weights, card("logits"), patch, Choice("onnxruntime", "float16"))


@pytest.mark.nightly
def test_keras_files_are_exported_once_and_keep_their_labels(tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx")
    monkeypatch.setenv("MASKLOOM_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(opening, "_loaded", {})
    weights = Weights.of("nuclei")
    form = weights.card()
    assert form is not None
    patch = np.random.default_rng(0).random((1, 64, 96, form.channels), np.float32)
    runs = [
        opening.open_engine(weights, form, Choice(name, "float32"))
        for name in ("onnxruntime", "tensorflow")
    ]
    found, expected = (np.array(run(patch)) for run in runs)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    monkeypatch.setattr(opening, "_loaded", {})
    monkeypatch.setattr(engines, "exported", None)
    again = opening.open_engine(weights, form, Choice("onnxruntime", "float32"))
    np.testing.assert_array_equal(again(patch), found)
    # Labels and vectors, from which objects are made, in float16.
    content, photo = engines._content(weights, form), data.immunohistochemistry()[:96, :128]
    whole, half = (
        Batched(engines.OnnxDevice(content, form, "it", precision), form, "it", 0)
        for precision in ("float32", "float16")
    )
    of = PatchesOfImage(photo.shape[:2], 1)
    ((_, found),), ((_, wanted),) = (list(run.scores([(0, photo)], of)) for run in (half, whole))
    assert 0 < np.abs(found - wanted).max() < 0.1
    assert selection.agreement_of(found, wanted, form) >= 0.999
