"""Checks and the registry shared by the recipes of all networks.

A recipe defines what the section `network` of a training recipe may hold. It is validated and
stored without keras; only its `build` imports keras. Each network is one file of this package: its
recipe, registered in `NETWORKS`, and the functions that build it.
"""

from __future__ import annotations

from typing import Literal

from maskloom.segcore.registry import Registry

Normalisation = Literal["none", "batch", "group"]

NETWORKS: Registry[type] = Registry("network", __package__)


def check_width(width: int) -> None:
    """Raise `ValueError` unless the first stage has 1 to 512 channels."""
    if not 1 <= width <= 512:
        raise ValueError(f"width: expected 1 to 512 channels; got {width}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}; got {value!r}")


def check_counts(channels: int, classes: int) -> None:
    """Raise `ValueError` for an image without bands or a network with fewer than two classes."""
    if channels < 1:
        raise ValueError(f"channels: expected one or more; got {channels}")
    if classes < 2:
        raise ValueError(f"classes: expected two or more; got {classes}")
