"""TIFF and GeoTIFF, read by GDAL: any layout, windowed, from any store.

Files of several pictures are stacks (`tiff.stack`); `tiff.reader` says which pixels are data.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from maskloom.segcore.errors import FormatError, ReadError, SourceChanged
from maskloom.segcore.formats.content import require_kind
from maskloom.segcore.formats.orientation import turn_shape
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.formats.tiff import stack
from maskloom.segcore.formats.tiff.beside import SideMask
from maskloom.segcore.formats.tiff.contents import Contents, SeveralPictures, read_contents
from maskloom.segcore.formats.tiff.dataset import TiffDataset, errors, fault, reason
from maskloom.segcore.formats.tiff.layout import Layout, read_layout
from maskloom.segcore.formats.tiff.reader import ChannelReader, TiffReader
from maskloom.segcore.formats.tiff.stack_reader import open_stack
from maskloom.segcore.formats.tiff.tags import read_tags
from maskloom.segcore.raster.spec import FORMATS, FileKind, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maskloom.segcore.formats.tiff.pages import Page
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import Reader


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
                    read_tags, dataset.raw, contents, layout, tags_count
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


def _one_picture(source: StoredFile) -> bool:
    """Whether the file is one picture. Raises `FormatError` if it is broken."""
    try:
        read_contents(source)
    except SeveralPictures:
        return False
    return True


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
