"""Vectors of sixteen float32 numbers, for compiled loops whose inner part is too short for the
compiler to vectorise.

A `Lanes` value holds sixteen adjacent numbers in each of several channels. It lives in vector
registers, whatever their width on the processor. The number of channels is part of the type, so
loops over channels are unrolled. Functions that cannot infer it take `like`, a tuple with one
float32 per channel. All operations act on each lane separately in strict IEEE arithmetic, and sums
over lanes or channels have a fixed order, so results are the same on every processor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

LANES = 16
"""Numbers per channel in one value."""

_FLOAT, _DOUBLE, _INT = ir.FloatType(), ir.DoubleType(), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)


class _LanesType(types.Type):  # type: ignore[misc]  # numba is untyped
    """Numba's type of a value of 16 lanes for each channel."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        super().__init__(name=f"Lanes({channels})")


class _ChoiceType(types.Type):  # type: ignore[misc]  # numba is untyped
    """Numba's type of one truth value for each lane."""

    def __init__(self) -> None:
        super().__init__(name="Choice")


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]  # numba is untyped
    """An array of vectors, one for each channel."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.ArrayType(_VECTOR, kind.channels))


@register_model(_ChoiceType)
class _ChoiceModel(models.PrimitiveModel):  # type: ignore[misc]  # numba is untyped
    """A vector of bits."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.IntType(1), LANES))


_choice = _ChoiceType()


def _pack(builder: Any, parts: list[Any]) -> Any:
    """One value (Lanes or a tuple) from its channels."""
    return cgutils.pack_array(builder, parts)


def _unpack(builder: Any, whole: Any) -> list[Any]:
    return list(cgutils.unpack_tuple(builder, whole))


def _spread(builder: Any, number: Any) -> Any:
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    single = builder.insert_element(nothing, number, ir.Constant(_INT, 0))
    return builder.shuffle_vector(
        single, nothing, ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES)
    )


def _total(builder: Any, vector: Any) -> Any:
    """The sum of all lanes as float64: add the upper half to the lower until one lane is left."""
    rest, count = builder.fpext(vector, ir.VectorType(_DOUBLE, LANES)), LANES
    while count > 1:
        count //= 2
        places = [
            ir.Constant(ir.VectorType(_INT, count), list(range(first, first + count)))
            for first in (0, count)
        ]
        rest = builder.fadd(*(builder.shuffle_vector(rest, rest, half) for half in places))
    return builder.extract_element(rest, ir.Constant(_INT, 0))


def _sum_of_squares(builder: Any, differences: list[Any]) -> Any:
    squares = [builder.fmul(each, each) for each in differences]
    total = squares[0]
    for each in squares[1:]:
        total = builder.fadd(total, each)
    return total


def _places(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """One pointer per channel for `arguments` = (array, place, numbers from one channel to the
    next, like).
    """
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    place, pointers = arguments[1], []
    for _ in range(signature.args[3].count):
        pointers.append(builder.gep(array.data, [place]))
        place = builder.add(place, arguments[2])
    return pointers


def _generator(build: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A code generator that needs only the builder and the arguments."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return build(builder, arguments)

    return generate


@intrinsic  # type: ignore[untyped-decorator]
def load_one(_typing: Any, values: Any, place: Any, step: Any, like: Any) -> Any:
    """A tuple of the float32 `values` at `place`, one per channel; `step` is the distance between
    channels.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _pack(
            builder,
            [builder.load(each) for each in _places(context, builder, signature, arguments)],
        )

    return like(values, place, step, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def load_lanes(_typing: Any, values: Any, place: Any, step: Any, like: Any) -> Any:
    """Lanes of the float32 `values` from `place`, in each channel. The array is flat, contiguous
    and long enough.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        parts = []
        for pointer in _places(context, builder, signature, arguments):
            vector = builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()))
            vector.align = 4
            parts.append(vector)
        return _pack(builder, parts)

    return _LanesType(like.count)(values, place, step, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def none(_typing: Any, like: Any) -> Any:
    """Zeros in every lane."""
    kind = _LanesType(like.count)
    return kind(like), _generator(
        lambda _builder, _arguments: ir.Constant(ir.ArrayType(_VECTOR, kind.channels), None)
    )


@intrinsic  # type: ignore[untyped-decorator]
def broadcast(_typing: Any, number: Any) -> Any:
    """The float32 `number` in every lane of one channel."""
    return _LanesType(1)(number), _generator(
        lambda builder, arguments: _pack(builder, [_spread(builder, arguments[0])])
    )


@intrinsic  # type: ignore[untyped-decorator]
def count_from(_typing: Any, number: Any) -> Any:
    """The float32 `number` in the first lane of one channel, increasing by one per lane."""

    def build(builder: Any, arguments: Any) -> Any:
        steps = ir.Constant(_VECTOR, [float(lane) for lane in range(LANES)])
        return _pack(builder, [builder.fadd(_spread(builder, arguments[0]), steps)])

    return _LanesType(1)(number), _generator(build)


@intrinsic  # type: ignore[untyped-decorator]
def squared_distances(_typing: Any, lanes: Any, point: Any) -> Any:
    """The squared distance of each lane from the tuple `point`, summed over the channels in
    order.
    """

    def build(builder: Any, arguments: Any) -> Any:
        pairs = zip(*(_unpack(builder, each) for each in arguments), strict=True)
        return _pack(
            builder,
            [
                _sum_of_squares(
                    builder, [builder.fsub(one, _spread(builder, other)) for one, other in pairs]
                )
            ],
        )

    return _LanesType(1)(lanes, point), _generator(build)


@intrinsic  # type: ignore[untyped-decorator]
def squared_distance(_typing: Any, one: Any, other: Any) -> Any:
    """The squared distance of two tuples, summed in order."""

    def build(builder: Any, arguments: Any) -> Any:
        pairs = zip(*(_unpack(builder, each) for each in arguments), strict=True)
        return _sum_of_squares(builder, [builder.fsub(a, b) for a, b in pairs])

    return types.float32(one, other), _generator(build)


@intrinsic  # type: ignore[untyped-decorator]
def at_most(_typing: Any, lanes: Any, limit: Any) -> Any:
    """The lanes of one channel that do not exceed the float32 `limit`; False for NaN."""

    def build(builder: Any, arguments: Any) -> Any:
        return builder.fcmp_ordered(
            "<=", _unpack(builder, arguments[0])[0], _spread(builder, arguments[1])
        )

    return _choice(lanes, limit), _generator(build)


@intrinsic  # type: ignore[untyped-decorator]
def logical_and(_typing: Any, one: Any, other: Any) -> Any:
    """The lanes that are True in both."""
    return _choice(one, other), _generator(lambda builder, arguments: builder.and_(*arguments))


@intrinsic  # type: ignore[untyped-decorator]
def plus_where(_typing: Any, lanes: Any, chosen: Any, more: Any) -> Any:
    """The sum `lanes` + `more` in the `chosen` lanes, and `lanes` in the others."""

    def build(builder: Any, arguments: Any) -> Any:
        pairs = zip(_unpack(builder, arguments[0]), _unpack(builder, arguments[2]), strict=True)
        return _pack(
            builder, [builder.select(arguments[1], builder.fadd(a, b), a) for a, b in pairs]
        )

    return lanes(lanes, chosen, more), _generator(build)


@intrinsic  # type: ignore[untyped-decorator]
def total(_typing: Any, lanes: Any) -> Any:
    """The sum of the lanes of one channel as float64."""
    return types.float64(lanes), _generator(
        lambda builder, arguments: _total(builder, _unpack(builder, arguments[0])[0])
    )


@intrinsic  # type: ignore[untyped-decorator]
def means(_typing: Any, lanes: Any, count: Any) -> Any:
    """A tuple of the sums of all lanes divided by the float64 `count`: computed in float64,
    returned as float32.
    """

    def build(builder: Any, arguments: Any) -> Any:
        sums = [_total(builder, each) for each in _unpack(builder, arguments[0])]
        return _pack(
            builder, [builder.fptrunc(builder.fdiv(each, arguments[1]), _FLOAT) for each in sums]
        )

    return types.UniTuple(types.float32, lanes.channels)(lanes, count), _generator(build)
