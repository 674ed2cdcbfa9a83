"""Compares the masks of two outputs, or of one output by date: which images are pairs, and one job
per pair.

Masks are read tile by tile, so a worker holds a tile of both; of objects, it holds the pairs of
ids that overlap. Workers write change masks and tables of objects; what comes back is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskloom.segcore import formats
from maskloom.segcore.annotations.masks import holds_object_ids
from maskloom.segcore.change.compare import Change, ChangeOptions, ChangeView, Side, compare, view
from maskloom.segcore.change.joint import UNKNOWN
from maskloom.segcore.change.legend import Legend
from maskloom.segcore.change.tables import SCHEMAS
from maskloom.segcore.errors import ImageError, RecipeError, Unavailable, WorkerDied
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable
from maskloom.segcore.storage.records import read_table
from maskloom.segcore.storage.store import Store
from maskloom.tasks.change_pairs import MaskedImage, Pair

if TYPE_CHECKING:
    from maskloom.tasks.fanout.protocol import Fanout
    from maskloom.tasks.output import Output


@dataclass(slots=True)
class Classes:
    """The classes of the images of an output."""

    output: Output
    names: dict[str, dict[int, str]] = field(default_factory=dict)
    """Of each image, by id in its mask."""
    colours: dict[str, str] = field(default_factory=dict)
    """Colour by name, where the tables have one."""
    _files: dict[str, str] = field(default_factory=dict)
    """Name of the file with an image's rows in each table."""
    _read: tuple[str, pa.Table] | None = None
    """The file of objects that was read last: images that follow one another share one."""

    @classmethod
    def read(cls, output: Output) -> Classes:
        """Read the table of areas."""
        found = cls(output)
        table = output.areas(["image_id", "class_id", "class_name", "colour"])
        for row in table.sort_by("class_id").to_pylist():
            name = row["class_name"]
            found.names.setdefault(row["image_id"], {})[row["class_id"]] = name
            if row.get("colour") is not None:
                found.colours.setdefault(name, row["colour"])
        return found

    @property
    def all(self) -> tuple[str, ...]:
        """All names, in the order of their ids."""
        numbered = {(i, name) for names in self.names.values() for i, name in names.items()}
        return tuple(dict.fromkeys(name for _, name in sorted(numbered)))

    def side(self, image: MaskedImage, numbered: bool, names: Sequence[str]) -> Side:
        """The mask of an image, with the position of its classes in `names`."""
        own = self.names[image.image_id]
        if not numbered:
            class_of = np.full(max(own) + 1, UNKNOWN)
            class_of[list(own)] = [names.index(name) for name in own.values()]
            return Side(image.mask, class_of)
        background = [name for name in own.values() if name.lower() in BACKGROUND_NAMES]
        first = background[0] if background else next(iter(own.values()))
        others = [name for name in own.values() if name != first]
        if len(others) == 1:
            return Side(image.mask, np.array([names.index(first)]), names.index(others[0]))
        table = self._objects(image.image_id)
        ids = table["object_id"].to_numpy()
        class_of = np.full(int(ids.max(initial=0)) + 1, UNKNOWN)
        class_of[0] = names.index(first)
        class_of[ids] = [names.index(name) for name in table["class_name"].to_pylist()]
        return Side(image.mask, class_of)

    def _objects(self, image_id: str) -> pa.Table:
        """Ids and classes of the objects of an image."""
        store = self.output.store
        if not self._files:
            for name in store.names("tables/images", ".parquet"):
                ids = read_table(store, name, ["image_id"])["image_id"].to_pylist()
                self._files |= dict.fromkeys(ids, f"tables/objects/{name.rpartition('/')[2]}")
        file = self._files[image_id]
        if self._read is None or self._read[0] != file:
            columns = ["image_id", "object_id", "class_name"]
            self._read = file, read_table(store, file, columns)
        table = self._read[1]
        return table.filter(pc.equal(table["image_id"], image_id))


def legend_of(a: Classes, b: Classes) -> Legend:
    """The classes of both outputs: those of the first, then those that only the second has."""
    names = tuple(dict.fromkeys([*a.all, *b.all]))
    colours = {**b.colours, **a.colours}
    return Legend(ClassTable.recorded(names, [colours.get(name) for name in names]))


@dataclass(frozen=True, slots=True)
class ChangeJob:
    """A pair to compare."""

    number: int
    pair: Pair
    sides: tuple[Side, Side]
    options: ChangeOptions
    target: str
    """URI of the folder for the results."""

    def split(self) -> tuple[ChangeJob, ...]:
        """Itself: it is one pair already."""
        return (self,)


@dataclass(frozen=True, slots=True)
class PairFailure:
    """A pair that could not be compared."""

    reason: str


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """The result of a pair."""

    change: Change
    events: Mapping[str, int] | None
    """Number of groups of objects by what happened to them. None: there are no objects."""


def jobs(
    pairs: Iterable[tuple[int, Pair]],
    classes: tuple[Classes, Classes],
    options: ChangeOptions,
    target: str,
) -> Iterator[ChangeJob]:
    """The jobs of these numbered pairs, made as they are asked for."""
    names = options.legend.classes.names
    kinds: dict[str, bool] = {}
    for number, pair in pairs:
        assert pair.after is not None
        sides = tuple(
            of_output.side(image, _numbered(image, kinds), names)
            for of_output, image in zip(classes, (pair.before, pair.after), strict=True)
        )
        yield ChangeJob(number, pair, (sides[0], sides[1]), options, target)


def _numbered(image: MaskedImage, known: dict[str, bool]) -> bool:
    """Whether a mask holds ids of objects. Runs are of one kind."""
    if image.run_id not in known:
        known[image.run_id] = holds_object_ids(formats.describe(image.mask))
    return known[image.run_id]


def compare_pairs(
    fanout: Fanout, wanted: Iterable[ChangeJob], on_progress: Callable[[int], None]
) -> dict[int, ComparedPair | PairFailure]:
    """Compare pairs; a failure of one does not stop the others. Raises `Unavailable`."""
    results: dict[int, ComparedPair | PairFailure] = {}
    for job, answer in fanout.map(compare_pair, wanted):
        results[job.number] = PairFailure(str(answer)) if isinstance(answer, WorkerDied) else answer
        on_progress(len(results))
    return results


def view_pairs(fanout: Fanout, wanted: Iterable[ChangeJob]) -> dict[int, ChangeView]:
    """Small pictures of pairs, by their number; none of one that kills its worker."""
    return {
        job.number: answer
        for job, answer in fanout.map(view_pair, wanted)
        if not isinstance(answer, WorkerDied)
    }


def compare_pair(job: ChangeJob) -> ComparedPair | PairFailure:
    """Compare a pair, and write its change mask and its table of objects. Raises `Unavailable`."""
    store = Store(job.target)
    try:
        change = compare(job.sides, job.options, store, f"masks/{job.pair.name}")
    except Unavailable:
        raise
    except (RecipeError, ImageError) as error:
        return PairFailure(str(error))
    if change.objects is None:
        return ComparedPair(change, None)
    table = _named(change.objects, job, change.unit)
    with store.writing(f"tables/objects/{job.number:06}.parquet") as out:
        pq.write_table(table, out, compression="zstd")
    groups = table.group_by("group").aggregate([("event", "max")])["event_max"]
    counts = {row["values"]: row["counts"] for row in pc.value_counts(groups).to_pylist()}
    return ComparedPair(replace(change, objects=None), counts)


def view_pair(job: ChangeJob) -> ChangeView:
    """A small picture of a pair."""
    return view(job.sides, job.options)


def _named(objects: pa.Table, job: ChangeJob, unit: str) -> pa.Table:
    names = pa.array(job.options.legend.classes.names)
    rows = len(objects)
    assert job.pair.after is not None
    columns = {
        "run_id": pa.array([job.pair.after.run_id] * rows, pa.string()),
        "pair": pa.array([job.pair.name] * rows, pa.string()),
        "area_unit": pa.array([unit] * rows, pa.string()),
    }
    for letter in "ab":
        ids = objects[f"class_id_{letter}"].combine_chunks()
        columns[f"class_{letter}"] = names.take(ids)
    schema = SCHEMAS["objects"]
    return pa.table(
        [columns[name] if name in columns else objects[name] for name in schema.names],
        schema=schema,
    )
