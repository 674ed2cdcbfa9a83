"""Colours: how far apart people see them, conventional ones of class names, and palettes.

Distances are those of CAM02-UCS (Luo, Cui and Li 2006) for sRGB on an average screen, where 1 is
about the smallest difference that is seen side by side. Colours are told apart on a picture if
they are at least `APART` from each other, for people with full colour vision and for those without
one of the three kinds of cones (Machado, Oliveira and Fernandes 2009).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Colour = tuple[int, int, int]
"""Red, green and blue, from 0 to 255."""

APART = 10.0
"""Smallest distance of colours that are told apart on a picture."""
BACKGROUND: Colour = (40, 40, 40)

PALETTE: tuple[Colour, ...] = (
    # Okabe and Ito (2008).
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (86, 180, 233),
    # Each is as far as possible from those before it, in hue or lightness. The smallest distance
    # in the four views is 11 among the first 12 colours, 8 among 20 and 5 among all.
    (96, 16, 112),
    (144, 32, 16),
    (176, 208, 160),
    (144, 80, 112),
    (48, 96, 64),
    (16, 16, 208),
    (208, 16, 192),
    (240, 176, 208),
    (16, 208, 80),
    (144, 224, 240),
    (128, 128, 240),
    (32, 64, 80),
    (128, 144, 64),
    (112, 16, 64),
    (192, 32, 64),
    (80, 80, 128),
    (192, 160, 144),
    (112, 48, 240),
    (80, 32, 16),
    (240, 80, 208),
    (112, 112, 144),
    (144, 240, 128),
    (144, 176, 176),
    (64, 80, 16),
    (160, 112, 96),
)
"""For classes without a colour of their own."""

_VIEWS = np.array(
    [
        np.eye(3),
        # Without long, middle and short cones.
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    ]
)
"""(view, to, from): what people see, in linear red, green and blue."""
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([95.047, 100.0, 108.883])
_CAT02 = np.array([[0.7328, 0.4296, -0.1624], [-0.7036, 1.6975, 0.0061], [0.0030, 0.0136, 0.9834]])
_CONES = np.array(
    [[0.38971, 0.68898, -0.07868], [-0.22981, 1.18340, 0.04641], [0.0, 0.0, 1.0]]
) @ np.linalg.inv(_CAT02)

_ROUNDS, _ROUNDS_OF_MANY = 300, 30
_LIGHTNESS = (12, 95)
"""Least and greatest lightness (CIE L*) of a colour that is pushed."""
_OBJECTS = 252


def parse_colour(text: str) -> Colour:
    """The colour of `#rrggbb`, `#rgb` or a name of CSS. Raises `ValueError`."""
    from PIL import ImageColor

    known = str(text).strip().lower()
    found = ImageColor.colormap.get(known.replace(" ", ""), known)
    if isinstance(found, str) and re.fullmatch("#([0-9a-f]{3}|[0-9a-f]{6})", found):
        red, green, blue = ImageColor.getrgb(found)[:3]
        return red, green, blue
    raise ValueError(
        f"expected a colour like '#1d6fa5', or a name of CSS such as 'steelblue'; got {text!r}"
    )


def hexadecimal(colour: Colour) -> str:
    """The colour as `#rrggbb`.

    >>> hexadecimal((33, 102, 172))
    '#2166ac'
    """
    return "#{:02x}{:02x}{:02x}".format(*colour)


def seen(colours: Sequence[Colour] | NDArray[np.integer]) -> Floats:
    """Lightness and chroma in CAM02-UCS of n colours in each of the four views, (view, n, 3)."""
    linear = _linear(np.asarray(colours, np.float64).reshape(-1, 3) / 255)
    return _appearance(np.clip(np.einsum("vij,nj->vni", _VIEWS, linear), 0, 1))


def distances(
    ones: Sequence[Colour] | NDArray[np.integer], others: Sequence[Colour] | NDArray[np.integer]
) -> Floats:
    """The smallest distance of each of `ones` to each of `others` in the four views, (n, m)."""
    apart = seen(ones)[:, :, None] - seen(others)[:, None]
    nearest: Floats = np.linalg.norm(apart, axis=-1).min(axis=0)
    return nearest


def smallest_distance(colours: Sequence[Colour]) -> float:
    """The smallest distance of any two of these colours in the four views; infinite for one."""
    if len(colours) < 2:
        return float("inf")
    return float(distances(colours, colours)[np.triu_indices(len(colours), 1)].min())


def conventional(name: str) -> Colour | None:
    """The colour that people expect of a class with this name. None: no convention."""
    for known in _spellings(name):
        if known in _CONVENTIONS:
            return _CONVENTIONS[known]
    return None


def unlike(taken: Collection[Colour]) -> Colour:
    """The first colour of the palette that is told apart from all of `taken`, or else the one that
    is farthest from them.
    """
    free = [colour for colour in PALETTE if colour not in taken]
    if not taken:
        return free[0]
    if not free:
        return _further(taken)
    nearest = distances(free, list(taken)).min(axis=1)
    good = np.flatnonzero(nearest >= APART)
    return free[int(good[0]) if good.size else int(nearest.argmax())]


def pushed_apart(colours: Sequence[Colour]) -> tuple[Colour, ...]:
    """The colours, made lighter and darker until any two are told apart, as far as there is room
    between black and white. Hues stay, and so does the order of lightness of those that are pushed.
    """
    from skimage.color import lab2rgb, rgb2lab

    lab = rgb2lab(np.array(colours, np.float64).reshape(1, -1, 3) / 255)[0]
    # Equal ones get a direction.
    order = np.argsort(np.argsort(lab[:, 0], kind="stable"), kind="stable")
    way = np.sign(order[:, None] - order[None])
    found = np.array(colours, np.int64).reshape(-1, 3)
    for _ in range(_ROUNDS if len(found) <= len(PALETTE) else _ROUNDS_OF_MANY):
        lacking = np.clip(APART + 0.5 - distances(found, found), 0, None)
        np.fill_diagonal(lacking, 0)
        if not lacking.any():
            break
        push = (way * lacking).sum(axis=1) * 0.35
        lab[:, 0] = np.clip(lab[:, 0] + np.clip(push, -4, 4), *_LIGHTNESS)
        rgb = np.clip(lab2rgb(lab[None])[0], 0, 1)
        found = np.rint(rgb * 255).astype(np.int64)
    return tuple((int(r), int(g), int(b)) for r, g, b in found)


def mean_colours(
    means: Floats, weights: Sequence[float], deviations: Sequence[float], *, rgb: bool, bits8: bool
) -> tuple[Colour, ...]:
    """The colours of clusters as the displayed bands show them, from their means (cluster, band).

    `weights` are the shares of the clusters, `deviations` those of the bands over all pixels.
    Pictures of 8 bits are shown as they are; of other images two standard deviations on each side
    of the mean are shown, which is the same in all images of a collection.
    """
    shown = np.asarray(means, np.float64)[:, : 3 if means.shape[1] >= 3 else 1]
    if not (rgb and bits8):
        spread = 2 * np.asarray(deviations, np.float64)[: shown.shape[1]]
        share = np.asarray(weights, np.float64)
        middle = (shown * share[:, None]).sum(axis=0) / share.sum()
        shown = np.nan_to_num((shown - middle) / np.where(spread > 0, spread, 1))
        shown = (shown + 1) * 127.5
    if shown.shape[1] == 1:
        shown = np.repeat(shown, 3, axis=1)
    whole = np.rint(np.clip(shown, 0, 255)).astype(int).tolist()
    return tuple((red, green, blue) for red, green, blue in whole)


def colours_of_objects(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The colour of each object by its id, (..., 3); 0 is background. Objects with neighbouring
    ids, which mostly are neighbours, look different.
    """
    return object_palette()[rows_of_objects(ids)]


def rows_of_objects(ids: NDArray[np.integer]) -> NDArray[np.int64]:
    """The row of each object's colour in `object_palette`; 0 is background."""
    # Unsigned ids must not wrap below 0.
    return np.where(ids > 0, (np.maximum(ids, 1) - 1) % _OBJECTS + 1, 0).astype(np.int64)


@lru_cache(1)
def object_palette() -> NDArray[np.uint8]:
    """The colours of objects (row, 3), those of background first; at most 256."""
    from skimage.color import lab2rgb

    number = np.arange(_OBJECTS)
    # The golden angle keeps neighbours apart; three lightnesses do so besides.
    angle, light = np.radians(number * 137.50776405 + 250), np.array([62, 78, 48])[number % 3]
    lab = np.stack([light, 58 * np.cos(angle), 58 * np.sin(angle)], axis=-1)
    rgb = np.rint(np.clip(lab2rgb(lab[None])[0], 0, 1) * 255).astype(np.uint8)
    return np.vstack([np.array([BACKGROUND], np.uint8), rgb])


def _further(taken: Collection[Colour]) -> Colour:
    """A colour that is not taken, where all of the palette are."""
    for code in range(len(taken) * 40503, 1 << 30, 40503):
        colour = (60 + code % 191, 60 + code // 191 % 191, 60 + code // 36481 % 191)
        if colour not in taken:
            return colour
    raise ValueError("no colour is left")


def _spellings(name: str) -> list[str]:
    """A name as in the table: lower case, one space between words, singular; and its last word."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    if not words:
        return []
    last = words[-1]
    forms = [last]
    if last.endswith("ies"):
        forms.append(last[:-3] + "y")
    if last.endswith(("ses", "xes", "shes")):
        forms.append(last[:-2])
    if last.endswith("s") and not last.endswith("ss"):
        forms.append(last[:-1])
    whole = [" ".join([*words[:-1], form]) for form in forms]
    return list(dict.fromkeys(whole))


def _linear(rgb: Floats) -> Floats:
    bent = ((np.maximum(rgb, 0.04045) + 0.055) / 1.055) ** 2.4
    linear: Floats = np.where(rgb <= 0.04045, rgb / 12.92, bent)
    return linear


def _appearance(linear: Floats) -> Floats:
    """CAM02-UCS of linear red, green and blue, (..., 3)."""
    adapting, background = 64 / np.pi / 5, 0.2
    k = 1 / (5 * adapting + 1)
    level = 0.2 * k**4 * 5 * adapting + 0.1 * (1 - k**4) ** 2 * (5 * adapting) ** (1 / 3)
    degree = 1 - np.exp((-adapting - 42) / 92) / 3.6
    induction = 0.725 * background**-0.2

    gain = degree * 100 / (_CAT02 @ _WHITE) + 1 - degree

    def response(xyz: Floats) -> Floats:
        cones = (xyz @ _CAT02.T * gain) @ _CONES.T
        power = (level * np.abs(cones) / 100) ** 0.42
        strength: Floats = np.sign(cones) * 400 * power / (power + 27.13) + 0.1
        return strength

    def achromatic(cones: Floats) -> Floats:
        return np.asarray((cones @ np.array([2, 1, 1 / 20]) - 0.305) * induction)

    cones = response(100 * linear @ _XYZ.T)
    a, b = cones @ np.array([1, -12 / 11, 1 / 11]), cones @ np.array([1, 1, -2]) / 9
    hue = np.arctan2(b, a)
    exponent = 0.69 * (1.48 + background**0.5)
    share = np.maximum(achromatic(cones), 0) / achromatic(response(_WHITE))
    lightness = 100 * share**exponent
    eccentricity = (np.cos(hue + 2) + 3.8) / 4
    t = 50000 / 13 * induction * eccentricity * np.hypot(a, b)
    t = t / (cones @ np.array([1, 1, 21 / 20]))
    chroma = t**0.9 * np.sqrt(lightness / 100) * (1.64 - 0.29**background) ** 0.73
    colourful = np.log1p(0.0228 * chroma * level**0.25) / 0.0228
    light = 1.7 * lightness / (1 + 0.007 * lightness)
    ucs: Floats = np.stack([light, colourful * np.cos(hue), colourful * np.sin(hue)], axis=-1)
    return ucs


_CONVENTIONS: dict[str, Colour] = {
    name: parse_colour(colour)
    for colour, names in {
        # Land cover. These four, and the next ones, are kept apart in lightness too.
        "#2166ac": "water, sea, river, lake, ocean, pond, open water, water body, permanent water, "
        "inland water, reservoir",
        "#0b4d2c": "forest, tree, wood, woodland, woody, tree cover, canopy, deciduous forest",
        "#1f6b45": "coniferous forest, evergreen forest, conifer",
        "#7fbf5b": "grass, grassland, pasture, meadow, lawn, herbaceous, low vegetation",
        "#4f9a3c": "vegetation, plant, green, leaf, foliage",
        "#a6a24a": "shrub, shrubland, scrub, bush, heath",
        "#f2d24b": "crop, cropland, field, agriculture, farmland, agricultural, arable, "
        "agriculture land",
        "#b08968": "bare, soil, bare soil, barren, barren land, bare land, ground, earth, dirt, "
        "bare ground, land",
        "#e6d3a3": "sand, beach, desert, dune",
        "#8c8378": "rock, stone, gravel, bare rock",
        "#a61c3c": "urban, built, built up, built up area, building, settlement, town, city, "
        "urban land, house, roof, residential",
        "#5c5c66": "road, street, asphalt, pavement, paved, highway",
        "#8a7f8d": "impervious, impervious surface, sealed, concrete",
        "#f5f7fa": "snow, ice, glacier, snow and ice",
        "#5ab4ac": "wetland, marsh, swamp, bog, mangrove, herbaceous wetland",
        "#dfe3ea": "cloud, thick cloud",
        "#bfc7d5": "thin cloud, cirrus, haze",
        "#3b3f4d": "shadow, cloud shadow",
        "#35b6ff": "flood, flooded, flood water, floodwater, inundated",
        "#3a1212": "burned, burnt, burned area, burn scar, burnt area",
        "#ff5a1f": "fire, flame, active fire",
        "#d6338a": "weed",
        "#1b7837": "crop plant, seedling",
        # Streets.
        "#e05fa0": "sidewalk, footpath",
        "#8ecae6": "sky",
        "#1d4ed8": "car, vehicle, automobile",
        "#1e3a8a": "truck, bus, van, train",
        "#e63946": "person, pedestrian, people, human, rider",
        "#7a2e0e": "bicycle, bike, motorcycle",
        "#9a8c98": "wall, fence, bridge",
        "#ffb703": "traffic sign, traffic light, sign, pole",
        # Cells and tissue.
        "#5e3c99": "nucleus, nuclei, cell nucleus",
        "#2a9d8f": "cell, cytoplasm, blob",
        "#e9c46a": "membrane, boundary, border, edge, contour",
        "#c51b7d": "tumour, tumor, cancer, carcinoma, lesion, neoplasm, neoplastic, malignant",
        "#f4a6c1": "stroma, connective tissue, connective",
        "#f7e0a3": "fat, adipose, adipose tissue",
        "#4d4d9f": "lymphocyte, inflammatory, immune cell, inflammation",
        "#2d2a32": "necrosis, necrotic, dead",
        "#e8b4c8": "tissue, epithelium, epithelial, normal, benign",
        "#c1272d": "blood, vessel, artery, blood vessel, vein, erythrocyte, red blood cell",
        # Bodies.
        "#a0522d": "liver",
        "#d1495b": "kidney, heart, muscle",
        "#7ba7d9": "lung, airway",
        "#8e44ad": "spleen",
        "#f0ead6": "bone, skull, vertebra, rib",
        "#9d9d9d": "grey matter, gray matter, gm, cortex",
        "#f7f3e8": "white matter, wm",
        "#4ea8de": "csf, cerebrospinal fluid, ventricle, fluid",
        "#f2b632": "oedema, edema",
        # Materials.
        "#6b0f1a": "crack, defect, scratch, damage, fault",
        "#b7410e": "rust, corrosion",
        "#1c1c1e": "pore, void space, hole",
    }.items()
    for name in names.split(", ")
}
