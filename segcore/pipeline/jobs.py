"""Jobs: what is sent to workers, and the small answers that come back.

All are frozen values of a few hundred bytes that pickle. A job can be split into its smallest
parts, so that the one image that kills a worker can be found.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from maskloom.segcore.figures.thumbnails import PictureSizes
from maskloom.segcore.geometry import Grid, Tiling
from maskloom.segcore.models.protocols import (
    Coloured,
    EngineSelector,
    Fitter,
    Model,
    ObjectSegmenter,
    requirements_of,
)
from maskloom.segcore.pipeline.records import Failure, PlannedImage
from maskloom.segcore.raster.classes import ClassTable, ColourChoice
from maskloom.segcore.raster.source import Member, Source
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.raster.stored import ReadOptions
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.statistics.protocol import Statistic
from maskloom.segcore.storage.canonical import digest
from maskloom.segcore.storage.store import STAGING


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings common to all jobs of a run."""

    output: str
    """Root of the output store."""
    run_id: str
    model: Fitter | Model
    """A fitted model, or a fitter to run on each image separately."""
    statistics: Mapping[str, Statistic]
    tiling: Tiling
    kind: str = ""
    """Name of the segmenter in the tables."""
    objects: Objects | None = None
    """Options of the table of objects. None: no such table."""
    masks: Mapping[str, str] = field(default_factory=dict)
    """Names of mask writers in place of those of formats, by format."""
    colours: ColourChoice = field(default_factory=ColourChoice)
    """What decides the colours of the classes besides their names."""
    results: str = f"{STAGING}/results"
    """Folder below the output for masks and rows that are not committed yet. Each driver has a
    different one, since two may carry out the same run.
    """

    pictures: PictureSizes | None = None
    """Sizes of the small pictures for the report. None: no pictures."""
    scores: bool = False
    """Whether the scores of the classes are kept."""

    @property
    def joins(self) -> bool:
        """Whether objects must be joined across tiles, for a mask of objects or for their table."""
        return self.objects is not None or isinstance(self.model, ObjectSegmenter)

    @property
    def named(self) -> tuple[str, ...]:
        """Names of the classes that the options of statistics list."""
        return tuple(self.objects.classes or ()) if self.objects is not None else ()

    def class_table(self, names: tuple[str, ...], spec: RasterSpec) -> ClassTable:
        """Names and colours of the classes of an image."""
        model = self.model
        means = model.mean_colours(spec) if isinstance(model, Coloured) else None
        return self.colours.table(names, means)

    def grid(self, spec: RasterSpec) -> Grid:
        """The tiles of an image."""
        requirements = requirements_of(self.model, spec)
        halo = requirements.halo
        if not isinstance(halo, int) and len(halo) != len(spec.shape):
            # An image that a model of volumes will refuse is planned like the others.
            halo = max(halo)
        return self.tiling.grid(spec.shape, halo, requirements.planar)


@dataclass(frozen=True, slots=True)
class DescribeJob:
    """Files whose headers are to be read."""

    sources: tuple[Source, ...]
    format: str | None = None
    """Name of their format. None: determined by suffix and content."""
    options: ReadOptions = field(default_factory=ReadOptions)

    def split(self) -> tuple[DescribeJob, ...]:
        """A job for each file."""
        return tuple(replace(self, sources=(source,)) for source in self.sources)


@dataclass(frozen=True, slots=True)
class HeadersJob:
    """Files that may belong to series."""

    format: str
    """Name of their format."""
    members: tuple[Member, ...]
    options: ReadOptions = field(default_factory=ReadOptions)

    def split(self) -> tuple[HeadersJob, ...]:
        """A job for each file."""
        return tuple(replace(self, members=(member,)) for member in self.members)


@dataclass(frozen=True, slots=True)
class SelectEngineJob:
    """Select an engine on a worker, with the first of these images that can be read."""

    selector: EngineSelector
    images: tuple[PlannedImage, ...]

    @property
    def wants_gpu(self) -> bool:
        """True: the engine is selected where the network will run."""
        return True

    def split(self) -> tuple[SelectEngineJob, ...]:
        """A selection on each image: an image or the model may kill the worker."""
        return tuple(replace(self, images=(image,)) for image in self.images) or (self,)


@dataclass(frozen=True, slots=True)
class ImagesJob:
    """Whole images to observe or to segment."""

    settings: RunSettings
    images: tuple[PlannedImage, ...]

    @property
    def wants_gpu(self) -> bool:
        """Whether its model uses a GPU."""
        return self.settings.model.requirements.device == "gpu"

    def split(self) -> tuple[ImagesJob, ...]:
        """A job for each image."""
        return tuple(replace(self, images=(image,)) for image in self.images)


@dataclass(frozen=True, slots=True)
class TileRangeJob:
    """Some consecutive tiles of one large image to observe or to segment."""

    settings: RunSettings
    image: PlannedImage
    first: int
    stop: int

    @property
    def wants_gpu(self) -> bool:
        """Whether its model uses a GPU."""
        return self.settings.model.requirements.device == "gpu"

    def split(self) -> tuple[TileRangeJob, ...]:
        """A job for each tile."""
        return tuple(replace(self, first=i, stop=i + 1) for i in range(self.first, self.stop))

    @property
    def name(self) -> str:
        """Name of the results of the first pass, staged in the output store."""
        return f"{self._stem}.part"

    @property
    def labels(self) -> str:
        """Name of the staged labels of its tiles, for the second pass."""
        return f"{self._stem}.labels"

    @property
    def relabellings(self) -> str:
        """Name of the staged relabellings of its tiles."""
        return f"{self._stem}.relabellings"

    @property
    def relabelled(self) -> str:
        """Name of the staged results of the second pass."""
        return f"{self._stem}.relabelled"

    @property
    def _stem(self) -> str:
        folder = staging_folder(self.settings, self.image)
        return f"{folder}/{self.settings.tiling}-{self.first:08d}-{self.stop:08d}"


@dataclass(frozen=True, slots=True)
class _WholeImage:
    """A job done once for all parts of a large image."""

    settings: RunSettings
    image: PlannedImage
    ranges: tuple[tuple[int, int], ...]
    """First tile, and one past the last, of each part in their order."""

    @property
    def parts(self) -> tuple[TileRangeJob, ...]:
        """The jobs that staged the parts."""
        return tuple(
            TileRangeJob(self.settings, self.image, first, stop) for first, stop in self.ranges
        )

    def split(self) -> tuple[Self, ...]:
        """The job itself: it is for one image."""
        return (self,)


@dataclass(frozen=True, slots=True)
class JoinJob(_WholeImage):
    """The fragments of a large image, to be joined to objects."""


@dataclass(frozen=True, slots=True)
class RelabelJob:
    """Some tiles of a large image whose objects are joined, to be relabelled and measured."""

    part: TileRangeJob
    objects: int
    """Number of objects of the image."""

    @property
    def settings(self) -> RunSettings:
        """The settings of the run."""
        return self.part.settings

    @property
    def image(self) -> PlannedImage:
        """The image."""
        return self.part.image

    def split(self) -> tuple[RelabelJob, ...]:
        """The job itself: its relabellings are staged together."""
        return (self,)


@dataclass(frozen=True, slots=True)
class FinishJob(_WholeImage):
    """The parts of a large image, to be put together."""

    objects: int = 0
    """Number of objects of the image, if they were counted."""


Job = ImagesJob | TileRangeJob | JoinJob | RelabelJob | FinishJob
"""A job of segmentation."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The result of one round of fitting on the images of a job."""

    state: Any
    """Merged state of the images that could be read. None: no image could be read."""
    failures: tuple[tuple[PlannedImage, Failure], ...] = ()


@dataclass(frozen=True, slots=True)
class TileRangeResult:
    """The result of a job on part of a large image: its output is staged, or it failed."""

    failure: Failure | None = None
    objects: int = 0
    """Number of objects of the image, if they were joined."""


def staging_folder(settings: RunSettings, image: PlannedImage) -> str:
    """The folder for staged parts of a large image."""
    # By digest: the folder of image `a` must not contain that of image `a/b`.
    return f"{STAGING}/{settings.run_id}/{digest(image.source.image_id)[:16]}"


def result_name(settings: RunSettings) -> str:
    """A new name below the folder for results that are not committed yet."""
    return f"{settings.results}/{uuid.uuid4().hex}"
