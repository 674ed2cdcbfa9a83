"""Jobs: what is sent to workers, and the small answers that come back.

All are frozen values of a few hundred bytes that pickle. A job can be split into its smallest
parts, so that the one item that kills a worker can be found.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from maskloom.segcore.geometry import Grid, Tiling
from maskloom.segcore.models.protocols import EngineSelector, Fitter, Model, ObjectSegmenter
from maskloom.segcore.pipeline.records import Failure, PlannedImage
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.statistics.protocol import Statistic
from maskloom.segcore.storage.canonical import digest
from maskloom.segcore.storage.store import STAGING

GroundControl = Literal["keep", "affine"]
"""Ground control points are kept as they are, or replaced by the affine transform that fits them
best.
"""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What all jobs of a run have in common."""

    output: str
    """Root of the output store."""
    run_id: str
    model: Fitter | Model
    """Ready, or to be fitted to each image by itself."""
    statistics: Mapping[str, Statistic]
    tiling: Tiling
    kind: str = ""
    """Name of the segmenter in the tables."""
    objects: Objects | None = None
    """The table of objects. None: none is asked for."""
    results: str = f"{STAGING}/results"
    """Folder below the output where masks and rows wait for their commit. Each driver has its own,
    since two may do the same run.
    """

    @property
    def joins(self) -> bool:
        """Whether objects must be joined over tiles: the mask is one of objects, or their table is
        asked for.
        """
        return self.objects is not None or isinstance(self.model, ObjectSegmenter)

    @property
    def named(self) -> tuple[str, ...]:
        """Classes that the statistics ask for by name."""
        return tuple(self.objects.classes or ()) if self.objects is not None else ()

    def grid(self, spec: RasterSpec) -> Grid:
        """The tiles of an image."""
        requirements = self.model.requirements
        return self.tiling.grid(spec.shape, requirements.halo, requirements.planar)


@dataclass(frozen=True, slots=True)
class DescribeJob:
    """Files whose headers are to be read."""

    sources: tuple[Source, ...]
    format: str | None = None
    """Name of their format. None: by suffix and content."""
    ground_control: GroundControl = "keep"
    """What to make of ground control points, where nothing else places an image."""

    def split(self) -> tuple[DescribeJob, ...]:
        """A job for each file."""
        return tuple(replace(self, sources=(source,)) for source in self.sources)


@dataclass(frozen=True, slots=True)
class SelectEngineJob:
    """An engine selection on a worker, with the first of these images that can be read."""

    selector: EngineSelector
    images: tuple[PlannedImage, ...]

    def split(self) -> tuple[SelectEngineJob, ...]:
        """The same selection on each image: either an image or the model may kill the worker."""
        return tuple(replace(self, images=(image,)) for image in self.images) or (self,)


@dataclass(frozen=True, slots=True)
class ImagesJob:
    """Whole images to observe or to segment."""

    settings: RunSettings
    images: tuple[PlannedImage, ...]

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
    """What is done once for all parts of a large image."""

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
        """Itself: it is one image already."""
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
        """What all jobs of the run have in common."""
        return self.part.settings

    @property
    def image(self) -> PlannedImage:
        """The image."""
        return self.part.image

    def split(self) -> tuple[RelabelJob, ...]:
        """Itself: its relabellings are staged as one."""
        return (self,)


@dataclass(frozen=True, slots=True)
class FinishJob(_WholeImage):
    """The parts of a large image, to be put together."""

    objects: int = 0
    """Number of objects of the image, where they were counted."""


Job = ImagesJob | TileRangeJob | JoinJob | RelabelJob | FinishJob
"""A job of segmentation."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one round of fitting learned from a job."""

    state: Any
    """Merged state of the images that could be read. None: of no image."""
    failures: tuple[tuple[PlannedImage, Failure], ...] = ()


@dataclass(frozen=True, slots=True)
class TileRangeResult:
    """Something of a large image was staged, or could not be made."""

    failure: Failure | None = None
    objects: int = 0
    """Number of objects of the image, where they were joined."""


def staging_folder(settings: RunSettings, image: PlannedImage) -> str:
    """Where the parts of a large image wait to be joined."""
    # By digest: the folder of image `a` must not hold that of image `a/b`.
    return f"{STAGING}/{settings.run_id}/{digest(image.source.image_id)[:16]}"


def result_name(settings: RunSettings) -> str:
    """A new name below the folder where results wait for their commit."""
    return f"{settings.results}/{uuid.uuid4().hex}"
