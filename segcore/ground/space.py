"""Where the pixels of a raster are, and how large they are."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from maskloom.segcore.ground.cells import ground_area
from maskloom.segcore.values import pickled_by_fields

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Affine, Box, Shape

MILLIMETRES = {"m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "nm": 1e-6}
"""Millimetres in each unit of length that a spacing may have."""
AXES = ("z", "y", "x")
"""Names of the axes in the order of arrays; images have the last two."""
PLAUSIBLE = (1e-6, 1e3)
"""Least and greatest size of a pixel in mm that an instrument may have: 1 nm and 1 m."""
_UNITS = {
    unit: symbol
    for symbol, names in {
        "m": ("m", "metre", "meter"),
        "cm": ("cm", "centimetre", "centimeter"),
        "mm": ("mm", "millimetre", "millimeter"),
        # The micro sign and the Greek letter are different characters.
        "um": ("um", "\u00b5m", "\u03bcm", "micron", "micrometre", "micrometer"),
        "nm": ("nm", "nanometre", "nanometer"),
    }.items()
    for unit in (*names, *(f"{name}s" for name in names if len(name) > 2))
}
"""Symbols of the units of length by all their spellings, in lower case."""
_OTHER_UNITS = {
    "pm": 1e-9,
    "\u00e5": 1e-7,
    "angstrom": 1e-7,
    "in": 25.4,
    "inch": 25.4,
    "inches": 25.4,
}
"""Millimetres in units of length that files may name, but no recipe and no spacing."""
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_WORD = r"[^\W\d]+"
_PART = rf"({_NUMBER})\s*({_WORD})?"
_SIZE = re.compile(rf"{_PART}(?:\s+{_PART})*")
_BETWEEN = re.compile(r"\s*[x\u00d7,;](?=\s*[-+.\d])|[\[\]()]")
"""What may stand between numbers and around them."""
_ROUNDING = 1e-9
_PER_PIXEL = re.compile(r"\s*(?:/|per)\s*(?:px|pixel|voxel)$")
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")


def _require_unit(unit: str) -> None:
    if unit not in MILLIMETRES:
        raise ValueError(f"unit: expected one of {', '.join(MILLIMETRES)}; got {unit!r}")


def millimetres_in(unit: str) -> float:
    """Millimetres in a unit of length in any of its spellings; 0 for other words.

    >>> millimetres_in("Microns"), millimetres_in("pixel")
    (0.001, 0.0)
    """
    word = unit.strip().lower()
    return MILLIMETRES.get(_UNITS.get(word, ""), _OTHER_UNITS.get(word, 0.0))


def is_plausible(millimetres: float) -> bool:
    """Whether an instrument may have made pixels of this size: 1 nm to 1 m."""
    least, most = PLAUSIBLE
    # Rounding must not exclude 1 nm.
    return least * (1 - _ROUNDING) <= millimetres <= most


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class Metric:
    """Pixels, or voxels, of one known size."""

    spacing: tuple[float, ...]
    """Distance between the centres of neighbouring pixels along each axis, in array order."""
    unit: str = "mm"
    """A unit of length among `MILLIMETRES`."""
    stated_by: Literal["file", "tags", "recipe"] = "file"
    """Whether the metadata of the file, its resolution tags, or the recipe states the size."""

    def __post_init__(self) -> None:
        _require_unit(self.unit)
        if not all(0 < distance < math.inf for distance in self.spacing):
            raise ValueError(f"spacing: expected finite numbers above 0; got {list(self.spacing)}")

    @property
    def size(self) -> float:
        """Area of a pixel in mm², or volume of a voxel in mm³."""
        return math.prod(self.millimetres)

    @property
    def millimetres(self) -> tuple[float, ...]:
        """`spacing` in mm."""
        return tuple(distance * MILLIMETRES[self.unit] for distance in self.spacing)

    @property
    def is_plausible(self) -> bool:
        """Whether an instrument may have made such pixels: 1 nm to 1 m."""
        return all(map(is_plausible, self.millimetres))

    def __str__(self) -> str:
        return f"{' x '.join(f'{distance:g}' for distance in self.spacing)} {self.unit}"


@dataclass(frozen=True, slots=True)
class PixelSize:
    """The size of a pixel in the words of a user: one number, or one for each axis."""

    spacing: tuple[float, ...]
    """Along all axes, or along each axis in array order."""
    unit: str
    """A unit of length among `MILLIMETRES`."""

    def __post_init__(self) -> None:
        _require_unit(self.unit)
        if not all(is_plausible(number * MILLIMETRES[self.unit]) for number in self.spacing):
            raise ValueError("expected sizes from 1 nm to 1 m")

    @classmethod
    def parse(cls, text: str) -> PixelSize:
        """The size that a text states. Raises `ValueError`.

        >>> PixelSize.parse("0.25 micron")
        PixelSize(spacing=(0.25,), unit='um')
        >>> PixelSize.parse("2.5 x 0.7 x 0.7 mm").spacing
        (2.5, 0.7, 0.7)
        """
        if _DECIMAL_COMMA.search(text):
            raise ValueError(
                f"write decimals with a point: {_DECIMAL_COMMA.sub('.', text)!r}, and several "
                "numbers with spaces between them"
            )
        said = _BETWEEN.sub(" ", _PER_PIXEL.sub("", text.strip().lower())).strip()
        parts = re.findall(_PART, said)
        words = list(dict.fromkeys(_UNITS.get(word, word) for _, word in parts if word))
        if not _SIZE.fullmatch(said) or not words or not parts[-1][1]:
            raise ValueError(
                "expected one number, or one for each axis (z, y, x), and a unit, e.g. '0.25 um' "
                f"or '2.5 0.7 0.7 mm'; got {text!r}"
            )
        if len(words) > 1:
            raise ValueError(f"expected one unit for all axes; got {' and '.join(words)}")
        if len(parts) > len(AXES):
            raise ValueError(f"expected at most {len(AXES)} numbers (z, y, x); got {len(parts)}")
        try:
            return cls(tuple(float(number) for number, _ in parts), words[0])
        except ValueError as error:
            raise ValueError(f"{error}; got {text!r}") from error

    def metric(self, axes: tuple[str, ...]) -> Metric:
        """The size of the pixels of a raster with these axes. Raises `ValueError` if the number of
        axes differs.
        """
        spacing = self.spacing * len(axes) if len(self.spacing) == 1 else self.spacing
        if len(spacing) != len(axes):
            raise ValueError(
                f"{len(spacing)} numbers for an image with the axes {', '.join(axes)}; give one "
                "number, or one for each axis"
            )
        return Metric(spacing, self.unit, "recipe")


@dataclass(frozen=True, slots=True)
class Frame:
    """The position of a volume, or of one slice, in the coordinates of a scanner, patient or
    atlas.
    """

    affine: tuple[float, ...]
    """Twelve numbers, the rows of the 3 x 4 matrix that maps (i, j, k, 1) to (x, y, z): i, j and k
    count voxels along x, y and z of the array, from the centre of the first voxel; x, y and z of
    the result point right, anterior and superior, in mm.
    """
    sform_code: int = 1
    """Meaning of the coordinates in NIfTI: 0 unknown, 1 scanner, 2 aligned, 3 Talairach, 4 MNI."""
    qform_code: int = 0
    """The same for the second transform of NIfTI."""
    qform: tuple[float, ...] | None = None
    """The second transform as NIfTI stores it, so that masks repeat it bit for bit: quatern_b, c
    and d, qoffset_x, y and z, the distances along i, j and k, and qfac. None: it is `affine`.
    """
    double: bool = False
    """Whether the source stores the transforms in double precision."""
    unit: str = "mm"
    """The unit of length among `MILLIMETRES` that the source names for its transforms, which masks
    repeat; empty if it names none. The numbers here are in mm.
    """

    @property
    def factor(self) -> float:
        """Millimetres in the unit of the source."""
        return MILLIMETRES[self.unit or "mm"]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distances (z, y, x) in mm whose product is the volume of a voxel: between neighbouring
        slices, rows and voxels, each perpendicular to the axes after it. Where the axes of a volume
        are not perpendicular, neighbours along z and y are further apart.
        """
        i, j, k = (self.affine[axis::4] for axis in range(3))
        across = (
            i[1] * j[2] - i[2] * j[1],
            i[2] * j[0] - i[0] * j[2],
            i[0] * j[1] - i[1] * j[0],
        )
        width, area = math.hypot(*i), math.hypot(*across)
        volume = abs(sum(a * b for a, b in zip(across, k, strict=True)))
        return (
            volume / area if area else 0.0,
            area / width if width else 0.0,
            width,
        )


@dataclass(frozen=True, slots=True)
class Lattice:
    """The coordinates of pixel centres in the words of a file, for masks that repeat them."""

    scale: tuple[float, ...]
    """Distance between neighbours along each axis, in array order."""
    translation: tuple[float, ...]
    """Coordinate of the first pixel along each axis."""
    units: tuple[str, ...]
    """Unit of each axis, such as micrometer; empty if not stated."""


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class Space:
    """The position of the pixels of a raster in the world, and their size.

    Pixels have a size on the ground (`affine` and `crs`), a stated size (`metric`), or no known
    size: then they are counted.
    """

    affine: Affine | None = None
    """(a, b, c, d, e, f) with x = a·column + b·row + c and y = d·column + e·row + f at pixel
    corners. None: unknown.
    """
    crs: str | None = None
    """Coordinate reference system as WKT. None: unknown."""
    gcps: tuple[tuple[float, ...], ...] = ()
    """Ground control points, for images without `affine`: (column, row, x, y, z) each, with columns
    and rows relative to the corner of the first pixel.
    """
    gcp_crs: str | None = None
    """Coordinate reference system of their x and y as WKT. None: unknown."""
    rpcs: tuple[tuple[str, str], ...] = ()
    """Rational polynomials of the camera, with GDAL's names and spelling."""
    metric: Metric | None = None
    """The size of a pixel as stated by the file. None: unknown. Never together with a CRS."""
    frame: Frame | None = None
    """The position of a volume in a scanner or an atlas. None: unknown."""
    lattice: Lattice | None = None
    """The coordinates of pixels as the file states them. None: no such coordinates."""
    axes: tuple[str, ...] = AXES[1:]
    """Names of the axes in the order of arrays: (y, x), or (z, y, x) for volumes."""

    def __post_init__(self) -> None:
        if self.metric is not None and len(self.metric.spacing) != len(self.axes):
            raise ValueError(
                f"a raster with the axes {', '.join(self.axes)} cannot have the spacing "
                f"{list(self.metric.spacing)}"
            )
        if self.lattice is not None and len(self.lattice.scale) != len(self.axes):
            raise ValueError(
                f"a raster with the axes {', '.join(self.axes)} cannot have the scale "
                f"{list(self.lattice.scale)}"
            )
        if self.metric is not None and self.crs is not None:
            raise ValueError("pixels have their size from a CRS or from a spacing, not from both")

    @property
    def placed(self) -> bool:
        """Whether the position of the pixels is known."""
        return self.affine is not None or bool(self.frame or self.gcps or self.rpcs)

    @property
    def unit(self) -> str:
        """Unit of `cell_size`: `m2` with a CRS, `mm2` or `mm3` with a spacing, otherwise `px`."""
        if self.metric is not None:
            return f"mm{len(self.axes)}"
        return "px" if self.affine is None or self.crs is None else "m2"

    def cell_size(self, box: Box, shape: Shape) -> float | NDArray[np.float64]:
        """True size in `unit` of the pixels of `box` in a raster of this shape: areas, or the
        volumes of voxels.

        A number if all pixels of the raster are equally large, an array of shape (y, 1) if the area
        depends on the row alone, otherwise of shape (y, x). The value of a pixel depends on its
        position in the raster only, not on the box; it is 0 where the raster extends beyond the
        edge of an equal-area map.
        """
        if self.metric is not None:
            return self.metric.size
        if self.affine is None or self.crs is None:
            return 1.0
        return ground_area(self.affine, self.crs, box, shape)
