"""ONNX models of one image: layout, execution and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.layouts import from_network, to_network
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.layouts import Layout
    from maskloom.segcore.deep.inference.receptive_field.measure import Network
    from maskloom.segcore.geometry import Shape

_RENAMING = frozenset("Cast Identity Squeeze Unsqueeze".split())  # noqa: SIM905
"""Operators that may follow the ArgMax of class ids."""
_WEIGHED = frozenset("Conv ConvTranspose Gemm MatMul".split())  # noqa: SIM905


@dataclass(frozen=True, slots=True)
class Signature:
    """Layout of an ONNX model's input and output."""

    channels: int
    taken: Layout
    given: Layout
    fixed: Shape | None
    dtype: str
    dimensions: int = 2
    """2: images, 3: volumes."""


def signature_of(model: Any, where: str) -> Signature:
    """Determine the layout of a model of one image. Raises `WeightsError` for any other model."""
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in constants]
    shape = _dimensions(inputs[0]) if len(inputs) == 1 else []
    if len(shape) not in (4, 5):
        shapes = [_dimensions(each) for each in inputs]
        raise WeightsError(
            f"{where}: expected a network of one image (n, bands, y, x) or (n, y, x, bands), or of "
            f"one volume with an axis z before y; got inputs of {shapes}."
        )
    taken = _layout(shape)
    channels = shape[1] if taken == "first" else shape[-1]
    if channels is None:
        raise WeightsError(
            f"{where}: the number of bands is open in its input {shape}; expected a number. Export "
            "it again with fixed channels."
        )
    size = tuple(shape[2:] if taken == "first" else shape[1:-1])
    output = _dimensions(model.graph.output[0])
    known = len(output) == len(shape) and {output[1], output[-1]} != {None}
    given = _layout(output) if known else taken
    fixed = None if None in size else size
    kind = onnx.helper.tensor_dtype_to_np_dtype(inputs[0].type.tensor_type.elem_type).name
    return Signature(channels, taken, given, fixed, kind, len(size))  # type: ignore[arg-type]


def scored(model: Any) -> tuple[Any, Layout] | None:
    """Cut a model that outputs class ids back to the scores before its ArgMax.

    Returns the model and the layout of the scores; None for other models.
    """
    import onnx

    makers = {name: node for node in model.graph.node for name in node.output}
    node, ends = makers.get(model.graph.output[0].name), set()
    while node is not None and node.op_type in _RENAMING:
        ends.add(node.output[0])
        node = makers.get(node.input[0])
    if node is None or node.op_type != "ArgMax":
        return None
    ends.add(node.output[0])
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    known = {each.name: each for each in onnx.shape_inference.infer_shapes(model).graph.value_info}
    inputs = {each.name for each in model.graph.initializer}
    axes = next(len(_dimensions(each)) for each in model.graph.input if each.name not in inputs)
    scores = onnx.helper.make_tensor_value_info(
        node.input[0], onnx.TensorProto.FLOAT, [None] * axes
    )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:], copy.graph.output[:]
    copy.graph.node.extend(each for each in model.graph.node if ends.isdisjoint(each.output))
    copy.graph.output.append(known.get(node.input[0], scores))
    return copy, "first" if axis in (1, 1 - axes) else "last"


def _dimensions(value: Any) -> list[int | None]:
    return [
        each.dim_value if each.HasField("dim_value") and each.dim_value > 0 else None
        for each in value.type.tensor_type.shape.dim
    ]


def _layout(shape: list[int | None]) -> Layout:
    """The channel axis is the one of known size; of two, the shorter."""
    first, last = shape[1], shape[-1]
    if first is None or last is None:
        return "last" if first is None and last is not None else "first"
    return "first" if first <= last else "last"


def runner(model: Any, signature: Signature, where: str) -> Network:
    """Return a model as a function of arrays with channels last.

    It raises `ValueError` for sizes that the model does not accept.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    problems = (
        state.Fail,
        state.InvalidGraph,
        state.InvalidArgument,
        state.NotImplemented,
        state.RuntimeException,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except problems as error:
        raise WeightsError(
            f"ONNX Runtime cannot load {where}: {str(error).strip()[:300]}"
        ) from error
    taken, given = session.get_inputs()[0].name, session.get_outputs()[0].name

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores (image, y, x, class) of images (image, y, x, band)."""
        outputs = []
        # One by one, because the number of images may be fixed in the graph.
        for image in batch:
            try:
                (output,) = session.run(
                    [given],
                    {taken: to_network(image[None], signature.taken, np.dtype(signature.dtype))},
                )
            except problems as error:
                raise ValueError(str(error)) from error
            outputs.append(
                from_network(np.asarray(output), signature.given, where, signature.dimensions)
            )
        return np.concatenate(outputs)

    return run


def count_parameters(model: Any) -> int:
    """Number of weights."""
    return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)


def maps_of(
    model: Any, signature: Signature, size: Shape
) -> tuple[list[tuple[list[str], list[str]]], dict[str, int]] | None:
    """Return the feature maps taken and created by each step, and their bytes in float32.

    They are for one image of `size`. None if sizes cannot be inferred.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    dims = copy.graph.input[0].type.tensor_type.shape.dim
    sizes = (
        (1, signature.channels, *size)
        if signature.taken == "first"
        else (1, *size, signature.channels)
    )
    for each, length in zip(dims, sizes, strict=True):
        each.dim_value = length
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        return None
    values = (*graph.input, *graph.output, *graph.value_info)
    bytes_of = {
        each.name: 4 * int(np.prod([length or 0 for length in _dimensions(each)]))
        for each in values
    }
    if any(
        name not in bytes_of
        for node in graph.node
        if node.op_type in _WEIGHED
        for name in node.output
    ):
        return None
    return [(list(node.input), list(node.output)) for node in graph.node], bytes_of
