"""The catalogue of the segmenters, formats and statistics that recipes can name."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from typing import Any, Literal

from maskloom.flows.recipes.schemas import help_of
from maskloom.segcore import formats
from maskloom.segcore.masks import MASKS
from maskloom.segcore.models.protocols import SEGMENTERS
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.statistics.protocol import STATISTICS


def catalogue(what: Literal["segmenters", "formats", "statistics"]) -> str:
    """The members of a registry with their parameters."""
    if what == "formats":
        readers = (
            f"  {name}: {_first_line(item)} Suffixes {' '.join(formats.suffixes(name))}; masks by "
            f"{item.mask}"
            for name, item in FORMATS.items()
        )
        writers = (
            f"  {name}: {_first_line(item)} Suffix {item.suffix}" for name, item in MASKS.items()
        )
        return "\n".join(("Readers of images", *readers, "", "Writers of masks", *writers))
    registry: Mapping[str, Any] = SEGMENTERS if what == "segmenters" else STATISTICS
    return "\n\n".join(_member(name, kind) for name, kind in registry.items())


def _member(name: str, kind: Any) -> str:
    exactness = f" [{kind.exactness.value}]" if hasattr(kind, "exactness") else ""
    described = help_of(kind)
    lines = [f"{name}: {_first_line(kind)}{exactness}"]
    if hasattr(kind, "units"):
        lines.append(f"  Change of units, x -> a x + b with a > 0: {kind.units}.")
    if hasattr(kind, "volumes"):
        lines.append(f"  Volumes: {kind.volumes}.")
    for field in dataclasses.fields(kind):
        default = (
            field.default_factory()
            if field.default_factory is not dataclasses.MISSING
            else field.default
        )
        shown = "needed" if default is dataclasses.MISSING else repr(default)
        lines.append(
            f"  {field.name} = {shown}: {described.get(field.name, typing.cast(str, field.type))}"
        )
    return "\n".join(lines)


def _first_line(item: Any) -> str:
    return (inspect.getdoc(item) or "").partition("\n")[0]
