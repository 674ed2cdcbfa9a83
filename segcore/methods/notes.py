"""Notes of fitted models: bands with almost no influence, and undeclared nodata."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maskloom.segcore.methods.samples import WeightedValues


_LEAST_INFLUENCE = 0.01
UNLIKELY = 1e30
"""Values of this size or more are most likely nodata if all others are small."""
_APART = 1e-6
"""Values of `UNLIKELY` or more look like nodata if all others are below this fraction of them."""


def note_of_units(deviation: Sequence[float], bands: Sequence[int] | None) -> str | None:
    """A note if distances in the units of the pixels give some bands almost no influence: their
    deviation is less than a hundredth of another's.
    """
    varying = [i for i, each in enumerate(deviation) if each > 0]
    widest = max(varying, key=lambda i: deviation[i], default=0)
    silent = [i for i in varying if deviation[i] < _LEAST_INFLUENCE * deviation[widest]]
    if not silent:
        return None
    numbers = bands or range(1, len(deviation) + 1)
    hardly = [f"{numbers[i]} ({deviation[i]:.3g})" for i in silent]
    return (
        f"by standard deviation, band {', '.join(hardly)} hardly counts beside band "
        f"{numbers[widest]} ({deviation[widest]:.3g}): set "
        "`standardise: true` where their units differ"
    )


def note_of_nodata(dataset: WeightedValues, bands: Sequence[int] | None) -> str | None:
    """A note if a band has values of 1e30 or more, far from all others: most likely nodata that the
    file does not declare.
    """
    if dataset.values.dtype.kind != "f":
        return None
    notes = []
    for number, row in zip(bands or range(1, len(dataset.values) + 1), dataset.values, strict=True):
        sizes = np.abs(row)
        far = sizes >= UNLIKELY
        if far.any() and not far.all() and sizes[~far].max() < _APART * sizes[far].min():
            notes.append(note_of_extremes(f"band {number}", float(row.min()), float(row.max())))
    return "; ".join(notes) or None


def note_of_extremes(what: str, low: float, high: float) -> str:
    """The note on values whose extremes, or one of them, look like nodata."""
    ends = [f"down to {low:.3g}"] * (low <= -UNLIKELY) + [f"up to {high:.3g}"] * (high >= UNLIKELY)
    return f"{what} has values {' and '.join(ends)}, which look like undeclared nodata"
