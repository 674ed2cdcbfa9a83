"""A recipe for given images: what their headers and some pixels say, and a commented recipe that
suits it.

At most 50 headers are read, spread over all inputs, and of a dozen images one window of at most
512 x 512 pixels. The rules are short and stand in the recipe as comments, with what was not chosen
commented out: to choose it, move the `#`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from maskloom.flows.recipes import run as recipes
from maskloom.flows.recipes.yaml_files import change_keys
from maskloom.flows.starting.labels import without_labels
from maskloom.flows.starting.looking import FAMILY_NAMES, Family, Seen, look, notes_of, table_of
from maskloom.flows.starting.recipe_text import text_of
from maskloom.flows.starting.rules import lines_of
from maskloom.flows.terminal import count
from maskloom.segcore.errors import RecipeError
from maskloom.tasks.discovery.discover import discover

if TYPE_CHECKING:
    from maskloom.segcore.raster.source import Source


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A recipe and what it follows from."""

    table: tuple[str, ...]
    recipe: str
    notes: tuple[str, ...]


def suggest(
    inputs: Sequence[str],
    target: Path,
    changes: Sequence[str] = (),
    report: Callable[[int, int], object] = lambda _, __: None,
) -> Suggestion:
    """Look at the inputs and write a recipe for them into the file `target`, which must not exist.
    `report` is called with the number of headers read, and of all that will be.

    Raises `RecipeError` if there is no image, none can be read, a change does not suit, or the file
    exists.
    """
    folder = target.resolve().parent
    if target.exists():
        raise RecipeError(f"{target} exists and stays as it is. Name another file with -o.")
    if not folder.is_dir():
        raise RecipeError(f"The folder {folder} does not exist. Make it, or name another with -o.")
    places = [_absolute(entry) for entry in inputs]
    found = discover(places, "", {}).sources
    places, labels = without_labels(places, found)
    found = [each for each in found if not each.uri.startswith(tuple(f"{x}/" for x in labels))]
    seen, failures = look(found, report)
    if not seen:
        raise RecipeError(f"None of the {len(failures)} headers read is readable. {failures[0]}")
    common = Counter(each.family for each in seen).most_common(1)[0][0]
    chosen = [each for each in seen if each.family == common]
    name = _name(target, inputs)
    lines = list(lines_of(name, _relative(places, folder), found, chosen, seen))
    document = {each.key: each.value for each in lines}
    change_keys(document, changes)
    text = text_of(_head(target, common, seen, found), lines, document)
    recipes.make(yaml.safe_load(text), folder)
    _write(target, text)
    notes = [*_labels_note(labels), *notes_of(common, seen, failures, found)]
    return Suggestion(tuple(table_of(seen, found)), text, tuple(notes))


def _labels_note(labels: Sequence[str]) -> Iterator[str]:
    if labels:
        yield (
            f"Left out, by their names: {', '.join(Path(each).name for each in labels)}. They are "
            "taken for labels of the images. To compare masks with them: maskloom evaluate OUTPUT "
            f"--truth {shlex.quote(labels[0])}"
        )


def _write(target: Path, text: str) -> None:
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RecipeError(f"{target} exists and stays as it is.") from error
    except OSError as error:
        raise RecipeError(
            f"Cannot write {target}: {error.strerror}. Name a file with -o."
        ) from error


def _absolute(entry: str) -> str:
    if "://" in entry:
        return entry
    # Without following links, which the recipe should name as the user does.
    return os.path.normpath(Path.cwd() / Path(entry).expanduser())


def _relative(inputs: Sequence[str], folder: Path) -> list[str]:
    """The inputs, which are absolute, as the recipe in this folder names them."""
    named = []
    for entry in inputs:
        if "://" in entry:
            named.append(entry)
            continue
        below = os.path.relpath(entry, folder)
        named.append(entry if below.startswith("..") else below)
    return named


def _name(target: Path, inputs: Sequence[str]) -> str:
    """A name for the runs: that of the file, or of the first input where the file is `recipe`."""
    stem = target.stem
    if stem == "recipe":
        place = re.split(r"[*?\[]", inputs[0], maxsplit=1)[0].rstrip("/")
        stem = Path(_absolute(place) if place else ".").stem
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:50] or "recipe"


def _head(target: Path, family: Family, seen: Sequence[Seen], found: Sequence[Source]) -> list[str]:
    commands = {"try": "a part of one image, in seconds", "run": "all of it"}
    return [
        f"From `maskloom init`, which looked at {len(seen)} of {count(len(found), 'image')}:",
        f"{FAMILY_NAMES[family]}. Next:",
        *(f"  maskloom {name} {target.name}  ({does})" for name, does in commands.items()),
    ]
