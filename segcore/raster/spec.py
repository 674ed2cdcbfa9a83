"""Rasters: metadata from image headers, the input of segmenters, and how formats are read.

A `Format` turns a location into a `RasterSpec` (header only), and a spec into a `Reader` (pixels of
any box). Only readers convert: pixels are channel-last, and `valid` is True where there is data
(the opposite of NumPy's masked arrays). Masks are written by `segcore.masks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.ground.space import Frame, Lattice, Metric, Space
from maskloom.segcore.registry import Registry
from maskloom.segcore.storage.canonical import with_tuples
from maskloom.segcore.values import CheckedOnce, pickled_by_fields

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box, Shape, Tile
    from maskloom.segcore.raster.source import Grouping, Member
    from maskloom.segcore.raster.stored import ReadOptions, StoredImage

Interpretation = Literal["rgb", "bands"]


@dataclass(frozen=True, slots=True)
class UserNodata:
    """A value that means "no data" because the user says so."""

    value: float
    """Compared with the pixels that a reader delivers."""
    bands: tuple[int, ...] = ()
    """The bands that must all have it, for colours. Empty: any band that is read."""


@dataclass(frozen=True, slots=True)
class FeatureBands:
    """Bands that are computed from those of a file (`segcore.features`), and what the file has."""

    names: tuple[str, ...]
    formulas: tuple[str, ...]
    """Formula of each, with `b4` for band 4 of the file."""
    bands: tuple[int, ...]
    file_bands: int
    dtype: str
    interpretation: Interpretation
    scaling: tuple[tuple[float, float], ...] = ()
    """Scale and offset of each band of the file. Empty: values are as stored."""


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class RasterSpec:
    """Metadata from an image header."""

    location: str
    """URI of the file."""
    format: str
    """Name of its format in `FORMATS`."""
    shape: Shape
    """(y, x), or (z, y, x) for volumes."""
    bands: tuple[int, ...]
    """The bands that a reader delivers, counted from 1 in the order of the file; alpha is not among
    them unless requested.
    """
    dtype: str
    """NumPy name of the type of the delivered pixels."""
    chunks: Shape
    """Shape of the smallest box that can be read without reading more."""
    version: str
    """Changes whenever the bytes of the file change."""
    file_bands: int
    """Number of data bands in the file."""
    nodata: float | None = None
    """Value that means "no data". None: every pixel is data unless a mask or alpha marks it."""
    interpretation: Interpretation = "bands"
    """`rgb` if bands 1, 2, 3 are red, green, blue."""
    space: Space = field(default_factory=Space)
    notes: tuple[str, ...] = ()
    """Notes for users on how this file is read, without its name."""
    files: tuple[str, ...] = ()
    """URIs of the files of a series, in the order in which its format reads them."""
    part: str = ""
    """Name of the image among several in the file; see `StoredImage.part`."""
    level: int = 0
    """Level of a pyramid that is read; 0: full resolution."""
    user_nodata: UserNodata | None = None
    """What else means "no data", in images of any format; `formats.open_image` applies it."""
    reduction: tuple[float, ...] = ()
    """Size of a pixel of this level along each axis, in pixels of full resolution, from which
    `space` follows if the file states the size of these. Empty: 1.
    """
    mask: str = ""
    """Name in `MASKS` of the writer for its mask. Empty: that of its format."""
    band_names: tuple[str, ...] = ()
    """Name of each band of the file, as it states them; empty where it states none."""
    scaling: tuple[tuple[float, float], ...] = ()
    """Scale and offset of each band of the file, by which stored numbers become physical ones.
    Empty: none are stated.
    """
    features: FeatureBands | None = None
    """What is delivered in place of the bands of the file. Everything about bands and types above
    is then about the features.
    """
    acquired: str | None = None
    """When it was acquired, in UTC (`segcore.raster.dates`). None: unknown."""

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.space.axes):
            raise ValueError(
                f"shape {self.shape} does not have the axes {', '.join(self.space.axes)}"
            )

    @property
    def channels(self) -> int:
        """Number of bands that a reader delivers."""
        return len(self.bands)

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return int(math.prod(self.shape))

    @property
    def plane(self) -> RasterSpec:
        """One plane of a volume as an image; an image is unchanged."""
        if len(self.shape) <= 2:
            return self
        metric = self.space.metric
        if metric is not None:
            metric = replace(metric, spacing=metric.spacing[-2:])
        return replace(
            self,
            shape=self.shape[-2:],
            chunks=self.chunks[-2:],
            space=Space(metric=metric),
            reduction=self.reduction[-2:],
        )

    def select(self, bands: Sequence[int] | None) -> RasterSpec:
        """This raster with only these bands selected (None: unchanged).

        Raises `ModelMismatch` if the image lacks such a band.
        """
        if bands is None or tuple(bands) == self.bands:
            return self
        absent = [band for band in bands if not 1 <= band <= self.file_bands]
        if absent:
            raise ModelMismatch(
                f"{self.location} has {self.file_bands} band(s); the segmenter asks for band "
                f"{absent[0]}. "
                "Bands count from 1. Change `bands` (or `band`) of the segmenter, or leave this "
                "image out."
            )
        rgb = self.interpretation == "rgb" and tuple(bands[:3]) == (1, 2, 3)
        return replace(self, bands=tuple(bands), interpretation="rgb" if rgb else "bands")


def load_spec(record: Mapping[str, Any]) -> RasterSpec:
    """A raster spec from its fields, as given by `dataclasses.asdict`."""
    fields = {name: with_tuples(value) for name, value in record.items() if name != "space"}
    if fields.get("user_nodata"):
        fields["user_nodata"] = UserNodata(
            **{key: with_tuples(each) for key, each in record["user_nodata"].items()}
        )
    if fields.get("features"):
        fields["features"] = FeatureBands(
            **{key: with_tuples(each) for key, each in record["features"].items()}
        )
    space = {name: with_tuples(value) for name, value in record["space"].items()}
    for name, kind in (("metric", Metric), ("frame", Frame), ("lattice", Lattice)):
        if space.get(name):
            space[name] = kind(**{key: with_tuples(each) for key, each in space[name].items()})
    return RasterSpec(**fields, space=Space(**space))


@dataclass(frozen=True, slots=True)
class Block:
    """The input of a segmenter: one tile of an image."""

    tile: Tile
    pixels: NDArray[np.generic]
    """(y, x, band), or (z, y, x, band), of `tile.read`."""
    valid: NDArray[np.bool_]
    """Shape of `tile.read`; True where there is data."""
    spec: RasterSpec
    """The image that the tile is cut from, with its selected bands."""

    def samples(self) -> NDArray[np.generic]:
        """The valid pixels of the core in row order, shape (n, band)."""
        pixels: NDArray[np.generic] = self.tile.trim(self.pixels)
        valid: NDArray[np.bool_] = self.tile.trim(self.valid)
        return pixels.reshape(-1, pixels.shape[-1]) if valid.all() else pixels[valid]


@dataclass(frozen=True, slots=True)
class Labels:
    """A segmenter's output for one block."""

    values: NDArray[np.integer]
    """One label per pixel of `tile.read`. Only those of valid pixels of the core are used; a caller
    that needs more passes a block with a larger core.
    """
    class_of: tuple[int, ...] | None = None
    """Class of each instance, for object masks. None: the labels are classes."""
    score_of: tuple[float, ...] | None = None
    """Confidence per instance, 0 to 1; entry 0 is unused. None if not available."""


class Reader(Protocol):
    """An open image."""

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels (y, x, band) or (z, y, x, band), and `valid` (y, x) or (z, y, x), of any box
        inside the raster.

        Raises `ReadError` if the pixels in the file are broken. The arrays belong to the caller.
        """
        ...

    def __enter__(self) -> Reader: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of content that a format reads, and how it is recognised."""

    name: str
    """Name in messages: `TIFF`, or `NIfTI in gzip` for content in gzip."""
    suffixes: tuple[str, ...] = ()
    """Lower-case suffixes of such files, each with its dot: `.tif`, `.nii.gz`. Empty: they are
    recognised by their content, and only where the user names them.
    """
    signatures: tuple[tuple[int, bytes], ...] = ()
    """Offset and value of bytes in such files; one match suffices. Content in gzip needs none:
    those of the kind inside apply.
    """
    content: str = ""
    """Name of the kind that such files look like by their first bytes, such as `TIFF` for slides;
    only the suffix, or the name of the format in the recipe, then tells them apart.
    """
    markers: tuple[str, ...] = ()
    """Names of files that make the folder around them one image; one suffices. Empty for kinds of
    files.
    """
    sniffed: bool = False
    """Whether files without a suffix, or with a number in its place, may be of this kind. In
    folders, those of which `SeriesFormat.headers` knows nothing are passed over.
    """
    named: bool = False
    """Whether only files that an input names are of this kind: folders of images hold other files
    with the same suffix.
    """


class Format(Protocol):
    """A format of images: one file in `segcore/formats`, registered in `FORMATS`."""

    @property
    def kinds(self) -> tuple[FileKind, ...]:
        """The kinds of content that it reads. Messages propose the first suffix of each kind."""
        ...

    @property
    def mask(self) -> str:
        """Name in `MASKS` of the writer for masks of such images."""
        ...

    def describe(self, location: str, version: str) -> RasterSpec:
        """Read the header. Raises `FormatError` if the content does not match the name or exceeds
        the limits.
        """
        ...

    def open(self, spec: RasterSpec) -> Reader:
        """Open the image for reading; use as a context manager. Raises `ReadError`."""
        ...


@runtime_checkable
class ChoiceFormat(Format, Protocol, metaclass=CheckedOnce):
    """A format whose masks can be written in other ways, where the user asks for one."""

    @property
    def other_masks(self) -> tuple[str, ...]:
        """Names in `MASKS` of further writers for masks of such images."""
        ...


@runtime_checkable
class OptionsFormat(Format, Protocol, metaclass=CheckedOnce):
    """A format that reads one image in several ways, or whose files may hold several images."""

    def parts(self, image: StoredImage, options: ReadOptions) -> Sequence[str]:
        """Names of the images in a file, folder or series that holds several, such as `t0001`;
        letters, digits, `_`, `-` and `.`. Empty: it is one image. Raises as `describe`.
        """
        ...

    def describe_image(self, image: StoredImage, options: ReadOptions) -> RasterSpec:
        """Read the header of an image, of one part of a file, or of a series, whose files
        `RasterSpec.files` keeps for `open`.

        Raises as `describe`, and `FormatError` for options that do not suit the image.
        """
        ...


@runtime_checkable
class SeriesFormat(OptionsFormat, Protocol, metaclass=CheckedOnce):
    """A format whose images may consist of several files."""

    def headers_version(self, options: ReadOptions) -> str:
        """Changes when `headers` would say something else about the same file; stored headers of
        another version are read again.
        """
        ...

    def headers(self, files: Sequence[Member], options: ReadOptions) -> Sequence[str]:
        """What `group` needs to know of each file, as a short text without names or numbers of
        persons; workers read it, and it is stored. Empty: the file could not be read now, and is
        read again by the next run.
        """
        ...

    def group(
        self, files: Sequence[Member], headers: Sequence[str], options: ReadOptions
    ) -> Grouping:
        """The series among files with its suffixes; each other file is one image, which becomes a
        failed row later if it cannot be read.
        """
        ...


@runtime_checkable
class StoredFormat(Format, Protocol, metaclass=CheckedOnce):
    """A format whose `open` may deliver other numbers than those stored, such as colours for
    palette indices.
    """

    def open_stored(self, spec: RasterSpec) -> Reader:
        """Open the image with the numbers as stored: palette indices (one band), grey before
        scaling to 8 bits, inverted grey not inverted. Raises as `open`.
        """
        ...


@runtime_checkable
class PyramidFormat(Format, Protocol, metaclass=CheckedOnce):
    """A format whose files may hold an image at lower resolutions too, to look at from afar."""

    def reduced_shapes(self, spec: RasterSpec) -> Sequence[Shape]:
        """Shapes of the image of `spec` at the lower resolutions in its file, the finest first.
        Raises as `open`.
        """
        ...

    def open_reduced(self, spec: RasterSpec, number: int, *, stored: bool = False) -> Reader:
        """Open one of these, counted from 0; the reader takes boxes in its pixels. `stored`: with
        the numbers as stored, see `StoredFormat`. Raises as `open`.
        """
        ...


FORMATS: Registry[Format] = Registry("format", "maskloom.segcore.formats")
