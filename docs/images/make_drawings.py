"""Draws the explanations, `drawing_*.svg` beside this file: `python docs/images/make_drawings.py`.

Every drawing stands on paper of its own, so that it can be read on a dark page too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
INK, GREY, LINE, PAPER = "#263242", "#5d6a78", "#aab4bf", "#fbfaf7"
BLUE, LIGHT_BLUE, ORANGE, LIGHT_ORANGE, GREEN, LIGHT_GREEN = (
    "#17577e", "#cfe3f0", "#b4531a", "#f7dcc5", "#2c6e49", "#d3e8d6",
)  # fmt: skip


class Drawing:
    """An SVG that grows; lengths are pixels."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" '
            'font-family="Helvetica, Arial, sans-serif" font-size="14">',
            f"<title>{title}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="6" fill="{PAPER}"/>',
        ]

    def box(
        self, x: float, y: float, width: float, height: float, fill: str = "none",
        line: str = INK, dash: str = "", thick: float = 1.2, opacity: float = 1,
    ) -> None:  # fmt: skip
        """A rectangle."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" fill="{fill}" '
            f'stroke="{line}" stroke-width="{thick:g}" stroke-dasharray="{dash}" '
            f'fill-opacity="{opacity:g}"/>'
        )

    def text(
        self, x: float, y: float, words: str, colour: str = INK, anchor: str = "middle",
        size: int = 14, bold: bool = False,
    ) -> None:  # fmt: skip
        """One or more lines of text; `y` is the base of the first."""
        for number, line in enumerate(words.split("\n")):
            self.parts.append(
                f'<text x="{x:g}" y="{y + number * size * 1.3:g}" fill="{colour}" '
                f'text-anchor="{anchor}" font-size="{size}" '
                f'font-weight="{"bold" if bold else "normal"}">{line}</text>'
            )

    def arrow(self, *points: tuple[float, float], line: str = INK, dash: str = "") -> None:
        """A line through points, with a tip at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{line}" stroke-width="1.4" '
            f'stroke-dasharray="{dash}" marker-end="url(#tip)"/>'
        )

    def path(self, path: str, fill: str = "none", line: str = INK, thick: float = 1.4) -> None:
        """A shape in SVG's own words."""
        self.parts.append(
            f'<path d="{path}" fill="{fill}" stroke="{line}" stroke-width="{thick:g}"/>'
        )

    def label(
        self, x: float, y: float, width: float, words: str, fill: str = LIGHT_BLUE,
        line: str = BLUE, height: float = 0,
    ) -> None:  # fmt: skip
        """A box around centred words."""
        count = words.count("\n") + 1
        height = height or 18 * count + 18
        self.box(x, y, width, height, fill, line)
        self.text(x + width / 2, y + height / 2 + 5 - 9.1 * (count - 1), words)

    def save(self, name: str) -> None:
        """Write the file."""
        text = "\n".join([*self.parts, "</svg>\n"])
        (FOLDER / f"drawing_{name}.svg").write_text(text, encoding="utf-8")


def blob(x: float, y: float, radius: float, wave: float = 0.18) -> str:
    """The outline of a lump."""
    points = []
    for step in range(60):
        turn = step * math.tau / 60
        length = radius * (1 + wave * math.sin(3 * turn) + wave / 2 * math.cos(5 * turn))
        points.append(f"{x + length * math.cos(turn):.1f} {y + length * math.sin(turn):.1f}")
    return "M" + "L".join(points) + "z"


def tiling() -> None:
    """A grid of tiles; one with its core and what it reads."""
    d = Drawing(760, 330, "Tiles of an image: cores partition it, and each tile may read a halo")
    side, left, top = 70, 40, 50
    for row in range(3):
        for column in range(4):
            inside = (row, column) == (1, 1)
            d.box(left + column * side, top + row * side, side, side,
                  LIGHT_BLUE if inside else "#f1eee7", LINE)  # fmt: skip
    d.box(left + side - 22, top + side - 22, side + 44, side + 44, "none", ORANGE, "5 4", 1.8)
    d.box(left, top, 4 * side, 3 * side, "none", INK, thick=1.8)
    d.text(left + 2 * side, top + 3 * side + 26, "the image: every pixel is in one core", GREY)
    big, x, y = 180, 440, 80
    d.box(x - 45, y - 45, big + 90, big + 90, LIGHT_ORANGE, ORANGE, "5 4", 1.8)
    d.box(x, y, big, big, LIGHT_BLUE, BLUE, thick=1.6)
    d.text(x + big / 2, y + big / 2 - 2, "core", BLUE, size=18, bold=True)
    d.text(x + big / 2, y + big / 2 + 20, "this tile labels it,\nand counts it", BLUE)
    d.text(x + big / 2, y - 18, "halo: read, looked at, not counted", ORANGE)
    d.arrow((x - 45, y + big + 20), (x, y + big + 20))
    d.arrow((x, y + big + 20), (x - 45, y + big + 20))
    d.text(x + 8, y + big + 25, "at least as wide as the method looks", GREY, "start", 13)
    d.arrow((left + 2 * side + 22, top + 1.5 * side), (x - 55, top + 1.5 * side), line=GREY)
    d.save("tiling")


def fit() -> None:
    """Observe, merge, finish; then every tile is labelled by the same model."""
    d = Drawing(760, 300, "A fit over tiles: observe each, merge what was seen, finish the model")
    for number, (x, words) in enumerate(((30, "tile 1"), (30, "tile 2"), (30, "tile 3"))):
        y = 40 + 80 * number
        d.label(x, y, 80, words, "#f1eee7", LINE, 56)
        d.arrow((112, y + 28), (168, y + 28))
        d.label(170, y, 104, "counts of\nvalues", height=56)
        d.arrow((276, y + 28), (330, 148 if number == 1 else 136 + 12 * number))
        d.label(640, y, 92, "labels of\n" + words, LIGHT_GREEN, GREEN, 56)
        d.arrow((570, 148 if number == 1 else 136 + 12 * number), (638, y + 28))
    d.label(332, 108, 92, "sum of all\ncounts", height=80)
    d.arrow((426, 148), (478, 148))
    d.label(480, 108, 88, "the model", LIGHT_ORANGE, ORANGE, 80)
    for x, words in ((140, "observe"), (303, "merge"), (452, "finish"), (604, "segment")):
        d.text(x, 24, words, GREY, size=13, bold=True)
    d.text(380, 288, "Whole numbers add up to the same sum in any order and any partition, "
           "so the model is that of all pixels at once.", GREY, size=13)  # fmt: skip
    d.save("fit")


def lumps(d: Drawing, number: int, x: float, y: float, side: float, fills: Sequence[str]) -> None:
    """A large lump over four tiles, a fill for the part in each, and a small one in the last."""
    half = side / 2
    for place, fill in enumerate(fills):
        left, top = x + (place % 2) * half, y + (place // 2) * half
        d.parts.append(
            f'<clipPath id="q{number}{place}"><rect x="{left:g}" y="{top:g}" '
            f'width="{half:g}" height="{half:g}"/></clipPath>'
            f'<path clip-path="url(#q{number}{place})" d="{blob(x + 100, y + 100, 58)}" '
            f'fill="{fill}" stroke="{INK}" stroke-width="1.4"/>'
        )
    d.path(blob(x + 172, y + 172, 22, 0.1), LIGHT_ORANGE if number == 2 else fills[3])
    dash = "" if number < 2 else "3 5"
    for x0, y0, x1, y1 in ((x + half, y, x + half, y + side), (x, y + half, x + side, y + half)):
        d.parts.append(
            f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" stroke="{GREY}" '
            f'stroke-width="1" stroke-dasharray="{dash}"/>'
        )


def fragments(d: Drawing, x: float, y: float) -> None:
    """What each tile knows."""
    for right, down, name in ((-25, -18, "a"), (24, -18, "b"), (-25, 34, "c"), (24, 34, "d")):
        d.text(x + 102 + right, y + 98 + down, name, bold=True)
    d.text(x + 172, y + 177, "e", bold=True)
    d.text(x + 105, y + 238, "a tile knows its parts only", GREY)


def joined(d: Drawing, x: float, y: float) -> None:
    """Where fragments meet."""
    for right, down in ((5, -30), (5, 30), (-30, 5), (30, 5)):
        d.parts.append(
            f'<circle cx="{x + 100 + right}" cy="{y + 100 + down}" r="11" fill="none" '
            f'stroke="{ORANGE}" stroke-width="2.2"/>'
        )
    d.text(x + 105, y + 238, "a = b = c = d,  e alone", ORANGE)


def numbered(d: Drawing, x: float, y: float) -> None:
    """The final ids."""
    d.text(x + 90, y + 90, "1", BLUE, size=24, bold=True)
    d.text(x + 172, y + 180, "2", ORANGE, size=20, bold=True)
    d.text(x + 105, y + 238, "numbered by first pixel", GREY)


def objects() -> None:
    """An object over four tiles: fragments, borders, final ids."""
    d = Drawing(760, 300, "Objects across tiles: fragments, joined borders, final ids")
    parts = (LIGHT_BLUE, LIGHT_ORANGE, LIGHT_GREEN, "#e4d6ee")
    steps = (
        ("1  fragments of each tile", parts, fragments),
        ("2  borders are joined", ("#e8e4da",) * 4, joined),
        ("3  final ids", (LIGHT_BLUE,) * 4, numbered),
    )
    side = 210
    for number, (words, fills, draw) in enumerate(steps):
        x, y = 30 + 245 * number, 50
        d.box(x, y, side, side, "#f6f3ec", LINE)
        lumps(d, number, x, y, side, fills)
        draw(d, x, y)
        d.text(x + 105, 34, words, bold=True)
        if number < 2:
            d.arrow((x + side + 6, y + side / 2), (x + side + 30, y + side / 2))
    d.save("objects")


def areas() -> None:
    """The same square of pixels has another area elsewhere."""
    d = Drawing(760, 290, "The area of a pixel in three kinds of rasters")
    for x, words in ((130, "UTM: nearly alike"), (380, "degrees: rows shrink"),
                     (630, "Web Mercator: rows grow")):  # fmt: skip
        d.text(x, 32, words, bold=True)
    for row in range(4):
        for column in range(4):
            d.box(50 + 40 * column, 60 + 40 * row, 40, 40, LIGHT_BLUE, BLUE)
            width = (40, 36, 30, 22)[3 - row]
            d.box(380 - 2 * width + width * column, 60 + 40 * row, width, 40, LIGHT_ORANGE, ORANGE)
            true = (40, 34, 28, 22)[3 - row]
            d.box(550 + 40 * column, 60 + 40 * row, 40, 40, "#f1eee7", LINE)
            d.box(550 + 40 * column + (40 - true) / 2, 60 + 40 * row + (40 - true) / 2, true, true,
                  LIGHT_GREEN, GREEN)  # fmt: skip
    d.text(130, 250, "scale within 0.1 % of 1,\nand corrected", GREY, size=13)
    d.text(380, 250, "as wide as the parallel\nthat they lie on", GREY, size=13)
    d.text(
        630, 250, "green: the ground inside a pixel;\na quarter of it at 60 degrees", GREY, size=13
    )
    d.save("areas")


def commits() -> None:
    """Two runs and one output: each result takes a numbered place."""
    d = Drawing(
        760, 300, "Two runs that share an output take numbered commits, one after the other"
    )
    for y, name, fill, line in (
        (48, "run A", LIGHT_BLUE, BLUE),
        (196, "run B", LIGHT_ORANGE, ORANGE),
    ):
        d.label(24, y, 70, name, fill, line, 50)
        d.arrow((96, y + 25), (128, y + 25))
        d.label(130, y, 130, "draft: all new files\nstaged beside", fill, line, 50)
    d.label(330, 48, 120, "claims 8", LIGHT_BLUE, BLUE, 50)
    d.arrow((262, 73), (328, 73))
    d.label(330, 196, 120, "8 is taken:\ndrafts again", LIGHT_ORANGE, ORANGE, 50)
    d.arrow((262, 221), (328, 221))
    d.arrow((390, 248), (390, 276), (195, 276), (195, 248))
    d.label(330, 122, 120, "record 8\nnames every move", "#f1eee7", INK, 50)
    d.arrow((390, 98), (390, 120))
    d.arrow((390, 194), (390, 174), line=GREY, dash="4 4")
    d.arrow((452, 147), (506, 147))
    d.label(508, 104, 116, "moves: masks,\nthen tables,\n`images` last".replace("`", ""),
            LIGHT_GREEN, GREEN, 86)  # fmt: skip
    d.arrow((626, 147), (656, 147))
    d.label(658, 104, 84, "the output,\nwhole before\nand after", LIGHT_GREEN, GREEN, 86)
    told = (
        "A process that dies before the claim\nhas changed nothing. After it, the next\n"
        "run carries the record out."
    )
    d.text(600, 226, told, GREY, size=13)
    d.save("commits")


BAR = 22
"""Width of a bar: a map of a network."""
LEVELS = (96, 62, 40, 26, 16)
"""Heights of bars: maps of 1, 1/2, 1/4 … of the pixels."""
PALE = "#f1eee7"


def bar(d: Drawing, x: float, middle: float, height: float, fill: str, line: str) -> None:
    """A map of a network."""
    d.box(x, middle - height / 2, BAR, height, fill, line)


def going_down(d: Drawing, middle: float, heights: Sequence[float]) -> float:
    """Maps that become coarser, from left to right; where the last ends."""
    step = 46
    for number, height in enumerate(heights):
        x = 20 + step * number
        bar(d, x, middle, height, PALE, INK)
        if number:
            d.arrow((x - step + BAR + 2, middle), (x - 2, middle))
    return 20 + step * (len(heights) - 1) + BAR


def fcn(d: Drawing, middle: float) -> None:
    """Scores of coarse maps, enlarged; those of finer maps are added."""
    end = going_down(d, middle, (*LEVELS, 11))
    for start, x, height in ((end, 330, 16), (352, 410, 26), (432, 560, 96)):
        bar(d, x, middle, height, LIGHT_ORANGE, ORANGE)
        d.arrow((start, middle), (x - 2, middle))
    for x, height, target in ((215, 16, 341), (169, 26, 421)):
        low = middle + 40
        end_of_arrow = (target, middle + height / 2 + 2)
        d.arrow((x, middle + height / 2), (x, low), (target, low), end_of_arrow, line=ORANGE)
    for x, words in ((302, "x 2"), (381, "x 2"), (496, "x 8")):
        d.text(x, middle - 8, words, ORANGE, size=12)
    d.text(620, middle - 2, "scores added", ORANGE, "start", 13)


def unet(d: Drawing, middle: float) -> None:
    """Maps doubled step by step, beside those of the same size."""
    end = going_down(d, middle, LEVELS)
    for number, height in enumerate(LEVELS[3::-1]):
        x = 290 + 62 * number
        bar(d, x, middle, height, PALE, INK)
        bar(d, x + BAR, middle, height, LIGHT_BLUE, BLUE)
        d.arrow((end if number == 0 else x - 18, middle), (x - 2, middle))
        d.text(x - 10, middle - 8, "x 2", BLUE, size=12)
    for number, height in enumerate(LEVELS[:3]):
        x, target, top = 31 + 46 * number, 301 + 62 * (3 - number), middle - height / 2
        lift = middle - 50 - 3 * (3 - number)
        d.arrow((x, top), (x, lift), (target, lift), (target, top - 2), line=BLUE)
    d.text(620, middle - 2, "maps put side by side,\nthen convolved", BLUE, "start", 13)


def deeplab(d: Drawing, middle: float) -> None:
    """A map seen at several distances, and two enlargements."""
    going_down(d, middle, LEVELS[:4])
    for number, words in enumerate(("1 x 1", "rate 6", "rate 12", "rate 18")):
        y = middle - 43 + 23 * number
        d.box(224, y, 62, 18, LIGHT_GREEN, GREEN)
        d.text(255, y + 13, words, GREEN, size=12)
        d.arrow((182, middle), (222, y + 9), line=GREY)
        d.arrow((287, y + 9), (322, middle), line=GREY)
    bar(d, 326, middle, 26, LIGHT_GREEN, GREEN)
    d.arrow((350, middle), (398, middle))
    bar(d, 400, middle, 40, PALE, INK)
    bar(d, 422, middle, 40, LIGHT_BLUE, BLUE)
    d.arrow((446, middle), (538, middle))
    bar(d, 540, middle, 96, LIGHT_ORANGE, ORANGE)
    d.text(374, middle - 8, "x 4", BLUE, size=12)
    d.text(492, middle - 8, "x 4", ORANGE, size=12)
    low = middle + 56
    d.arrow((123, middle + 20), (123, low), (411, low), (411, middle + 22), line=BLUE)
    d.text(620, middle - 2, "several distances\nat once", GREEN, "start", 13)


def upsampling() -> None:
    """How FCN, U-Net and DeepLab come back from coarse maps to pixels."""
    d = Drawing(760, 470, "From coarse maps back to pixels: FCN, U-Net and DeepLab v3+")
    rows = (
        (30, "FCN-8s", "scores are enlarged, and the scores of finer maps are added", fcn),
        (180, "U-Net", "maps are doubled step by step, beside those of the same size", unet),
        (330, "DeepLab v3+", "maps stay at 1/16 and look wide; two enlargements by 4", deeplab),
    )
    for top, name, words, draw in rows:
        d.text(20, top, name, anchor="start", bold=True, size=16)
        d.text(140, top, words, GREY, "start", 13)
        draw(d, top + 68)
    d.save("upsampling")


def mask_rcnn() -> None:
    """Boxes first, then a mask in each."""
    d = Drawing(760, 220, "Mask R-CNN: boxes are proposed, then each gets a class and a mask")
    d.box(20, 50, 110, 110, "#f1eee7", INK)
    d.path(blob(58, 90, 20, 0.1), LIGHT_ORANGE)
    d.path(blob(96, 124, 17, 0.1), LIGHT_GREEN)
    for number, side in enumerate((90, 60, 38)):
        d.box(178 + 24 * number, 105 - side / 2, 18, side, LIGHT_BLUE, BLUE)
    d.arrow((132, 105), (174, 105))
    d.text(210, 180, "pyramid of maps", GREY, size=13)
    d.arrow((248, 105), (288, 105))
    d.box(290, 50, 110, 110, "#f1eee7", INK)
    for box in ((308, 66, 44, 46), (316, 60, 40, 50), (346, 104, 40, 40), (298, 120, 30, 30)):
        d.box(*box, "none", ORANGE, "4 3")
    d.text(345, 180, "proposed boxes", GREY, size=13)
    d.arrow((402, 105), (446, 105))
    d.box(448, 74, 60, 60, "#f1eee7", BLUE)
    for step in (1, 2, 3):
        d.parts.append(
            f'<path d="M{448 + 15 * step} 74v60M448 {74 + 15 * step}h60" stroke="{LINE}" '
            'fill="none"/>'
        )
    d.text(478, 180, "each box as a grid\nof one size", GREY, size=13)
    for y, words, fill, line in ((44, "class, score", LIGHT_ORANGE, ORANGE),
                                 (90, "finer box", LIGHT_BLUE, BLUE),
                                 (136, "mask", LIGHT_GREEN, GREEN)):  # fmt: skip
        d.arrow((510, 104), (558, y + 17))
        d.label(560, y, 120, words, fill, line, 34)
    d.save("mask_rcnn")


if __name__ == "__main__":
    for draw in (tiling, fit, objects, areas, commits, upsampling, mask_rcnn):
        draw()
