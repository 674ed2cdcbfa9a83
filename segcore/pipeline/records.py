"""The records of a run: plan, shards, and the results of images.

    runs/<run_id>/plan.json        what is to be done, written before the work, never changed
    runs/<run_id>/plan.parquet     its images, one row each
    runs/<run_id>/model.json       what was fitted to the collection
    runs/<run_id>/manifest.json    what was done, written last

A run is found by what it is about: its id hashes the segmenter, the versions of the inputs, the
version of the code and the run before it. So the same command finds its own run and goes on, and
nothing needs a lock or a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maskloom.segcore.errors import FitError, ImageError
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.storage.addresses import redacted
from maskloom.segcore.storage.canonical import digest


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image could not be processed."""

    error_type: str
    error: str
    permanent: bool
    """Whether the same bytes would fail again."""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The failure that this error means."""
        permanent = isinstance(error, ImageError | FitError) and error.permanent
        return cls(type(error).__name__, redacted(str(error)) or type(error).__name__, permanent)


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image of the plan: its source, and what its header told."""

    source: Source
    spec: RasterSpec | None
    """None where the header could not be read."""
    failure: Failure | None = None
    """Why the image cannot be processed. None: nothing is known against it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A group of images that is committed together: one Parquet file in each table."""

    file: str
    """Name of its files in the tables' folders. An existing name is rewritten, its other rows are
    kept.
    """
    images: tuple[PlannedImage, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run will do."""

    run_id: str
    parent: str | None
    """The finished run before it. None: the first."""
    sequence: int
    """1 for the first run of an output, and so on."""
    fingerprint: str
    """Hash of all that decides pixels and rows, the inputs aside."""
    settings: Mapping[str, Any]
    """What the fingerprint hashes, in clear, with the versions of the libraries and the seed."""
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What became of one image."""

    source: Source
    spec: RasterSpec | None
    failure: Failure | None
    rows: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows of each statistic's table, by its name."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """Staged rows of tables too large to travel: the name of the file below the output, by the
    table's.
    """
    mask: str | None = None
    """Name that the mask will have below the output."""
    staged: Mapping[str, str] = field(default_factory=dict)
    """Where mask, preview and side-cars wait for their commit, by the names that they will have."""
    mask_sha256: str | None = None
    nodata_pixels: int = 0
    tiles: int = 0
    seconds: float = 0.0
    """Time spent on it by all workers together."""
    segmenter: str = ""
    """Kind and what was fitted or chosen, as JSON."""
    warning: str | None = None
    """Why its result needs a second look. None: nothing is known against it."""


def run_id(name: str, fingerprint: str, inputs: Sequence[Source], parent: str | None) -> str:
    """The id of the run that takes these inputs on from `parent`."""
    versions = sorted((source.uri, source.version) for source in inputs)
    return f"{name}-{digest([fingerprint, versions, parent])[:12]}"
