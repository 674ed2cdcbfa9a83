"""Jobs: what is sent to workers, and the small answers that come back.

All are frozen values of a few hundred bytes that pickle. A job can be split into its smallest parts, so that the one item that kills a worker
can be found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from segcore.geometry import Grid
from segcore.manifest import Failure, Item, Source, digest
from segcore.model import Fitter, Segmenter
from segcore.raster import RasterSpec
from segcore.statistic import Statistic
from segcore.storage import STAGING


@dataclass(frozen=True, slots=True)
class Order:
    """What all jobs of a run have in common."""

    output: str
    """Root of the output store."""
    run_id: str
    model: Fitter | Segmenter
    """Ready, or to be fitted to each image by itself."""
    statistics: Mapping[str, Statistic]
    tile: int
    """Side of a tile, in pixels."""
    kind: str = ""
    """Name of the segmenter in the tables."""

    def grid(self, spec: RasterSpec) -> Grid:
        """The tiles of an image."""
        return Grid(spec.shape, (self.tile, self.tile), self.model.footprint.halo)


@dataclass(frozen=True, slots=True)
class DescribeJob:
    """Files whose headers are to be read."""

    sources: tuple[Source, ...]
    format: str | None = None
    """Name of their format. None: by suffix and content."""

    def split(self) -> tuple[DescribeJob, ...]:
        """A job for each file."""
        return tuple(replace(self, sources=(source,)) for source in self.sources)


@dataclass(frozen=True, slots=True)
class ImagesJob:
    """Whole images to observe or to segment."""

    order: Order
    items: tuple[Item, ...]

    def split(self) -> tuple[ImagesJob, ...]:
        """A job for each image."""
        return tuple(replace(self, items=(item,)) for item in self.items)


@dataclass(frozen=True, slots=True)
class PartJob:
    """Some consecutive tiles of one large image to observe or to segment."""

    order: Order
    item: Item
    first: int
    stop: int

    def split(self) -> tuple[PartJob, ...]:
        """A job for each tile."""
        return tuple(replace(self, first=i, stop=i + 1) for i in range(self.first, self.stop))

    @property
    def name(self) -> str:
        """Name of the staged part in the output store."""
        return f"{staging_folder(self.order, self.item)}/{self.order.tile}-{self.first:08d}-{self.stop:08d}.part"


@dataclass(frozen=True, slots=True)
class FinishJob:
    """The parts of a large image, to be joined."""

    order: Order
    item: Item
    parts: tuple[str, ...]

    def split(self) -> tuple[FinishJob, ...]:
        """Itself: it is one image already."""
        return (self,)


@dataclass(frozen=True, slots=True)
class Observation:
    """What one round of fitting learned from a job."""

    state: Any
    """Merged state of the images that could be read. None: of no image."""
    failures: tuple[tuple[Item, Failure], ...] = ()


@dataclass(frozen=True, slots=True)
class PartReceipt:
    """A part of a large image was staged, or could not be made."""

    failure: Failure | None = None


def staging_folder(order: Order, item: Item) -> str:
    """Where the parts of a large image wait to be joined."""
    # By digest: the folder of image `a` must not hold that of image `a/b`.
    return f"{STAGING}/{order.run_id}/{digest(item.source.image_id)[:16]}"
