"""Documents: recipes as they are written, in YAML, with changes from the command line and variables of the environment filled in.

What the keys mean is the business of `recipe.py` and `train.py`. Nobody else reads the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from segcore.errors import RecipeError

_SECRETS = re.compile(r"secret|password|passwd|token|credential|^key$|access_key", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{([^}]*)\}")


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which the last would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys differ."""
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_document(path: Path, expected: str) -> dict[str, Any]:
    """The mapping that a YAML file holds, named after the file where it has no name. Raises `RecipeError`; `expected` are keys for its message."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"Cannot read the recipe {path}: {error.strerror}.") from error
    try:
        document = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  a SafeLoader that is stricter
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: expected keys such as {expected}, got {type(document).__name__}.")
    document.setdefault("name", re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "recipe")
    return document


def completed(document: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The document with `key.sub=value` changes made and variables filled in. Raises `RecipeError`."""
    for change in changes:
        _change(document, change)
    whole: dict[str, Any] = _expand(document, "")
    return whole


def read_value(text: str, where: str) -> Any:
    """A value of the command line, read as YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: the value is not YAML: {error}") from error


def below(location: str, folder: Path) -> str:
    """A relative path below a folder; URIs and absolute paths as they are."""
    if "://" in location:
        return location
    return os.path.normpath(folder / Path(location).expanduser())


def refuse_secrets(storage: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `RecipeError` where options of stores hold what is to be kept secret."""
    for protocol, options in storage.items():
        for key in options:
            if _SECRETS.search(key):
                raise RecipeError(
                    f"storage.{protocol}.{key}: secrets never stand in a recipe. Put them where the store looks for them "
                    f"(environment, configuration file) and name a profile: storage: {{{protocol}: {{profile: NAME}}}}."
                )


def _change(document: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {change!r}: expected key.sub=value.")
    place = document
    *parents, last = key.split(".")
    for parent in parents:
        inner = place.setdefault(parent, {})
        if isinstance(inner, str):
            inner = {"kind": inner}
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {change!r}: {parent} is {inner!r}, which has no key {last!r}.")
        place[parent] = inner
        place = inner
    place[last] = read_value(text, f"--set {change!r}")


def _expand(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _expand(item, f"{path}.{key}".strip(".")) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, f"{path}.{i}") for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise RecipeError(f"{path}: the environment has no variable {name}; {value!r} needs it.")
        return os.environ[name]

    return _VARIABLE.sub(lookup, value)
