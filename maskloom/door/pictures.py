"""What notebooks show: the source and its mask with a slider between them, and small tables.

The HTML brings its own style and no script but the slider's, loads nothing, and needs no widget
library. A notebook that does not trust its HTML still shows source and mask side by side.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.raster.classes import BACKGROUND_NAMES
from maskloom.segcore.raster.colours import colours_of_objects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.pipeline.one_image import SegmentedImage
    from maskloom.segcore.raster.classes import ClassTable

SIDE = 640
"""Longest side of a picture in pixels."""
_ROWS = 12
_STYLE = """
.maskloom{font:13px/1.5 system-ui,sans-serif;max-width:960px;display:flex;flex-wrap:wrap;gap:16px;
align-items:flex-start}
.maskloom>*{min-width:0}
.maskloom .pair{position:relative;display:grid;--p:50%;flex:0 1 auto;max-width:640px;
border-radius:4px;overflow:hidden}
.maskloom .pair img{grid-area:1/1;width:100%;display:block;margin:0;max-width:none;height:auto}
.maskloom .pair img{image-rendering:auto}
.maskloom .pair img.crisp{image-rendering:pixelated}
.maskloom .pair img+img{clip-path:inset(0 0 0 var(--p))}
.maskloom .pair input{appearance:none;-webkit-appearance:none;background:none;position:absolute;
inset:0;width:100%;height:100%;margin:0;z-index:1;cursor:ew-resize;outline-offset:-3px}
.maskloom .pair input::-webkit-slider-runnable-track{height:100%}
.maskloom .pair input::-webkit-slider-thumb{-webkit-appearance:none;width:3px;height:100%;
background:#fff;box-shadow:0 0 0 1px rgba(0,0,0,.45)}
.maskloom .pair input::-moz-range-thumb{width:3px;height:100%;border:0;border-radius:0;
background:#fff;box-shadow:0 0 0 1px rgba(0,0,0,.45)}
.maskloom figcaption,.maskloom p{margin:6px 0 0;opacity:.75}
.maskloom figure{margin:0;flex:0 1 auto}
.maskloom table{border-collapse:collapse;margin:0;font-variant-numeric:tabular-nums}
.maskloom th,.maskloom td{padding:3px 10px 3px 0;text-align:right;background:none;
border:0;border-bottom:1px solid rgba(128,128,128,.3)}
.maskloom th{font-weight:600}
.maskloom td:first-child,.maskloom th:first-child{text-align:left}
.maskloom i{display:inline-block;width:11px;height:11px;margin-right:7px;border-radius:2px;
vertical-align:-1px;box-shadow:inset 0 0 0 1px rgba(128,128,128,.55)}
""".replace("\n", "")
_SLIDE = "this.parentNode.style.setProperty('--p',this.value+'%')"


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A source and its mask, of the same size."""

    source: NDArray[np.uint8]
    """(y, x, 3)."""
    mask: NDArray[np.uint8]
    """(y, x, 4); clear where there is nothing to show."""

    @property
    def html(self) -> str:
        """The two pictures with a slider between them."""
        height, width = self.source.shape[:2]
        # Few pixels are shown as squares, many as a picture.
        crisp = ' class="crisp"' if max(height, width) < SIDE // 2 else ""
        wide = max(width, min(SIDE, 320 * width // max(1, height), 480))
        over = _over(self.source, self.mask)
        return (
            f'<div class="pair" style="width:{wide}px;max-width:100%">'
            f'<img{crisp} alt="source" src="{_data_uri(self.source)}">'
            f'<img{crisp} alt="mask" src="{_data_uri(over)}">'
            '<input type="range" min="0" max="100" value="50" '
            'aria-label="Left of here the source, right of here the mask" '
            f'oninput="{_SLIDE}"></div>'
        )


def block(*parts: str) -> str:
    """One output of a notebook."""
    return f'<style>{_STYLE}</style><div class="maskloom">{"".join(parts)}</div>'


def figure(pair: Pair, caption: str) -> str:
    """A pair with a line below it."""
    return f"<figure>{pair.html}<figcaption>{html.escape(caption)}</figcaption></figure>"


def paragraph(text: str) -> str:
    """A line of text."""
    return f"<p>{html.escape(text)}</p>"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    colours: Sequence[tuple[int, int, int] | None] = (),
) -> str:
    """A small table; a colour, where there is one, stands before the first cell of its row."""
    cells = [list(map(html.escape, row)) for row in rows]
    shown = cells[:_ROWS]
    for row, colour in zip(shown, colours, strict=False):
        if colour is not None:
            row[0] = f'<i style="background:rgb{tuple(map(int, colour))}"></i>{row[0]}'
    more = len(cells) - len(shown)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in shown)
    rest = f"<p>and {more:,} more</p>" if more > 0 else ""
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f"<div><table><tr>{names}</tr>{body}</table>{rest}</div>"


def coloured(
    labels: NDArray[np.integer], classes: ClassTable, *, objects: bool
) -> NDArray[np.uint8]:
    """Labels as (y, x, 4). Background, and what has no class, is clear."""
    if objects:
        hues = np.insert(colours_of_objects(labels), 3, 255, axis=-1)
        return np.where((labels > 0)[..., None], hues, np.uint8(0)).astype(np.uint8)
    alpha = [0 if name.lower() in BACKGROUND_NAMES else 255 for name in classes.names]
    table = np.zeros((len(classes.names) + 1, 4), np.uint8)
    for i, (colour, opaque) in enumerate(zip(classes.colours, alpha, strict=True)):
        table[i] = (*colour, opaque)
    found: NDArray[np.uint8] = table[np.minimum(labels.astype(np.int64), len(classes.names))]
    return found


def shown(pixels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pixels (y, x, band) as red, green and blue: 8-bit colours as they are, other numbers between
    the 2nd and the 98th percentile. Three bands are shown as colours, others by the first.
    """
    bands = pixels if pixels.shape[-1] == 3 else pixels[..., :1]
    values = bands.astype(np.float32)
    known = values[valid & np.isfinite(values).all(axis=-1)]
    as_is = pixels.dtype == np.uint8 and (not known.size or np.percentile(known, 98) > 255 / 3)
    if known.size and not as_is:
        low, high = np.percentile(known, [2, 98])
        values = (values - low) * (255 / (high - low) if high > low else 1)
    picture = np.clip(np.nan_to_num(values), 0, 255).astype(np.uint8)
    picture = np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture.copy()
    picture[~valid] = 128
    return picture


def area_rows(areas: Mapping[str, Sequence[Any]]) -> list[tuple[str, str, str]]:
    """Class, area with its unit and share, of the rows of the table `areas`."""
    from maskloom.segcore.ground.amounts import amount

    rows = zip(
        areas["class_name"], areas["area"], areas["area_unit"], areas["fraction"], strict=True
    )
    return [
        (name, amount(area, unit), "–" if share is None else f"{share:.1%}")
        for name, area, unit, share in rows
    ]


def _over(source: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask over a pale grey of the source, where the mask is clear."""
    grey = source.mean(axis=-1, keepdims=True)
    paper = (0.35 * grey + 0.65 * 245).astype(np.uint8).repeat(3, axis=-1)
    return np.where(mask[..., 3:] > 0, mask[..., :3], paper).astype(np.uint8)


def _data_uri(picture: NDArray[np.uint8]) -> str:
    from PIL import Image

    out = io.BytesIO()
    colours = len(np.unique(picture.reshape(-1, picture.shape[-1])[::7], axis=0))
    few = colours <= 256
    Image.fromarray(picture).save(
        out, "WEBP", **({"lossless": True} if few else {"quality": 82, "method": 4})
    )
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def pair_of_previews(found: SegmentedImage) -> Pair:
    """The picture of a segmented image, from the parts of its preview; of a volume, its middle
    plane.
    """
    from maskloom.segcore.figures.preview import preview_stride

    stride = preview_stride(found.spec.shape)
    shape = tuple(-(-length // stride) for length in found.spec.shape[-2:])
    first = found.previews[0]
    pixels = np.zeros((*shape, first.pixels.shape[2]), first.pixels.dtype)
    valid = np.zeros(shape, np.bool_)
    labels = np.zeros(shape, first.labels.dtype)
    for part in found.previews:
        place = tuple(slice(a, a + n) for a, n in zip(part.start, part.labels.shape, strict=True))
        pixels[place], valid[place], labels[place] = part.pixels, part.valid, part.labels
    every = -(-max(shape) // SIDE)
    reduced = np.s_[::every, ::every]
    pixels, valid, labels = pixels[reduced], valid[reduced], labels[reduced]
    mask = coloured(labels, found.class_table, objects=labels.dtype == np.uint32)
    mask[~valid] = 0
    return Pair(shown(pixels, valid), mask)
