"""What changed between two outputs, or by date inside one: tables, change masks and a picture.

The results are laid out as an output is:

    tables/pairs, change, objects, spread     Parquet files; see `segcore.change.tables`
    masks/<pair>.tif                          `unchanged`, and a class per transition
    change.png                                the pairs that changed most

Tables are written when all pairs are done, `pairs` last: a folder without it is unfinished.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskloom.flows.change_results import Changes
from maskloom.flows.mask_errors import mask_errors_for_users
from maskloom.flows.progress.displays import display
from maskloom.flows.progress.run import ItemProgress
from maskloom.flows.signals import stop_on_signals
from maskloom.flows.terminal import count
from maskloom.segcore.change.compare import ChangeOptions
from maskloom.segcore.change.joint import UNKNOWN
from maskloom.segcore.change.tables import SCHEMAS
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.figures.change import Row, class_colours, draw, object_colours
from maskloom.segcore.ground.amounts import amount
from maskloom.segcore.masks import names_beside
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.storage.records import read_table
from maskloom.segcore.storage.store import Store
from maskloom.tasks.change import Classes, compare_pairs, jobs, legend_of, view_pairs
from maskloom.tasks.change_pairs import By, Pair, Paired, by_date, by_id, by_place, images_of
from maskloom.tasks.clusters import machine
from maskloom.tasks.clusters.local import LocalCluster
from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.output import Output

if TYPE_CHECKING:
    from maskloom.segcore.change.legend import Legend
    from maskloom.tasks.clusters.protocol import Cluster

FOLDER = "change"
"""Folder of the results below the later output."""
_PICTURED, _SHOWN = 3, 5
_PIXELS_IN_PROCESS = 50_000_000
"""Worker processes take seconds to start, so they are worth it only above this number."""
_PAIRS_TABLE = "tables/pairs/pairs.parquet"


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """Everything that users set."""

    by: By = "id"
    """How the images of two outputs are paired."""
    key: str | None = None
    """By date: what the ids of one place have in common, as a regular expression."""
    warp: bool = False
    spread: str | None = None
    """The class whose spread is measured."""
    days: float | None = None
    """Days between both images of a pair. None: from their dates."""
    out: str | None = None
    """Folder for the results. None: `change` below the later output."""
    cluster: Cluster | None = None
    """Where to compare. None: in this process if there are few pixels, otherwise on worker
    processes of this machine.
    """


def change(
    before: str, after: str | None, request: ChangeRequest, *, quiet: bool = True
) -> Changes:
    """Compare the masks of two outputs, or those of one by date (`after` is None); write tables,
    change masks and a picture. Pairs that cannot be compared do not stop the others.

    Raises `RecipeError` if there is no pair or all failed, and `StoreError`.
    """
    outputs = (Output.open(before), Output.open(before if after is None else after))
    store = Store(outputs[1].store.uri(FOLDER) if request.out is None else request.out)
    if store.names("tables/images", ".parquet") or store.exists("tables/areas"):
        raise RecipeError(f"-o {store.root}: this is the output of a run. Choose another folder.")
    with mask_errors_for_users():
        paired = _paired(outputs, request, dated=after is None)
    classes = Classes.read(outputs[0]), Classes.read(outputs[1])
    legend = legend_of(*classes)
    options = ChangeOptions(legend, request.warp, _class_id(request.spread, legend))
    known = {i: pair for i, pair in enumerate(paired.pairs) if not pair.problem}
    if not known:
        raise RecipeError(_no_pair(paired, dated=after is None))
    former = _begin(store)
    stop = threading.Event()
    cluster = request.cluster or _cluster(list(known.values()))
    with mask_errors_for_users(), ExitStack() as stack:
        stack.enter_context(stop_on_signals(stop))
        prepare = partial(prepare_process, threads=cluster.worker_threads)
        fanout = stack.enter_context(cluster.opened(prepare, stop))
        progress = ItemProgress(stack.enter_context(display(quiet)), "change", "pairs", len(known))
        found = Changes(
            legend,
            paired.pairs,
            compare_pairs(fanout, jobs(known.items(), classes, options, store.root), progress),
            store.root,
            spread=request.spread,
            days=request.days,
            dated=after is None,
        )
        if not found.compared:
            raise RecipeError("\n".join(list(found.failed.values())[:_SHOWN]))
        most = sorted(found.compared, key=lambda i: -found.compared[i].change.changed)[:_PICTURED]
        shown = [(i, known[i]) for i in sorted(most, key=most.index)]
        views = view_pairs(fanout, jobs(shown, classes, options, store.root))
    store.publish("change.png", _picture(found, [(i, views[i]) for i, _ in shown if i in views]))
    _publish(store, found, former)
    return replace(found, notes=tuple(_notes(found, paired)))


def _paired(outputs: tuple[Output, Output], request: ChangeRequest, *, dated: bool) -> Paired:
    a, b = (images_of(output) for output in outputs)
    for output, images in zip(outputs, (a, b), strict=True):
        if not images:
            raise RecipeError(f"{output.store.root} holds no mask: no image is done.")
    if dated:
        if "acquired" not in outputs[0].images().column_names:
            raise RecipeError(
                f"{outputs[0].store.root} states no dates: its table of images has no column "
                "`acquired`. Run its recipe again with this version, or compare two outputs."
            )
        return by_date(a, request.key)
    if request.by == "place" and request.warp:
        raise RecipeError(
            "--by place pairs masks on the same grid, so there is nothing to warp. Leave out "
            "--warp, or pair by id."
        )
    return by_place(a, b) if request.by == "place" else by_id(a, b)


def _no_pair(paired: Paired, *, dated: bool) -> str:
    problems = [f"{pair.name}: {pair.problem}" for pair in paired.pairs if pair.problem]
    if problems:
        listed = "\n".join(problems[:_SHOWN])
        return f"No two images can be compared:\n{listed}"
    if dated:
        return (
            "No two images are of one place: no masks share a grid. Say which images are of one "
            "place with --key, for example --key '^[^_]+' for ids like field7_2024-05-01."
        )
    a, b = (", ".join(ids[:2]) for ids in (paired.only_a, paired.only_b))
    return (
        f"No image of the first output ({a}, …) has a partner in the second ({b}, …). Images are "
        "paired by the same id, or with --by place by the same grid."
    )


def _class_id(name: str | None, legend: Legend) -> int:
    names = legend.classes.names
    if name is None:
        return UNKNOWN
    if name not in names:
        raise RecipeError(f"--spread {name!r}: expected a class of the masks: {', '.join(names)}.")
    return names.index(name)


def _cluster(pairs: Sequence[Pair]) -> Cluster:
    """This process, or a worker process per core if the images have many pixels."""
    pixels = sum(pair.before.pixels for pair in pairs)
    workers = min(machine.core_count(), len(pairs))
    if workers == 1 or pixels <= _PIXELS_IN_PROCESS:
        return SerialCluster()
    return LocalCluster(workers)


def _begin(store: Store) -> set[str]:
    """Remove the tables of an earlier comparison, so that none of them describes new masks; the
    names of its masks. What killed processes have left half-written goes too.
    """
    store.sweep()
    try:
        uris = read_table(store, _PAIRS_TABLE, ["mask_uri"])["mask_uri"].to_pylist()
    except FileNotFoundError:
        uris = []
    for table in ("pairs", *(name for name in SCHEMAS if name != "pairs")):
        store.remove(f"tables/{table}")
    return {uri for uri in uris if uri is not None}


def _publish(store: Store, found: Changes, former: set[str]) -> None:
    rows = found.rows()
    kept = {each.change.mask for each in found.compared.values()}
    for mask in former - kept:
        for name in (mask, *names_beside(mask)):
            store.remove(name)
    for table in ("spread", "change", "pairs"):
        if table == "spread" and found.spread is None:
            continue
        with store.writing(f"tables/{table}/{table}.parquet") as out:
            content = pa.Table.from_pylist(rows[table], schema=SCHEMAS[table])
            pq.write_table(content, out, compression="zstd")


def _notes(found: Changes, paired: Paired) -> Iterator[str]:
    yield from _notes_on_pairs(paired, dated=found.dated)
    warped = [each for each in found.compared.values() if each.change.warped]
    if warped:
        yield (
            f"{count(len(warped), 'mask')} of the second output had another grid and was resampled "
            "to that of the first (nearest neighbour): areas after are approximate."
        )
    clusters = [name for name in found.legend.classes.names if name.startswith("cluster_")]
    if clusters and not found.dated:
        yield (
            f"{', '.join(clusters[:2])} … are numbers of clusters: they mean the same in both "
            "outputs only if one model made both."
        )
    yield from _notes_on_dates(found)
    for i, reason in list(found.failed.items())[:_SHOWN]:
        yield f"failed: {found.pairs[i].name}: {reason}"
    if len(found.failed) > _SHOWN:
        yield f"... and {len(found.failed) - _SHOWN} more pairs failed."


def _notes_on_pairs(paired: Paired, *, dated: bool) -> Iterator[str]:
    for ids, which in ((paired.only_a, "first"), (paired.only_b, "second")):
        if ids and dated:
            yield f"{count(len(ids), 'image has', 'images have')} no other date ({_few(ids)})."
        elif ids:
            only = count(len(ids), "image is", "images are")
            yield f"{only} only in the {which} output ({_few(ids)})."


def _notes_on_dates(found: Changes) -> Iterator[str]:
    if found.spread is not None and found.days is None:
        unknown = [found.pairs[i].name for i in found.compared if (found.pairs[i].days or 0) <= 0]
        if unknown:
            yield (
                f"{count(len(unknown), 'pair has', 'pairs have')} no dates one after the other "
                f"({_few(unknown)}): no rates per day. Give --days."
            )
    backwards = [each.name for each in found.pairs if (each.days or 0) < 0]
    if backwards:
        yield (
            f"{count(len(backwards), 'pair')}: the second image is older than the first "
            f"({_few(backwards)})."
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _picture(found: Changes, views: Sequence[tuple[int, Any]]) -> bytes:
    legend = found.legend
    rows, seen = [], set[int]()
    for i, each in views:
        result = found.compared[i].change
        sides = (each.before, each.after)
        cells = (
            [object_colours(side) for side in sides]
            if each.numbered
            else [class_colours(side, legend.classes) for side in sides]
        )
        cells.append(class_colours(each.labels, legend.mask))
        seen.update(np.unique(each.labels).tolist())
        text = f"{amount(result.changed, result.unit)} changed"
        rows.append(Row(found.pairs[i].name, text, tuple(cells)))
    table = legend.mask
    kept = [i for i in range(len(table.names)) if i in seen]
    changes = ClassTable(tuple(table.names[i] for i in kept), tuple(table.colours[i] for i in kept))
    title = "What changed" if len(rows) == 1 else f"The {len(rows)} pairs that changed most"
    # Objects have colours of their own.
    numbered = any(each.numbered for _, each in views)
    return draw((title, found.summary), rows, (changes,) if numbered else (legend.classes, changes))
