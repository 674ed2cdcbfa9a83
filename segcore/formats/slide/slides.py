"""The format of slides.

Slides of Aperio are read here (`slide.aperio`), also from object stores. Those of other scanners,
and the few of Aperio in JPEG 2000 with separate colour, are read by the library OpenSlide
(`slide.vendors`), an extra, from disks. A TIFF of no scanner is no slide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from maskloom.segcore.errors import SourceChanged
from maskloom.segcore.formats.content import require_kind
from maskloom.segcore.formats.slide.aperio import Aperio
from maskloom.segcore.formats.slide.vendors import OpenSlide
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.raster.spec import FORMATS, FileKind, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import Reader

_VMS = FileKind(
    "a Hamamatsu slide (VMS)",
    signatures=(
        (0, b"[Virtual Microscope Specimen]"),
        (0, b"[Uncompressed Virtual Microscope Specimen]"),
    ),
)
"""Without a suffix, so that folders are not searched for it: its macro picture is a JPEG beside it.
"""
_TIFF = FileKind("a slide in TIFF", (".svs", ".ndpi", ".scn", ".bif"), content="TIFF")


@dataclass(frozen=True, slots=True)
class Slide:
    """Whole slides: Aperio, and by the extra `microscopy` those of other scanners."""

    kinds: tuple[FileKind, ...] = (
        _TIFF,
        FileKind("a MIRAX slide", (".mrxs",), content="JPEG"),
        FileKind("a Sakura slide", (".svslide",), content="SQLite or GeoPackage"),
        _VMS,
    )
    mask: str = "ome"

    def describe(self, location: str, version: str) -> RasterSpec:
        """Full resolution; see `segcore.raster.spec.Format.describe`."""
        return self.describe_image(StoredImage(location, version), ReadOptions())

    def parts(
        self,
        image: StoredImage,  # noqa: ARG002  the protocol has it
        options: ReadOptions,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """None: a slide is one image."""
        return ()

    def describe_image(self, image: StoredImage, options: ReadOptions) -> RasterSpec:
        """The level that the options ask for; see `OptionsFormat.describe_image`."""
        return _read(image.location).pyramid.spec(image.version, options)

    def open(self, spec: RasterSpec) -> Reader:
        """Open the level for reading; see `Format.open`. Several threads may use a reader."""
        slide = _read(spec.location)
        levels = slide.pyramid.levels
        if spec.level >= len(levels) or levels[spec.level] != spec.shape:
            raise SourceChanged(
                f"{spec.location} has changed since its header was read. Run the same command "
                "again."
            )
        return slide.open(spec)

    def reduced_shapes(self, spec: RasterSpec) -> tuple[Shape, ...]:
        """Those of the coarser levels; see `PyramidFormat.reduced_shapes`."""
        return _read(spec.location).pyramid.levels[spec.level + 1 :]

    def open_reduced(
        self,
        spec: RasterSpec,
        number: int,
        *,
        stored: bool = False,  # noqa: ARG002  the numbers are those stored
    ) -> Reader:
        """Open a coarser level; see `PyramidFormat.open_reduced`."""
        level = spec.level + 1 + number
        shape = _read(spec.location).pyramid.levels[level]
        return self.open(replace(spec, level=level, shape=shape))


FORMATS.register("slide")(Slide())


def _read(location: str) -> Aperio | OpenSlide:
    """The header of a slide. Raises `FormatError` and `Unavailable`."""
    source = StoredFile.of(location)
    if require_kind(location, source.head(), "slide") == _TIFF.name:
        aperio = Aperio.read(source)
        if aperio is not None:
            return aperio
    return OpenSlide.read(source)
