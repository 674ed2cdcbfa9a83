"""Charts as SVG: a few kilobytes each, in the colours of the page, with a text for screen readers.

Numbers in them are repeated in a table or a caption near by; no chart is the only place of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from maskloom.flows.report.collect import STEPS_PER_DECADE
from maskloom.segcore.ground.amounts import amount
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable
from maskloom.segcore.raster.colours import BACKGROUND, PALETTE, Colour, hexadecimal

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WIDTH, _LEFT, _BOTTOM = 960, 44, 28
_MOST_COLUMNS = 240
_MOST_BINS = 30
_BARS = 96


OTHER = "#888888"
"""For a class without a colour."""


def css(number: int) -> str:
    """The colour of a class by its place in the table, which the reader can switch."""
    return f"var(--c{number})"


def safe(classes: ClassTable) -> tuple[Colour, ...]:
    """Colours that people without one kind of cones tell apart too, as far as the palette goes."""
    free = iter(PALETTE)
    return tuple(
        BACKGROUND if name.lower() in BACKGROUND_NAMES else next(free, colour)
        for name, colour in zip(classes.names, classes.colours, strict=True)
    )


def palette(classes: ClassTable) -> str:
    """Style that defines the colours of the classes, and those that the reader can switch to."""
    sets = ((":root", classes.colours), (":root.safe", safe(classes)))
    return "".join(
        f"{where}{{{';'.join(f'--c{i}:{hexadecimal(c)}' for i, c in enumerate(colours))}}}"
        for where, colours in sets
    )


@dataclass(frozen=True, slots=True)
class Series:
    """A line over steps."""

    name: str
    values: Sequence[float | None]
    colour: str
    """As CSS."""
    dash: str = ""


def stacked_shares(
    shares: NDArray[np.float32], classes: ClassTable, label: str, height: int = 220
) -> Markup:
    """Columns of shares (column, class), stacked to one; of many columns, groups of neighbours with
    their mean.
    """
    groups = np.array_split(shares, min(len(shares), _MOST_COLUMNS))
    means = np.array([group.mean(axis=0) for group in groups])
    tops = np.cumsum(means, axis=1).clip(0, 1)
    plot, width = height - _BOTTOM, (_WIDTH - _LEFT) / len(means)
    paths = []
    below = np.zeros(len(means))
    for number, name in enumerate(classes.names):
        above = tops[:, number]
        if (above > below).any():
            points = _steps(above, width, plot, forward=True)
            points += _steps(below, width, plot, forward=False)
            paths.append(
                Markup('<path d="M{}Z" fill="{}"><title>{}</title></path>').format(
                    "L".join(points), css(number), name
                )
            )
        below = above
    return _svg(label, height, [_share_axis(plot), *paths])


def histogram(
    bins: Mapping[tuple[str, int], int], classes: ClassTable, unit: str, height: int = 220
) -> Markup:
    """Sizes on a logarithmic axis, stacked by class. `bins`: counts by class and bin of the
    logarithm.
    """
    first, last = min(b for _, b in bins), max(b for _, b in bins)
    step = max(1, -(-(last - first + 1) // _MOST_BINS))
    columns = (last - first) // step + 1
    counts = np.zeros((columns, len(classes.names)), np.int64)
    place = {name: number for number, name in enumerate(classes.names)}
    for (name, each), number in bins.items():
        counts[(each - first) // step, place[name]] += number
    most, plot = int(counts.sum(axis=1).max()), height - _BOTTOM
    width = (_WIDTH - _LEFT) / columns
    parts = [_count_axis(most, plot)]
    for column in range(columns):
        low, high = (
            amount(10 ** ((first + (column + side) * step) / STEPS_PER_DECADE), unit)
            for side in (0, 1)
        )
        y = float(plot)
        for number in np.flatnonzero(counts[column]).tolist():
            share = counts[column, number] / most * (plot - 12)
            y -= share
            parts.append(
                Markup(
                    '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}">'
                    "<title>{}: {:,}, {} to {}</title></rect>"
                ).format(
                    _LEFT + column * width + 0.5,
                    y,
                    max(width - 1, 0.5),
                    share,
                    css(number),
                    classes.names[number],
                    counts[column, number],
                    low,
                    high,
                )
            )
    shown = range(0, columns + 1, max(1, columns // 6))
    parts += [
        _text(
            _LEFT + column * width,
            height - 8,
            amount(10 ** ((first + column * step) / STEPS_PER_DECADE), unit),
            "start" if not column else "end" if column == columns else "middle",
        )
        for column in shown
    ]
    return _svg(f"Histogram of sizes; the fullest of {columns} bins has {most:,}", height, parts)


def lines(series: Sequence[Series], label: str, *, best: int | None = None) -> Markup:
    """Lines over epochs, which count from 1; a vertical line marks the best."""
    height = 240
    plot, epochs = height - _BOTTOM, max(len(each.values) for each in series)
    known = [value for each in series for value in each.values if _is_known(value)]
    high = _nice(max((value for value in known if value is not None), default=1.0))
    step = (_WIDTH - _LEFT - 8) / max(epochs - 1, 1)

    def at(epoch: int, value: float) -> str:
        return (
            f"{_LEFT + (epoch - 1) * step:.1f} {plot - min(value, high) / high * (plot - 12):.1f}"
        )

    parts = [
        Markup('<path class="axis" d="M{} {}H{}"/>').format(
            _LEFT, plot - share * (plot - 12), _WIDTH
        )
        + _text(_LEFT - 6, plot - share * (plot - 12) + 4, f"{share * high:g}", "end")
        for share in (0, 0.5, 1)
    ]
    if best is not None:
        x = _LEFT + (best - 1) * step
        parts.append(Markup('<path class="best" d="M{:.1f} 12V{}"/>').format(x, plot))
        parts.append(_text(min(max(x, _LEFT + 30), _WIDTH - 30), 10, f"best: {best}", "middle"))
    for each in series:
        points = [
            at(epoch, value)
            for epoch, value in enumerate(each.values, 1)
            if value is not None and _is_known(value)
        ]
        parts.append(
            Markup(
                '<path class="line" d="M{}" stroke="{}" stroke-dasharray="{}">'
                "<title>{}</title></path>"
            ).format("L".join(points), each.colour, each.dash or "none", each.name)
            if len(points) > 1
            else Markup("")
        )
    for epoch in sorted({1, *range(0, epochs + 1, max(1, round(epochs / 8))), epochs} - {0}):
        anchor = "end" if epoch == epochs and epochs > 1 else "middle"
        parts.append(_text(_LEFT + (epoch - 1) * step, height - 8, str(epoch), anchor))
    return _svg(label, height, parts)


def values(found: NDArray[np.float64], thresholds: Sequence[float], label: str) -> Markup:
    """A histogram of values with thresholds as lines. Its axis leaves out the outermost 0.1 % of
    the values on each side, unless a threshold is there.
    """
    low, high = np.percentile(found, (0.1, 99.9))
    low, high = min(low, *thresholds), max(high, *thresholds)
    high = high if high > low else low + 1
    step = (high - low) / _BARS
    if (found == np.rint(found)).all():
        # Bars that hold different numbers of whole numbers would look like a comb.
        step, low = math.ceil(step), math.floor(low) - 0.5
    counts, edges = np.histogram(found, np.arange(low, high + 1.5 * step, step))
    height = 220
    plot, width = height - _BOTTOM, (_WIDTH - _LEFT) / len(counts)
    most = int(counts.max())
    parts = [_count_axis(most, plot)]
    for number in np.flatnonzero(counts).tolist():
        tall = counts[number] / most * (plot - 12)
        parts.append(
            Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
            ).format(_LEFT + number * width, plot - tall, max(width - 1, 0.5), tall)
        )
    scale = (_WIDTH - _LEFT) / (edges[-1] - edges[0])
    for threshold in thresholds:
        x = _LEFT + (threshold - edges[0]) * scale
        parts.append(Markup('<path class="mark" d="M{:.1f} 14V{}"/>').format(x, plot))
        parts.append(_text(min(max(x, _LEFT + 30), _WIDTH - 30), 11, f"{threshold:.5g}", "middle"))
    for part, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        at = edges[0] + part * (edges[-1] - edges[0])
        parts.append(_text(_LEFT + part * (_WIDTH - _LEFT), height - 8, f"{at:.4g}", anchor))
    return _svg(label, height, parts)


def spread(values: Sequence[float], label: str) -> Markup:
    """A small histogram of numbers, without axes."""
    counts, _ = np.histogram(values, bins=min(40, max(5, len(values) // 3)))
    width, height = 240 / len(counts), 36
    bars = [
        Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            number * width,
            height - count / counts.max() * height,
            max(width - 0.5, 0.5),
            count / counts.max() * height,
        )
        for number, count in enumerate(counts.tolist())
        if count
    ]
    return Markup(
        '<svg class="spread" viewBox="0 0 240 36" role="img" aria-label="{}">{}</svg>'
    ).format(label, Markup("").join(bars))


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _nice(high: float) -> float:
    """A round number that is at least `high`.

    >>> _nice(0.87), _nice(23)
    (1.0, 25.0)
    """
    if high <= 0:
        return 1.0
    size = 10.0 ** math.floor(math.log10(high))
    return next(size * part for part in (1, 1.5, 2, 2.5, 4, 5, 8, 10) if high <= size * part)


def _steps(heights: NDArray[np.float64], width: float, plot: float, *, forward: bool) -> list[str]:
    points = []
    for number, height in enumerate(heights.tolist()):
        y = plot - height * (plot - 6)
        points += [f"{_LEFT + (number + side) * width:.1f} {y:.1f}" for side in (0, 1)]
    return points if forward else points[::-1]


def _share_axis(plot: float) -> Markup:
    return Markup("").join(
        Markup('<path class="axis" d="M{} {:.1f}H{}"/>').format(
            _LEFT - 4, plot - share * (plot - 6), _WIDTH
        )
        + _text(_LEFT - 8, plot - share * (plot - 6) + 4, f"{share:.0%}", "end")
        for share in (0, 0.5, 1)
    )


def _count_axis(most: int, plot: float) -> Markup:
    return Markup("").join(
        Markup('<path class="axis" d="M{} {:.1f}H{}"/>').format(
            _LEFT - 4, plot - share * (plot - 12), _WIDTH
        )
        + _text(_LEFT - 8, plot - share * (plot - 12) + 4, _short(share * most), "end")
        for share in (0, 0.5, 1)
    )


def _short(number: float) -> str:
    """A count in a few characters.

    >>> _short(950), _short(12_400), _short(3_000_000)
    ('950', '12.4k', '3M')
    """
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if prefix == 'k' else size):.3g}{prefix}"
    return f"{number:.0f}"


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, text
    )


def _svg(label: str, height: int, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<div class="wide drawn" tabindex="0"><svg class="chart" viewBox="0 0 {} {}" role="img" '
        'aria-label="{}">{}</svg></div>'
    ).format(_WIDTH, height, label, Markup("").join(parts))
