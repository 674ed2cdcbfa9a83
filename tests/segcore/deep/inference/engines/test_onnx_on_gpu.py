"""ONNX networks with scaling and arg max inside give what plain arithmetic gives, and a provider
for GPUs that does not start leaves the processor.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.segcore.deep.inference.card import Card, Output
from maskloom.segcore.deep.inference.engines import gpus, opening
from maskloom.segcore.deep.inference.engines import onnx as engines
from maskloom.segcore.deep.inference.engines.batches import Batched
from maskloom.segcore.deep.inference.engines.protocol import Choice, PatchesOfImage
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.errors import WeightsError

onnx = pytest.importorskip("onnx")
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
    device = engines.OnnxDevice(weights.read(), form, "it.onnx", engines.PROCESSOR)
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
    for module in (gpus, engines, opening):
        monkeypatch.setattr(module, "nvidia_gpus", lambda: ("NVIDIA L4",))
    monkeypatch.setattr(opening, "_loaded", {})


def test_a_provider_that_does_not_start_is_told_and_the_processor_runs(
    tmp_path, monkeypatch, caplog
):
    """As ONNX Runtime does it: a session has the providers that started, and no error."""
    a_card(monkeypatch, gpus.CUDA)
    weights, by = network(tmp_path / "it.onnx", "last", 3)
    with caplog.at_level(logging.WARNING):
        run = opening.open_engine(weights, card("scores"), Choice("onnxruntime", "float32"))
    assert "does not start" in caplog.text
    inputs = SCALING.apply(PIXELS)
    np.testing.assert_allclose(run(inputs[:1]), inputs[:1] @ by.T, atol=1e-4)


def test_precisions_are_those_of_the_providers(tmp_path, monkeypatch):
    weights, _ = network(tmp_path / "it.onnx", "last", 3)
    a_card(monkeypatch, gpus.CUDA)
    with pytest.raises(WeightsError, match="float16 by TensorRT; got float16"):
        opening.open_engine(weights, card("scores"), Choice("onnxruntime", "float16"))
    a_card(monkeypatch, gpus.TENSORRT, gpus.CUDA)
    chosen = engines.providers_for("float16")
    assert [name if isinstance(name, str) else name[0] for name in chosen] == [
        gpus.TENSORRT,
        gpus.CUDA,
        "CPUExecutionProvider",
    ]
    assert chosen[0][1]["trt_fp16_enable"] == "1"
    with pytest.raises(WeightsError, match="got bfloat16"):
        engines.providers_for("bfloat16")


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
