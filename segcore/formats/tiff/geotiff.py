"""TIFF and GeoTIFF, read by GDAL: any layout, windowed, from any store.

Which pixels are data (`valid`), among the bands that are read:

- a float pixel with NaN or infinity in any band is not; it is read as 0, so no method computes with
  NaN;
- a pixel that has the nodata value is not: in all bands of the file for RGB pictures (black is
  rare, one channel at 0 is not), in any selected band of other images (nodata values must not enter
  computations). Nodata that the type cannot represent is ignored. It refers to stored values:
  indices in a palette file, and numbers before inversion if 0 is white;
- a pixel of alpha 0, of a palette colour with alpha 0, or of an index without a colour, is not;
- a pixel that an internal or side-car (.msk) mask hides is not.

Integers of a file whose 0 is white (MinIsWhite) are inverted, so that larger is brighter. Pages
described as channels are bands; see `tiff.contents`. A palette becomes the three bands of its
colours. An alpha band is not a data band: band 4 of (red, green, blue, alpha, infrared) is
infrared. Other values are as GDAL reads them, without scale and offset.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from maskloom.segcore.errors import FormatError, ReadError, SourceChanged
from maskloom.segcore.formats.content import require_kind
from maskloom.segcore.formats.orientation import UPRIGHT, stored_box, transposed, turn, turn_shape
from maskloom.segcore.formats.pixels import drop_not_finite
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.formats.tiff import stack
from maskloom.segcore.formats.tiff.beside import SideMask
from maskloom.segcore.formats.tiff.contents import (
    Contents,
    SeveralPictures,
    ome_pixels,
    read_contents,
)
from maskloom.segcore.formats.tiff.dataset import TiffDataset, errors, fault, reason
from maskloom.segcore.formats.tiff.layout import Layout, read_layout
from maskloom.segcore.formats.tiff.sizes import (
    Sizes,
    imagej_sizes,
    metric_of,
    ome_sizes,
    tagged_sizes,
)
from maskloom.segcore.formats.tiff.stack_reader import open_stack
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.space import Metric
from maskloom.segcore.raster.dates import from_tag
from maskloom.segcore.raster.spec import FORMATS, FileKind, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from maskloom.segcore.formats.tiff.pages import Page
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import Reader

_STRIP_BYTES = 4 << 20
"""Bytes of the bands that are interleaved at a time; small enough for a processor's cache."""
_MERGED_BY_OPENCV = frozenset({"uint8", "uint16", "int16", "int32", "float32", "float64"})


@dataclass(frozen=True, slots=True)
class GeoTiff:
    """TIFF, GeoTIFF, COG, BigTIFF, OME-TIFF and ImageJ."""

    kinds: tuple[FileKind, ...] = (
        FileKind(
            "TIFF",
            (".tif", ".tiff", ".gtiff", ".btf"),
            ((0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+")),
        ),
    )
    mask: str = "cog"

    def describe(self, location: str, version: str) -> RasterSpec:
        """Read the header; see `segcore.raster.spec.Format.describe`."""
        return self.describe_image(StoredImage(location, version), ReadOptions())

    def parts(self, image: StoredImage, options: ReadOptions) -> Sequence[str]:
        """The times, positions and series of a stack; see `OptionsFormat.parts`."""
        one = _one_picture(_checked(image.location))
        return () if one else stack.parts(image, options)

    def describe_image(self, image: StoredImage, options: ReadOptions) -> RasterSpec:
        """Read the header of a picture, or of one in a stack; see
        `OptionsFormat.describe_image`.
        """
        location = image.location
        source = _checked(location)
        if image.part or not _one_picture(source):
            return stack.describe(image, options)
        if options.level != 0:
            reduced = stack.describe(image, options)
            if reduced.level:
                return reduced
        try:
            contents = read_contents(source)
            with contextlib.closing(_opened(source, contents, contents.page)) as dataset:
                layout = read_layout(dataset, source, contents.page)
                tags_count = options.pixel_size == "tags"
                metric, notes, acquired = dataset.run(
                    _tagged, dataset.raw, contents, layout, tags_count
                )
        except errors() as error:
            raise FormatError(fault(location, "The header of", error)) from error
        bands = _bands(contents, layout)
        painted = layout.palette is not None and len(contents.pages) == 1
        return RasterSpec(
            location=location,
            format="tiff",
            shape=layout.delivered_shape,
            bands=tuple(range(1, bands + 1)),
            dtype="uint8" if painted else layout.dtype,
            chunks=turn_shape(layout.chunks, layout.orientation),
            version=image.version,
            file_bands=bands,
            nodata=layout.nodata[0],
            interpretation="rgb" if layout.rgb or painted else "bands",
            space=replace(layout.space, metric=metric),
            notes=(*contents.notes, *layout.notes, *notes),
            band_names=() if painted else layout.names,
            scaling=() if painted else layout.scaling,
            acquired=acquired,
        )

    def open(self, spec: RasterSpec) -> Reader:
        """Open the file; see `segcore.raster.spec.Format.open`. A reader is for one thread at a
        time.
        """
        with contextlib.ExitStack() as resources:
            try:
                source = _checked(spec.location)
                if spec.part or spec.level or not _one_picture(source):
                    return open_stack(spec)
                contents = read_contents(source)
                apart = len(contents.pages) > 1
                # Channels that are not selected stay closed.
                wanted = [
                    band
                    for band in dict.fromkeys(spec.bands if apart else (1,))
                    if band <= len(contents.pages)
                ]
                pages = {
                    band: resources.enter_context(_page_reader(source, contents, band, spec))
                    for band in wanted
                }
            except errors() as error:
                raise ReadError(
                    f"{spec.location} cannot be opened: {reason(error)}. Write the file again."
                ) from error
            known = {
                (page.layout.delivered_shape, _bands(contents, page.layout))
                for page in pages.values()
            }
            if known != {(spec.shape, spec.file_bands)}:
                raise SourceChanged(
                    f"{spec.location} has changed since its header was read. Run the same command "
                    "again."
                )
            resources.pop_all()
        return ChannelReader(pages, spec) if apart else pages[1]

    def open_stored(self, spec: RasterSpec) -> Reader:
        """Open the file with the numbers as stored; see `StoredFormat.open_stored`."""
        reader = self.open(spec)
        stored_otherwise = isinstance(reader, TiffReader) and reader.stores_otherwise
        return cast("TiffReader", reader).as_stored() if stored_otherwise else reader

    def reduced_shapes(self, spec: RasterSpec) -> tuple[Shape, ...]:
        """Those of the overviews in the file; see `PyramidFormat.reduced_shapes`. None where a mask
        is beside the file, which may have none.
        """
        with self.open(spec) as reader:
            if not isinstance(reader, TiffReader) or reader.mask is not None:
                return ()
            factors = reader.dataset.run(reader.dataset.raw.overviews, 1)
        shapes = []
        for number in range(len(factors)):
            with self.open_reduced(spec, number) as reduced:
                assert isinstance(reduced, TiffReader)
                shapes.append(reduced.spec.shape)
        return tuple(shapes)

    def open_reduced(self, spec: RasterSpec, number: int, *, stored: bool = False) -> Reader:
        """Open an overview; see `PyramidFormat.open_reduced`."""
        with self.open(spec) as full:
            assert isinstance(full, TiffReader)
            layout = full.layout
        source = _checked(spec.location)
        try:
            dataset = TiffDataset.open(source, directory=full.dataset.directory, overview=number)
            raw = dataset.raw
            shape, block = dataset.run(lambda: (raw.shape, raw.block_shapes[0]))
        except errors() as error:
            raise ReadError(
                f"An overview of {spec.location} cannot be opened: {reason(error)}. Write the file "
                "again."
            ) from error
        layout = replace(layout, shape=tuple(shape), block=tuple(block), chunks=tuple(block))
        reader = TiffReader(dataset, layout, replace(spec, shape=layout.delivered_shape))
        return reader.as_stored() if stored and reader.stores_otherwise else reader


FORMATS.register("tiff")(GeoTiff())


@dataclass(slots=True)
class TiffReader:
    """An open page of a TIFF."""

    dataset: TiffDataset
    layout: Layout
    spec: RasterSpec
    mask: SideMask | None = None
    """The mask beside the file."""

    def __enter__(self) -> TiffReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.dataset.close()
        if self.mask is not None:
            self.mask.close()

    @property
    def stores_otherwise(self) -> bool:
        """Whether the stored numbers differ from the delivered ones: palette indices, or 0 for
        white.
        """
        return self.layout.palette is not None or self.layout.white is not None

    def as_stored(self) -> TiffReader:
        """A reader of the stored numbers, which replaces this one."""
        layout = replace(
            self.layout,
            palette=None,
            white=None,
            rgb=self.layout.rgb and self.layout.palette is None,
        )
        bands = (1,) if self.layout.palette is not None else self.spec.bands
        return replace(
            self,
            layout=layout,
            spec=replace(self.spec, bands=bands, dtype=layout.dtype, interpretation="bands"),
        )

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        orientation = self.layout.orientation
        try:
            pixels, valid = self.dataset.run(
                self._read, stored_box(box, self.spec.shape, orientation)
            )
        except errors() as error:
            raise ReadError(
                f"{self.spec.location}: rows {box.start[0]} to {box.stop[0]}, columns "
                f"{box.start[1]} to {box.stop[1]} cannot be "
                f"read: {reason(error)}. The file is damaged or incomplete; copy or write it again."
            ) from error
        return (
            (pixels, valid)
            if orientation == UPRIGHT
            else (turn(pixels, orientation), turn(valid, orientation))
        )

    def _read(self, box: Box) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        layout, spec = self.layout, self.spec
        if box.size == 0:
            return np.empty((*box.shape, spec.channels), spec.dtype), np.ones(box.shape, np.bool_)
        stored = (1,) if layout.palette is not None else spec.bands
        bands = [layout.data[band - 1] for band in stored]
        pixels, alpha = self._interleaved(box, bands)
        valid = self._valid(box, bands, pixels, alpha)
        drop_not_finite(pixels, valid)
        if layout.white is not None:
            for channel in (i for i, band in enumerate(bands) if band == layout.data[0]):
                np.subtract(
                    pixels.dtype.type(layout.white), pixels[..., channel], out=pixels[..., channel]
                )
        if layout.palette is not None:
            index, hidden = pixels[..., 0], layout.palette[:, 3] == 0
            if hidden.any():
                valid &= ~hidden[index]
            pixels = np.take(layout.palette[:, [band - 1 for band in spec.bands]], index, axis=0)
        return pixels, valid

    def _valid(
        self, box: Box, bands: Sequence[int], pixels: NDArray[Any], alpha: NDArray[Any] | None
    ) -> NDArray[np.bool_]:
        """True for pixels that are data by nodata, alpha and masks; `pixels` are as stored."""
        layout, valid = self.layout, np.ones(box.shape, np.bool_)
        absent = self._nodata(box, bands, pixels)
        if absent is not None:
            valid &= ~absent
        if alpha is not None:
            valid &= alpha != 0
        for band in (
            layout.masks
            if len(layout.masks) == 1
            else [band for band in bands if band in layout.masks]
        ):
            valid &= self.dataset.raw.read_masks(band, window=_window(box)) != 0
        if self.mask is not None:
            valid &= self.mask.valid(bands, _window(box))
        return valid

    def _nodata(
        self, box: Box, bands: Sequence[int], pixels: NDArray[Any]
    ) -> NDArray[np.bool_] | None:
        """True for pixels with the nodata value: in all bands of the file for RGB images, otherwise
        in any selected band. None: no such pixels.
        """
        layout = self.layout
        of_band = dict(zip(layout.data, layout.nodata, strict=True))
        if layout.rgb and set(bands) != set(layout.data) and all(map(_comparable, layout.nodata)):
            bands, pixels = layout.data, self._interleaved(box, layout.data)[0]
        same = [
            pixels[..., i] == pixels.dtype.type(of_band[band])
            for i, band in enumerate(bands)
            if _comparable(of_band[band])
        ]
        if not same or (layout.rgb and len(same) < len(bands)):
            return None
        combine = np.logical_and if layout.rgb else np.logical_or
        found: NDArray[np.bool_] = combine.reduce(same)
        return found

    def _interleaved(
        self, box: Box, bands: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Pixels, channel-last, and alpha. GDAL delivers bands one after the other; they are
        interleaved in strips of a few rows.
        """
        layout, raw = self.layout, self.dataset.raw
        pixels = np.empty((*box.shape, len(bands)), layout.dtype)
        if layout.alpha is None and len(bands) == 1:
            raw.read(bands[0], window=_window(box), out=pixels[..., 0])
            return pixels, None
        alpha = None if layout.alpha is None else np.empty(box.shape, layout.dtype)
        wanted = [*bands] if layout.alpha is None else [*bands, layout.alpha]
        row_bytes = box.shape[1] * len(wanted) * pixels.itemsize
        for strip in _strips(box, layout.block[0], _STRIP_BYTES // row_bytes):
            planes = raw.read(wanted, window=_window(strip))
            rows = strip.relative_to(box).slices[0]
            _merge(planes[: len(bands)], pixels[rows])
            if alpha is not None:
                alpha[rows] = planes[-1]
        return pixels, alpha


@dataclass(slots=True)
class ChannelReader:
    """An open TIFF whose bands are pages."""

    pages: Mapping[int, TiffReader]
    """By band."""
    spec: RasterSpec

    def __enter__(self) -> ChannelReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for page in self.pages.values():
            page.__exit__(kind, error, trace)

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        pixels, valid = (
            np.empty((*box.shape, self.spec.channels), self.spec.dtype),
            np.ones(box.shape, np.bool_),
        )
        for band, page in self.pages.items():
            plane, known = page.read(box)
            valid &= known
            for channel in (i for i, wanted in enumerate(self.spec.bands) if wanted == band):
                pixels[..., channel] = plane[..., 0]
        return pixels, valid


def _one_picture(source: StoredFile) -> bool:
    """Whether the file is one picture. Raises `FormatError` if it is broken."""
    try:
        read_contents(source)
    except SeveralPictures:
        return False
    return True


def _tagged(
    raw: Any, contents: Contents, layout: Layout, tags_count: bool
) -> tuple[Metric | None, tuple[str, ...], str | None]:
    """What the tags of the file say: see `_metric` and `_acquired`."""
    tags = raw.tags()
    return *_metric(tags, contents, layout, tags_count), _acquired(raw, tags)


def _acquired(raw: Any, tags: Mapping[str, str]) -> str | None:
    """When the image was acquired: by the metadata of GDAL's drivers, by EXIF, or by the tag
    DateTime, which is the time of writing where other programs have written the file again.
    """
    domains = raw.tag_namespaces()
    imagery = raw.tags(ns="IMAGERY") if "IMAGERY" in domains else {}
    exif = {**tags, **(raw.tags(ns="EXIF") if "EXIF" in domains else {})}
    return (
        from_tag(imagery.get("ACQUISITIONDATETIME"))
        or from_tag(exif.get("EXIF_DateTimeOriginal"), exif.get("EXIF_OffsetTimeOriginal"))
        or from_tag(tags.get("TIFFTAG_DATETIME"))
    )


def _metric(
    tags: Mapping[str, str], contents: Contents, layout: Layout, tags_count: bool
) -> tuple[Metric | None, tuple[str, ...]]:
    """The size of a pixel that the file states, and a note if it is not usable; `tags_count` if the
    resolution tags are to be believed.
    """
    if layout.space.placed or layout.space.crs is not None:
        return None, ()
    description = contents.first.description
    across, down = (float(tags.get(f"TIFFTAG_{axis}RESOLUTION") or 0) for axis in "XY")
    resolution = (across, down)
    described = ome_pixels(description, contents.page.shape)
    sizes: Sizes = {}
    if described:
        sizes = ome_sizes(described[0])
    elif description.startswith("ImageJ="):
        sizes = imagej_sizes(description, resolution)
    if tags_count:
        unit = tags.get("TIFFTAG_RESOLUTIONUNIT", "")[:1]
        sizes = tagged_sizes(resolution, int(unit) if unit.isdecimal() else 0)
    metric, notes = metric_of(sizes, layout.space.axes, "tags" if tags_count else "file")
    if metric is not None and transposed(layout.orientation):
        metric = replace(metric, spacing=metric.spacing[::-1])
    return metric, notes


def _checked(location: str) -> StoredFile:
    source = StoredFile.of(location)
    require_kind(location, source.head(), "tiff")
    return source


def _opened(source: StoredFile, contents: Contents, page: Page) -> TiffDataset:
    return TiffDataset.open(source, directory=None if page is contents.first else page.offset)


def _bands(contents: Contents, layout: Layout) -> int:
    return layout.bands if len(contents.pages) == 1 else len(contents.pages)


def _page_reader(
    source: StoredFile, contents: Contents, number: int, spec: RasterSpec
) -> TiffReader:
    page = contents.pages[number - 1]
    with contextlib.ExitStack() as stack:
        dataset = stack.enter_context(contextlib.closing(_opened(source, contents, page)))
        layout = read_layout(dataset, source, page, spec.space)
        mask = None
        # As in GDAL, a mask in the file takes precedence over one beside it.
        if not layout.masks:
            mask = SideMask.open(source, layout.shape, dataset.run(lambda: dataset.raw.count))
        if len(contents.pages) > 1:
            # The colours of a channel are for display; its numbers are the measured values.
            layout, spec = replace(layout, palette=None), replace(spec, bands=(1,), file_bands=1)
        stack.pop_all()
    return TiffReader(dataset, layout, spec, mask)


def _window(box: Box) -> Any:
    from rasterio.windows import Window

    return Window(box.start[1], box.start[0], box.shape[1], box.shape[0])


def _strips(box: Box, block_rows: int, rows: int) -> Iterable[Box]:
    """The box in strips of about `rows` rows that end at boundaries of blocks, so that no block is
    decoded twice.
    """
    step = block_rows * max(1, rows // block_rows)
    cuts = [box.start[0], *range((box.start[0] // step + 1) * step, box.stop[0], step), box.stop[0]]
    return [
        Box((top, box.start[1]), (bottom, box.stop[1])) for top, bottom in itertools.pairwise(cuts)
    ]


def _merge(planes: NDArray[Any], out: NDArray[Any]) -> None:
    """Write bands (band, y, x) into `out` (y, x, band)."""
    if out.dtype.name in _MERGED_BY_OPENCV and 1 < len(planes) <= 4:
        import cv2

        merged = cv2.merge(list(planes), dst=out)
        if merged is out:
            return
        out[...] = merged
        return
    for channel, plane in enumerate(planes):
        out[..., channel] = plane


def _comparable(nodata: float | None) -> bool:
    return nodata is not None and not math.isnan(nodata)
