"""Records of fitted models and engine selections, on which all runs of a recipe agree.

Runs of a recipe may overlap, and neither finds the rows of the other, but classes must mean the
same in both. So a fitted model or an engine selection belongs to the recipe: the first run to
record it decides, and every run keeps a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from maskloom.segcore.pipeline.records import Plan
from maskloom.segcore.storage.records import damaged_record, parse_json, read_json
from maskloom.segcore.storage.store import Store
from maskloom.tasks.commits.ledger import Committed

T = TypeVar("T")

MODEL = "model.json"
CHOICES = "choices.json"


def recorded(
    store: Store,
    plan: Plan,
    committed: Mapping[str, Committed],
    name: str,
    load: Callable[[Any], T],
) -> T | None:
    """The record `name` of this run or of an earlier one of its recipe, copied for this run. None:
    nothing is recorded. Raises `DamagedRecord`.
    """
    earlier = [row.run_id for row in committed.values() if row.fingerprint == plan.fingerprint]
    for candidate in (
        f"runs/{plan.run_id}/{name}",
        _of_recipe(plan, name),
        *dict.fromkeys(f"runs/{run_id}/{name}" for run_id in earlier),
    ):
        if store.exists(candidate):
            content = store.read(candidate)
            # Parsed before it is copied, so that a damaged record is not spread.
            parse_json(store, candidate, content, load)
            return record(store, plan, name, content, load)
    return None


def record(store: Store, plan: Plan, name: str, content: bytes, load: Callable[[Any], T]) -> T:
    """Record something for the recipe and for this run. Returns the valid record: that of another
    run, if it was faster.
    """
    own = f"runs/{plan.run_id}/{name}"
    agreed = _first(store, own, _first(store, _of_recipe(plan, name), content))
    return parse_json(store, own, agreed, load)


def require_model(store: Store, plan: Plan, committed: Mapping[str, Committed]) -> None:
    """Raise `DamagedRecord` if images were done with a model that is missing: a new model would
    give classes another meaning.
    """
    earlier = {
        row.run_id for row in committed.values() if row.ok and row.fingerprint == plan.fingerprint
    }
    for run in sorted(earlier - {plan.run_id}):
        name, manifest = f"runs/{run}/{MODEL}", f"runs/{run}/manifest.json"
        if store.exists(manifest) and name in read_json(
            store, manifest, lambda found: dict(found["files"])
        ):
            raise damaged_record(store, name)


def _of_recipe(plan: Plan, name: str) -> str:
    return f"runs/recipes/{plan.fingerprint}/{name}"


def _first(store: Store, name: str, content: bytes) -> bytes:
    """Record the content under a name. Returns the content, or what another process recorded
    first.
    """
    return content if store.publish_new(name, content) else store.read(name)
