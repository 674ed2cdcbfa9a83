"""Compares the masks of two outputs, or of one output by date: which images are pairs, and one job
per pair.

Masks are read tile by tile, so a worker holds a tile of both; of objects, it holds the pairs of
ids that overlap. Workers write change masks and tables of objects; what comes back is small.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

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

if TYPE_CHECKING:
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.tasks.fanout.protocol import Fanout
    from maskloom.tasks.output import Output

By = Literal["id", "place"]
_COLUMNS = ("image_id", "run_id", "status", "mask_uri", "total_pixels", "acquired")
_DAY = timedelta(days=1)
_AT_ONCE = 16
"""Headers that are read at once."""


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """An image with a mask."""

    image_id: str
    run_id: str
    mask: str
    """URI of the mask."""
    pixels: int
    acquired: datetime | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images of one place, or an image that is left over for a reason."""

    name: str
    before: MaskedImage
    after: MaskedImage | None
    problem: str = ""
    """Why they cannot be compared."""

    @property
    def days(self) -> float | None:
        """Days between both. None: a date is not known."""
        if self.after is None or self.before.acquired is None or self.after.acquired is None:
            return None
        return (self.after.acquired - self.before.acquired) / _DAY


@dataclass(frozen=True, slots=True)
class Paired:
    """The pairs of two outputs, and the images of one that have no partner in the other."""

    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()


def images_of(output: Output) -> list[MaskedImage]:
    """The images of an output that have a mask, in the order of their ids."""
    table = output.images()
    rows = table.select([name for name in _COLUMNS if name in table.column_names]).to_pylist()
    return sorted(
        (
            MaskedImage(
                row["image_id"],
                row["run_id"],
                output.store.uri(row["mask_uri"]),
                row["total_pixels"] or 0,
                row.get("acquired"),
            )
            for row in rows
            if row["status"] == "ok"
        ),
        key=lambda image: image.image_id,
    )


def by_id(a: Sequence[MaskedImage], b: Sequence[MaskedImage]) -> Paired:
    """Images with the same id; of two outputs with one image each, these."""
    others = {image.image_id: image for image in b}
    if len(a) == len(b) == 1 and a[0].image_id not in others:
        return Paired((_pair(a[0], b[0]),))
    pairs = [_pair(each, others[each.image_id]) for each in a if each.image_id in others]
    known = {pair.name for pair in pairs}
    return Paired(
        tuple(pairs),
        tuple(each.image_id for each in a if each.image_id not in known),
        tuple(each.image_id for each in b if each.image_id not in known),
    )


def by_place(a: Sequence[MaskedImage], b: Sequence[MaskedImage]) -> Paired:
    """Images whose masks lie on the same grid: size, transform and CRS."""
    here, there = _by_grid(a), _by_grid(b)
    pairs: list[Pair] = []
    for place in here:
        ours, theirs = here[place], there.get(place, [])
        if not theirs:
            continue
        if len(ours) == len(theirs) == 1:
            pairs.append(_pair(ours[0], theirs[0]))
            continue
        reason = (
            f"its place has more than one image: {len(ours)} in the first output, {len(theirs)} in "
            "the second; pair them by id"
        )
        pairs += [Pair(each.image_id, each, None, reason) for each in ours]
    return Paired(
        tuple(sorted(pairs, key=lambda pair: pair.name)),
        tuple(each.image_id for place in here for each in here[place] if place not in there),
        tuple(each.image_id for place in there for each in there[place] if place not in here),
    )


def by_date(images: Sequence[MaskedImage], key: str | None) -> Paired:
    """Each image with the next one of the same place by date.

    `key`: a regular expression; images of a place are those for whose ids it finds the same text
    (of its first group, if it has one). None: those on the same grid. Raises `RecipeError` if it is
    no regular expression.
    """
    if key is None:
        places: Mapping[Any, list[MaskedImage]] = _by_grid(images)
        unmatched: list[MaskedImage] = []
    else:
        places, unmatched = _by_key(images, key)
    pairs = [
        Pair(each.image_id, each, None, f"--key {key!r} finds nothing in its id")
        for each in unmatched
    ]
    alone = []
    for group in places.values():
        undated = [each for each in group if each.acquired is None]
        pairs += [Pair(each.image_id, each, None, "its date is not known") for each in undated]
        dated = sorted(
            (each for each in group if each.acquired is not None),
            key=lambda each: (each.acquired, each.image_id),
        )
        if len(dated) == 1:
            alone.append(dated[0].image_id)
        for one, other in pairwise(dated):
            equal = one.acquired == other.acquired
            reason = f"both have the same date, {one.acquired:%Y-%m-%d %H:%M:%S}" if equal else ""
            pairs.append(replace(_pair(one, other), problem=reason))
    return Paired(tuple(sorted(pairs, key=lambda pair: pair.name)), tuple(alone))


def _pair(a: MaskedImage, b: MaskedImage) -> Pair:
    same = a.image_id == b.image_id
    name = a.image_id if same else f"{a.image_id}_to_{b.image_id.rpartition('/')[2]}"
    return Pair(name, a, b)


def _by_key(
    images: Sequence[MaskedImage], key: str
) -> tuple[dict[str, list[MaskedImage]], list[MaskedImage]]:
    try:
        pattern = re.compile(key)
    except re.error as error:
        raise RecipeError(f"--key {key!r}: this is no regular expression: {error}.") from error
    places, unmatched = defaultdict[str, list[MaskedImage]](list), []
    for image in images:
        found = pattern.search(image.image_id)
        if found is None:
            unmatched.append(image)
        else:
            places[found[1 if pattern.groups else 0] or ""].append(image)
    return places, unmatched


def _by_grid(images: Sequence[MaskedImage]) -> dict[Any, list[MaskedImage]]:
    places = defaultdict[Any, list[MaskedImage]](list)
    with ThreadPoolExecutor(_AT_ONCE, "headers") as pool:
        specs = pool.map(formats.describe, [image.mask for image in images])
        for image, spec in zip(images, specs, strict=True):
            places[_grid(image, spec)].append(image)
    return places


def _grid(image: MaskedImage, spec: RasterSpec) -> Any:
    """What images of one place have in common; an image without a place has it alone."""
    space = spec.space
    if not space.placed:
        return image.mask
    return spec.shape, space.crs, space.affine, space.frame, space.gcps, space.rpcs


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
