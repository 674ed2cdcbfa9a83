"""Skeletons of ONNX graphs (see `skeletons.py`), and what else a card wants to know of one.

Only graphs of operators whose part in the flow from pixel to pixel is known get a skeleton; others
have no finite halo, and are run in blended windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.card import ReceptiveField
from maskloom.segcore.deep.inference.layouts import from_network, to_network
from maskloom.segcore.deep.inference.receptive_field.measure import confirmed, fixed_reach, measure
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.layouts import Layout
    from maskloom.segcore.deep.inference.receptive_field.measure import Network

_PASS = frozenset(
    "Abs BatchNormalization Clip Dropout Elu Erf Exp Gelu HardSigmoid HardSwish Identity "  # noqa: SIM905
    "LayerNormalization LeakyRelu Log "
    "LogSoftmax Mish Neg PRelu Relu Selu Sigmoid Softmax Softplus Softsign Sqrt Swish Tanh".split()
)
_SUMS = frozenset("Add Div Max Mean Min Mul Pow Sub Sum".split())  # noqa: SIM905
_RENAMING = frozenset("Cast Identity Squeeze Unsqueeze".split())  # noqa: SIM905
"""What may stand between the class ids that a network finds and those that it gives."""
_WEIGHED = frozenset("Conv ConvTranspose Gemm MatMul".split())  # noqa: SIM905
_WHOLE = frozenset(
    "GlobalAveragePool GlobalMaxPool GroupNormalization InstanceNormalization ReduceL2 "  # noqa: SIM905
    "ReduceMax ReduceMean ReduceMin ReduceSum".split()
)
_FAITHFUL = frozenset(
    "AveragePool Cast Ceil Concat Constant ConstantOfShape DepthToSpace Expand Flatten Floor "  # noqa: SIM905
    "Gather MaxPool Pad Range Reshape Resize Shape Slice "
    "SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Upsample".split()
)


@dataclass(frozen=True, slots=True)
class Form:
    """How an ONNX model takes images and gives scores."""

    channels: int
    taken: Layout
    given: Layout
    fixed: tuple[int, int] | None
    dtype: str


def form_of(model: Any, where: str) -> Form:
    """The form of a model of one image. Raises `WeightsError` where it has another."""
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in constants]
    shape = _dimensions(inputs[0]) if len(inputs) == 1 else []
    if len(shape) != 4:
        shapes = [_dimensions(each) for each in inputs]
        raise WeightsError(
            f"{where}: expected a network of one image (n, bands, y, x) or (n, y, x, bands); got "
            f"inputs of {shapes}."
        )
    taken = _layout(shape)
    channels = shape[1] if taken == "first" else shape[3]
    if channels is None:
        raise WeightsError(
            f"{where}: the number of bands is open in its input {shape}; expected a number. Export "
            "it again with fixed channels."
        )
    size = (shape[2], shape[3]) if taken == "first" else (shape[1], shape[2])
    output = _dimensions(model.graph.output[0])
    given = _layout(output) if len(output) == 4 and {output[1], output[3]} != {None} else taken
    fixed = None if None in size else size
    kind = onnx.helper.tensor_dtype_to_np_dtype(inputs[0].type.tensor_type.elem_type).name
    return Form(channels, taken, given, fixed, kind)  # type: ignore[arg-type]


def scored(model: Any) -> tuple[Any, Layout] | None:
    """For a model that gives class ids: the same up to the scores whose greatest it takes, and
    where these have classes. None for others.
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
    scores = onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, [None] * 4)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:], copy.graph.output[:]
    copy.graph.node.extend(each for each in model.graph.node if ends.isdisjoint(each.output))
    copy.graph.output.append(known.get(node.input[0], scores))
    return copy, "first" if axis in (1, -3) else "last"


def _dimensions(value: Any) -> list[int | None]:
    return [
        each.dim_value if each.HasField("dim_value") and each.dim_value > 0 else None
        for each in value.type.tensor_type.shape.dim
    ]


def _layout(shape: list[int | None]) -> Layout:
    """Channels are the axis of known size; of two, the shorter."""
    first, last = shape[1], shape[3]
    if first is None or last is None:
        return "last" if first is None and last is not None else "first"
    return "first" if first <= last else "last"


def reach_of_onnx(model: Any, form: Form, where: str) -> ReceptiveField:
    """The reach of a model. Raises `WeightsError` where it gives no scores for pixels."""
    network = runner(model, form, where)
    skeleton = None if form.dtype != "float32" else _skeleton(model)
    if form.fixed is not None:
        reach = fixed_reach(network, form.channels, form.fixed)
        if skeleton is None or not skeleton[1]:
            return reach
        try:
            measured = measure(runner(skeleton[0], form, where), form.channels)
        except WeightsError:
            # Sizes are written into the graph, so that it cannot be taken out of its frame.
            return reach
        return replace(measured, fixed=form.fixed)
    if skeleton is None:
        return replace(measure(network, form.channels), halo=None)
    reach = measure(runner(skeleton[0], form, where), form.channels)
    return confirmed(reach, network, form.channels) if skeleton[1] else replace(reach, halo=None)


def runner(model: Any, form: Form, where: str) -> Network:
    """A model as a function of arrays with channels last, that raises `ValueError` for sizes that
    it does not take.
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
        outputs = []
        # One by one: the number of images may be written into the graph.
        for image in batch:
            try:
                (output,) = session.run(
                    [given], {taken: to_network(image[None], form.taken, np.dtype(form.dtype))}
                )
            except problems as error:
                raise ValueError(str(error)) from error
            outputs.append(from_network(np.asarray(output), form.given, where))
        return np.concatenate(outputs)

    return run


def _skeleton(model: Any) -> tuple[Any, bool] | None:
    """The skeleton, and whether no operator looks at the whole image. None where an operator is
    unknown.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    except (onnx.shape_inference.InferenceError, ValueError):
        return None
    graph = copy.graph
    kinds = {
        each.name: each.type.tensor_type.elem_type
        for each in (*inferred, *graph.input, *graph.output)
    }
    weights = _constants(graph)
    generator, nodes, bounded = np.random.default_rng(0), [], True
    for node in graph.node:
        numbers = kinds.get(node.output[0]) == onnx.TensorProto.FLOAT
        moving = [name for name in node.input if name and name not in weights]
        if (
            node.op_type in _FAITHFUL
            or (not numbers and node.op_type in _SUMS | _PASS)
            or (node.op_type == "Constant" or not moving)
        ):
            nodes.append(node)
        elif node.op_type in _WEIGHED and len(moving) == 1 and node.input[1] in weights:
            name = f"skeleton_{len(nodes)}"
            graph.initializer.append(
                onnx.numpy_helper.from_array(
                    _positive(node.op_type, weights[node.input[1]].shape, generator), name
                )
            )
            node.input[:] = [node.input[0], name]
            nodes.append(node)
        elif node.op_type in _PASS or (node.op_type in _SUMS and len(moving) == 1):
            nodes.append(onnx.helper.make_node("Identity", [moving[0]], [node.output[0]]))
        elif node.op_type in _SUMS:
            nodes.append(onnx.helper.make_node("Sum", moving, [node.output[0]]))
        elif node.op_type in _WHOLE:
            bounded = False
            nodes += _nothing(node, len(nodes), graph)
        else:
            return None
    del graph.node[:]
    graph.node.extend(nodes)
    _loosen(graph)
    return copy, bounded


def _constants(graph: Any) -> dict[str, NDArray[Any]]:
    import onnx

    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    return found


def _positive(
    operator: str, shape: tuple[int, ...], generator: np.random.Generator
) -> NDArray[np.float32]:
    """A kernel as in `skeletons.py`; its layout is (out, in, y, x), for transposed convolutions
    (in, out, y, x), (in, out) for products.
    """
    fan = (shape[1] if operator == "Conv" else shape[0]) * max(
        1.0, float(np.prod(shape[2:]))
    ) ** 0.75
    return np.asarray(generator.uniform(0.5, 1.5, shape) / fan, np.float32)


def _nothing(node: Any, number: int, graph: Any) -> list[Any]:
    """What looks at the whole image, times 0; norms over space pass their input on."""
    import onnx

    if node.op_type.endswith("Normalization"):
        return [onnx.helper.make_node("Identity", [node.input[0]], [node.output[0]])]
    result, name = node.output[0], f"skeleton_{number}"
    node.output[0] = f"{name}_whole"
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), np.float32), name))
    return [node, onnx.helper.make_node("Mul", [node.output[0], name], [result])]


def _loosen(graph: Any) -> None:
    """Forget all sizes of maps, so that images of any size may come."""
    import onnx

    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        for axis, each in enumerate(value.type.tensor_type.shape.dim):
            each.dim_param = f"{value.name}_{axis}"


def count_parameters(model: Any) -> int:
    """Number of weights."""
    return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)


def live_bytes(model: Any, form: Form, size: tuple[int, int]) -> int | None:
    """Bytes of all maps that are alive at once, at most, for one image of this size. None where
    sizes cannot be inferred.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    dims = copy.graph.input[0].type.tensor_type.shape.dim
    sizes = (1, form.channels, *size) if form.taken == "first" else (1, *size, form.channels)
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
    return peak([(list(node.input), list(node.output)) for node in graph.node], bytes_of)


def peak(steps: list[tuple[list[Any], list[Any]]], bytes_of: dict[Any, int]) -> int:
    """The most bytes alive at once, where each step (what it takes, what it gives) frees what
    nobody takes any more.
    """
    last = {name: i for i, (taken, _) in enumerate(steps) for name in taken}
    alive: dict[Any, int] = {}
    most = 0
    for i, (taken, given) in enumerate(steps):
        alive |= {name: bytes_of.get(name, 0) for name in (*taken, *given)}
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > i}
    return most
