"""SavedModels of TensorFlow, checked and frozen before anything of them runs.

A SavedModel is a program: it may name operations that read and write files, call Python or never
end, and may ask for some of them to run while it is loaded. So TensorFlow's own loader never sees
it. From its graph only the part between the image and the scores is taken, each operation of it
must be on a list of harmless ones, and the variables are put in as constants. In the checkpoint
they are found by the objects that a function is bound to; those of TensorFlow 1, which has no
objects, by their names.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.files.sources import SAVED_MODEL
from maskloom.segcore.deep.inference.layouts import from_network
from maskloom.segcore.deep.inference.runtime import import_tensorflow, quiet
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.files.weights import Weights
    from maskloom.segcore.geometry import Shape

_HARMLESS = frozenset(
    # A list would take a line for each name.
    (  # noqa: SIM905
        "Abs Add AddN AddV2 ArgMax AvgPool AvgPool3D BatchMatMul BatchMatMulV2 BatchMatMulV3 "
        "BatchToSpaceND BiasAdd BroadcastTo Cast Ceil ClipByValue Concat ConcatV2 Const Conv2D "
        "Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 Cumsum DepthToSpace "
        "DepthwiseConv2dNative Div DivNoNan Einsum Elu EnsureShape Equal Erf Exp ExpandDims Fill "
        "Floor FloorDiv FloorMod FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 Gather "
        "GatherNd GatherV2 Greater "
        "GreaterEqual Identity IdentityN LeakyRelu Less LessEqual Log Log1p LogSoftmax LogicalAnd "
        "LogicalNot LogicalOr MatMul Max MaxPool MaxPool3D MaxPoolV2 Maximum Mean Min Minimum "
        "MirrorPad Mul MulNoNan Neg NoOp NotEqual OneHot OnesLike Pack Pad PadV2 PartitionedCall "
        "Placeholder PlaceholderWithDefault Pow PreventGradient Prod Range Rank ReadVariableOp "
        "RealDiv Reciprocal Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor ReverseV2 Rint "
        "Roll Round Rsqrt ScatterNd Select SelectV2 Selu Shape ShapeN Sigmoid Sign Size Slice "
        "Softmax Softplus Softsign SpaceToBatchND SpaceToDepth Split SplitV Sqrt Square "
        "SquaredDifference Squeeze StatefulPartitionedCall StopGradient StridedSlice Sub Sum Tanh "
        "Tile Transpose TruncateDiv Unpack VarHandleOp Variable VariableV2 Where ZerosLike"
    ).split()
)
_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_PREFIX = "variables/variables"
_SERVE, _SIGNATURE = "serve", "serving_default"
_MOST_NODES = 200_000


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A SavedModel as one function of constants."""

    function: Any = field(repr=False)
    """A TensorFlow function of patches (patch, y, x, band) float32 to scores float32, with channels
    last.
    """
    shape: tuple[int | None, ...]
    """Of the image, (y, x, band) or (z, y, x, band). None: any size."""
    dtype: np.dtype[Any]
    """Of the image in the file."""
    parameters: int
    where: str

    @property
    def channels(self) -> int:
        """Number of bands."""
        channels = self.shape[-1]
        assert channels is not None
        return channels

    @property
    def dimensions(self) -> int:
        """2: images, 3: volumes."""
        return len(self.shape) - 1

    @property
    def fixed(self) -> Shape | None:
        """The only size that it takes; None for any."""
        known = tuple(size for size in self.shape[:-1] if size is not None)
        return known if len(known) == self.dimensions else None

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores (n, y, x, class) of images (n, y, x, band). Raises `ValueError` for sizes that
        the network does not take.
        """
        tensorflow = import_tensorflow()
        outputs = []
        # One by one, because the number of images may be fixed in the graph.
        for image in batch:
            try:
                output = self.function(tensorflow.constant(image[None]))[0].numpy()
            except (tensorflow.errors.OpError, ValueError, TypeError) as error:
                raise ValueError(str(error).strip().splitlines()[0][:300]) from error
            outputs.append(from_network(output, "last", self.where, self.dimensions))
        return np.concatenate(outputs)


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
            values = _values(graph, meta.object_graph_def, contents)
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
            pending += [_node_of(each) for each in nodes[name].input if not each.startswith("^")]
    part = graph_pb2.GraphDef(versions=graph.versions)
    for node in graph.node:
        if node.name in needed:
            kept = part.node.add()
            kept.CopyFrom(node)
            # Where it must run: beside another node, which may be gone, or on some machine.
            kept.attr.pop("_class", None)
            kept.device = ""
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
                    f"{where} uses the operation {node.op[:60]!r} of TensorFlow, which is not "
                    "known to be harmless in a network of images. Export the network without it, "
                    "or convert it to ONNX."
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


def _values(graph: Any, objects: Any, contents: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    """The values of the variables, by the names of their nodes."""
    variables = [node.name for node in graph.node if node.op in _VARIABLES]
    for function in graph.library.function:
        if any(node.op in _VARIABLES for node in function.node_def):
            raise ValueError("a function of it makes variables of its own")
    if not variables:
        return {}
    tensorflow = import_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _PREFIX).parent.mkdir()
        for name, content in contents.items():
            if name.startswith(_PREFIX):
                Path(folder, "variables", PurePosixPath(name).name).write_bytes(content)
        reader = tensorflow.train.load_checkpoint(str(Path(folder, _PREFIX)))
        if reader.has_tensor(_OBJECTS):
            keys = _keys_by_object(graph, objects, reader.get_tensor(_OBJECTS))
        else:
            keys = {name: name for name in variables}
        return {name: reader.get_tensor(keys[name]) for name in variables}


def _keys_by_object(graph: Any, objects: Any, stored: bytes) -> dict[str, str]:
    """Keys of variables in a checkpoint, by the names of their nodes in the graph."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    tree = trackable_object_graph_pb2.TrackableObjectGraph()
    tree.ParseFromString(stored)
    key_of = {}
    for saved, kept in _matched(objects, tree).items():
        attributes = tree.nodes[kept].attributes
        if attributes:
            key_of[saved] = attributes[0].checkpoint_key
    keys: dict[str, str] = {}
    for node in graph.node:
        for called in _calls([node]):
            bound = objects.concrete_functions[called].bound_inputs
            # What a function is bound to follows its arguments.
            names = list(node.input)[len(node.input) - len(bound) :]
            keys |= {
                _node_of(name): key_of[number]
                for name, number in zip(names, bound, strict=True)
                if number in key_of
            }
    return keys


def _matched(objects: Any, tree: Any) -> dict[int, int]:
    """The objects of a SavedModel and the same in its checkpoint: on the same path from the top."""
    matched, pending = {0: 0}, [0]
    while pending:
        number = pending.pop()
        below = {each.local_name: each.node_id for each in tree.nodes[matched[number]].children}
        for each in objects.nodes[number].children:
            if each.local_name in below and each.node_id not in matched:
                matched[each.node_id] = below[each.local_name]
                pending.append(each.node_id)
    return matched


def _frozen(
    graph: Any, values: Mapping[str, NDArray[Any]], image: Any, answer: Any, where: str
) -> SavedModel:
    tensorflow = import_tensorflow()
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )  # exported nowhere else

    shape = tuple(None if dim.size < 1 else int(dim.size) for dim in image.tensor_shape.dim)
    if len(shape) not in (4, 5):
        raise ValueError(f"it takes {shape}; expected images (n, y, x, bands)")
    first = shape[-1] is None or (shape[1] is not None and shape[1] < shape[-1])
    *sizes, channels = (*shape[2:], shape[1]) if first else shape[1:]
    if channels is None:
        raise ValueError(f"the number of bands is open in its input {shape}")
    kind = tensorflow.as_dtype(image.dtype)
    kinds = {node.name: node.op for node in graph.node}
    kept = [node for node in graph.node if node.name not in values]
    del graph.node[:]
    graph.node.extend(kept)
    variables = {name: tensorflow.Variable(value) for name, value in values.items()}
    axes = len(shape)

    def of_variable(name: str) -> Any:
        """The tensor in place of the node of a variable."""
        if kinds[name] != "VarHandleOp":
            return tensorflow.identity(variables[name])
        own = tensorflow.compat.v1.get_default_graph()
        own.watch_variable(variables[name])
        return own.capture(variables[name].handle)

    def scores(patches: Any) -> Any:
        """Scores (patch, y, x, class) of patches (patch, y, x, band), in the types and the order of
        axes of the graph inside.
        """
        if kind.is_integer:
            patches = tensorflow.clip_by_value(
                tensorflow.round(patches), float(kind.min), float(kind.max)
            )
        pixels = tensorflow.cast(patches, kind)
        if first:
            pixels = tensorflow.transpose(pixels, [0, axes - 1, *range(1, axes - 1)])
        inputs = {f"{name}:0": of_variable(name) for name in values}
        (output,) = tensorflow.graph_util.import_graph_def(
            graph, {**inputs, image.name: pixels}, return_elements=[answer.name], name=""
        )
        if first and output.shape.rank == axes:
            output = tensorflow.transpose(output, [0, *range(2, axes), 1])
        return tensorflow.cast(output, tensorflow.float32)

    traced = tensorflow.function(
        scores,
        input_signature=[tensorflow.TensorSpec([1, *sizes, channels], tensorflow.float32)],
        autograph=False,
    ).get_concrete_function()
    return SavedModel(
        convert_variables_to_constants_v2(traced),
        (*sizes, channels),
        np.dtype(kind.as_numpy_dtype),
        sum(int(value.size) for value in values.values()),
        where,
    )
