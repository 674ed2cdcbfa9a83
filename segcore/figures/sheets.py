"""The sheet of a preview: source, mask, and mask over source, with title, scale bar and legend.

The three panels of an image stand side by side, or one below the other if it is wide. The planes of
a volume stand side by side in true proportion, source above and mask below, with the letters of the
directions in the body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.figures.drawing import (
    BOLD,
    FAINT,
    GAP,
    MARGIN,
    NARROWEST,
    SMALL,
    TOP,
    Sheet,
    fitted_shape,
    fitting,
    line_height,
)
from maskloom.segcore.figures.legends import Entry, Legend
from maskloom.segcore.figures.overlays import coloured, over_source, with_hatching
from maskloom.segcore.figures.planes import ORDER, Plane, as_looked_at, turned_to_viewer
from maskloom.segcore.figures.scale_bars import (
    PixelLength,
    draw_scale_bar,
    length_text,
    pixel_length,
)
from maskloom.segcore.ground.amounts import amount
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable
from maskloom.segcore.raster.colours import BACKGROUND, colours_of_objects

if TYPE_CHECKING:
    from maskloom.segcore.figures.drawing import Pixels
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.colours import Colour
    from maskloom.segcore.raster.spec import RasterSpec

_SIDE, _WIDE_SIDE, _LEAST = 640, 1000, 300
"""Longer side of a panel at most: side by side, and one below the other; and the side up to which
small images are enlarged.
"""
_VOLUME_SIDE = 480
_WIDE = 2.2
"""From this proportion on, panels stand one below the other."""
_FLAT = 0.7
"""Planes stand in rows if they take less than this part of the paper."""
_NARROWEST_PANEL = 120
_MOST_ENTRIES = 24
_CAPTION = line_height(SMALL) + 4
_SPACE_UNITS = {"um": "µm"}


@dataclass(frozen=True, slots=True)
class Caption:
    """What a preview says in words."""

    title: str
    """Name of the image."""
    segmenter: str = ""
    areas: Sequence[Mapping[str, Any]] = ()
    """Rows of the image in the table `areas`."""
    objects: int | None = None
    """Number of objects. None: they are not counted."""
    date: str = ""
    """When the image was taken, if it is known."""
    stretched: bool = False
    """Whether the contrast of the source is increased."""


def draw_preview(
    planes: Sequence[Plane], spec: RasterSpec, class_table: ClassTable, caption: Caption
) -> bytes:
    """The sheet of an image or a volume as PNG."""
    if len(planes) > 1:
        panels, pixel = _panels_of_volume(planes, spec, class_table)
    else:
        panels, pixel = _panels_of_image(planes[0], spec, class_table, caption)
    entries = legend_entries(class_table, caption, spec.pixels, planes[0].labels.dtype == np.uint32)
    return _sheet(panels, pixel, entries, caption.title, _facts(spec, caption)).png()


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A picture with a line above it."""

    caption: str
    pixels: Pixels


def _panels_of_image(
    plane: Plane, spec: RasterSpec, class_table: ClassTable, caption: Caption
) -> tuple[list[list[Panel]], PixelLength]:
    """The panels in rows."""
    cells, source = plane.labels.shape, spec.shape[-2:]
    tall, wide = _true_proportion(cells, spec)
    is_wide = wide > _WIDE * tall
    shape = fitted_shape((tall, wide), _WIDE_SIDE if is_wide else _SIDE, least=_LEAST)
    if spec.space.frame is not None:
        plane = as_looked_at(plane, spec.space.frame)
    drawn = plane.drawn(shape)
    mask = coloured(drawn.labels, drawn.valid, class_table)
    panels = [
        Panel(_source_caption(caption), with_hatching(drawn.photo, drawn.valid)),
        Panel("mask", mask),
        Panel(_over_caption(plane), over_source(drawn, mask, class_table)),
    ]
    pixel = pixel_length(spec).times(source[1] / shape[1])
    return ([[each] for each in panels] if is_wide else [panels]), pixel


def _panels_of_volume(
    planes: Sequence[Plane], spec: RasterSpec, class_table: ClassTable
) -> tuple[list[list[Panel]], PixelLength]:
    """The planes in columns, with sources in the first row and masks over them in the second; in
    rows if the volume is flat.
    """
    spacing, unit = _spacing(spec)
    extents = [n * size for n, size in zip(spec.shape, spacing, strict=True)]
    finest = min(spacing)
    longest = max(extents) / finest
    # Pixels of the sheet for the finest side of a voxel.
    scale = _VOLUME_SIDE / longest if longest > _VOLUME_SIDE else _VOLUME_SIDE // longest
    drawn = []
    for plane in planes:
        sides = [n for axis, n in enumerate(extents) if axis != plane.across]
        large = plane.drawn(tuple(max(1, round(n / finest * scale)) for n in sides))
        drawn.append(
            large if spec.space.frame is None else turned_to_viewer(large, spec.space.frame)
        )
    drawn.sort(key=lambda plane: (*ORDER, "").index(plane.name))
    above: list[Panel] = []
    below: list[Panel] = []
    for plane in drawn:
        source = with_hatching(plane.photo, plane.valid)
        over = over_source(plane, coloured(plane.labels, plane.valid, class_table), class_table)
        for picture in (source, over):
            _write_letters(picture, plane.letters)
        above.append(Panel(_place(plane, spec), source))
        below.append(Panel("" if below else _over_caption(plane), over))
    in_rows = [list(pair) for pair in zip(above, below, strict=True)]
    panels = in_rows if _paper(in_rows) < _FLAT * _paper([above, below]) else [above, below]
    return panels, PixelLength(finest / scale, unit)


def _paper(panels: Sequence[Sequence[Panel]]) -> int:
    """Area that panels in rows take, in pixels."""
    columns = zip(*panels, strict=True)
    width = sum(max(each.pixels.shape[1] for each in column) for column in columns)
    height = sum(max(each.pixels.shape[0] for each in row) for row in panels)
    return int(width * height)


def _over_caption(plane: Plane) -> str:
    of_objects = plane.labels.dtype == np.uint32
    return "outlines of objects over source" if of_objects else "mask over source"


def _place(plane: Plane, spec: RasterSpec) -> str:
    """Where a plane lies in its volume."""
    length = spec.shape[plane.across]
    where = f"{spec.space.axes[plane.across]} = {length // 2} of {length}"
    return f"{plane.name}, {where}" if plane.name else f"across {where}"


def _sheet(
    panels: Sequence[Sequence[Panel]],
    pixel: PixelLength,
    entries: Sequence[Entry],
    title: str,
    facts: str,
) -> Sheet:
    """Title, panels in rows, scale bar, legend."""
    columns = [
        max(_NARROWEST_PANEL, *(row[i].pixels.shape[1] for row in panels))
        for i in range(len(panels[0]))
    ]
    rows = [max(each.pixels.shape[0] for each in row) for row in panels]
    inner = max(NARROWEST, sum(columns) + GAP * (len(columns) - 1))
    legend = Legend.of(entries, inner)
    bar = 30
    height = TOP + sum(rows) + len(rows) * (_CAPTION + GAP) + bar + legend.height + MARGIN - 6
    sheet = Sheet.blank(inner + 2 * MARGIN, height)
    sheet.heading(title, facts)
    y = TOP
    for row, tall in zip(panels, rows, strict=True):
        x = MARGIN
        for panel, wide in zip(row, columns, strict=True):
            at = (x, y + _CAPTION // 2)
            sheet.text(at, fitting(panel.caption, wide, size=SMALL), ink=FAINT, size=SMALL)
            sheet.paste(panel.pixels, (x, y + _CAPTION), framed=True)
            x += wide + GAP
        y += _CAPTION + tall + GAP
    room = min(inner, max(columns[0], 260))
    draw_scale_bar(sheet, (MARGIN, y + 4), room, pixel)
    legend.draw(sheet, (MARGIN, y + bar - 6))
    return sheet


def _source_caption(caption: Caption) -> str:
    return "source, stretched" if caption.stretched else "source"


def _true_proportion(cells: Shape, spec: RasterSpec) -> Shape:
    """So many cells with the longer side of a pixel along the axis where it lies."""
    metric = spec.space.metric
    if metric is None:
        return cells
    sides = np.array(metric.spacing[-2:])
    return tuple(max(1, round(n)) for n in np.array(cells) * sides / sides.min())


def _spacing(spec: RasterSpec) -> tuple[tuple[float, ...], str]:
    """The distances of voxels along each axis, and their unit."""
    if spec.space.metric is None:
        return (1.0,) * len(spec.shape), "px"
    return spec.space.metric.millimetres, "mm"


def _write_letters(picture: Pixels, letters: str) -> None:
    """Letters at the left, right, upper and lower side of a picture."""
    if not letters or min(picture.shape[:2]) < 60:
        return
    sheet, (height, width) = Sheet(picture), picture.shape[:2]
    places = ((10, height / 2), (width - 10, height / 2), (width / 2, 11), (width / 2, height - 11))
    for letter, at in zip(letters, places, strict=True):
        for x, y in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            at_edge = (at[0] + x, at[1] + y)
            sheet.text(at_edge, letter, size=SMALL, weight=BOLD, ink=(0, 0, 0), anchor="middle")
        sheet.text(at, letter, size=SMALL, weight=BOLD, ink=(255, 255, 255), anchor="middle")


def _facts(spec: RasterSpec, caption: Caption) -> str:
    """The line below the title."""
    volume = len(spec.shape) > 2
    sides = " × ".join(f"{n:,}" for n in reversed(spec.shape))
    facts = [caption.segmenter, f"{sides} {'voxels' if volume else 'pixels'}{_size(spec)}"]
    if caption.objects is not None:
        facts.append(f"{caption.objects:,} object{'' if caption.objects == 1 else 's'}")
    if volume and caption.stretched:
        facts.append("contrast stretched")
    return " · ".join(filter(None, [*facts, caption.date]))


def _size(spec: RasterSpec) -> str:
    """The size of a pixel in words; empty if not known."""
    metric = spec.space.metric
    if metric is not None:
        sides = [f"{side:.4g}" for side in reversed(metric.spacing)]
        shown = sides[0] if len(set(sides)) == 1 else " × ".join(sides)
        return f" of {shown} {_SPACE_UNITS.get(metric.unit, metric.unit)}"
    step = pixel_length(spec)
    return f" of {length_text(float(f'{step.length:.3g}'), 'm')}" if step.unit == "m" else ""


def legend_entries(
    class_table: ClassTable, caption: Caption, pixels: int, of_objects: bool
) -> list[Entry]:
    """The classes with their areas and shares; of many, those with the largest areas. `pixels`:
    those of the whole image.
    """
    rows = list(caption.areas)
    names, colours = class_table.names, class_table.colours
    shown = list(range(len(names)))
    if len(names) > _MOST_ENTRIES and rows:
        largest = sorted(shown, key=lambda i: (-rows[i]["pixel_count"], i))
        shown = sorted(largest[: _MOST_ENTRIES - 1])
    elif len(names) > _MOST_ENTRIES:
        shown = shown[: _MOST_ENTRIES - 1]
    entries = [
        Entry(names[i], _colours(names[i], colours[i], of_objects), _numbers(rows[i : i + 1]))
        for i in shown
    ]
    if len(shown) < len(names):
        others = [row for i, row in enumerate(rows) if i not in set(shown)]
        entries.append(Entry(f"and {len(names) - len(shown)} more", (), _numbers(others)))
    if rows:
        for key, name in (
            ("nodata_pixels", "no data, of all"),
            ("unprocessed_pixels", "not processed, of all"),
        ):
            if count := rows[0][key]:
                share = f"{count / max(pixels, 1):.1%}"
                entries.append(Entry(name, (), (f"{count:,} px", share), hatched=True))
    return entries


def _colours(name: str, colour: Colour, of_objects: bool) -> tuple[Colour, ...]:
    """The colours of a class's swatch: one, or some of its objects."""
    if not of_objects:
        return (colour,)
    if name.lower() in BACKGROUND_NAMES:
        return (BACKGROUND,)
    some = colours_of_objects(np.arange(1, 5)).tolist()
    return tuple((red, green, blue) for red, green, blue in some)


def _numbers(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Area and share of some classes."""
    if not rows:
        return ()
    shares = [row["fraction"] for row in rows if row["fraction"] is not None]
    size = amount(sum(row["area"] for row in rows), rows[0]["area_unit"])
    return (size, f"{sum(shares):.1%}" if shares else "–")
