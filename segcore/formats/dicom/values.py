"""From stored numbers to values: rescaling, and the type that holds the values of all slices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.formats.dicom.header import Header, items, number, numbers, text

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INTEGERS = tuple(
    np.dtype(name) for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32")
)


@dataclass(frozen=True, slots=True)
class Scale:
    """value = slope · stored + intercept (PS3.3 C.11.1)."""

    slope: float = 1.0
    intercept: float = 0.0
    stated: bool = field(default=True, compare=False)
    """Whether the file states it."""

    @property
    def is_integral(self) -> bool:
        """Whether whole numbers stay whole."""
        return self.slope.is_integer() and self.intercept.is_integer()


@dataclass(frozen=True, slots=True)
class Stored:
    """The type of the stored numbers."""

    bits: int
    """Of the numbers themselves."""
    allocated: int
    high_bit: int
    signed: bool

    @property
    def container(self) -> np.dtype[Any]:
        """The type whose size is that of the stored numbers."""
        return np.dtype(f"{'i' if self.signed else 'u'}{max(1, -(-self.allocated // 8))}")

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest number."""
        return (
            (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)
            if self.signed
            else (0, 2**self.bits - 1)
        )


UNSCALED = Scale(stated=False)


def scale_of(elements: Any, otherwise: Scale = UNSCALED) -> Scale:
    """The rescaling that elements state. A slope of 0 is none."""
    slope = numbers(elements, "RescaleSlope") or numbers(elements, "DoseGridScaling")
    intercept = numbers(elements, "RescaleIntercept")
    if not slope and not intercept:
        return otherwise
    return Scale(slope[0] if slope and slope[0] else 1.0, intercept[0] if intercept else 0.0)


def stored_type(header: Header) -> Stored:
    """The type of the stored numbers of a file."""
    elements = header.elements
    allocated = number(elements, "BitsAllocated") or 8
    bits = number(elements, "BitsStored") or allocated
    bits = bits if 0 < bits <= allocated else allocated
    high = number(elements, "HighBit") if text(elements, "HighBit") else bits - 1
    high = high if bits - 1 <= high < allocated else bits - 1
    return Stored(bits, allocated, high, number(elements, "PixelRepresentation") == 1)


def lookup_table(header: Header) -> tuple[int, NDArray[np.int64]] | None:
    """The modality's table in place of a slope: the first stored number in it, and the values
    (PS3.3 C.11.1.1). None: no table.
    """
    found = items(header.elements, "ModalityLUTSequence")
    if not found:
        return None
    descriptor = numbers(found[0], "LUTDescriptor")
    element = found[0].get("LUTData")
    if len(descriptor) != 3 or element is None:
        return None
    if isinstance(element, bytes):
        values = np.frombuffer(element, "<u2").astype(np.int64)
    else:
        values = np.ravel(np.asarray(element, np.int64))
    first = int(descriptor[1])
    if stored_type(header).signed and first >= 2**15:
        first -= 2**16
    return (first, values) if values.size else None


def type_of_values(stored: Stored, scales: Iterable[Scale]) -> np.dtype[Any]:
    """The smallest type of whole numbers that holds all values, or float32."""
    scales = set(scales)
    if scales == {Scale()} and stored.container in _INTEGERS:
        return stored.container
    if not all(scale.is_integral for scale in scales):
        return np.dtype(np.float32)
    ends = [end * scale.slope + scale.intercept for scale in scales for end in stored.range]
    least, greatest = min(ends), max(ends)
    for kind in _INTEGERS:
        if np.iinfo(kind).min <= least and greatest <= np.iinfo(kind).max:
            return kind
    return np.dtype(np.float32)


def scaled(stored: NDArray[Any], scale: Scale, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The values of stored numbers in a type of `type_of_values`."""
    if scale == Scale():
        return stored.astype(dtype)
    values: NDArray[Any] = (stored * np.float64(scale.slope) + scale.intercept).astype(dtype)
    return values


def corrected(raw: NDArray[Any], stored: Stored) -> NDArray[Any]:
    """Numbers without the bits beside them, and with their sign, whatever the decoder made of it:
    a compressed stream may have another idea of the sign than the header.
    """
    if raw.dtype.kind == "f":
        return raw
    size = stored.container.itemsize
    unused = size * 8 - 1 - stored.high_bit
    shifted = raw.astype(f"u{size}") << unused
    numbers_: NDArray[Any] = shifted.view(stored.container) >> (
        unused + stored.high_bit + 1 - stored.bits
    )
    return numbers_
