"""Files beside a TIFF, each read only as the expected kind of file.

    x.tif.msk              which pixels are data: a TIFF, of the image's size
    x.tif.aux.xml          what GDAL keeps of an image: nodata, colours, CRS, control points
    x.tfw, x.tifw, x.wld   placement of an image that does not hold its own
    x_RPC.TXT, x.RPB       rational polynomials of its camera, likewise

No other files are read, and none of these can refer to further files: GDAL reads no overviews, sees
only `.aux.xml`, and opens `.msk` as TIFF only.
"""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import FormatError, ReadError
from maskloom.segcore.formats.content import kind_of
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.formats.tiff.dataset import NAME, TiffDataset, errors, reason
from maskloom.segcore.ground.space import Space

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Affine, Shape

MAX_TEXT_BYTES = 16 << 20
_WORLD_ENDINGS = (".tfw", ".tifw", ".wld")
_CAMERA_ENDINGS = ("_RPC.TXT", ".RPB")
_NUMBER = r"[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?"
_CAMERA_LINE = re.compile(rf"^[ \t]*(\w+)[ \t]*[:=][ \t]*({_NUMBER})", re.MULTILINE)
_CAMERA_LIST = re.compile(r"^[ \t]*(\w+)\s*=\s*\(([^()]*)\)", re.MULTILINE)
_RPC_NUMBERS = {
    "LINE_OFF": "lineOffset",
    "SAMP_OFF": "sampOffset",
    "LAT_OFF": "latOffset",
    "LONG_OFF": "longOffset",
    "HEIGHT_OFF": "heightOffset",
    "LINE_SCALE": "lineScale",
    "SAMP_SCALE": "sampScale",
    "LAT_SCALE": "latScale",
    "LONG_SCALE": "longScale",
    "HEIGHT_SCALE": "heightScale",
}
"""GDAL's names, which `_RPC.TXT` uses too, and those of `.RPB`."""
_RPC_LISTS = {
    "LINE_NUM_COEFF": "lineNumCoef",
    "LINE_DEN_COEFF": "lineDenCoef",
    "SAMP_NUM_COEFF": "sampNumCoef",
    "SAMP_DEN_COEFF": "sampDenCoef",
}
_RPC_ERRORS = {"ERR_BIAS": "errBias", "ERR_RAND": "errRand"}
"""Optional entries."""
_OF_ALL_BANDS = 2
"""GDAL's flag for a mask common to all bands."""


def metadata_file(source: StoredFile) -> dict[str, StoredFile]:
    """GDAL's metadata beside an image, by the name that GDAL looks for; empty if absent.

    Raises `FormatError` if it is too large, and `Unavailable`.
    """
    file = _text_beside(source, f"{source.path}.aux.xml")
    return {} if file is None else {f"{NAME}.aux.xml": file}


def place_beside(source: StoredFile, crs: str | None) -> tuple[Space, tuple[str, ...]]:
    """The placement of an image by the files beside it, and notes for users; `crs` is that of the
    image itself.

    Raises `FormatError` if one is too large, and `Unavailable`.
    """
    stem, dot, suffix = source.path.rpartition(".")
    stem, suffix = (stem, suffix) if dot and "/" not in suffix else (source.path, "")
    # The file beside x.TIF is x.TFW.
    endings = [ending.upper() if suffix.isupper() else ending for ending in _WORLD_ENDINGS]
    world = next(filter(None, (_text_beside(source, stem + ending) for ending in endings)), None)
    camera = next(
        filter(None, (_text_beside(source, stem + ending) for ending in _CAMERA_ENDINGS)), None
    )
    rpcs = {} if camera is None else _rational_polynomials(camera.read().decode("utf-8", "replace"))
    affine = None if world is None else _affine(world.read().decode("utf-8", "replace"))
    notes = []
    if world is not None and affine is None:
        notes.append(
            "the world file beside it does not hold six numbers, so it does not say where the "
            "image lies"
        )
    if camera is not None and not rpcs:
        notes.append("the rational polynomials (RPC) beside it are incomplete, and are not kept")
    return Space(
        affine, crs if affine is not None else None, rpcs=tuple(sorted(rpcs.items()))
    ), tuple(notes)


def _text_beside(source: StoredFile, path: str) -> StoredFile | None:
    file = source.beside(path)
    if file is not None and file.size() > MAX_TEXT_BYTES:
        raise FormatError(
            f"{file.location} beside {source.location} has {file.size()} bytes; the limit is "
            f"{MAX_TEXT_BYTES}. Remove it."
        )
    return file


def _affine(text: str) -> Affine | None:
    """The transform of a world file, whose last two numbers are the centre of the first pixel."""
    try:
        a, d, b, e, x, y = (float(number.replace(",", ".")) for number in text.split()[:6])
    except ValueError:
        return None
    affine = (a, b, x - (a + b) / 2, d, e, y - (d + e) / 2)
    return affine if all(map(math.isfinite, affine)) and a * e != b * d else None


def _rational_polynomials(text: str) -> dict[str, str]:
    """RPCs by GDAL's names, from lines of `NAME: value unit` or `name = value;`; empty if one is
    missing.
    """
    found = dict(_CAMERA_LINE.findall(text))
    lists = {name: re.findall(_NUMBER, values) for name, values in _CAMERA_LIST.findall(text)}
    rpcs = {}
    for name, written in _RPC_NUMBERS.items():
        rpcs[name] = found.get(name) or found.get(written, "")
    for name, written in _RPC_LISTS.items():
        rpcs[name] = " ".join(
            lists.get(written) or [found.get(f"{name}_{i}", "") for i in range(1, 21)]
        )
    if not all(rpcs.values()) or not all(len(rpcs[name].split()) == 20 for name in _RPC_LISTS):
        return {}
    errors_known = {
        name: found.get(name) or found.get(written, "") for name, written in _RPC_ERRORS.items()
    }
    return rpcs | {name: value for name, value in errors_known.items() if value}


@dataclass(frozen=True, slots=True)
class SideMask:
    """An open `.msk`."""

    location: str
    dataset: TiffDataset
    planes: tuple[int, ...]
    """For each band of the image, the band of the file that is its mask; 0 for none."""

    @classmethod
    def open(cls, source: StoredFile, shape: Shape, bands: int) -> SideMask | None:
        """The mask beside an image of this shape; None if it is absent, or a TIFF that is not
        GDAL's mask.

        Raises `FormatError` if it is not a TIFF or has another size, and `Unavailable`.
        """
        file = source.beside(f"{source.path}.msk")
        if file is None:
            return None
        kind = kind_of(file.head())
        if kind != "TIFF":
            raise FormatError(
                f"{file.location}, the mask beside {source.location}, should be TIFF, but its "
                f"content is {kind}. Remove it, or write it again."
            )
        with contextlib.ExitStack() as stack:
            try:
                dataset = stack.enter_context(contextlib.closing(TiffDataset.open(file)))
                raw = dataset.raw
                found, count, tags = dataset.run(lambda: (raw.shape, raw.count, raw.tags()))
            except errors() as error:
                raise FormatError(
                    f"{file.location}, the mask beside {source.location}, cannot be read: "
                    f"{reason(error)}. Remove it, or write it again."
                ) from error
            planes = tuple(_plane(tags, band) for band in range(1, bands + 1))
            if not any(planes):
                return None
            if found != shape or max(planes) > count:
                raise FormatError(
                    f"{file.location} has {found[1]} x {found[0]} pixels and {count} band(s), "
                    f"{source.location}, whose mask it is, "
                    f"{shape[1]} x {shape[0]} and {bands}. Remove it, or write it again."
                )
            stack.pop_all()
        return cls(file.location, dataset, planes)

    def valid(self, bands: Sequence[int], window: Any) -> NDArray[np.bool_]:
        """Where the mask shows these bands of the image. Raises `ReadError`."""
        planes = sorted({self.planes[band - 1] for band in bands} - {0})
        try:
            values = (
                self.dataset.run(self.dataset.raw.read, planes, window=window)
                if planes
                else np.ones((1, 1, 1))
            )
        except errors() as error:
            raise ReadError(
                f"{self.location} cannot be read: {reason(error)}. Remove it, or write it again."
            ) from error
        return np.asarray((values != 0).all(axis=0), np.bool_)

    def close(self) -> None:
        """Let the file go."""
        self.dataset.close()


def _plane(tags: Mapping[str, str], band: int) -> int:
    """The band of a `.msk` that is the mask of a band of the image; 0 for none.

    GDAL identifies its masks by these flags too; other programs use the suffix for other purposes.
    """
    flags = tags.get(f"INTERNAL_MASK_FLAGS_{band}", "")
    if not flags.isdecimal():
        return 0
    return 1 if int(flags) & _OF_ALL_BANDS else band
