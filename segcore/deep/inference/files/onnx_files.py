"""ONNX files, checked before a runtime reads them.

A model may keep its weights in other files, whose paths it names itself, and may ask for operators
from third-party libraries. Neither is needed: weights of up to two gigabytes fit into the file, and
the standard operators suffice.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.files.weights import Weights

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_MOST_BYTES = (1 << 31) - 1
_MOST_LEVELS = 32


def load_onnx(weights: Weights) -> bytes:
    """Return the bytes of an ONNX file that needs no other files or operators.

    Raises `WeightsError` if it does. With `weights.trust` nothing is checked here.
    """
    content, where = weights.read(), weights.location
    if weights.trust:
        return content
    if importlib.util.find_spec("onnx") is None:
        raise WeightsError(
            f"{where}: ONNX files need onnx and onnxruntime, which are not installed: pip install "
            "'maskloom[onnx]'."
        )
    if weights.suffix != ".onnx":
        raise WeightsError(f"{where}: expected an .onnx file; got {weights.suffix or 'no suffix'}.")
    if not 0 < len(content) <= _MOST_BYTES:
        raise WeightsError(
            f"{where}: expected 1 to {_MOST_BYTES} bytes; got {len(content)}. Copy it again."
        )
    _check(content, where)
    return content


def _check(content: bytes, where: str) -> None:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_from_string(content)
        local = {(function.domain, function.name) for function in model.functions}
        for node in _nodes(model):
            if node.domain not in _DOMAINS and (node.domain, node.op_type) not in local:
                raise WeightsError(
                    f"{where} uses the operator {node.op_type!r} of {node.domain!r}, which comes "
                    "from another library. Export the network with standard operators."
                )
        for tensor in _tensors(model):
            if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise WeightsError(
                    f"{where} keeps weights in other files ({tensor.name[:80]!r}). Save it as one "
                    "file."
                )
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, RecursionError, UnicodeDecodeError) as error:
        reason = (str(error) or "it cannot be parsed").strip().splitlines()[0]
        raise WeightsError(
            f"{where} is not a complete ONNX file: {reason[:300]}. Copy or export it again."
        ) from error


def _graphs(model: Any) -> Iterator[Any]:
    """All parts of a model with nodes: the graph, its branches and loops, and the functions."""
    pending = [(part, 0) for part in (model.graph, *model.functions)]
    pending += [
        (part, 0) for step in model.training_info for part in (step.initialization, step.algorithm)
    ]
    while pending:
        part, level = pending.pop()
        if level > _MOST_LEVELS:
            raise RecursionError("its graphs are nested too deeply")
        yield part
        for attribute in _attributes(part):
            pending += [
                (inner, level + 1) for inner in (attribute.g, *attribute.graphs) if inner.node
            ]


def _nodes(model: Any) -> Iterator[Any]:
    for part in _graphs(model):
        yield from part.node


def _attributes(part: Any) -> Iterator[Any]:
    for node in part.node:
        yield from node.attribute
    yield from getattr(part, "attribute_proto", ())


def _tensors(model: Any) -> Iterator[Any]:
    for part in _graphs(model):
        sparse = list(getattr(part, "sparse_initializer", ()))
        yield from getattr(part, "initializer", ())
        for attribute in _attributes(part):
            yield from (attribute.t, *attribute.tensors)
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        for tensor in sparse:
            yield from (tensor.values, tensor.indices)
