"""Reading the images of a plan on a worker: their headers, and the pixels of images that must not
have changed since.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore import formats
from maskloom.segcore.errors import (
    FormatError,
    ImageError,
    Missing,
    ReadError,
    RunError,
    SourceChanged,
    StoreError,
    Unavailable,
)
from maskloom.segcore.features.named import with_features
from maskloom.segcore.formats.user_nodata import with_user_nodata
from maskloom.segcore.geometry import Box, Tile
from maskloom.segcore.ground.control import with_fitted_affine
from maskloom.segcore.ground.space import PixelSize
from maskloom.segcore.pipeline.jobs import DescribeJob, HeadersJob
from maskloom.segcore.pipeline.records import Failure, PlannedImage
from maskloom.segcore.processes import limits
from maskloom.segcore.raster.dates import DateInName
from maskloom.segcore.raster.readers import NothingToClose
from maskloom.segcore.raster.source import ABSENT, Source, learn_addresses, version_now
from maskloom.segcore.raster.spec import FORMATS, Block, RasterSpec, Reader, SeriesFormat
from maskloom.segcore.raster.stored import ReadOptions
from maskloom.segcore.storage.addresses import remember_address
from maskloom.segcore.storage.failpoints import failpoint
from maskloom.segcore.storage.filesystems import filesystem, info_of, is_local

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAME = 1e-3
"""Relative difference up to which two sizes of a pixel are the same."""


def describe_source(source: Source, job: DescribeJob) -> list[PlannedImage]:
    """The images of a source for the plan, each with its header or a failure."""
    learn_addresses(source)
    limits.begin_read()
    try:
        if source.version == ABSENT:
            raise Missing(f"{source.location} does not exist. Check its name in `inputs`.")
        with _image_failures(source.uri):
            failpoint("describe", source.uri)
            _require_regular_files(source)
            version = _version(source)
            if is_local(source.location) and version != source.version:
                raise _changed(source.uri)
            # Some stores list a file with another version than they report for the file itself:
            # later checks compare with this one.
            found = formats.describe_images(source, version, job.format, job.options)
            return [_planned(image, header, job.options) for image, header in found]
    except ImageError as error:
        return [PlannedImage(source, None, Failure.of(error))]


def _planned(
    source: Source, header: RasterSpec | FormatError, options: ReadOptions
) -> PlannedImage:
    try:
        if isinstance(header, FormatError):
            raise header
        if source.acquired is not None:
            header = replace(header, acquired=source.acquired)
            options = replace(options, acquired=None)
        return PlannedImage(source, placed(header, options, source.uri))
    except FormatError as error:
        return PlannedImage(source, None, Failure.of(error))


def read_headers(job: HeadersJob) -> tuple[str, ...]:
    """What the format needs to know of each file to group them; empty for a file that cannot be
    read.
    """
    image_format = FORMATS[job.format]
    if not isinstance(image_format, SeriesFormat):
        raise TypeError(f"the format {job.format!r} has no series")
    for member in job.members:
        remember_address(member.uri, member.address)
    limits.begin_read()
    return tuple(image_format.headers(job.members, job.options))


def placed(spec: RasterSpec, options: ReadOptions, uri: str = "") -> RasterSpec:
    """The metadata with the position, the pixel size, the nodata value, the features and the date
    that the user wants; `uri` is that of the image, if it is not the location. Raises
    `FormatError`.
    """
    if options.ground_control == "affine":
        spec = _fitted_to_ground(spec)
    if options.nodata is not None:
        spec = with_user_nodata(spec, options.nodata)
    if options.acquired is not None:
        spec = _dated(spec, options.acquired, uri or spec.location)
    spec = _with_plausible_size(spec)
    if isinstance(options.pixel_size, PixelSize):
        spec = _sized(spec, options.pixel_size)
    return with_features(spec, options)


def _dated(spec: RasterSpec, dates: DateInName, uri: str) -> RasterSpec:
    """The metadata with the date in the name of the image, or else with its own."""
    found = dates.find(uri)
    if found is not None:
        return replace(spec, acquired=found)
    instead = "the date in the file is used" if spec.acquired else "`acquired` is empty"
    note = f"its name holds no date like {dates.name!r}, so {instead}"
    return replace(spec, notes=(*spec.notes, note))


def _with_plausible_size(spec: RasterSpec) -> RasterSpec:
    stated = spec.space.metric
    if stated is None or stated.is_plausible:
        return spec
    note = (
        f"its pixel size, {stated}, is not used, and sizes are in px: expected 1 nm to 1 m. Set "
        "`pixel_size`"
    )
    return replace(spec, space=replace(spec.space, metric=None), notes=(*spec.notes, note))


def _sized(spec: RasterSpec, size: PixelSize) -> RasterSpec:
    """The metadata with the size of a pixel at full resolution in the user's words."""
    stated, notes = spec.space.metric, spec.notes
    if spec.space.crs is not None:
        note = "`pixel_size` is not used, since its coordinate reference system gives the areas"
        return replace(spec, notes=(*notes, note))
    try:
        metric = size.metric(spec.space.axes)
    except ValueError as error:
        raise FormatError(
            f"{spec.location} does not suit the recipe's pixel_size: {error}."
        ) from error
    if spec.reduction:
        spacing = zip(metric.spacing, spec.reduction, strict=True)
        metric = replace(metric, spacing=tuple(step * factor for step, factor in spacing))
    if stated is not None and not np.allclose(stated.millimetres, metric.millimetres, _SAME, 0):
        notes = (*notes, f"`pixel_size` replaces {stated}, its own pixel size")
    return replace(spec, space=replace(spec.space, metric=metric, lattice=None), notes=notes)


def _require_regular_files(source: Source) -> None:
    """Raise `FormatError` for a pipe: opening it would block until a process writes to it."""
    for uri in (
        () if source.is_folder else [each.uri for each in source.members] or [source.location]
    ):
        fs, path = filesystem(uri)
        if is_local(uri) and info_of(fs, path)["type"] != "file":
            raise FormatError(f"{uri} is not a regular file. Leave it out of `inputs`.")


def _fitted_to_ground(spec: RasterSpec) -> RasterSpec:
    space, note = with_fitted_affine(spec.space, spec.shape)
    if not note:
        return spec
    # The reader's note on ground control points no longer applies.
    return replace(
        spec,
        space=space,
        notes=(*(kept for kept in spec.notes if "ground control points" not in kept), note),
    )


def read_block(reader: Reader, tile: Tile, spec: RasterSpec) -> Block:
    """Read the block of a tile. Raises `ReadError`."""
    pixels, valid = reader.read(tile.read)
    return Block(tile, pixels, valid, spec)


def spec_of(image: PlannedImage) -> RasterSpec:
    """The metadata of a planned image. Raises `ReadError` if its header could not be read."""
    if image.spec is None:
        raise ReadError(f"The header of {image.source.uri} could not be read.")
    return image.spec


@contextlib.contextmanager
def open_planned(image: PlannedImage, spec: RasterSpec) -> Iterator[Reader]:
    """Open the image with the bands of `spec`. Raises `SourceChanged` unless its version is the
    planned one before and after it is read.
    """
    learn_addresses(image.source)
    planned = spec_of(image)
    with _image_failures(planned.location):
        limits.begin_read(prod(planned.chunks))
        _require_unchanged(image)
        failpoint("open", image.source.uri)
        try:
            with formats.open_image(spec) as reader:
                yield _AnnouncingReader(reader, prod(planned.chunks))
        except ImageError:
            # The content may have been a mix of two versions of the file.
            _require_unchanged(image)
            raise
        limits.begin_read()
        _require_unchanged(image)
    limits.begin_work(planned.pixels)


@dataclass(frozen=True, slots=True)
class _AnnouncingReader(NothingToClose):
    """A reader that announces the begin of each read, and of the work on the pixels."""

    reader: Reader
    least: int
    """Smallest number of pixels that are decoded for a read."""

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        limits.begin_read(max(box.size, self.least))
        block = self.reader.read(box)
        limits.begin_work(box.size)
        return block


def _require_unchanged(image: PlannedImage) -> None:
    if _version(image.source) != spec_of(image).version:
        raise _changed(image.source.uri)


def _version(source: Source) -> str:
    try:
        return version_now(source)
    except StoreError as error:
        raise Unavailable(str(error)) from error


def _changed(uri: str) -> SourceChanged:
    return SourceChanged(
        f"{uri} was changed or replaced since the run was planned. The next run takes it as it is "
        "then."
    )


@contextlib.contextmanager
def _image_failures(uri: str) -> Iterator[None]:
    """Turn errors of stores and lack of memory into a failure of the image, which the next run
    tries again.
    """
    try:
        yield
    except (ImageError, RunError):
        raise
    except FileNotFoundError as error:
        # fsspec raises this for any error of a web server, with the answer as the cause.
        reason = (
            f"its store did not give it ({error.__cause__})"
            if error.__cause__
            else "it does not exist any longer"
        )
        raise Unavailable(
            f"{uri} could not be read: {reason}. Run the same command again."
        ) from error
    except MemoryError as error:
        raise Unavailable(
            f"Not enough memory for {uri}: {error}. Use smaller tiles or fewer workers."
        ) from error
    except OSError as error:
        raise Unavailable(f"{uri} could not be read: {error}") from error
