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


def elsewhere(tensor: Any, location: str = "../../etc/passwd", **place: int) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))


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
    "weights in another folder": (
        lambda model: elsewhere(model.graph.initializer[0]),
        "names a file outside",
    ),
    "constant of a branch in another folder": (constant_elsewhere, "names a file outside"),
    "weights at an absolute path": (
        lambda model: elsewhere(model.graph.initializer[0], "/etc/passwd"),
        "names a file outside",
    ),
    "weights in a missing file": (
        lambda model: elsewhere(model.graph.initializer[0], "none.data"),
        "not there",
    ),
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
    with pytest.raises(WeightsError, match=word) as caught:
        load_onnx(written(tmp_path / "bad.onnx", network(change)))
    assert "bad.onnx" in str(caught.value) or str(tmp_path) in str(caught.value)


def kernel_of(content: bytes) -> Any:
    return onnx.numpy_helper.to_array(onnx.load_from_string(content).graph.initializer[0])


def test_weights_in_a_file_beside_it_are_put_into_the_network(tmp_path: Path) -> None:
    kernel = np.float32([[[[0.25, -3.0]]]])

    def change(model: Any) -> None:
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(kernel, "kernel"))

    (tmp_path / "whole").mkdir()
    whole = onnx.load_from_string(network(change))
    onnx.save(
        whole,
        tmp_path / "whole" / "net.onnx",
        save_as_external_data=True,
        location="net.data",
        size_threshold=0,
    )
    beside = Weights.of(str(tmp_path / "whole" / "net.onnx"))
    assert b"\0\0\x80>" not in beside.read()
    assert np.array_equal(kernel_of(load_onnx(beside)), kernel)
    # The folder that holds it means the same.
    assert Weights.of(str(tmp_path / "whole")) == beside
    data = tmp_path / "whole" / "net.data"
    data.write_bytes(bytes(len(data.read_bytes())))
    with pytest.raises(WeightsError, match="was changed"):
        load_onnx(beside)


@pytest.mark.parametrize(("offset", "length"), [(0, 3), (0, 8), (1, 4), (-4, 4)])
def test_weights_of_another_size_than_the_file_beside_holds_are_told(
    tmp_path: Path, offset: int, length: int
) -> None:
    (tmp_path / "net.data").write_bytes(bytes(4))
    content = network(
        lambda model: elsewhere(
            model.graph.initializer[0], "net.data", offset=offset, length=length
        )
    )
    refused(written(tmp_path / "bad.onnx", content), "does not hold the 4 bytes")


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
