"""The records of a run: plan, shards, and the results of images.

    runs/<run_id>/plan.json        what is to be done, written before the work, never changed
    runs/<run_id>/plan.parquet     its images, one row each
    runs/<run_id>/model.json       the model fitted to the collection
    runs/<run_id>/manifest.json    what was done, written last

The id of a run is a hash of the segmenter, the versions of the inputs, the version of the code and
the run before it. So the same command finds its run and continues it, and no lock or clock is
needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from maskloom.segcore.errors import FitError, ImageError
from maskloom.segcore.figures.thumbnails import Pictures
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.storage.addresses import redacted
from maskloom.segcore.storage.canonical import canonical
from maskloom.segcore.values import pickled_by_fields

_HASHED = 1000
"""Versions of inputs that are hashed at a time."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image could not be processed."""

    error_type: str
    error: str
    permanent: bool
    """Whether the same bytes would fail again."""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The failure that corresponds to an error."""
        permanent = isinstance(error, ImageError | FitError) and error.permanent
        return cls(type(error).__name__, redacted(str(error)) or type(error).__name__, permanent)


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image of the plan: its source, and the metadata from its header."""

    source: Source
    spec: RasterSpec | None
    """None if the header could not be read."""
    failure: Failure | None = None
    """Why the image cannot be processed. None: no known reason."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A group of images that are committed together: one Parquet file in each table."""

    file: str
    """Name of its files in the tables' folders. An existing file is rewritten with its other rows
    kept.
    """
    images: Collection[PlannedImage]
    """In their order. A plan that was read back reads them from its file each time."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredImages(Collection[PlannedImage]):
    """Images that are read each time, so that a plan of a million holds none of them."""

    count: int
    read: Callable[[], tuple[PlannedImage, ...]]
    """Reads all of them."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[PlannedImage]:
        return iter(self.read())

    def __contains__(self, image: object) -> bool:
        return image in self.read()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StoredImages | tuple):
            return NotImplemented
        return self.read() == tuple(other)

    def __hash__(self) -> int:
        return hash(self.read())


@dataclass(frozen=True, slots=True)
class ImagesOfShards(Collection[PlannedImage]):
    """All images of some shards, one shard in memory at a time."""

    shards: Sequence[Shard]

    def __len__(self) -> int:
        return sum(len(shard.images) for shard in self.shards)

    def __iter__(self) -> Iterator[PlannedImage]:
        return (image for shard in self.shards for image in shard.images)

    def __contains__(self, image: object) -> bool:
        return any(image in shard.images for shard in self.shards)


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of one run."""

    run_id: str
    parent: str | None
    """The finished run before it. None: the first."""
    sequence: int
    """1 for the first run of an output, and so on."""
    fingerprint: str
    """Hash of everything that determines pixels and rows, except the inputs."""
    settings: Mapping[str, Any]
    """The values that the fingerprint hashes, with the versions of the libraries and the seed."""
    shards: tuple[Shard, ...]

    @property
    def images(self) -> ImagesOfShards:
        """All its images."""
        return ImagesOfShards(self.shards)


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class ImageResult:
    """The result of one image."""

    source: Source
    spec: RasterSpec | None
    failure: Failure | None
    rows: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows of each statistic's table, by its name."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """Staged rows of tables that are too large to send: the name of the file below the output, by
    the name of the table.
    """
    mask: str | None = None
    """Final name of the mask below the output."""
    staged: Mapping[str, str] = field(default_factory=dict)
    """Staged names of mask, preview and side-cars, by their final names."""
    mask_sha256: str | None = None
    nodata_pixels: int = 0
    tiles: int = 0
    seconds: float = 0.0
    """Total time spent on it by all workers."""
    segmenter: str = ""
    """Kind and fitted or selected parameters, as JSON."""
    warning: str | None = None
    """A warning about its result. None: no warning."""
    scores: str | None = None
    """Final name of the scores of its classes below the output. None: not asked for."""
    scores_sha256: str | None = None
    mean_entropy: float | None = None
    """Of its valid pixels: see `segcore.masks.quantised`."""
    mean_margin: float | None = None
    pictures: Pictures | None = None
    """Its small pictures for the report, of some kilobytes. None: not asked for."""


def run_id(name: str, fingerprint: str, inputs: Sequence[Source], parent: str | None) -> str:
    """The id of the run that processes these inputs after `parent`."""
    # As the digest of [fingerprint, versions, parent], without all versions in memory at once.
    hashed = hashlib.sha256(f"[{canonical(fingerprint)},[".encode())
    ordered = sorted(inputs, key=attrgetter("uri", "version"))
    for first in range(0, len(ordered), _HASHED):
        some = ordered[first : first + _HASHED]
        text = canonical([(source.uri, source.version) for source in some])[1:-1]
        hashed.update(f"{',' if first else ''}{text}".encode())
    hashed.update(f"],{canonical(parent)}]".encode())
    return f"{name}-{hashed.hexdigest()[:12]}"
