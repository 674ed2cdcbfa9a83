"""ONNX files, checked before a runtime reads them.

A model may keep its weights in other files, whose paths it names itself, and may ask for operators
from third-party libraries. Files beside it are read by us and put into the model, so no runtime
opens a path from it; files elsewhere are refused (`sources`), as are other operators than the
standard ones.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from maskloom.segcore.deep.inference.files.folders import inside
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.files.sources import Source
    from maskloom.segcore.deep.inference.files.weights import Weights

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_MOST_BYTES = (1 << 31) - 1
_MOST_LEVELS = 32
_LOOPS = ("Loop", "Scan")


def load_onnx(weights: Weights) -> bytes:
    """Return the bytes of an ONNX file that needs no other files or operators.

    Weights in files beside it are put into it. Raises `WeightsError` if it needs anything else.
    With `weights.trust` operators are not checked.
    """
    source, where = weights.source(), weights.location
    content = source.content
    if weights.trust and len(source.contents) == 1:
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
    return _checked(source, weights)


def has_loops(model: Any) -> bool:
    """Whether a model holds an operator that may run without end."""
    return any(node.op_type in _LOOPS for node in _nodes(model))


def external_files(content: bytes) -> list[str]:
    """Names, as they are, of the other files in which a model keeps weights; none if it is broken,
    which its examination will say.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_from_string(content)
        return sorted({_place(tensor)[0] for tensor in _tensors(model) if _is_external(tensor)})
    except (DecodeError, RecursionError, UnicodeDecodeError, ValueError):
        return []


def _checked(source: Source, weights: Weights) -> bytes:
    import onnx
    from google.protobuf.message import DecodeError

    where, content = weights.location, source.content
    base = source.main.rpartition("/")[0]
    try:
        model = onnx.load_from_string(content)
        local = {(function.domain, function.name) for function in model.functions}
        for node in _nodes(model):
            if weights.trust:
                break
            if node.domain not in _DOMAINS and (node.domain, node.op_type) not in local:
                raise WeightsError(
                    f"{where} uses the operator {node.op_type!r} of {node.domain!r}, which comes "
                    "from another library. Export the network with standard operators."
                )
        for tensor in _tensors(model):
            if _is_external(tensor):
                _embed(tensor, source.contents, base, where)
                content = b""
        onnx.checker.check_model(model)
        return content or bytes(model.SerializeToString())
    except (DecodeError, onnx.checker.ValidationError, RecursionError, UnicodeDecodeError) as error:
        reason = (str(error) or "it cannot be parsed").strip().splitlines()[0]
        raise WeightsError(
            f"{where} is not a complete ONNX file: {reason[:300]}. Copy or export it again."
        ) from error


def _is_external(tensor: Any) -> bool:
    import onnx

    return bool(tensor.external_data) or tensor.data_location == onnx.TensorProto.EXTERNAL


def _place(tensor: Any) -> tuple[str, int, int | None]:
    """The file of a tensor, the offset in it and the length in bytes (None: to its end).

    Raises `ValueError` if they are no numbers.
    """
    said = {entry.key: entry.value for entry in tensor.external_data}
    length = said.get("length")
    offset = int(said.get("offset") or 0)
    return said.get("location", ""), offset, None if length is None else int(length)


def _embed(tensor: Any, contents: Mapping[str, bytes], base: str, where: str) -> None:
    """Put the numbers of a tensor, which are in another file, into the model.

    Raises `WeightsError` if the file does not hold as many.
    """
    import onnx

    try:
        location, offset, length = _place(tensor)
        name = "/".join(filter(None, (base, inside(location, where))))
        content = contents[name]
        data = content[offset:] if length is None else content[offset : offset + length]
        item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{where} names no place for its weights {tensor.name[:80]!r}: {error!s:.100}. Export "
            "it again."
        ) from error
    expected = item * math.prod(tensor.dims)
    if offset < 0 or len(data) != expected or length not in (None, expected):
        raise WeightsError(
            f"{where}: {name} does not hold the {expected} bytes of {tensor.name[:80]!r} at "
            f"{offset}, but {len(data)}. Copy both files again."
        )
    tensor.raw_data = data
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


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
