"""The last finished run of an output, and the runs that are planned and not finished."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from maskloom.segcore.pipeline.records import Plan
from maskloom.segcore.storage.records import read_json
from maskloom.segcore.storage.store import STAGING, Store

HEAD = "runs/head.json"
"""Record of the last finished run, which saves reading all manifests."""


@dataclass(frozen=True, slots=True)
class LastRun:
    """The last finished run of an output."""

    run_id: str | None = None
    sequence: int = 0
    finished: int = 0
    """Number of finished runs. Larger than `sequence` if some ran at the same time."""


def read_head(store: Store) -> LastRun:
    """The last finished run; an empty record if no run has finished."""
    manifests = store.names("runs", "/manifest.json")
    try:
        head = read_json(store, HEAD, _head)
    except FileNotFoundError:
        head = LastRun()
    if len(manifests) == head.finished:
        return head
    # A run was killed between writing its manifest and the head, or two ended at once: the
    # manifests decide.
    last = max(
        (read_json(store, name, _head) for name in manifests),
        key=lambda run: (run.sequence, run.run_id or ""),
        default=LastRun(),
    )
    return dataclasses.replace(last, finished=len(manifests))


def write_head(store: Store, before: LastRun, plan: Plan) -> None:
    """Record that the plan's run, whose manifest is written, has finished. `before`: the last run
    when it was planned.
    """
    count = len(store.names("runs", "/manifest.json"))
    # If other runs have finished meanwhile, the manifests decide which was last.
    head = (
        LastRun(plan.run_id, plan.sequence, count)
        if count == before.finished + 1
        else read_head(store)
    )
    store.publish(HEAD, json.dumps(dataclasses.asdict(head)).encode())


def planned_runs(store: Store) -> list[tuple[str, str | None]]:
    """Planned runs with staged files: the id of each, and of the run that it follows."""
    waiting = {name.split("/")[1] for name in store.names(STAGING, "") if name.count("/") > 1}
    plans = ((run_id, f"runs/{run_id}/plan.json") for run_id in sorted(waiting))
    return [
        (run_id, read_json(store, name, _parent)) for run_id, name in plans if store.exists(name)
    ]


def _head(record: Mapping[str, Any]) -> LastRun:
    return LastRun(record["run_id"], int(record["sequence"]), int(record.get("finished", 0)))


def _parent(plan: Mapping[str, Any]) -> str | None:
    return cast("str | None", plan["parent"])
