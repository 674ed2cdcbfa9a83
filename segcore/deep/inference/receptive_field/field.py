"""Receptive fields: how far an output pixel looks, and the sizes of input that a network takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskloom.segcore.geometry import by_axis

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape

LARGEST = 2**16
"""Maximum plausible number of pixels or bands in a card."""


@dataclass(frozen=True, slots=True)
class AxisReach:
    """A receptive field along one axis, in pixels; the fields are those of `ReceptiveField`."""

    halo: int | None
    stride: int
    margin: int
    residue: int
    fixed: int | None = None

    def fitting(self, least: int) -> int:
        """The smallest size from `least` on that the network takes along this axis; a fixed size
        is always itself.
        """
        return self.fixed or least + (self.residue - least) % self.stride


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """Receptive field and valid sizes of a network, as measured.

    A value is one number for all axes, or one per axis, in the order of the axes: a network of
    volumes often looks less far across planes than in them.
    """

    halo: int | Shape | None
    """Maximum distance in pixels over which an output pixel depends on the input. None: it may
    depend on the whole image.
    """
    stride: int | Shape = 1
    """Shifting the input by multiples of this many pixels shifts the output by as many. Height and
    width must be multiples of it, or have the form that `residue` defines.
    """
    margin: int | Shape = 0
    """Pixels by which the output is smaller than the input on each side (unpadded convolutions). 0:
    input and output have the same size.
    """
    residue: int | Shape = 0
    """Height and width modulo `stride`; nonzero only with a margin (572 = 12 modulo 16)."""
    fixed: Shape | None = None
    """The only (height, width), or (depth, height, width), that the file accepts. None: any size
    that fits the stride.
    """

    @classmethod
    def of_axes(cls, axes: Sequence[AxisReach]) -> ReceptiveField:
        """The field of some axes; without a finite halo if one of them has none."""
        halos = [each.halo for each in axes if each.halo is not None]
        fixed = tuple(each.fixed for each in axes if each.fixed is not None)
        return cls(
            by_axis(halos) if len(halos) == len(axes) else None,
            by_axis([each.stride for each in axes]),
            by_axis([each.margin for each in axes]),
            by_axis([each.residue for each in axes]),
            fixed or None,
        )

    def __post_init__(self) -> None:
        if len(self.lengths) > 1 or not self.lengths <= {2, 3}:
            raise ValueError(
                "reach: expected one number for all axes, or one for each of 2 or 3 axes; got "
                f"lists of {sorted(self.lengths)} numbers"
            )
        for axis in range(max(self.lengths, default=1)):
            along = self.along(axis)
            check_count("reach.halo", along.halo or 0, 0, LARGEST)
            check_count("reach.stride", along.stride, 1, LARGEST)
            check_count("reach.margin", along.margin, 0, LARGEST)
            check_count("reach.residue", along.residue, 0, along.stride - 1)
            if self.fixed is not None:
                check_count("reach.fixed", along.fixed, 1, LARGEST)

    @property
    def lengths(self) -> set[int]:
        """How many axes have numbers of their own, as far as there are such."""
        values = (self.halo, self.stride, self.margin, self.residue, self.fixed)
        return {len(value) for value in values if isinstance(value, tuple)}

    def along(self, axis: int) -> AxisReach:
        """The field along an axis, counted from 0."""

        def of(value: int | Shape) -> int:
            return value[axis] if isinstance(value, tuple) else value

        return AxisReach(
            None if self.halo is None else of(self.halo),
            of(self.stride),
            of(self.margin),
            of(self.residue),
            None if self.fixed is None else self.fixed[axis],
        )

    def axes(self, dimensions: int) -> tuple[AxisReach, ...]:
        """The field along each axis."""
        return tuple(self.along(axis) for axis in range(dimensions))

    def output_sizes(self, sizes: Shape) -> Shape:
        """The sizes of the output for an input of these sizes."""
        axes = self.axes(len(sizes))
        return tuple(size - 2 * reach.margin for size, reach in zip(sizes, axes, strict=True))

    @property
    def farthest(self) -> int | None:
        """The largest halo of all axes. None: unbounded."""
        return max(self.halo) if isinstance(self.halo, tuple) else self.halo


def check_count(name: str, value: object, least: int, most: int) -> None:
    """Raise `ValueError` unless a value is a whole number within limits."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name}: expected a whole number from {least} to {most}; got {value!r}")
