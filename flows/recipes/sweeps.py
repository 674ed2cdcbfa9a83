"""Sweeps: a training recipe with all combinations of some values for some of its keys.

`--sweep rate=1e-3,3e-4 --sweep width=8,16` is four trainings. A key may be given without its
section if only one section has it.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskloom.flows.recipes import training
from maskloom.flows.recipes.messages import did_you_mean
from maskloom.flows.recipes.training import TrainingRun
from maskloom.flows.recipes.yaml_files import load_document, read_value, shown
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.training.recipe import Training

MOST_TRIALS = 100
_WHOLE = ("network", "labels", "bands", "scaling")
"""Keys at the top of a recipe that may be swept as a whole."""
_FIXED = ("name", "output", "images", "masks", "mask_suffix", "classes", "storage", "split")
"""Keys that must be the same in all trials, whose scores could not be compared otherwise."""
_UNSAFE = re.compile(r"[^A-Za-z0-9.]+")


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """One training of a series."""

    name: str
    """Its folder below the output of the recipe."""
    values: Mapping[str, Any]
    """Those of the swept keys, in the recipe; empty without a sweep."""
    fold: int | None
    """From 1. None: no cross-validation."""
    run: TrainingRun

    @property
    def named(self) -> dict[str, Any]:
        """The swept values by the last parts of their keys, if these differ."""
        short = {key.rpartition(".")[2]: value for key, value in self.values.items()}
        return short if len(short) == len(self.values) else dict(self.values)

    @property
    def setting(self) -> str:
        """The swept values in words.

        >>> Trial("", {"training.rate": 0.001, "network.width": 8}, None, None).setting
        'rate 0.001, width 8'
        """
        return ", ".join(f"{key} {_text(value)}" for key, value in self.named.items())

    @property
    def title(self) -> str:
        """What this trial is, in words."""
        fold = f"fold {self.fold}" if self.fold is not None else ""
        return ", ".join(filter(None, [self.setting, fold]))


def trials(path: Path, changes: Sequence[str], sweeps: Sequence[str]) -> list[Trial]:
    """All trainings of a recipe: the combinations of the swept values, the last key fastest, and
    of each the folds of its cross-validation. One, in the output itself, without either.

    Raises `RecipeError` if a key or a value is wrong, before any is trained.
    """
    document, folder = load_document(path, "images, masks and network"), path.resolve().parent
    base = training.make(copy.deepcopy(document), folder, changes)
    known = _keys(base)
    swept: dict[str, list[Any]] = {}
    for text in sweeps:
        key, values = _sweep(text, known)
        if key in swept:
            raise RecipeError(f"--sweep {shown(text)}: {key} is swept twice. Give all values once.")
        swept[key] = values
    combinations = [
        dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())
    ]
    if len(combinations) > MOST_TRIALS:
        raise RecipeError(
            f"--sweep: {len(combinations)} trainings; expected {MOST_TRIALS} at most. Sweep fewer "
            "values or keys."
        )
    found = [
        trial
        for values in combinations
        for trial in _folds(values, _made(document, folder, changes, values), base)
    ]
    _require_different(found)
    return found


def _keys(base: TrainingRun) -> dict[str, list[str]]:
    """The keys that can be swept, by their names without the section."""
    network = [field.name for field in dataclasses.fields(base.recipe.network)]
    sections: Mapping[str, Sequence[str]] = {
        "training": [field.name for field in dataclasses.fields(Training)]
        + ["loss", "augmentation"],
        "network": ["kind", *network],
    }
    found: dict[str, list[str]] = {name: [name] for name in _WHOLE}
    for section, names in sections.items():
        for name in names:
            found.setdefault(name, []).append(f"{section}.{name}")
    return found


def _sweep(text: str, known: Mapping[str, Sequence[str]]) -> tuple[str, list[Any]]:
    """The key and the values of a sweep. Raises `RecipeError`."""
    where = f"--sweep {shown(text)}"
    name, equals, listed = text.partition("=")
    if not equals or not name:
        raise RecipeError(f"{where}: expected KEY=VALUE,VALUE, e.g. rate=1e-3,3e-4.")
    top = name.partition(".")[0]
    if top in _FIXED or name in ("folds", "fold"):
        more = " Cross-validation is a key of the recipe: split: {folds: 5}."
        raise RecipeError(
            f"{where}: {top} must be the same in all trainings.{more if 'fold' in name else ''}"
        )
    keys = [name] if "." in name else known.get(name, [])
    if not keys:
        raise RecipeError(
            f"{where}: unknown key.{did_you_mean(name, known)} Keys are those of `training` and "
            "`network` in the recipe; others are given with their section, e.g. "
            "training.loss.gamma=1,2."
        )
    if len(keys) > 1:
        raise RecipeError(f"{where}: {' or '.join(keys)}? Give the key with its section.")
    values = read_value(f"[{listed}]", where)
    if not values:
        raise RecipeError(f"{where}: expected values, e.g. {name}=1,2.")
    return keys[0], [_number(value) for value in values]


def _number(value: Any) -> Any:
    """A value; one like 1e-3, which is text in YAML, as a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _made(
    document: Mapping[str, Any], folder: Path, changes: Sequence[str], values: Mapping[str, Any]
) -> TrainingRun:
    """The recipe with these values. Raises `RecipeError`."""
    changed = [f"{key}={json.dumps(value, default=str)}" for key, value in values.items()]
    try:
        return training.make(copy.deepcopy(dict(document)), folder, [*changes, *changed])
    except RecipeError as error:
        if not values:
            raise
        said = ", ".join(f"{key}={_text(value)}" for key, value in values.items())
        raise RecipeError(f"--sweep, with {said}: {error}") from error


def _folds(values: Mapping[str, Any], made: TrainingRun, base: TrainingRun) -> list[Trial]:
    """The trainings of one combination: each fold, or one."""
    folder = "_".join(
        f"{key.rpartition('.')[2]}-{_UNSAFE.sub('-', _text(value)).strip('-')}"
        for key, value in values.items()
    )
    splits, found = made.recipe.split.each, []
    for split in splits:
        fold = split.fold if made.recipe.split.fold is None else None
        parts = [folder] if folder else []
        name = "/".join([*parts, f"fold-{fold}"] if fold is not None else parts)
        output = f"{base.recipe.output}/{name}" if name else base.recipe.output
        settings = {**made.settings, "split": {**made.settings["split"], "fold": split.fold}}
        recipe = dataclasses.replace(made.recipe, output=output, split=split)
        run = dataclasses.replace(made, recipe=recipe, settings=settings)
        found.append(Trial(name, values, fold, run))
    return found


def _require_different(found: Sequence[Trial]) -> None:
    """Raise `RecipeError` if two trials are the same, or would share a folder."""
    seen: dict[str, Trial] = {}
    for trial in found:
        for mark in (trial.name, json.dumps(trial.run.settings, sort_keys=True, default=str)):
            other = seen.setdefault(mark, trial)
            if other is not trial:
                raise RecipeError(
                    f"--sweep: {other.title!r} and {trial.title!r} are the same training, or would "
                    "share the folder of one. Give each value once."
                )


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
