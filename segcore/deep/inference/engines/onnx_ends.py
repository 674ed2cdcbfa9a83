"""ONNX models that take pixels as they are in the image and give labels.

Scaling goes before the network and arg max behind it, inside the model, so that both run where the
network does: 8-bit pixels go to a GPU and 8-bit labels come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.layouts import from_first, to_first

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.deep.inference.engines.batches import Gives
    from maskloom.segcore.deep.inference.layouts import Layout

_PREFIX = "maskloom_"
"""Of the names of what is added."""


def with_ends(
    model: Any, card: Card, gives: Gives, dtype: np.dtype[Any], layouts: tuple[Layout, Layout]
) -> Any:
    """A copy of a model whose input is pixels (patch, y, x, band) of this type, and whose output is
    labels (patch, y, x) or scores (patch, y, x, k).

    `layouts` are those of the model's input and output.
    """
    import onnx

    ends = _Ends(card, layouts)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {tensor.name for tensor in graph.initializer}
    taken = next(each for each in graph.input if each.name not in constants)
    before, first = ends.before(taken, gives)
    after, last, kind = ends.after(graph.output[0], gives)
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.remove(taken)
    axes = [None] * (card.dimensions + 1)
    make = onnx.helper.make_tensor_value_info
    graph.input.append(
        make(first, onnx.helper.np_dtype_to_tensor_dtype(dtype), [*axes, card.channels])
    )
    graph.output.append(make(last, kind, axes if gives == "labels" else [*axes, None]))
    graph.initializer.extend(ends.constants)
    return copy


class _Ends:
    """Makes the nodes before and behind a model, with their constants."""

    def __init__(self, card: Card, layouts: tuple[Layout, Layout]) -> None:
        self.card, self.layouts = card, layouts
        self.constants: list[Any] = []
        self._count = 0

    def before(self, taken: Any, gives: Gives) -> tuple[list[Any], str]:
        """Nodes from pixels to the input of the model, and the name of the pixels."""
        import onnx

        nodes: list[Any] = []
        kind = taken.type.tensor_type.elem_type
        pixels = self._name()
        x = self._add(nodes, "Cast", pixels, to=onnx.TensorProto.FLOAT)
        if gives != "scores of scaled pixels":
            scaling = self.card.scaling
            if any(scaling.offset):
                x = self._add(nodes, "Sub", x, self._constant(scaling.offset))
            x = self._add(nodes, "Mul", x, self._constant(scaling.factor))
        wanted = onnx.helper.tensor_dtype_to_np_dtype(kind)
        if wanted.kind in "iu":
            limits = np.iinfo(wanted)
            x = self._add(nodes, "Round", x)
            x = self._add(nodes, "Clip", x, self._constant(limits.min), self._constant(limits.max))
        if self.layouts[0] == "first":
            x = self._add(nodes, "Transpose", x, perm=to_first(self.card.dimensions))
        nodes.append(onnx.helper.make_node("Cast", [x], [taken.name], to=kind))
        return nodes, pixels

    def after(self, given: Any, gives: Gives) -> tuple[list[Any], str, int]:
        """Nodes from the output of the model, the name of the result, and its type."""
        import onnx

        nodes: list[Any] = []
        x = self._add(nodes, "Cast", given.name, to=onnx.TensorProto.FLOAT)
        if self.layouts[1] == "first":
            x = self._add(nodes, "Transpose", x, perm=from_first(self.card.dimensions))
        if gives != "labels":
            return nodes, x, onnx.TensorProto.FLOAT
        classes, channels = len(self.card.classes), self._channels(given)
        kind = onnx.TensorProto.UINT8 if classes <= 256 else onnx.TensorProto.INT32
        last = self.card.dimensions + 1
        if channels == 1:
            limit = 0.5 if self.card.output == "sigmoid" else 0.0
            x = self._add(nodes, "Greater", x, self._constant(limit))
            x = self._add(nodes, "Squeeze", x, self._constant([last], np.int64))
        else:
            # Channels after those of the classes are no scores.
            ends = (self._constant([each], np.int64) for each in (0, classes, last))
            x = self._add(nodes, "Slice", x, *ends)
            x = self._add(nodes, "ArgMax", x, axis=last, keepdims=0)
        return nodes, self._add(nodes, "Cast", x, to=kind), kind

    def _channels(self, given: Any) -> int:
        axes = given.type.tensor_type.shape.dim
        known: int = axes[1 if self.layouts[1] == "first" else -1].dim_value
        return known or self.card.output_channels

    def _add(self, nodes: list[Any], operator: str, *inputs: str, **attributes: Any) -> str:
        import onnx

        name = self._name()
        nodes.append(onnx.helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def _constant(self, values: Any, dtype: Any = np.float32) -> str:
        import onnx

        name = self._name()
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def _name(self) -> str:
        self._count += 1
        return f"{_PREFIX}{self._count}"
