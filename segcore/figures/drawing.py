"""The common parts of all figures: fonts, colours, photos, legends, PNG. All drawing uses PIL."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.colours import Colour

PAPER: Colour = (255, 255, 255)
INK: Colour = (20, 20, 20)
FAINT: Colour = (110, 110, 110)
OUTLINE: Colour = (255, 220, 0)
"""Of objects and classes over a photo."""
WRONG: Colour = (220, 30, 30)
SWATCH = 14
"""Side of a colour swatch in a legend, in pixels."""
_DARK = 100
"""In a dark photo of 8 bits, the upper percentile is below this."""


def font(size: int) -> Any:
    """The font of all figures, with a size in pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def canvas(width: int, height: int, paper: Colour = PAPER) -> tuple[Any, Any]:
    """An empty picture, and the pen to draw on it."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), paper)
    return image, ImageDraw.Draw(image)


def png(image: Any, compression: int = 6) -> bytes:
    """The PNG of a picture, given as a PIL image or an array (y, x, 3) of uint8."""
    from PIL import Image

    out = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(out, "PNG", compress_level=compression)
    return out.getvalue()


def paste(image: Any, pixels: NDArray[np.uint8], at: tuple[int, int]) -> None:
    """Put pixels (y, x, 3) into a picture at (x, y)."""
    from PIL import Image

    image.paste(Image.fromarray(pixels), at)


def fitting(text: str, font: Any, width: int) -> str:
    """The text, cut with an ellipsis if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def photo_of(
    pixels: NDArray[np.generic],
    valid: NDArray[np.bool_] | None = None,
    *,
    percentiles: tuple[float, float] = (1, 99),
    as_is: bool | None = None,
) -> NDArray[np.uint8]:
    """Pixels (y, x, band) as red, green and blue of 8 bits: the first three bands, or the first one
    three times.

    Unless `as_is`, values between two percentiles of the valid pixels (y, x) are stretched over 0
    to 255. None: as is if they have 8 bits and are not dark.
    """
    three = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    shown = np.nan_to_num(three.astype(np.float32))
    known = shown if valid is None else shown[valid]
    low, high = np.percentile(known, percentiles) if known.size else (0, 255)
    if as_is is None:
        as_is = pixels.dtype == np.uint8 and high >= _DARK
    if not as_is:
        shown = np.clip((shown - low) * (255 / max(float(high - low), 1e-9)), 0, 255)
    return shown.astype(np.uint8)


def outlines(ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels (y, x) with another id to the right or below."""
    edge = np.zeros(ids.shape, np.bool_)
    edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    edge[:-1] |= ids[:-1] != ids[1:]
    return edge


def lines_of(
    widths: Iterable[int], width: int, gap: int, height: int
) -> tuple[list[tuple[int, int]], int]:
    """Positions (x, y) of the entries of a legend, in lines of at most `width` pixels, and the
    position below the last line.
    """
    places, x, y = [], gap, gap
    for each in widths:
        if x > gap and x + each > width:
            x, y = gap, y + height
        places.append((x, y))
        x += each
    return places, y + height


def draw_legend(
    pen: Any,
    places: Sequence[tuple[int, int]],
    entries: Sequence[tuple[str, Colour]],
    *,
    font: Any,
    ink: Colour,
    text_at: int,
) -> None:
    """Draw the colour and the name of each entry; the name begins `text_at` pixels to the right."""
    for (x, y), (name, colour) in zip(places, entries, strict=True):
        pen.rectangle((x, y, x + SWATCH - 1, y + SWATCH - 1), fill=colour, outline=ink)
        pen.text((x + text_at, y + SWATCH // 2), name, ink, font, anchor="lm")
