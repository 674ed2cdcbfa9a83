"""Inputs and outputs in descriptions of bioimage.io, versions 0.4 and 0.5, in the words of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MICROMETRES = {"micrometer": 1.0, "nanometer": 1e-3, "angstrom": 1e-4, "millimeter": 1e3}
LETTERS = {"b": "batch", "c": "channel", "z": "z", "y": "y", "x": "x"}
"""Axes by their letters in version 0.4."""
_LARGEST_HALO = 2**16

Step = tuple[str, Mapping[str, Any]]
"""A step before or behind the network: its name and its options."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output, in the words of either version."""

    name: str
    axes: tuple[str, ...]
    channels: int | None
    channel_names: tuple[str, ...]
    steps: tuple[Step, ...]
    dtype: str
    halo: int | None = None
    pixel_size: float | None = None
    scales: tuple[float, ...] = ()
    """Sizes of its pixels along y and x, in version 0.5: relative to those of the input."""
    shrinks: bool = False

    @property
    def dimensions(self) -> int:
        """2 for images, 3 for volumes."""
        return 3 if "z" in self.axes else 2


def tensor_of(said: Mapping[str, Any], what: str) -> Tensor:
    """The `input` or `output` that a part of a description says. Raises `ValueError`."""
    old = isinstance(said["axes"], str)
    axes = (
        tuple(LETTERS.get(letter, letter) for letter in said["axes"])
        if old
        else tuple(_axis_name(axis) for axis in said["axes"])
    )
    if not {"y", "x"} <= set(axes) <= set(LETTERS.values()) or len(set(axes)) < len(axes):
        raise ValueError(
            f"its {what} has the axes {', '.join(axes)[:100]}; expected batch, channel, [z,] y, x"
        )
    key = "preprocessing" if what == "input" else "postprocessing"
    steps = tuple(_steps(said.get(key)))
    return _of_version_4(said, axes, steps) if old else _of_version_5(said, axes, steps)


def _of_version_4(
    said: Mapping[str, Any], axes: tuple[str, ...], steps: tuple[Step, ...]
) -> Tensor:
    shape, channels, shrinks = said.get("shape"), None if "channel" in axes else 1, False
    if isinstance(shape, Mapping) and "scale" in shape:
        for axis, scale, offset in zip(axes, shape["scale"], shape["offset"], strict=True):
            if axis == "channel":
                channels = int(2 * offset) if not scale else None
            elif axis in ("z", "y", "x"):
                shrinks |= scale != 1
    elif "channel" in axes and shape:
        sizes = shape["min"] if isinstance(shape, Mapping) else shape
        channels = int(sizes[axes.index("channel")])
    halos = [int(halo) for halo in said.get("halo") or ()]
    return Tensor(
        str(said.get("id") or said.get("name")),
        axes,
        channels,
        (),
        steps,
        str(said.get("data_type", "")),
        _halo(halos),
        shrinks=shrinks,
    )


def _of_version_5(
    said: Mapping[str, Any], axes: tuple[str, ...], steps: tuple[Step, ...]
) -> Tensor:
    by_name = dict(zip(axes, said["axes"], strict=True))
    names = as_list(by_name["channel"].get("channel_names")) if "channel" in axes else []
    space = [by_name[axis] for axis in ("y", "x")]
    data = said.get("data")
    first = data[0] if isinstance(data, list) and data else data
    scales = {(axis.get("scale", 1.0), axis.get("unit")) for axis in space}
    scale, unit = scales.pop() if len(scales) == 1 else (None, None)
    return Tensor(
        str(said.get("id") or said.get("name")),
        axes,
        len(names) if "channel" in axes else 1,
        tuple(map(str, names)),
        steps,
        str(first.get("type", "")) if isinstance(first, Mapping) else "",
        _halo([int(axis.get("halo") or 0) for axis in space]),
        float(scale) * _MICROMETRES[unit] if scale and unit in _MICROMETRES else None,
        tuple(float(axis.get("scale", 1.0)) for axis in space),
    )


def _halo(halos: Sequence[int]) -> int | None:
    halo = max(halos, default=0)
    return halo if 0 < halo <= _LARGEST_HALO else None


def _axis_name(axis: Any) -> str:
    if not isinstance(axis, Mapping):
        raise ValueError(f"axes: expected mappings with a type; got {axis!r:.50}")
    kind = str(axis.get("type", ""))
    return str(axis.get("id", "")) if kind == "space" else kind


def _steps(said: Any) -> Iterator[Step]:
    for step in as_list(said):
        options = step.get("kwargs") or {}
        if not isinstance(options, Mapping):
            raise ValueError(f"kwargs: expected a mapping; got {options!r:.50}")
        yield str(step.get("id") or step.get("name")), options


def as_list(value: Any) -> list[Any]:
    """A list as it is; an empty one for anything else."""
    return list(value) if isinstance(value, list | tuple) else []
