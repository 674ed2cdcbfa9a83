"""The drawing room of all figures: one paper, one ink, one typeface, one set of margins.

A `Sheet` is an array of pixels that OpenCV draws on. OpenCV brings its own typeface, with letters
of most scripts, so that a figure looks the same on every machine and the name of a file can be
written as its owner spelled it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.colours import Colour

    Pixels = NDArray[np.uint8]

PAPER: Colour = (255, 255, 255)
INK: Colour = (28, 31, 36)
FAINT: Colour = (102, 108, 117)
"""Of second lines, captions and axes."""
RULE: Colour = (222, 225, 229)
"""Of grid lines and frames."""
ACCENT: Colour = (0, 114, 178)
SECOND: Colour = (230, 159, 0)
"""Of the first and the second quantity in a chart."""
OUTLINE: Colour = (255, 220, 0)
"""Of objects and classes over a photo."""
WRONG: Colour = (214, 39, 40)
NO_DATA: Colour = (226, 229, 232)
NO_DATA_LINE: Colour = (196, 201, 207)
"""Hatching of pixels without data."""

MARGIN, GAP = 20, 12
"""Around a sheet, and between its parts, in pixels."""
TITLE, TEXT, SMALL = 18, 14, 13
"""Sizes of letters in pixels."""
BOLD = 600
SWATCH = 13
"""Side of a colour swatch in a legend, in pixels."""
NARROWEST = 520
"""Width of a sheet without its margins at least, so that its words have room."""
_PLAIN = 400
_HATCH = 6
_DARK, _FLAT = 100, 64
"""A photo of 8 bits is stretched if its upper percentile is below the first, or its percentiles are
closer than the second.
"""
_SAME_RANGE = 4
"""Bands share a stretch if the range of one is at most so many times that of another."""
Anchor = Literal["left", "middle", "right"]


def line_height(size: int) -> int:
    """Distance of lines of text with letters of this size."""
    return round(size * 1.45)


TOP = MARGIN + line_height(TITLE) + line_height(TEXT) + 8
"""Where the first part of a sheet begins, below its heading."""


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """A picture to draw on. Positions are (x, y) in pixels from the upper left corner."""

    pixels: Pixels
    """(y, x, 3)."""

    @classmethod
    def blank(cls, width: int, height: int) -> Sheet:
        """An empty sheet of paper."""
        import cv2

        pixels = np.empty((height, width, 3), np.uint8)
        cv2.rectangle(pixels, (0, 0), (width, height), PAPER, cv2.FILLED)
        return cls(pixels)

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels.shape[1])

    def text(
        self,
        at: tuple[float, float],
        text: str,
        *,
        ink: Colour = INK,
        size: int = TEXT,
        weight: int = _PLAIN,
        anchor: Anchor = "left",
    ) -> int:
        """Write a line around the height `y`, cut where the sheet ends; the x where it ends."""
        import cv2

        x, y = round(at[0]), round(at[1])
        text = _printable(text)
        if anchor == "left":
            text = fitting(text, self.width - x, size=size, weight=weight)
        wide = width_of(text, size=size, weight=weight)
        x -= {"left": 0, "middle": wide // 2, "right": wide}[anchor]
        if text:
            # The baseline lies below the middle by half the height of a capital.
            place = (x, y + round(size * 0.36))
            cv2.putText(self.pixels, text, place, ink, _face(), size, weight)
        return x + wide

    def box(
        self,
        corner: tuple[float, float],
        size: tuple[float, float],
        fill: Colour | None = None,
        outline: Colour | None = None,
    ) -> None:
        """Draw a rectangle of this width and height."""
        import cv2

        (x, y), (width, height) = map(round, corner), map(round, size)
        if width <= 0 or height <= 0:
            return
        ends = (x, y), (x + width - 1, y + height - 1)
        if fill is not None:
            cv2.rectangle(self.pixels, *ends, fill, cv2.FILLED)
        if outline is not None:
            cv2.rectangle(self.pixels, *ends, outline)

    def line(self, points: Sequence[tuple[float, float]], ink: Colour, width: int = 1) -> None:
        """Draw a line through these points."""
        import cv2

        # Four further bits of the position keep slopes smooth.
        scaled = np.rint(np.array(points, np.float64) * 16).astype(np.int32)
        cv2.polylines(self.pixels, [scaled], False, ink, width, cv2.LINE_AA, 4)

    def dot(self, at: tuple[float, float], radius: int, ink: Colour) -> None:
        """Draw a disc."""
        import cv2

        cv2.circle(self.pixels, (round(at[0]), round(at[1])), radius, ink, -1, cv2.LINE_AA)

    def paste(self, pixels: Pixels, at: tuple[int, int], *, framed: bool = False) -> None:
        """Put a picture (y, x, 3) with its upper left corner at (x, y); `framed`: with a thin line
        around it.
        """
        x, y = at
        if framed:
            self.box((x - 1, y - 1), (pixels.shape[1] + 2, pixels.shape[0] + 2), outline=RULE)
        self.pixels[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels

    def hatch(self, corner: tuple[int, int], size: tuple[int, int]) -> None:
        """Fill a rectangle as pixels without data."""
        (x, y), (width, height) = corner, size
        self.pixels[y : y + height, x : x + width] = hatched((height, width))

    def heading(self, title: str, text: str) -> None:
        """Write a title and a line below it. A title that is too long loses its middle."""
        room = self.width - 2 * MARGIN
        title = fitting(title, room, size=TITLE, weight=BOLD, middle=True)
        y = MARGIN + TITLE // 2
        self.text((MARGIN, y), title, size=TITLE, weight=BOLD)
        self.text((MARGIN, y + line_height(TITLE) - 2), fitting(text, room), ink=FAINT)

    def png(self) -> bytes:
        """The picture as PNG."""
        return png(self.pixels)


def width_of(text: str, *, size: int = TEXT, weight: int = _PLAIN) -> int:
    """Width of a line in pixels."""
    import cv2

    text = _printable(text)
    if not text:
        return 0
    # Spaces at the end count, so that words can follow.
    x, _, wide, _ = cv2.getTextSize((1 << 20, 1 << 20), text, (0, 0), _face(), size, weight)
    return int(max(x, 0) + wide)


def fitting(
    text: str, width: float, *, size: int = TEXT, weight: int = _PLAIN, middle: bool = False
) -> str:
    """The text, with an ellipsis at its end (or in its middle) if it is wider than `width`."""
    if width_of(text, size=size, weight=weight) <= width:
        return text
    fits, too_many = 0, len(text)
    while too_many - fits > 1:
        kept = (fits + too_many) // 2
        if width_of(_cut(text, kept, middle), size=size, weight=weight) <= width:
            fits = kept
        else:
            too_many = kept
    return _cut(text, fits, middle)


def _cut(text: str, kept: int, middle: bool) -> str:
    """So many characters of a text, and an ellipsis.

    >>> _cut("a_long_name.tif", 7, True), _cut("a_long_name.tif", 6, False)
    ('a_lo…tif', 'a_long…')
    """
    after = kept // 2 if middle else 0
    return f"{text[: kept - after].rstrip()}…{text[len(text) - after :].lstrip() if after else ''}"


def _printable(text: str) -> str:
    """The text without ends of lines, other controls, and bytes that are no letters."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def _face() -> Any:
    """OpenCV's typeface; making it costs nothing, and threads do not share it."""
    import cv2

    return cv2.FontFace("sans")


def png(pixels: Pixels, effort: int = 1) -> bytes:
    """The PNG of a picture (y, x, 3). `effort`: 1 is fast, 9 makes the smallest file."""
    import cv2

    options = [
        cv2.IMWRITE_PNG_COMPRESSION,
        effort,
        cv2.IMWRITE_PNG_FILTER,
        cv2.IMWRITE_PNG_FILTER_UP,
    ]
    _, content = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    return content.tobytes()


# Photos and masks


def photo_of(
    pixels: NDArray[np.generic],
    valid: NDArray[np.bool_] | None = None,
    *,
    percentiles: tuple[float, float] = (1, 99),
    as_is: bool | None = None,
) -> Pixels:
    """Pixels (y, x, band) as red, green and blue of 8 bits: the first three bands, or the first one
    three times.

    Unless `as_is`, values between two percentiles of the valid pixels (y, x) are stretched over 0
    to 255. None: as is if they have 8 bits and are neither dark nor flat.
    """
    three = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    shown = np.nan_to_num(three.astype(np.float32))
    known = shown.reshape(-1, 3) if valid is None else shown[valid]
    low, high = limits_of(known, percentiles) if known.size else (0.0, 255.0)
    if as_is is None:
        as_is = pixels.dtype == np.uint8 and not is_faint(np.min(low), np.max(high))
    if not as_is:
        shown = np.clip((shown - low) * (255 / np.maximum(high - low, 1e-9)), 0, 255)
    return shown.astype(np.uint8)


def limits_of(
    values: NDArray[np.floating], percentiles: tuple[float, float], *, together: bool = False
) -> tuple[Any, Any]:
    """The numbers that are shown black and white, from pixels (n, band).

    Bands with about the same range share them, which keeps the hues of red, green and blue; other
    bands have their own. `together`: they share them in any case.
    """
    if not together:
        low, high = np.percentile(values, percentiles, axis=0)
        ranges = np.asarray(high - low)
        together = ranges.max() <= _SAME_RANGE * ranges.min()
    return tuple(np.percentile(values, percentiles)) if together else (low, high)


def is_faint(low: float, high: float) -> bool:
    """Whether a photo of 8 bits with these percentiles is too dark or too flat to be looked at."""
    return bool(low < high and (high < _DARK or high - low < _FLAT))


def outlines(ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels (y, x) with another id to the right or below."""
    edge = np.zeros(ids.shape, np.bool_)
    edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    edge[:-1] |= ids[:-1] != ids[1:]
    return edge


def hatched(shape: Shape) -> Pixels:
    """The look of pixels without data, (y, x, 3)."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.where(
        ((rows + columns) % _HATCH == 0)[..., None],
        np.array(NO_DATA_LINE, np.uint8),
        np.array(NO_DATA, np.uint8),
    )


def fitted_shape(shape: Shape, side: int, *, least: int = 1) -> Shape:
    """The shape in which a picture is drawn: reduced to `side` pixels, or enlarged by the largest
    whole factor with which it stays within `least`.

    >>> fitted_shape((20, 30), 720, least=400), fitted_shape((2000, 1000), 720)
    ((260, 390), (720, 360))
    """
    longest = max(shape)
    scale = side / longest if longest > side else max(1, least // longest)
    return tuple(max(1, round(n * scale)) for n in shape)


def resized(picture: Pixels, shape: Shape) -> Pixels:
    """A photo (y, x, 3) in another size (y, x): reduced by the mean of the pixels that each new one
    covers, enlarged by repetition.
    """
    import cv2

    reduced = tuple(map(min, picture.shape[:2], shape))
    if reduced != picture.shape[:2]:
        picture = cv2.resize(picture, reduced[::-1], interpolation=cv2.INTER_AREA)
    return sampled(picture, shape)


def sampled(array: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Labels or colours (y, x, ...) in another size (y, x): each new pixel is the middle one of
    those that it covers, so that nothing is mixed.
    """
    if array.shape[:2] == tuple(shape):
        return array
    rows, columns = (
        (2 * np.arange(n) + 1) * size // (2 * n)
        for n, size in zip(shape, array.shape[:2], strict=True)
    )
    return array[np.ix_(rows, columns)]
