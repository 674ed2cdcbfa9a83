"""A bench for the work on images: pictures and an output in memory, and jobs done one by one."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from PIL import Image

from maskloom.segcore.errors import NothingToFit
from maskloom.segcore.geometry import Tiling
from maskloom.segcore.models.protocols import Exactness, Requirements
from maskloom.segcore.pipeline import worker
from maskloom.segcore.pipeline.jobs import (
    DescribeJob,
    FinishJob,
    ImagesJob,
    JoinJob,
    RelabelJob,
    RunSettings,
    TileRangeJob,
)
from maskloom.segcore.pipeline.records import ImageResult, PlannedImage
from maskloom.segcore.raster.source import ABSENT, Source
from maskloom.segcore.raster.spec import Block, Labels, RasterSpec
from maskloom.segcore.statistics.area import Area
from maskloom.segcore.storage.filesystems import current_version
from maskloom.segcore.storage.store import Store


@dataclass(frozen=True)
class Brighter:
    """A segmenter that can be checked by eye: class 1 where a band is above a value."""

    above: float = 100
    band: int = 1

    classes: ClassVar[tuple[str, ...]] = ("dark", "bright")
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requirements: ClassVar[Requirements] = Requirements()

    def select(self, spec: RasterSpec) -> RasterSpec:
        return spec.select((self.band,))

    def segment(self, block: Block) -> Labels:
        return Labels((block.pixels[..., 0] > self.above).astype(np.uint8))

    def provenance(self) -> dict[str, Any]:
        return {"above": self.above}


@dataclass(frozen=True)
class BrighterThanMean:
    """A fitter that can be checked by eye: it ends as `Brighter` than the mean of what it saw."""

    expected_classes: ClassVar[tuple[str, ...]] = Brighter.classes
    requirements: ClassVar[Requirements] = Requirements()

    def select(self, spec: RasterSpec) -> RasterSpec:
        return spec.select((1,))

    def kind_of(self, spec: RasterSpec) -> None:
        return None

    def observe(self, block: Block) -> tuple[int, int]:
        return int(block.samples().sum()), len(block.samples())

    def merge(self, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        return a[0] + b[0], a[1] + b[1]

    def finish(self, total: tuple[int, int]) -> Brighter:
        if not total[1]:
            raise NothingToFit("no valid pixel")
        return Brighter(total[0] / total[1])


@dataclass(frozen=True)
class Bench:
    """Pictures and an output below one folder in memory."""

    root: str

    def write(self, image_id: str, content: bytes) -> Source:
        """A file among the images, as it is found when a run is planned."""
        uri = f"{self.root}/images/{image_id}.png"
        with fsspec.open(uri, "wb") as file:
            file.write(content)
        return Source(uri, image_id, current_version(uri), len(content))

    def absent(self, image_id: str) -> Source:
        """A file that is named and does not exist."""
        return Source(f"{self.root}/images/{image_id}.png", image_id, ABSENT, 0)

    def plan(self, image_id: str, pixels: np.ndarray) -> PlannedImage:
        """A picture (y, x, band) among the images, its header read."""
        (image,) = worker.describe(DescribeJob((self.write(image_id, png(pixels)),)))
        assert image.failure is None
        return image

    def settings(self, model: Any, tile: int = 16, **changes: Any) -> RunSettings:
        """What the jobs of a run with this model have in common."""
        return RunSettings(
            **{
                "output": f"{self.root}/out",
                "run_id": "run-1",
                "model": model,
                "statistics": {"area": Area()},
                "tiling": Tiling(tile),
                "kind": "brighter",
                **changes,
            }
        )

    def segment(self, settings: RunSettings, image: PlannedImage) -> ImageResult:
        """The image as a small one: from reading to the mask in one job."""
        (result,) = worker.perform(ImagesJob(settings, (image,)))
        return result

    def segment_in_parts(
        self, settings: RunSettings, image: PlannedImage, *borders: int
    ) -> ImageResult:
        """The image as a large one: a job for the tiles between each two borders, then the others.

        Jobs of one kind are done last one first, since nothing may depend on their order.
        """
        ranges = tuple(pairwise((0, *borders, self.tiles(settings, image))))
        parts = [TileRangeJob(settings, image, *each) for each in ranges]
        for part in parts[::-1]:
            assert worker.perform(part).failure is None
        objects = 0
        if settings.joins:
            joined = worker.perform(JoinJob(settings, image, ranges))
            assert joined.failure is None
            objects = joined.objects
            for part in parts[::-1]:
                assert worker.perform(RelabelJob(part, objects)).failure is None
        return worker.perform(FinishJob(settings, image, ranges, objects))

    def tiles(self, settings: RunSettings, image: PlannedImage) -> int:
        """Number of tiles of the image."""
        assert image.spec is not None
        return len(settings.grid(image.spec))

    def read(self, settings: RunSettings, name: str) -> bytes:
        """What stands under a name of the output."""
        return Store(settings.output).read(name)

    def mask(self, settings: RunSettings, result: ImageResult) -> np.ndarray:
        """The staged mask (y, x)."""
        assert result.mask is not None
        content = self.read(settings, result.staged[result.mask])
        return np.asarray(Image.open(io.BytesIO(content)))


def png(pixels: np.ndarray) -> bytes:
    """Pixels (y, x, band) as a PNG of 1 to 4 bands."""
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def bench() -> Iterator[Bench]:
    root = f"memory://bench-{uuid.uuid4().hex}"
    yield Bench(root)
    fs, path = fsspec.core.url_to_fs(root)
    if fs.exists(path):
        fs.rm(path, recursive=True)


@pytest.fixture
def pixels() -> np.ndarray:
    """A photograph of (45, 70) pixels, RGB: neither side is a multiple of a tile's."""
    from skimage import data

    return data.astronaut()[20:65, 190:260]


@pytest.fixture
def brighter() -> type[Brighter]:
    return Brighter


@pytest.fixture
def brighter_than_mean() -> type[BrighterThanMean]:
    return BrighterThanMean
