"""SavedModels of TensorFlow, checked and frozen before anything of them runs.

A SavedModel is a program: it may name operations that read and write files, call Python or never
end, and may ask for some of them to run while it is loaded. So TensorFlow's own loader never sees
it. From its graph only the part between the image and the scores is taken, each operation of it
must be on a list of harmless ones, and the variables are put in as constants. They are found by
their names in the checkpoint (of version 1 and 2 of TensorFlow).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.files.sources import SAVED_MODEL
from maskloom.segcore.deep.inference.layouts import from_network, to_network
from maskloom.segcore.deep.inference.runtime import import_tensorflow, quiet
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.files.weights import Weights
    from maskloom.segcore.deep.inference.layouts import Layout
    from maskloom.segcore.geometry import Shape

_HARMLESS = frozenset(
    # A list would take a line for each name.
    "Abs Add AddN AddV2 ArgMax AvgPool AvgPool3D BatchMatMul BatchMatMulV2 BatchMatMulV3 "  # noqa: SIM905
    "BatchToSpaceND BiasAdd BroadcastTo Cast Ceil ClipByValue Concat ConcatV2 Const Conv2D "
    "Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 Cumsum DepthToSpace "
    "DepthwiseConv2dNative Div DivNoNan Einsum Elu Equal Erf Exp ExpandDims Fill Floor FloorDiv "
    "FloorMod FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 Gather GatherNd GatherV2 Greater "
    "GreaterEqual Identity IdentityN LeakyRelu Less LessEqual Log Log1p LogSoftmax LogicalAnd "
    "LogicalNot LogicalOr MatMul Max MaxPool MaxPool3D MaxPoolV2 Maximum Mean Min Minimum "
    "MirrorPad Mul MulNoNan Neg NoOp NotEqual OneHot OnesLike Pack Pad PadV2 PartitionedCall "
    "Placeholder PlaceholderWithDefault Pow PreventGradient Prod Range Rank ReadVariableOp "
    "RealDiv Reciprocal Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor ReverseV2 Rint "
    "Roll Round Rsqrt ScatterNd Select SelectV2 Selu Shape ShapeN Sigmoid Sign Size Slice Softmax "
    "Softplus Softsign SpaceToBatchND SpaceToDepth Split SplitV Sqrt Square SquaredDifference "
    "Squeeze StatefulPartitionedCall StopGradient StridedSlice Sub Sum Tanh Tile Transpose "
    "TruncateDiv Unpack VarHandleOp Variable VariableV2 Where ZerosLike".split()
)
_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_PREFIX = "variables/variables"
_SERVE, _SIGNATURE = "serve", "serving_default"
_MOST_NODES = 200_000


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A SavedModel as one graph of constants."""

    graph: Any = field(repr=False)
    """Its `GraphDef`."""
    taken: str
    """Name of the tensor of the image."""
    given: str
    """Name of the tensor of the scores."""
    shape: tuple[int | None, ...]
    """Of the image, with the patch first."""
    layout: Layout
    dtype: np.dtype[Any]
    parameters: int
    where: str
    runs: Callable[[Any], Any] = field(repr=False)

    @property
    def channels(self) -> int:
        """Number of bands."""
        channels = self.shape[1] if self.layout == "first" else self.shape[-1]
        assert channels is not None
        return channels

    @property
    def dimensions(self) -> int:
        """2: images, 3: volumes."""
        return len(self.shape) - 2

    @property
    def fixed(self) -> Shape | None:
        """The only size that it takes; None for any."""
        sizes = self.shape[2:] if self.layout == "first" else self.shape[1:-1]
        known = tuple(size for size in sizes if size is not None)
        return known if len(known) == len(sizes) else None

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores (n, y, x, class) of images (n, y, x, band). Raises `ValueError` for sizes that
        the network does not take.
        """
        tensorflow = import_tensorflow()
        outputs = []
        for image in batch:
            pixels = to_network(image[None], self.layout, self.dtype)
            try:
                output = self.runs(tensorflow.constant(pixels)).numpy()
            except (tensorflow.errors.OpError, ValueError, TypeError) as error:
                raise ValueError(str(error).strip().splitlines()[0][:300]) from error
            outputs.append(from_network(output, self.layout, self.where, self.dimensions))
        return np.concatenate(outputs)

    def traced(self) -> Any:
        """A TensorFlow function of patches (patch, y, x, band) float32 to scores float32."""
        tensorflow = import_tensorflow()
        axes = len(self.shape)
        first, last = [0, axes - 1, *range(1, axes - 1)], [0, *range(2, axes), 1]
        kind = tensorflow.as_dtype(self.dtype)

        def scores(patches: Any) -> Any:
            if kind.is_integer:
                patches = tensorflow.clip_by_value(
                    tensorflow.round(patches), float(kind.min), float(kind.max)
                )
            pixels = tensorflow.cast(patches, kind)
            if self.layout == "first":
                pixels = tensorflow.transpose(pixels, first)
            (output,) = tensorflow.import_graph_def(
                self.graph, input_map={self.taken: pixels}, return_elements=[self.given], name=""
            )
            if self.layout == "first":
                output = tensorflow.transpose(output, last)
            return tensorflow.cast(output, tensorflow.float32)

        sizes = [None] * (axes - 2) if self.fixed is None else list(self.fixed)
        return tensorflow.function(
            scores,
            input_signature=[
                tensorflow.TensorSpec([None, *sizes, self.channels], tensorflow.float32)
            ],
            autograph=False,
        ).get_concrete_function()


def load_saved_model(weights: Weights) -> SavedModel:
    """Load a SavedModel. Raises `WeightsError` if it is broken, may do harm, or is no network of
    one image.
    """
    tensorflow, where = import_tensorflow(), weights.location
    contents = weights.source().contents
    errors = (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        RuntimeError,
        RecursionError,
        tensorflow.errors.OpError,
    )
    try:
        with quiet():
            meta = _meta_graph(contents[SAVED_MODEL])
            image, answer = _signature(meta)
            graph = _part(meta.graph_def, answer.name)
            _check(graph, where)
            values = _values(graph, contents)
            return _frozen(graph, values, image, answer, where)
    except WeightsError:
        raise
    except errors as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise WeightsError(
            f"{where} is no SavedModel that can be read: {reason[:300]}. Expected a folder with "
            "saved_model.pb and variables/, exported by model.export(...) of keras or "
            "tf.saved_model.save. Export it again."
        ) from error


def _meta_graph(content: bytes) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString(content)
    except DecodeError as error:
        raise ValueError(f"saved_model.pb is damaged ({error})") from error
    for meta in saved.meta_graphs:
        if _SERVE in meta.meta_info_def.tags:
            return meta
    raise ValueError(f"it has no graph for use (tag {_SERVE!r})")


def _signature(meta: Any) -> tuple[Any, Any]:
    signatures = meta.signature_def
    name = _SIGNATURE if _SIGNATURE in signatures else next(iter(sorted(signatures)), None)
    found = None if name is None else signatures[name]
    if name is not None and name.startswith("__saved_model"):
        found = None
    if found is None or len(found.inputs) != 1 or not found.outputs:
        given = {} if found is None else {"in": len(found.inputs), "out": len(found.outputs)}
        raise ValueError(f"expected a signature {_SIGNATURE!r} of one image to scores; got {given}")
    if len(found.outputs) > 1:
        raise ValueError(
            f"it gives {len(found.outputs)} outputs ({', '.join(sorted(found.outputs))[:100]}); "
            "expected one, the scores"
        )
    return next(iter(found.inputs.values())), next(iter(found.outputs.values()))


def _part(graph: Any, target: str) -> Any:
    """The nodes that a tensor depends on, and the functions that they call."""
    from tensorflow.core.framework import graph_pb2

    nodes = {node.name: node for node in graph.node}
    pending, needed = [_node_of(target)], {}
    while pending:
        name = pending.pop()
        if name not in needed:
            needed[name] = nodes[name]
            # An input that starts with ^ must merely have run before.
            pending += [
                _node_of(each) for each in nodes[name].input if not each.startswith("^")
            ]
    part = graph_pb2.GraphDef(versions=graph.versions)
    for node in graph.node:
        if node.name in needed:
            kept = part.node.add()
            kept.CopyFrom(node)
            del kept.input[:]
            kept.input.extend(each for each in node.input if not each.startswith("^"))
    functions = {each.signature.name: each for each in graph.library.function}
    called: set[str] = set()
    waiting = list(_calls(part.node))
    while waiting:
        name = waiting.pop()
        if name not in called:
            called.add(name)
            waiting += _calls(functions[name].node_def)
    for each in graph.library.function:
        if each.signature.name in called:
            part.library.function.add().CopyFrom(each)
    return part


def _node_of(tensor: str) -> str:
    return tensor.lstrip("^").partition(":")[0]


def _calls(nodes: Any) -> Iterator[str]:
    for node in nodes:
        for value in node.attr.values():
            if value.HasField("func"):
                yield value.func.name
            yield from (each.name for each in value.list.func)


def _check(graph: Any, where: str) -> None:
    groups = [graph.node, *(each.node_def for each in graph.library.function)]
    if sum(map(len, groups)) > _MOST_NODES:
        raise WeightsError(f"{where} has more than {_MOST_NODES} operations.")
    for nodes in groups:
        for node in nodes:
            if node.op not in _HARMLESS:
                raise WeightsError(
                    f"{where} uses the operation {node.op[:60]!r} of TensorFlow, which is not known "
                    "to be harmless in a network of images. Export the network without it, or "
                    "convert it to ONNX."
                )
    _check_recursion(graph)


def _check_recursion(graph: Any) -> None:
    """Raise `ValueError` if functions call each other without end."""
    calls = {each.signature.name: set(_calls(each.node_def)) for each in graph.library.function}
    while calls:
        leaves = {name for name, called in calls.items() if not called & calls.keys()}
        if not leaves:
            raise ValueError("its functions call each other without end")
        calls = {name: called for name, called in calls.items() if name not in leaves}


def _values(graph: Any, contents: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    """The values of the variables, by the names of their nodes."""
    variables = [node for node in graph.node if node.op in _VARIABLES]
    inner = [
        node
        for each in graph.library.function
        for node in each.node_def
        if node.op in _VARIABLES
    ]
    if inner:
        raise ValueError("a function of it makes variables of its own")
    if not variables:
        return {}
    tensorflow = import_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _PREFIX).parent.mkdir()
        for name, content in contents.items():
            if name.startswith(_PREFIX):
                Path(folder, "variables", os.path.basename(name)).write_bytes(content)  # noqa: PTH119
        reader = tensorflow.train.load_checkpoint(str(Path(folder, _PREFIX)))
        keys = _keys(reader)
        return {node.name: reader.get_tensor(keys[_name(node)]) for node in variables}


def _name(variable: Any) -> str:
    shared: bytes = variable.attr["shared_name"].s
    return shared.decode() or str(variable.name)


def _keys(reader: Any) -> dict[str, str]:
    """Keys of variables in a checkpoint, by their names. In version 1 they are the names."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    keys = {name: name for name in reader.get_variable_to_shape_map()}
    if _OBJECTS in keys:
        objects = trackable_object_graph_pb2.TrackableObjectGraph()
        objects.ParseFromString(reader.get_tensor(_OBJECTS))
        for node in objects.nodes:
            for each in node.attributes:
                if each.full_name and keys.setdefault(each.full_name, each.checkpoint_key) != (
                    each.checkpoint_key
                ):
                    raise ValueError(f"it has several variables named {each.full_name[:80]!r}")
    return keys


def _frozen(
    graph: Any, values: Mapping[str, NDArray[Any]], image: Any, answer: Any, where: str
) -> SavedModel:
    tensorflow = import_tensorflow()
    constants = _with_constants(graph, values, _node_of(answer.name))
    shape = tuple(
        None if dim.size < 1 else int(dim.size) for dim in image.tensor_shape.dim
    )
    if len(shape) not in (4, 5):
        raise ValueError(f"it takes {shape}; expected images (n, y, x, bands)")
    shape = (None, *shape[1:])
    layout: Layout = (
        "first" if shape[-1] is None or (shape[1] is not None and shape[1] < shape[-1]) else "last"
    )
    if shape[1 if layout == "first" else -1] is None:
        raise ValueError(f"the number of bands is open in its input {shape}")

    def imported(pixels: Any) -> Any:
        (output,) = tensorflow.import_graph_def(
            constants, input_map={image.name: pixels}, return_elements=[answer.name], name=""
        )
        return output

    dtype = np.dtype(tensorflow.as_dtype(image.dtype).as_numpy_dtype)
    runs = tensorflow.function(
        imported,
        input_signature=[tensorflow.TensorSpec([1, *shape[1:]], image.dtype)],
        autograph=False,
    )
    runs.get_concrete_function()
    return SavedModel(
        constants,
        image.name,
        answer.name,
        shape,
        layout,
        dtype,
        sum(value.size for value in values.values()),
        where,
        runs,
    )


def _with_constants(graph: Any, values: Mapping[str, NDArray[Any]], target: str) -> Any:
    """The graph with constants in place of variables."""
    tensorflow = import_tensorflow()
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_from_session_graph,
    )  # exported nowhere else

    legacy = tensorflow.compat.v1
    with tensorflow.Graph().as_default() as holder:
        legacy.import_graph_def(graph, name="")
        feeds, assignments = {}, []
        for name, value in values.items():
            variable = holder.get_tensor_by_name(f"{name}:0")
            kind = tensorflow.as_dtype(holder.get_operation_by_name(name).get_attr("dtype"))
            fed = legacy.placeholder(kind, value.shape)
            feeds[fed] = value
            if variable.dtype == tensorflow.resource:
                assignments.append(
                    tensorflow.raw_ops.AssignVariableOp(resource=variable, value=fed)
                )
            else:
                assignments.append(tensorflow.raw_ops.Assign(ref=variable, value=fed))
        with legacy.Session(graph=holder) as session:
            session.run(assignments, feeds)
            return convert_variables_to_constants_from_session_graph(session, graph, [target])
