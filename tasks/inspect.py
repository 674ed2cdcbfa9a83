"""Inspect an output: how far it is, and whether all that was written is still what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from segcore.errors import RecipeError
from segcore.parquet import read_parquet
from segcore.storage import Store
from tasks.commits import IMAGES
from tasks.plan import read_head, read_plan

CHUNK = 2**22


@dataclass(frozen=True, slots=True)
class Status:
    """How far an output is."""

    done: int
    failed: int
    left: int
    """Images that an interrupted or running run has still to do."""
    finished_run: str | None
    """The last finished run."""
    open_runs: tuple[str, ...]
    """Runs that were planned and not finished."""
    failures: tuple[tuple[str, str, str], ...]
    """URI, kind and text of each failure."""


def status(output: str) -> Status:
    """Read an output's tables and plans. Raises `RecipeError` where there is no output."""
    store = Store(output)
    head = read_head(store)
    rows = [row for _, table in _tables(store, IMAGES) for row in table.to_pylist()]
    plans = {name.split("/")[1] for name in store.names("runs", "/plan.json")}
    finished = {name.split("/")[1] for name in store.names("runs", "/manifest.json")}
    if not rows and not plans:
        raise RecipeError(f"{output} holds no run of maskloom. Give the folder that a recipe names as its `output`.")
    open_runs = _open_runs(store, plans - finished, head.run_id)
    committed = {(row["uri"], row["source_version"], row["fingerprint"]) for row in rows}
    waiting = {
        item.source.uri
        for plan in open_runs.values()
        for shard in plan.shards
        for item in shard.items
        if (item.source.uri, item.source.version, plan.fingerprint) not in committed
    }
    failures = tuple((row["uri"], row["error_type"], row["error"]) for row in rows if row["status"] == "failed")
    return Status(len(rows) - len(failures), len(failures), len(waiting), head.run_id, tuple(open_runs), failures)


def verify(output: str) -> Iterator[str]:
    """What is wrong with an output, a line each; nothing where all is well.

    Compares every mask with its digest in the `images` table, every file of the last run that wrote it with its digest in the manifest, and checks
    that the pixels of every image add up, and that no object is there twice or has pixels that its class has not.
    """
    store = Store(output)
    status(output)
    yield from _wrong_files(store)
    images = {}
    for name, table in _tables(store, IMAGES):
        for row in table.to_pylist():
            if row["image_id"] in images:
                yield f"{name}: the image {row['image_id']} is in the table twice"
            images[row["image_id"]] = row
            yield from _wrong_mask(store, row)
    yield from _wrong_sums(store, images)
    yield from _wrong_objects(store, images)


def _open_runs(store: Store, names: set[str], head: str | None) -> dict[str, Any]:
    """Plans that a next run would go on with: those that follow the last finished run."""
    plans = {name: read_plan(store, name) for name in sorted(names)}
    return {name: plan for name, plan in plans.items() if plan is not None and plan.parent == head}


def _tables(store: Store, folder: str) -> Iterator[tuple[str, Any]]:
    for name in store.names(folder, ".parquet"):
        yield name, read_parquet(store.read(name))


def _wrong_files(store: Store) -> Iterator[str]:
    manifests = [json.loads(store.read(name)) for name in store.names("runs", "/manifest.json")]
    newest: dict[str, tuple[str, str]] = {}
    for manifest in sorted(manifests, key=lambda manifest: int(manifest["sequence"])):
        newest.update((name, (digest, manifest["run_id"])) for name, digest in manifest["files"].items())
    rewritten = {
        f"{folder}/{shard.file}" for run in _unfinished(store) for shard in run.shards for folder in _table_folders(store)
    }
    for name, (digest, run) in sorted(newest.items()):
        if name in rewritten:
            # An unfinished run may have rewritten it; its manifest will say what it should be.
            continue
        try:
            found = hashlib.sha256(store.read(name)).hexdigest()
        except FileNotFoundError:
            yield f"{name}: written by run {run}, and now missing"
        else:
            if found != digest:
                yield f"{name}: is not what run {run} wrote (sha256 {found[:12]}…, expected {digest[:12]}…)"


def _unfinished(store: Store) -> list[Any]:
    plans = {name.split("/")[1] for name in store.names("runs", "/plan.json")}
    finished = {name.split("/")[1] for name in store.names("runs", "/manifest.json")}
    return list(_open_runs(store, plans - finished, read_head(store).run_id).values())


def _table_folders(store: Store) -> set[str]:
    return {name.rpartition("/")[0] for name in store.names("tables", ".parquet")}


def _wrong_mask(store: Store, row: Mapping[str, Any]) -> Iterator[str]:
    if row["status"] != "ok":
        return
    digest = hashlib.sha256()
    try:
        with store.open(row["mask_uri"]) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        yield f"{row['mask_uri']}: the mask of {row['image_id']} is missing"
        return
    if digest.hexdigest() != row["mask_sha256"]:
        yield f"{row['mask_uri']}: is not what was written (sha256 {digest.hexdigest()[:12]}…, expected {row['mask_sha256'][:12]}…)"


def _wrong_sums(store: Store, images: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    counted: dict[str, int] = {}
    rest: dict[str, int] = {}
    for _, table in _tables(store, "tables/areas"):
        for row in table.to_pylist():
            counted[row["image_id"]] = counted.get(row["image_id"], 0) + row["pixel_count"]
            rest[row["image_id"]] = row["nodata_pixels"] + row["unprocessed_pixels"]
    for image_id, row in images.items():
        if row["status"] == "ok" and image_id not in counted:
            yield f"tables/areas: the image {image_id} has no rows"
        elif image_id in counted and counted[image_id] + rest[image_id] != row["total_pixels"]:
            yield (
                f"tables/areas: the pixels of {image_id} add up to {counted[image_id] + rest[image_id]}, "
                f"the image has {row['total_pixels']}"
            )
    yield from (f"tables/areas: {image_id} has rows but is not in tables/images" for image_id in counted.keys() - images.keys())


def _wrong_objects(store: Store, images: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    of_class = {
        (row["image_id"], row["class_id"]): row["pixel_count"]
        for _, table in _tables(store, "tables/areas")
        for row in table.select(["image_id", "class_id", "pixel_count"]).to_pylist()
    }
    for name in store.names("tables/objects", ".parquet"):
        columns = ["image_id", "class_id", "object_id", "pixel_count"]
        table = read_parquet(store.read(name), columns)
        ids = table.group_by(["image_id", "object_id"], use_threads=False).aggregate([([], "count_all")])
        for row in ids.filter(pc.greater(ids["count_all"], 1)).slice(0, 5).to_pylist():
            yield f"{name}: object {row['object_id']} of {row['image_id']} is in the table {row['count_all']} times"
        for row in table.group_by(["image_id", "class_id"], use_threads=False).aggregate([("pixel_count", "sum")]).to_pylist():
            image_id, class_id, pixels = row["image_id"], row["class_id"], row["pixel_count_sum"]
            if image_id not in images:
                yield f"{name}: {image_id} has objects but is not in tables/images"
            elif pixels > of_class.get((image_id, class_id), 0):
                yield (
                    f"{name}: the objects of class {class_id} of {image_id} have {pixels} pixels, the class has "
                    f"{of_class.get((image_id, class_id), 0)}"
                )
