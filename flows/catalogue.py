"""The catalogue of what recipes can name: segmenters, features, formats, statistics, networks,
clusters; all of a sort, or one of them explained.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from maskloom.flows.recipes.schemas import help_of
from maskloom.segcore import formats
from maskloom.segcore.deep.networks.recipe import NETWORKS
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.features.evaluation import POINTWISE, WINDOWS
from maskloom.segcore.features.indices import INDICES
from maskloom.segcore.features.sensors import SENSORS
from maskloom.segcore.masks import MASKS
from maskloom.segcore.models.protocols import SEGMENTERS, Exactness
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.statistics.protocol import STATISTICS
from maskloom.tasks.clusters.protocol import CLUSTERS

What = Literal["segmenters", "features", "formats", "statistics", "networks", "clusters"]
"""What can be listed."""

_WIDTH = 88
_EXACT = {
    Exactness.EXACT: "exact: the same mask for any tile, number of workers and restart",
    Exactness.EXACT_IF_SMALLER_THAN_HALO: (
        "exact for objects smaller than the halo around a tile; larger ones are joined over tiles, "
        "but may differ from those of the image in one piece"
    ),
    Exactness.APPROXIMATE: "approximate: blended between tiles, the same for any tile",
}
_HEADINGS = {
    "segmenter": "segmenter",
    "network": "network to train",
    "statistic": "statistic",
    "cluster": "kind of cluster",
    "format": "format of images",
    "mask": "writer of masks",
}


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
    if what == "features":
        return "\n".join(_features())
    registries: Mapping[What, Mapping[str, Any]] = {
        "segmenters": SEGMENTERS,
        "statistics": STATISTICS,
        "networks": NETWORKS,
        "clusters": CLUSTERS,
    }
    registry = registries[what]
    return "\n\n".join(_member(name, kind) for name, kind in registry.items())


def _features() -> Iterator[str]:
    yield "Indices"
    for name, index in INDICES.items():
        yield f"  {name}: {index.formula} ({index.source})"
    yield from ("", "Bands and colours")
    yield "  bands: all bands of the file; b1, b2, ...: one of them; red, B04, ...: by its name"
    yield "  lab: the three coordinates of CIELAB, from the red, green and blue of a picture"
    yield from ("", "Functions, also of formulas: gaussian(ndvi, 2)")
    for name, function in WINDOWS.items():
        yield f"  {name}(x, {function.size}): {function.summary}"
    yield f"  {', '.join(POINTWISE)}"
    yield from ("", "Sensors")
    for name, sensor in SENSORS.items():
        named = ", ".join(
            own if own == common else f"{own} {common}" for own, common in sensor.common.items()
        )
        yield f"  {name}: {named}"


def shown(name: str) -> str:
    """All members of a sort, or what has this name, explained. Raises `RecipeError` if nothing has
    it.
    """
    if name in typing.get_args(What):
        return catalogue(typing.cast(What, name))
    found = [(sort, registry[name]) for sort, registry in _registries().items() if name in registry]
    if not found:
        known = [*typing.get_args(What), *(each for of in _registries().values() for each in of)]
        # Also k-means for kmeans, U-Net for unet.
        spelled = {_plain(each): each for each in known}
        near = difflib.get_close_matches(_plain(name), spelled, 2, 0.6)
        meant = " or ".join(f"`maskloom list {spelled[each]}`" for each in near)
        raise RecipeError(
            f"There is nothing called {name!r}.{f' Did you mean {meant}?' if meant else ''} "
            f"`maskloom list` takes {', '.join(typing.get_args(What))}, or a name in one of these."
        )
    texts = ("\n".join(_explained(sort, name, item)).strip() for sort, item in found)
    return "\n\n\n".join(re.sub(r"\n{3,}", "\n\n", text) for text in texts)


def names(beginning: str) -> list[str]:
    """What `shown` takes that begins so, for the completion of shells."""
    known = [*typing.get_args(What), *(each for of in _registries().values() for each in of)]
    return [each for each in dict.fromkeys(known) if each.startswith(beginning)]


def _registries() -> dict[str, Mapping[str, Any]]:
    return {
        "segmenter": SEGMENTERS,
        "network": NETWORKS,
        "statistic": STATISTICS,
        "cluster": CLUSTERS,
        "format": FORMATS,
        "mask": MASKS,
    }


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _explained(sort: str, name: str, item: Any) -> Iterator[str]:
    """The lines on one member: what it does, when to use it, its parameters."""
    kind = item if isinstance(item, type) else type(item)
    yield f"{name} ({_HEADINGS[sort]})"
    yield ""
    for paragraph in _paragraphs(sort, kind):
        yield from _wrapped(paragraph)
        yield ""
    for heading, attribute in (
        ("Use it when", "use_when"),
        ("Not when", "not_when"),
        ("Volumes", "volumes"),
        ("Change of units, x -> a x + b with a > 0", "units"),
        ("Source", "reference"),
    ):
        text = getattr(kind, attribute, "")
        if isinstance(text, str) and text:
            yield from _wrapped(f"{heading}: {text}.")
    exactness = getattr(kind, "exactness", None)
    if isinstance(exactness, Exactness):
        yield from _wrapped(f"Tiles: {_EXACT[exactness]}.")
    if sort == "format":
        yield from _wrapped(f"Suffixes: {' '.join(formats.suffixes(name)) or 'none'}")
        yield f"Masks: {item.mask}"
    elif sort == "mask":
        yield f"Suffix: {item.suffix}"
    # What a format or a writer holds is no parameter of a recipe.
    parameters = [] if sort in ("format", "mask") else list(_parameters(kind))
    if parameters:
        yield from ("", "Parameters")
        for field_name, default, text in parameters:
            yield f"  {field_name}{'' if default is None else f' = {default}'}"
            yield from _wrapped(text, 6)
    if sort == "segmenter":
        needed = [field_name for field_name, default, _ in parameters if default is None]
        section = "".join(f", {each}: …" for each in needed)
        yield from ("", "In a recipe", f"  segmenter: {{kind: {name}{section}}}")


def _paragraphs(sort: str, kind: type) -> list[str]:
    """What a member is, from its docstring, and for methods from that of its module."""
    texts = [inspect.getdoc(kind) or ""]
    module = inspect.getmodule(kind)
    if sort == "segmenter" and module is not None and _members_of(module.__name__) == 1:
        texts.append(inspect.getdoc(module) or "")
    return [
        " ".join(paragraph.split())
        for text in texts
        for paragraph in text.split("\n\n")
        if paragraph.strip()
    ]


def _members_of(module: str) -> int:
    """Number of segmenters in a module: a docstring of several says too much on each."""
    return sum(kind.__module__ == module for kind in SEGMENTERS.values())


def _wrapped(text: str, indent: int = 0) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _parameters(kind: Any) -> Iterator[tuple[str, str | None, str]]:
    """Name, default (None: needed) and help of each field."""
    if not dataclasses.is_dataclass(kind):
        return
    described = help_of(typing.cast(type, kind))
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        default = (
            field.default_factory()
            if field.default_factory is not dataclasses.MISSING
            else field.default
        )
        text = described.get(field.name, typing.cast(str, field.type))
        yield field.name, None if default is dataclasses.MISSING else repr(default), text


def _member(name: str, kind: Any) -> str:
    exactness = f" [{kind.exactness.value}]" if hasattr(kind, "exactness") else ""
    lines = [f"{name}: {_summary(kind)}{exactness}"]
    if hasattr(kind, "units"):
        lines.append(f"  Change of units, x -> a x + b with a > 0: {kind.units}.")
    if hasattr(kind, "volumes"):
        lines.append(f"  Volumes: {kind.volumes}.")
    lines += [
        f"  {field} = {'needed' if default is None else default}: {text}"
        for field, default, text in _parameters(kind)
    ]
    return "\n".join(lines)


def _summary(item: Any) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join((inspect.getdoc(item) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph, maxsplit=1)[0].rstrip(".") + "."
