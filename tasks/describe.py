"""Describes sources: the workers read the headers of their images."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from maskloom.segcore import errors
from maskloom.segcore.pipeline.jobs import DescribeJob
from maskloom.segcore.pipeline.records import Failure, PlannedImage
from maskloom.segcore.pipeline.worker import describe
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.stored import ReadOptions, split_part
from maskloom.segcore.storage.canonical import digest
from maskloom.tasks.fanout.protocol import Fanout

log = logging.getLogger(__name__)

DESCRIBE_BATCH = 256
"""Most files whose headers a job reads."""
_LEAST_BATCH = 32
_DEFAULT = ReadOptions()
_PIXELS_A_BYTE = 100_000
"""No codec packs more pixels into a byte."""
_SPARSE_NOTE = (
    "next to nothing of its array is stored, and all of it is worked through with the fill value; "
    "if its metadata claim too much, write it again or leave it out of `inputs`"
)


def describe_sources(
    fanout: Fanout,
    sources: Sequence[Source],
    format_name: str | None,
    options: ReadOptions = _DEFAULT,
    known_ids: Callable[[], Mapping[str, str]] = dict,
    read: Callable[[int], None] = lambda _: None,
) -> Iterator[PlannedImage]:
    """The images of all sources with their headers, which the workers read, in the order of the
    sources. `known_ids` gives the ids of all images and inputs of the output, by URI. `read` is
    called with the number of sources that are read.

    Only images that arrived before those of earlier sources are in memory.
    """
    batch = min(DESCRIBE_BATCH, max(_LEAST_BATCH, len(sources) // (16 * fanout.workers)))
    jobs = (
        DescribeJob(tuple(sources[i : i + batch]), format_name, options)
        for i in range(0, len(sources), batch)
    )
    ids, notes = _OwnIds(known_ids), _Notes()
    waiting: dict[str, tuple[int, Sequence[PlannedImage]]] = {}
    next_source = done = 0
    for job, answer in fanout.map(describe, jobs):
        done += len(job.sources)
        read(done)
        if isinstance(answer, errors.WorkerDied):
            failure = Failure.of(answer)
            found = tuple(PlannedImage(source, None, failure) for source in job.sources)
        else:
            found = answer
        waiting[job.sources[0].uri] = len(job.sources), _shared(found, job.sources)
        while next_source < len(sources) and sources[next_source].uri in waiting:
            described, images = waiting.pop(sources[next_source].uri)
            next_source += described
            for image in images:
                notes.take(image)
                yield ids.own(image)
    notes.log()


def _shared(images: Iterable[PlannedImage], sources: Iterable[Source]) -> list[PlannedImage]:
    """The images with the sources that this process has, instead of copies of them."""
    known = {source.uri: source for source in sources}
    return [
        dataclasses.replace(image, source=known.get(image.source.uri, image.source))
        for image in images
    ]


@dataclass(slots=True)
class _OwnIds:
    """Gives each image an id that no other file has: a part keeps the one of earlier runs, or gets
    a longer one if the name of another file is equal to it.
    """

    known_ids: Callable[[], Mapping[str, str]]
    known: Mapping[str, str] | None = None
    owners: dict[str, str] = field(default_factory=dict)
    """The file of each id."""

    def own(self, image: PlannedImage) -> PlannedImage:
        """The image with such an id."""
        source = image.source
        if not source.part:
            return image
        if self.known is None:
            self.known = self.known_ids()
            self.owners = {
                image_id.casefold(): split_part(uri)[0] for uri, image_id in self.known.items()
            }
        image_id = self.known.get(source.uri, source.image_id)
        if self.owners.setdefault(image_id.casefold(), source.location) != source.location:
            image_id = f"{image_id}_{digest(source.uri)[:10]}"
        return dataclasses.replace(image, source=dataclasses.replace(source, image_id=image_id))


def _is_nearly_empty(image: PlannedImage) -> bool:
    """Whether a folder holds next to nothing of its array: its metadata alone claim the rest."""
    source, spec = image.source, image.spec
    return source.is_folder and spec is not None and spec.pixels > _PIXELS_A_BYTE * source.size


@dataclass(slots=True)
class _Notes:
    """The notes of readers on files."""

    about: dict[str, tuple[str, int]] = field(default_factory=dict)
    """The first file and the number of files, by the note."""

    def take(self, image: PlannedImage) -> None:
        """Keep the notes on an image."""
        notes = image.spec.notes if image.spec is not None else ()
        for note in (*notes, *([_SPARSE_NOTE] if _is_nearly_empty(image) else [])):
            first, files = self.about.get(note, (image.source.uri, 0))
            self.about[note] = first, files + 1

    def log(self) -> None:
        """Log one line per note."""
        for note, (first, files) in self.about.items():
            log.warning("%s%s: %s.", first, f" and {files - 1} more" if files > 1 else "", note)
