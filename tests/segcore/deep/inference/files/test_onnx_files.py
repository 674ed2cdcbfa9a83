"""ONNX files that hold a whole network are taken as they are; those that name other files or
operators are refused.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.segcore.deep.inference.files.onnx_files import load_onnx
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.errors import WeightsError

onnx = pytest.importorskip("onnx")
make = onnx.helper
FLOAT = onnx.TensorProto.FLOAT


def network(change: Callable[[Any], object] = lambda model: None) -> bytes:
    """A 1 x 1 convolution, changed."""
    image, scores = (
        make.make_tensor_value_info(name, FLOAT, [1, 1, "y", "x"]) for name in ("image", "scores")
    )
    kernel = onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "kernel")
    graph = make.make_graph(
        [make.make_node("Conv", ["image", "kernel"], ["scores"])],
        "network",
        [image],
        [scores],
        [kernel],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
    change(model)
    content: bytes = model.SerializeToString()
    return content


def written(path: Path, content: bytes) -> Weights:
    path.write_bytes(content)
    return Weights.of(str(path))


def refused(weights: Weights, word: str) -> None:
    with pytest.raises(WeightsError, match=word) as caught:
        load_onnx(weights)
    assert Path(weights.location).name in str(caught.value)


def elsewhere(tensor: Any) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def branch(model: Any, operator: str, domain: str) -> Any:
    """A node inside a branch of the graph."""
    inner = make.make_graph(
        [make.make_node(operator, [], ["inner"], domain=domain)],
        "branch",
        [],
        [make.make_tensor_value_info("inner", FLOAT, [1])],
    )
    model.graph.node.append(
        make.make_node("If", ["condition"], ["chosen"], then_branch=inner, else_branch=inner)
    )
    return model.graph.node[-1].attribute[0].g


def constant_elsewhere(model: Any) -> None:
    tensor = onnx.numpy_helper.from_array(np.ones(1, np.float32), "value")
    elsewhere(tensor)
    branch(model, "Constant", "").node[0].attribute.append(make.make_attribute("value", tensor))


def function(model: Any, domain: str) -> None:
    node = make.make_node("Read", ["a"], ["b"], domain=domain)
    model.functions.append(
        make.make_function("mine", "Mine", ["a"], ["b"], [node], [make.make_opsetid("", 17)])
    )


HOSTILE: dict[str, tuple[Callable[[Any], object], str]] = {
    "weights in another file": (lambda model: elsewhere(model.graph.initializer[0]), "other files"),
    "constant of a branch in another file": (constant_elsewhere, "other files"),
    "own operator": (lambda model: setattr(model.graph.node[0], "domain", "my.library"), "library"),
    "own operator of a branch": (lambda model: branch(model, "Read", "my.library"), "library"),
    "own operator of a function": (lambda model: function(model, "my.library"), "library"),
    "operators of a vendor": (
        lambda model: setattr(model.graph.node[0], "domain", "com.microsoft"),
        "library",
    ),
    "unknown operator": (
        lambda model: setattr(model.graph.node[0], "op_type", "Convolve"),
        "not a complete ONNX file",
    ),
    "unknown name": (
        lambda model: model.graph.node[0].input.__setitem__(0, "picture"),
        "not a complete ONNX file",
    ),
    "nothing": (lambda model: model.Clear(), "1 to 2147483647 bytes"),
}


def test_a_whole_network_is_taken_as_it_is(tmp_path: Path) -> None:
    content = network()
    assert load_onnx(written(tmp_path / "it.onnx", content)) == content


def test_functions_of_its_own_are_taken(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model.functions.append(
            make.make_function(
                "mine",
                "Mine",
                ["a"],
                ["b"],
                [make.make_node("Relu", ["a"], ["b"])],
                [make.make_opsetid("", 17)],
            )
        )
        model.opset_import.append(make.make_opsetid("mine", 1))
        model.graph.node[0].output[0] = "before"
        model.graph.node.append(make.make_node("Mine", ["before"], ["scores"], domain="mine"))

    load_onnx(written(tmp_path / "it.onnx", network(change)))


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_in_the_file_is_not_fetched(tmp_path: Path, name: str) -> None:
    change, word = HOSTILE[name]
    refused(written(tmp_path / "bad.onnx", network(change)), word)


def test_truncated_files_and_others_are_told(tmp_path: Path) -> None:
    whole = network()
    for size in range(0, len(whole), 7):
        refused(written(tmp_path / "short.onnx", whole[:size]), "again")
    refused(written(tmp_path / "photo.onnx", b"\x89PNG\r\n\x1a\n"), "again")
    refused(written(tmp_path / "it.pb", whole), "expected an .onnx file")


def test_a_missing_library_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = written(tmp_path / "it.onnx", network())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(weights, r"pip install 'maskloom\[onnx\]'")


def test_trust_takes_anything(tmp_path: Path) -> None:
    weights = written(tmp_path / "it.onnx", network(HOSTILE["own operator"][0]))
    assert load_onnx(Weights(weights.location, weights.sha256, trust=True))
