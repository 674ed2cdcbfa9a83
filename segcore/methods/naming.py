"""Names of clusters, and the order in which clusters become classes.

A name given to several clusters makes them one class.

Without references, clusters are sorted by ascending luminance of their centres, so equal runs agree
on the meaning of class 1. Bands that are not colours have no luminance. Their mean replaces it,
each band in units of its standard deviation, so physical units do not matter. With references (a
colour, or one value per band, for each name) the names are assigned to the centres at the least
total distance, in the same units, and classes keep the order of the given names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import FitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Classes = tuple[str, ...] | Mapping[str, tuple[float, ...] | str] | None
"""Names, or names with one reference each: one number per band, or `#rrggbb`. None: cluster_0,
cluster_1 … The same name several times merges clusters.
"""
MOST_CLASSES = 250
"""Largest number of classes: a mask of clusters is uint8, with 255 for nodata."""


def check_names(names: Sequence[str]) -> None:
    """Raise `ValueError` if names are empty or occur twice."""
    if any(not name.strip() for name in names):
        raise ValueError(f"classes: every class needs a name; got {list(names)}")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"classes: the name {twice[0]!r} occurs twice; class names must differ")


def requested_clusters(number: int | str | None, classes: Classes, field: str) -> int | None:
    """The requested number of clusters. None for `auto`; the number of classes (or 5) if no number
    is given.

    Raises `ValueError` naming `field` if the number is out of range or does not match `classes`.
    """
    if classes is not None:
        distinct = tuple(dict.fromkeys(classes))
        check_names(distinct)
        if len(distinct) == 1 < len(classes):
            raise ValueError(
                f"classes: all {len(classes)} clusters are called {distinct[0]!r}; give at least "
                "two different names"
            )
    if number == "auto":
        if classes is not None:
            raise ValueError(
                f"{field}: 'auto' finds how many classes there are, so `classes` cannot name them; "
                "leave one out"
            )
        return None
    if number is None:
        number = 5 if classes is None else len(classes)
    minimum = 1 if field == "components" else 2
    if not isinstance(number, int) or not minimum <= number <= MOST_CLASSES:
        raise ValueError(
            f"{field}: expected 'auto' or a number from {minimum} to {MOST_CLASSES}; got {number!r}"
        )
    if classes is not None and len(classes) != number:
        raise ValueError(
            f"classes: {len(classes)} names for {field} = {number}; give as many names as {field}, "
            "or leave one out"
        )
    return number


def parse_reference(name: str, given: Sequence[float] | str) -> tuple[float, ...]:
    """The reference of a class as numbers; `#rrggbb` gives red, green, blue from 0 to 255.

    Raises `ValueError`.
    """
    if not isinstance(given, str):
        if not given or not all(np.isfinite(value) for value in given):
            raise ValueError(f"classes: {name!r} needs one finite number a band; got {list(given)}")
        return tuple(float(value) for value in given)
    digits = given.removeprefix("#")
    if len(digits) != 6 or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
        raise ValueError(f"classes: the colour of {name!r} must look like '#1e90ff'; got {given!r}")
    return tuple(float(int(digits[at : at + 2], 16)) for at in (0, 2, 4))


def check_references(classes: Classes) -> None:
    """Raise `ValueError` if a reference is malformed or references differ in length."""
    if isinstance(classes, Mapping):
        lengths = {len(parse_reference(name, given)) for name, given in classes.items()}
        if len(lengths) > 1:
            raise ValueError(
                "classes: every class needs as many numbers as there are bands; got "
                f"{sorted(lengths)}"
            )


def class_order(
    centres: NDArray[np.float64], classes: Classes, spread: NDArray[np.float64], *, rgb: bool
) -> list[int]:
    """The centre (row of `centres`) of each class, by class id.

    `centres` are (cluster, band); `spread` is the standard deviation of each band. Raises
    `FitError` if references and centres have different numbers of bands.
    """
    unit = np.full_like(spread, spread.max()) if rgb else spread
    if isinstance(classes, Mapping):
        from scipy.optimize import linear_sum_assignment

        references = np.array([parse_reference(name, given) for name, given in classes.items()])
        if references.shape[1] != centres.shape[1]:
            raise FitError(
                f"classes: the references have {references.shape[1]} numbers each, the images "
                f"{centres.shape[1]} band(s). "
                "Give one number a band, or choose `bands`."
            )
        distances = np.linalg.norm((references[:, None] - centres[None]) / unit, axis=2)
        return [int(centre) for centre in linear_sum_assignment(distances)[1]]
    # Rounding errors must not decide the order if bands run against each other and all centres have
    # the same mean.
    places = np.round((centres - centres.min(axis=0)) / unit, 9) + 0.0
    luminance = (
        places[:, :3] @ np.array([0.299, 0.587, 0.114])
        if rgb and centres.shape[1] >= 3
        else places.mean(axis=1)
    )
    keys = [(round(float(luminance[row]), 8), *places[row].tolist()) for row in range(len(centres))]
    return sorted(range(len(centres)), key=keys.__getitem__)


def class_names(count: int, classes: Classes) -> tuple[str, ...]:
    """The given names, each once, or cluster_0, cluster_1 and so on."""
    return (
        tuple(dict.fromkeys(classes))
        if classes is not None
        else tuple(f"cluster_{number}" for number in range(count))
    )


def merged_clusters(classes: Classes) -> tuple[int, ...] | None:
    """The class id of each cluster in order, where a name is given to several. None: cluster k is
    class k.
    """
    names = tuple(classes or ())
    distinct = tuple(dict.fromkeys(names))
    return None if names == distinct else tuple(distinct.index(name) for name in names)


def check_bands(bands: tuple[int, ...] | None) -> None:
    """Raise `ValueError` if band numbers are not positive or occur twice."""
    if bands is not None and (not bands or min(bands) < 1 or len(set(bands)) < len(bands)):
        raise ValueError(f"bands: expected different band numbers from 1 on; got {list(bands)}")
