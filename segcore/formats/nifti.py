"""NIfTI-1 and 2, one file or a pair of header and data; Analyze; MGH of FreeSurfer.

Voxel (i, j, k) of these formats is pixel (k, j, i): i varies fastest in the file. A fourth axis is
time, and gives one image each; a fifth, and the parts of a colour, are the bands.

The position of the voxels is the sform if its code is above 0, else the qform if its code is above
0. Without both, only the distances between voxels are known. Areas follow from the determinant of
that affine. A unit of length that the header does not state is the millimetre if a code is above 0,
as all programs take it; otherwise sizes are in px.

Numbers are delivered as they are stored, unless the header has a slope and an intercept: then as
slope · number + intercept, in float32.

The package `nibabel` (extra `medical`) reads the headers. It is imported when needed.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maskloom.segcore.errors import FormatError, Incomplete, NotInstalled
from maskloom.segcore.formats.content import require_kind
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.formats.unpacking import Packing, first_bytes
from maskloom.segcore.formats.voxels import Header, Layout, VoxelFormat, Voxels, placed
from maskloom.segcore.ground.space import AXES, MILLIMETRES, Frame
from maskloom.segcore.raster.spec import FORMATS, FileKind

if TYPE_CHECKING:
    from numpy.typing import NDArray


_INSTALL = "pip install 'maskloom[medical]'"
_IN_GZIP = " in gzip"
_PART_OF_PAIR = (
    "is a header whose voxels are in another file. Name it to end in .hdr, with the .img beside it."
)
_HEAD = 1024
"""Bytes that hold a header."""
_PAIRS = {".hdr": ".img", ".hdr.gz": ".img.gz"}
_ANALYZE, _MGH, _NIFTI = "Analyze", "MGH", "NIfTI"
_UNITS = {1: "m", 2: "mm", 3: "um"}
"""Units of length by their code in `xyzt_units`; 0 and others are unknown."""
_CIFTI = range(3000, 3100)
"""Codes of intents of CIFTI: values by the vertices of a surface, not voxels."""
_COLOURS = {128: 3, 2304: 4}
"""Number of bytes by the code of a type of colours."""
_FAR_APART = 1e-3
"""Difference of the transforms, or of distances, that is worth a note, in voxels."""
_quiet = logging.getLogger(__name__ + ".nibabel")
"""Takes the messages of nibabel about headers that it fixes."""
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


@dataclass(frozen=True, slots=True)
class Nifti(VoxelFormat):
    """NIfTI, Analyze and MGH (extra `medical`)."""

    name: ClassVar[str] = "nifti"
    kinds: tuple[FileKind, ...] = (
        FileKind(
            _NIFTI,
            (".nii",),
            (
                (344, b"n+1\0"),
                (344, b"ni1\0"),
                (4, b"n+2\0\r\n\x1a\n"),
                (4, b"ni2\0\r\n\x1a\n"),
            ),
        ),
        FileKind(_NIFTI + _IN_GZIP, (".nii.gz",)),
        FileKind(_MGH, (".mgh",), ((0, b"\0\0\0\x01"),)),
        FileKind(_MGH + _IN_GZIP, (".mgz", ".mgh.gz")),
        # Other kinds of images have headers of this name too: it must be given.
        FileKind(_ANALYZE, (), ((0, b"\x5c\x01\0\0"), (0, b"\0\0\x01\x5c"))),
        FileKind(_ANALYZE + _IN_GZIP, ()),
    )

    def header(self, location: str) -> Header:
        """Read the header of a file; see `VoxelFormat.header`."""
        return _header(location)


FORMATS.register("nifti")(Nifti())


def _header(location: str) -> Header:
    """What the header of a file says. Raises `FormatError` and `Unavailable`."""
    try:
        from nibabel.freesurfer.mghformat import MGHError
        from nibabel.spatialimages import HeaderDataError
    except ImportError as error:
        raise NotInstalled(
            f"{location} needs the package nibabel, which is not installed. Install it where "
            f"maskloom and its workers run: {_INSTALL}"
        ) from error
    source = StoredFile.of(location)
    kind = require_kind(location, source.head(), "nifti")
    packing: Packing = "deflate" if kind.endswith(_IN_GZIP) else ""
    head = first_bytes(source, packing, _HEAD)
    read = {_MGH: _mgh, _ANALYZE: _analyze}.get(kind.removesuffix(_IN_GZIP), _nifti)
    try:
        return read(source, head, packing)
    # Numbers that cannot be converted, and types that do not exist, come as these.
    except (HeaderDataError, MGHError, ValueError, OverflowError, KeyError, IndexError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f"{location} has a header that cannot be right: {error}. Save it again with the "
            "program that made it."
        ) from error


def _nifti(source: StoredFile, head: bytes, packing: Packing) -> Header:
    from nibabel import nifti1, nifti2

    second = head[4:8] in (b"n+2\0", b"ni2\0")
    single = head[5:6] == b"+" if second else head[345:346] == b"+"
    kinds = {
        (False, False): nifti1.Nifti1PairHeader,
        (False, True): nifti1.Nifti1Header,
        (True, False): nifti2.Nifti2PairHeader,
        (True, True): nifti2.Nifti2Header,
    }
    header = _checked(kinds[second, single], source, head)
    intent = int(header["intent_code"])
    if intent in _CIFTI:
        raise FormatError(
            f"{source.location} is CIFTI (intent code {intent}): values by the vertices of a "
            "surface, not voxels. Leave it out of `inputs`."
        )
    layout, dtype, colours = _layout(source.location, header)
    slope, intercept = header.get_slope_inter()
    voxels = Voxels(
        source.location if single else _data_file(source),
        layout,
        dtype,
        int(header.get_data_offset()),
        packing,
        slope=1.0 if slope is None or colours else slope,
        intercept=0.0 if intercept is None or colours else intercept,
        has_alpha=colours == 4,
    )
    frame, sized, notes = _frame(header, double=second)
    space, more = placed(frame, AXES[-len(layout.shape) :], sized=sized)
    return Header(voxels, space, (*notes, *more), rgb=bool(colours))


def _analyze(source: StoredFile, head: bytes, packing: Packing) -> Header:
    from nibabel.spm2analyze import Spm2AnalyzeHeader

    header = _checked(Spm2AnalyzeHeader, source, head)
    layout, dtype, colours = _layout(source.location, header)
    slope, intercept = header.get_slope_inter()
    voxels = Voxels(
        _data_file(source),
        layout,
        dtype,
        int(header.get_data_offset()),
        packing,
        slope=1.0 if slope is None or colours else slope,
        intercept=0.0 if intercept is None or colours else float(intercept),
    )
    frame = Frame(_numbers(header.get_best_affine()), sform_code=2)
    space, notes = placed(frame, AXES[-len(layout.shape) :])
    note = (
        "Analyze files do not say reliably which side is left: x is taken to run from right to "
        "left, as nibabel does; compare with a NIfTI of the same scan"
    )
    return Header(voxels, space, (note, *notes), rgb=bool(colours))


def _mgh(source: StoredFile, head: bytes, packing: Packing) -> Header:
    from nibabel.freesurfer.mghformat import DATA_OFFSET, MGHHeader

    header = MGHHeader(head[:DATA_OFFSET], check=False)
    header.check_fix(_quiet, error_level=40)
    x, y, z, times = (int(length) for length in header["dims"])
    dtype = header.get_data_dtype()
    _require_type(source.location, dtype)
    layout = Layout((z, y, x), (x * y, x, 1), times=times, time_step=x * y * z)
    frame = Frame(_numbers(header.get_affine()), sform_code=1, qform_code=1)
    space, notes = placed(frame, AXES)
    if not int.from_bytes(head[28:30], "big"):
        note = "its header does not place it: the orientation is the one that FreeSurfer assumes"
        notes = (note, *notes)
    return Header(Voxels(source.location, layout, dtype, DATA_OFFSET, packing), space, notes)


def _checked(kind: Any, source: StoredFile, head: bytes) -> Any:
    """A header, with small faults fixed as nibabel fixes them. Distances of 0 stay."""
    size = kind.template_dtype.itemsize
    if len(head) < size:
        raise FormatError(
            f"{source.location} ends within its header: it has {len(head)} of {size} bytes. Copy "
            "it again."
        )
    header = kind(head[:size], check=False)
    axes = slice(1, 1 + min(3, max(0, int(header["dim"][0]))))
    unknown = header["pixdim"][axes] == 0
    header.check_fix(_quiet, error_level=40)
    # nibabel makes them 1, which would be a size.
    header["pixdim"][axes][unknown] = 0
    return header


def _layout(location: str, header: Any) -> tuple[Layout, np.dtype[Any], int]:
    """The order of the numbers, their type, and the number of parts of a colour or 0."""
    count, *lengths = (int(each) for each in header["dim"])
    if not 2 <= count <= 7:
        raise FormatError(
            f"{location} has {count} axes by its header; expected 2 to 5: x, y, z, time and the "
            "parts of a vector."
        )
    x, y, z, times, bands, *others = (*lengths[:count], *(1,) * (7 - count))
    if others != [1, 1]:
        raise FormatError(
            f"{location} has more than 5 axes: its header says {lengths[:count]}. Split it."
        )
    colours = _COLOURS.get(int(header["datatype"]), 0)
    dtype = np.dtype(np.uint8) if colours else header.get_data_dtype()
    _require_type(location, dtype)
    if colours and bands != 1:
        raise FormatError(f"{location} has vectors of colours, which mean nothing. Split it.")
    step = colours or 1
    steps = (step * x * y, step * x, step)
    shape = (y, x) if count == 2 else (z, y, x)
    volume = step * x * y * z
    layout = Layout(
        shape,
        steps[-len(shape) :],
        bands=colours or bands,
        band_step=1 if colours else volume * times,
        times=times,
        time_step=volume,
    )
    return layout, dtype, colours


def _require_type(location: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind == "c":
        raise FormatError(
            f"{location} holds complex numbers ({dtype.name}), for example of raw MR data. Save "
            "their magnitude, or their phase, as a file of its own."
        )
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise FormatError(
            f"{location} holds {dtype.name}; expected whole numbers or floats of at most 64 bits. "
            "Convert it."
        )


def _data_file(source: StoredFile) -> str:
    """The URI of the file with the voxels, beside a header. Raises `FormatError`, and `Incomplete`
    if it is missing.
    """
    path = source.path
    # The longest first: .hdr.gz.
    for ending, other in sorted(_PAIRS.items(), key=lambda pair: -len(pair[0])):
        if path.lower().endswith(ending):
            upper = path[-len(ending) :].isupper()
            stem = source.location[: -len(ending)]
            wanted = path[: -len(ending)] + (other.upper() if upper else other)
            if source.beside(wanted) is None:
                raise Incomplete(
                    f"{source.location} is a header, and the file with its voxels is missing: "
                    f"{wanted.rsplit('/', 1)[-1]}. Put it beside the header."
                )
            return stem + (other.upper() if upper else other)
    raise FormatError(f"{source.location} {_PART_OF_PAIR}")


def _frame(header: Any, *, double: bool) -> tuple[Frame | None, bool, tuple[str, ...]]:
    """The position of the voxels, whether it is in a known unit, and notes."""
    codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
    transforms = {"sform": header.get_sform(), "qform": _qform(header)}
    usable = [name for name in codes if codes[name] > 0 and _is_usable(transforms[name])]
    unit = int(header["xyzt_units"]) & 7
    scale, notes = MILLIMETRES[_UNITS[unit]] if unit in _UNITS else None, []
    if scale is None and usable:
        notes.append("its header names no unit of length; it is taken to be the millimetre")
    broken = [name for name in codes if codes[name] > 0 and name not in usable]
    if broken:
        instead = f"the {usable[0]} is used" if usable else "sizes are in px"
        notes.append(f"its {' and its '.join(broken)} place no voxels; {instead}")
    if broken and not usable:
        return None, False, tuple(notes)
    factor = 1.0 if scale is None else scale
    if not usable:
        # Programs differ in what they assume; a mask with the same codes is treated like its
        # source by each.
        affine = header.get_base_affine()
        frame = Frame(_numbers(affine, factor), 0, 0, double=double, unit=_UNITS.get(unit, ""))
        return frame, scale is not None, tuple(notes)
    affine = transforms[usable[0]]
    notes.extend(_contradictions(header, transforms, usable))
    frame = Frame(
        _numbers(affine, factor),
        codes["sform"] if "sform" in usable else 0,
        codes["qform"] if "qform" in usable else 0,
        _stored_qform(header, factor) if "qform" in usable else None,
        double,
        _UNITS.get(unit, ""),
    )
    return frame, True, tuple(notes)


def _contradictions(header: Any, transforms: dict[str, Any], usable: list[str]) -> list[str]:
    """Notes on what a header says twice, and not alike."""
    affine, notes = transforms[usable[0]], []
    if len(usable) == 2:
        ends = np.array([(i, j, k, 1) for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
        ends[:, :3] *= np.maximum(np.array(header["dim"][1:4], float) - 1, 0)
        apart = np.linalg.solve(affine, (affine - transforms["qform"]) @ ends.T)[:3]
        most = float(np.abs(apart).max())
        if most > _FAR_APART:
            notes.append(
                f"its sform and qform differ by up to {most:.3g} voxels; the sform is used"
            )
    stated, true = np.array(header["pixdim"][1:4], float), np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(stated / true - 1).max() > _FAR_APART:
        said, used = (", ".join(f"{each:.6g}" for each in each_of) for each_of in (stated, true))
        notes.append(
            f"its distances between voxels ({said}) are not those of its affine ({used}), "
            "which is used"
        )
    return notes


def _qform(header: Any) -> NDArray[np.float64] | None:
    """The second transform; None if its numbers are no rotation."""
    from nibabel.spatialimages import HeaderDataError

    try:
        return np.asarray(header.get_qform(), float)
    except (HeaderDataError, ValueError):
        return None


def _stored_qform(header: Any, factor: float) -> tuple[float, ...]:
    """The ten numbers of `Frame.qform`."""
    quaternion = [float(header[f"quatern_{each}"]) for each in "bcd"]
    place = [factor * float(header[f"qoffset_{each}"]) for each in "xyz"]
    pixdim = [float(each) for each in header["pixdim"][:4]]
    return (*quaternion, *place, *(factor * each for each in pixdim[1:]), pixdim[0])


def _is_usable(affine: NDArray[np.float64] | None) -> bool:
    """Whether a transform gives each voxel a place of its own."""
    return (
        affine is not None
        and bool(np.isfinite(affine).all())
        and math.isfinite(volume := float(abs(np.linalg.det(affine[:3, :3]))))
        and volume > 0
    )


def _numbers(affine: NDArray[Any], factor: float = 1.0) -> tuple[float, ...]:
    """The twelve numbers of `Frame.affine`."""
    return tuple((np.asarray(affine, float)[:3] * factor).ravel().tolist())
