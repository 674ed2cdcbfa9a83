"""The catalogue of what recipes can name: segmenters, formats, statistics, networks, clusters."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any, Literal

from maskloom.flows.recipes.schemas import help_of
from maskloom.segcore import formats
from maskloom.segcore.deep.networks.recipe import NETWORKS
from maskloom.segcore.masks import MASKS
from maskloom.segcore.models.protocols import SEGMENTERS
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.statistics.protocol import STATISTICS
from maskloom.tasks.clusters.protocol import CLUSTERS

What = Literal["segmenters", "formats", "statistics", "networks", "clusters"]
"""What can be listed."""


def catalogue(what: What) -> str:
    """The members of a registry with their parameters."""
    if what == "formats":
        readers = (
            f"  {name}: {_summary(item)} Suffixes {' '.join(formats.suffixes(name))}; masks by "
            f"{item.mask}"
            for name, item in FORMATS.items()
        )
        writers = (
            f"  {name}: {_summary(item)} Suffix {item.suffix}" for name, item in MASKS.items()
        )
        return "\n".join(("Readers of images", *readers, "", "Writers of masks", *writers))
    registries: Mapping[What, Mapping[str, Any]] = {
        "segmenters": SEGMENTERS,
        "statistics": STATISTICS,
        "networks": NETWORKS,
        "clusters": CLUSTERS,
    }
    registry = registries[what]
    return "\n\n".join(_member(name, kind) for name, kind in registry.items())


def _member(name: str, kind: Any) -> str:
    exactness = f" [{kind.exactness.value}]" if hasattr(kind, "exactness") else ""
    described = help_of(kind)
    lines = [f"{name}: {_summary(kind)}{exactness}"]
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


def _summary(item: Any) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join((inspect.getdoc(item) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph, maxsplit=1)[0].rstrip(".") + "."
