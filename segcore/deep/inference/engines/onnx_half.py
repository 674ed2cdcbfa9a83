"""ONNX models that compute in float16 where that loses next to nothing.

As in the other engines, only the middle of the network computes in 16 bits. What takes pixels, up
to the first layers with weights, stays in float32, since pixels of 16 bits do not fit into float16,
whose largest number is 65504. So do the last layers with weights and all that follows: most labels
that a precision loses are lost there. Inside, only operators that compute no sums over the image,
no exponentials and no sizes are lowered.

A value has a second name for its form in float16. Casts between the two are added where a layer
needs the form that its input was not computed in. The types are then those of the file, so that no
provider chooses another: TensorRT, told to use float16 as it likes, removes such casts and may
compute the ends in 16 bits too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

_PREFIX = "maskloom_half_"
_WEIGHED = frozenset("Conv ConvTranspose Gemm MatMul".split())  # noqa: SIM905
_LOWERED = _WEIGHED | frozenset(
    # A list would take a line for each name.
    "Add AveragePool BatchNormalization Clip Concat DepthToSpace Dropout Elu Flatten "  # noqa: SIM905
    "HardSigmoid HardSwish Identity LeakyRelu MaxPool Mul PRelu Pad Relu Reshape Resize Sigmoid "
    "Slice SpaceToDepth Split Squeeze Sub Tanh Transpose Unsqueeze".split()
)
_STAY_IN_FLOAT32 = {"Resize": (1, 2)}
"""Inputs that stay in float32, by operator: where to read, and scales."""
_ASK_FOR_SIZES = frozenset(["Shape", "Size"])
"""Operators that take maps of either type, so that no map is cast for them."""
_GREATEST = float(np.finfo(np.float16).max)


def in_half(model: Any) -> Any:
    """A copy of a model whose middle computes in float16; inputs and outputs are as before.

    A model without layers between its first and its last ones with weights stays as it is.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    typed = onnx.shape_inference.infer_shapes(model).graph
    # Of values that are now computed in float16.
    del copy.graph.value_info[:]
    _Lowering(copy.graph, _floats(typed)).apply()
    return copy


def _floats(graph: Any) -> frozenset[str]:
    """The names of values in float32."""
    import onnx

    kind = onnx.TensorProto.FLOAT
    values = (*graph.input, *graph.output, *graph.value_info)
    named = {each.name for each in values if each.type.tensor_type.elem_type == kind}
    return frozenset(named | {each.name for each in graph.initializer if each.data_type == kind})


class _Lowering:
    """A graph that is being lowered to float16."""

    def __init__(self, graph: Any, floats: frozenset[str]) -> None:
        self.graph, self.floats = graph, floats
        self.constants = _constants(graph)
        pixels = {each.name for each in graph.input} - set(self.constants)
        near_pixels, _ = self._computed_from(pixels, _WEIGHED)
        _, maps = self._computed_from(pixels, frozenset())
        ends = near_pixels | self._near_scores()
        self.lowered = {
            i
            for i, node in enumerate(graph.node)
            if i not in ends and self._can_be_lowered(node, maps)
        }
        """Indices of nodes that compute in float16."""
        self.in_half = {
            name for i in self.lowered for name in graph.node[i].output if name in floats
        }
        """Values that are computed in float16."""

    def apply(self) -> None:
        """Lower the graph."""
        for i, node in enumerate(self.graph.node):
            if i in self.lowered:
                _rename(node.input, self._taken_in_half(node))
                _rename(node.output, self.in_half)
            elif node.op_type in _ASK_FOR_SIZES:
                _rename(node.input, self.in_half)
        taken = {name for node in self.graph.node for name in _taken_by(node)}
        taken |= {each.name for each in self.graph.output}
        nodes = []
        for node in self.graph.node:
            nodes.append(_copied(node))
            for name in node.output:
                if _full(name) != name and _full(name) in taken:
                    nodes.append(_cast(name, _full(name)))
                elif _full(name) == name and _half(name) in taken and name not in self.constants:
                    nodes.append(_cast(name, _half(name)))
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._lower_constants(taken)

    def _computed_from(
        self, names: Iterable[str], up_to: frozenset[str]
    ) -> tuple[set[int], set[str]]:
        """Nodes that compute from these values, up to the first of these operators on each way,
        and the values in float32 between them.

        Sizes of maps are whole numbers; so what is computed from sizes is not among them.
        """
        nodes, values = set(), set(names)
        for i, node in enumerate(self.graph.node):
            if values.isdisjoint(node.input):
                continue
            nodes.add(i)
            if node.op_type not in up_to:
                values |= self.floats & set(node.output)
        return nodes, values

    def _near_scores(self) -> set[int]:
        """Nodes from which the outputs are computed, from the last with weights on, on each way."""
        nodes, values = set(), {each.name for each in self.graph.output}
        for i, node in reversed(list(enumerate(self.graph.node))):
            if values.isdisjoint(node.output):
                continue
            nodes.add(i)
            if node.op_type not in _WEIGHED:
                values |= self.floats & set(node.input)
        return nodes

    def _can_be_lowered(self, node: Any, maps: set[str]) -> bool:
        """Whether a node computes maps from maps and from constants that fit into float16."""
        taken = self._taken_in_half(node)
        return (
            node.op_type in _LOWERED
            and node.domain in ("", "ai.onnx")
            and not maps.isdisjoint(taken)
            and node.output[0] in self.floats
            and all(name in maps or self._fits(name) for name in taken)
        )

    def _taken_in_half(self, node: Any) -> set[str]:
        """The inputs in float32 that a node takes in float16 when it is lowered."""
        stay = _STAY_IN_FLOAT32.get(node.op_type, ())
        return {name for i, name in enumerate(node.input) if i not in stay} & self.floats

    def _fits(self, name: str) -> bool:
        """Whether a value is a constant of numbers that float16 has."""
        import onnx

        constant = self.constants.get(name)
        if constant is None:
            return False
        return bool(np.all(np.abs(onnx.numpy_helper.to_array(constant)) <= _GREATEST))

    def _lower_constants(self, taken: set[str]) -> None:
        """Add the constants that are taken in float16, and remove those that no node takes."""
        import onnx

        inputs = {each.name for each in self.graph.input}
        kept = [_copied(each) for each in self.graph.initializer if each.name in taken | inputs]
        for name, constant in self.constants.items():
            if _half(name) in taken:
                values = onnx.numpy_helper.to_array(constant).astype(np.float16)
                kept.append(onnx.numpy_helper.from_array(values, _half(name)))
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _constants(graph: Any) -> dict[str, Any]:
    """The constant tensors of a graph by name: the file's, and those that nodes give."""
    found = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            values = [each.t for each in node.attribute if each.name == "value"]
            found |= dict(zip(node.output, values, strict=False))
    return found


def _taken_by(node: Any) -> set[str]:
    """The values that a node takes, also those that graphs inside it, such as the branches of an
    If, take from around it.
    """
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            names |= {each.name for each in graph.output}
            names |= {name for inner in graph.node for name in _taken_by(inner)}
    return names


def _cast(source: str, target: str) -> Any:
    import onnx

    kind = onnx.TensorProto.FLOAT if _full(target) == target else onnx.TensorProto.FLOAT16
    return onnx.helper.make_node("Cast", [source], [target], to=kind)


def _rename(names: Any, which: set[str]) -> None:
    for i, name in enumerate(names):
        if name in which:
            names[i] = _half(name)


def _half(name: str) -> str:
    return _PREFIX + name


def _full(name: str) -> str:
    return name.removeprefix(_PREFIX)


def _copied(message: Any) -> Any:
    """A copy that outlives the list that holds the message."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
