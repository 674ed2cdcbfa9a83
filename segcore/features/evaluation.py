"""Computing features: formulas of the bands of a box, and how far around a pixel they look.

Every number is computed from the pixels around it by the same operations in the same order, so that
it is equal to the last bit for any box that contains them. Windows hold the valid pixels of the
image only: weights of others are left out, and the remaining ones are scaled to a sum of 1
("normalised convolution", Knutsson and Westin 1993); so there is no rule for borders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maskloom.segcore.formulas import Binary, Call, Formula, FormulaError, Name, Number, Unary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]
    Valid = NDArray[np.bool_]

LARGEST_WINDOW = 256
"""Greatest distance, in pixels, that a window may look."""
_REACH = 4.0
"""How many standard deviations a Gaussian window reaches, as in SciPy."""

_ARITHMETIC: dict[str, Callable[[Values, Values], Values]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "**": np.power,
}


def reach_of(formula: Formula) -> int:
    """How many pixels around a pixel decide its feature: the sum over nested windows. Raises
    `FormulaError` for unknown functions and wrong arguments.
    """
    match formula:
        case Call(name, arguments) if name in WINDOWS:
            operand, size = arguments
            return reach_of(operand) + WINDOWS[name].reach(size_of(name, size))
        case Call(name, arguments):
            return max(map(reach_of, arguments))
        case Unary(_, operand):
            return reach_of(operand)
        case Binary(_, left, right):
            return max(reach_of(left), reach_of(right))
        case _:
            return 0


def check(formula: Formula) -> None:
    """Raise `FormulaError` for operators, functions and arguments that features do not have."""
    match formula:
        case Call(name, arguments):
            _check_arguments(name, arguments)
            parts = arguments[:1] if name in WINDOWS else arguments
        case Unary("-", operand):
            parts = (operand,)
        case Binary(operator, left, right) if operator in _ARITHMETIC:
            parts = (left, right)
        case Unary(operator) | Binary(operator):
            raise FormulaError(
                f"{operator!r} gives yes or no; a feature is a number of + - * / ** and functions"
            )
        case _:
            parts = ()
    for part in parts:
        check(part)


def _check_arguments(name: str, arguments: Sequence[Formula]) -> None:
    if name in WINDOWS:
        if len(arguments) != len(("operand", "size")):
            raise FormulaError(f"{name}: expected a band or formula, and a number of pixels")
        size_of(name, arguments[1])
    elif name not in POINTWISE:
        known = ", ".join((*WINDOWS, *POINTWISE))
        raise FormulaError(f"there is no function {name!r}; expected one of {known}")
    elif len(arguments) != POINTWISE[name][0]:
        raise FormulaError(
            f"{name}: expected {POINTWISE[name][0]} argument(s); got {len(arguments)}"
        )


def size_of(name: str, argument: Formula) -> float:
    """The size of a window in pixels. Raises `FormulaError`."""
    least, odd = (0.1, False) if name == "gaussian" else (3, True)
    given = argument.value if isinstance(argument, Number) else math.nan
    whole = not odd or given % 2 == 1
    if not (least <= given and whole and WINDOWS[name].reach(given) <= LARGEST_WINDOW):
        wanted = "an odd number of pixels from 3" if odd else "a number of pixels from 0.1"
        raise FormulaError(
            f"{name}: expected {wanted}, with a window of at most {LARGEST_WINDOW} pixels to each "
            f"side; got {given:g}"
        )
    return given


def compute(formula: Formula, bands: Mapping[str, Values], valid: Valid) -> tuple[Values, Valid]:
    """The feature of each pixel of the box that `bands` cover, and where it is defined: not where
    a division by zero, or a root or logarithm of a negative number, leaves it undefined.
    """
    with np.errstate(all="ignore"):
        values = np.broadcast_to(_value(formula, bands, valid), valid.shape)
        defined = valid & np.isfinite(values)
    return values, defined


def _value(formula: Formula, bands: Mapping[str, Values], valid: Valid) -> Values:
    match formula:
        case Number(value):
            return np.float64(value)  # type: ignore[return-value]
        case Name(name):
            return bands[name]
        case Unary(_, operand):
            return -_value(operand, bands, valid)
        case Binary(operator, left, right):
            return _ARITHMETIC[operator](_value(left, bands, valid), _value(right, bands, valid))
        case Call(name, (operand, size)) if name in WINDOWS:
            values, defined = compute(operand, bands, valid)
            return WINDOWS[name].compute(values, defined, size_of(name, size))
        case Call(name, arguments):
            given = (_value(argument, bands, valid) for argument in arguments)
            return POINTWISE[name][1](*given)


def _gaussian(values: Values, valid: Valid, sigma: float) -> Values:
    """The mean under a Gaussian window with this standard deviation."""
    reach = WINDOWS["gaussian"].reach(sigma)
    places = np.arange(-reach, reach + 1)
    return _weighted_mean(values, valid, np.exp(-0.5 * (places / sigma) ** 2))


def _mean(values: Values, valid: Valid, size: float) -> Values:
    """The mean of a square or cube with this side."""
    return _weighted_mean(values, valid, np.ones(int(size)))


def _texture(values: Values, valid: Valid, size: float) -> Values:
    """The standard deviation in a square or cube with this side."""
    window = np.ones(int(size))
    mean = _weighted_mean(values, valid, window)
    square = _weighted_mean(np.square(values), valid, window)
    return np.sqrt(np.maximum(square - np.square(mean), 0))


def _weighted_mean(values: Values, valid: Valid, weights: Values) -> Values:
    total = _correlated(np.where(valid, values, 0.0), weights)
    weight = _correlated(valid.astype(np.float64), weights)
    return total / weight


def _correlated(values: Values, weights: Values) -> Values:
    """Sums under a window that is the product of these weights along each axis."""
    from scipy.ndimage import correlate1d

    for axis in range(values.ndim):
        values = correlate1d(values, weights, axis=axis, mode="constant")
    return values


class Window(NamedTuple):
    """A function of the pixels around."""

    size: str
    """What its size is called."""
    summary: str
    reach: Callable[[float], int]
    """How far it looks, in pixels."""
    compute: Callable[[Values, Valid, float], Values]


WINDOWS = {
    "gaussian": Window(
        "sigma",
        "mean under a Gaussian with this standard deviation in pixels",
        lambda sigma: int(_REACH * sigma + 0.5),
        _gaussian,
    ),
    "mean": Window(
        "side", "mean of a square or cube with this side", lambda side: int(side) // 2, _mean
    ),
    "texture": Window(
        "side",
        "standard deviation in a square or cube with this side",
        lambda side: int(side) // 2,
        _texture,
    ),
}


def _linear(channel: Values) -> Values:
    """Values of sRGB from 0 to 255 as linear light from 0 to 1."""
    channel = channel / 255
    return np.where(channel > 0.04045, ((channel + 0.055) / 1.055) ** 2.4, channel / 12.92)


def _lightness(part: Values) -> Values:
    return np.where(part > (6 / 29) ** 3, np.cbrt(part), part * (29 / 6) ** 2 / 3 + 4 / 29)


def _lab(red: Values, green: Values, blue: Values) -> tuple[Values, Values, Values]:
    """f(X/Xn), f(Y/Yn) and f(Z/Zn) of CIELAB, for sRGB under D65."""
    red, green, blue = _linear(red), _linear(green), _linear(blue)
    x = (0.412453 * red + 0.357580 * green + 0.180423 * blue) / 0.95047
    y = 0.212671 * red + 0.715160 * green + 0.072169 * blue
    z = (0.019334 * red + 0.119193 * green + 0.950227 * blue) / 1.08883
    return _lightness(x), _lightness(y), _lightness(z)


def _lab_l(red: Values, green: Values, blue: Values) -> Values:
    return 116 * _lab(red, green, blue)[1] - 16


def _lab_a(red: Values, green: Values, blue: Values) -> Values:
    x, y, _ = _lab(red, green, blue)
    return 500 * (x - y)


def _lab_b(red: Values, green: Values, blue: Values) -> Values:
    _, y, z = _lab(red, green, blue)
    return 200 * (y - z)


POINTWISE: dict[str, tuple[int, Callable[..., Values]]] = {
    "abs": (1, np.abs),
    "sqrt": (1, np.sqrt),
    "log": (1, np.log),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "lab_l": (3, _lab_l),
    "lab_a": (3, _lab_a),
    "lab_b": (3, _lab_b),
}
"""Functions of single pixels: number of arguments, and what computes them. The coordinates of
CIELAB take red, green and blue of sRGB, from 0 to 255.
"""
