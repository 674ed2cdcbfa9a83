"""Recipes as YAML documents, with changes from the command line and variables of the environment
filled in.

The meaning of keys is left to `run.py` and `training.py`. No other module reads the environment.
The size of the text and of its expanded anchors is limited before anything is built from them, so
any file given as a recipe is read or refused at once.
"""

from __future__ import annotations

import codecs
import datetime as dt
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.storage.addresses import (
    is_signed,
    is_web,
    redacted,
    require_no_password,
)

MOST_BYTES = 2**22
"""Largest size of a recipe."""
MOST_VALUES = 100_000
"""Most values of a recipe, including those that anchors repeat."""
_DEEPEST = 40
_LONGEST_SHOWN = 100
_SECRETS = re.compile(
    r"secret|passw|passphrase|passcode|pwd|token|credential|^key$|access_?key|account_?key|"
    r"private_?key$|api_?-?key|subscription_?-?key|connection_?string|"
    r"authorization|oauth|hmac|cookie|^pat$|^auth$|^sas",
    re.IGNORECASE,
)
_NO_SECRETS = (
    "anon",
    "anonymous",
    "cloud",
    "google_default",
    "cache",
    "browser",
    None,
    True,
    False,
    "",
)
"""Values of options with such names that are no secrets: they select a way to sign in."""
_PLACES = {
    "s3": "the environment or ~/.aws, and name a profile: storage: {s3: {profile: NAME}}",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
    "az": "AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_KEY and the like",
    "abfs": "AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_KEY and the like",
    "http": "~/.netrc, with storage: {http: {client_kwargs: {trust_env: true}}}",
    "https": "~/.netrc, with storage: {https: {client_kwargs: {trust_env: true}}}",
    "sftp": "~/.ssh and its agent",
}
"""Where stores look for secrets."""
_VARIABLE = re.compile(r"\$\{([^}]*)\}")


class _StrictLoader(yaml.SafeLoader):
    """A YAML loader that refuses repeated keys; YAML itself silently uses the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises if a key is repeated."""
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = sorted(key for key, count in keys.items() if count > 1)
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load_document(path: Path, expected: str) -> dict[str, Any]:
    """The mapping in a YAML file, with the file's name as `name` if it has none. Raises
    `RecipeError`; `expected` are keys that its message names.
    """
    document = read_yaml(path, "the recipe")
    if not isinstance(document, dict):
        raise RecipeError(
            f"{path}: expected keys, e.g. {expected}, got "
            f"{'nothing' if document is None else shown(document)}."
        )
    document.setdefault(
        "name", re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "recipe"
    )
    return document


def completed(
    document: dict[str, Any], changes: Sequence[str], inputs: Sequence[str] = ("inputs",)
) -> dict[str, Any]:
    """The document with `key.sub=value` changes made and variables filled in.

    Raises `RecipeError`, also if an address holds a password, or a signature outside the keys
    `inputs`.
    """
    change_keys(document, changes)
    whole: dict[str, Any] = _expand(document, "")
    _refuse_secret_addresses(whole, "", inputs)
    return whole


def change_keys(document: dict[str, Any], changes: Sequence[str]) -> None:
    """Make `key.sub=value` changes in a document. Raises `RecipeError`."""
    for change in changes:
        _change(document, change)


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file. Raises `RecipeError`; `what` names the file in messages."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"Cannot read {what} {str(path)!r}: {error.strerror}.") from error
    if len(content) > MOST_BYTES:
        raise RecipeError(
            f"{path} is larger than {MOST_BYTES >> 20} MiB, too large for {what}. Put long lists "
            "of inputs into a list file."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = (
            "UTF-16"
            if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            else f"not UTF-8 ({error.reason} at byte {error.start})"
        )
        raise RecipeError(f"{path} is {found}; {what} must be. Save it as UTF-8.") from error
    return _parsed(text, str(path))


def read_value(text: str, where: str) -> Any:
    """A value from the command line, read as YAML."""
    return _parsed(text, f"{where}: the value")


def shown(value: Any) -> str:
    """A value for a message, shortened if it is long.

    >>> shown("a" * 1000)[-12:]
    'aaaaaaaaa...'
    """
    if isinstance(value, dt.date):
        return value.isoformat()
    text = repr(value[:_LONGEST_SHOWN] if isinstance(value, str | list) else value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def below(location: str, folder: Path) -> str:
    """A relative path, put below a folder; URIs and absolute paths stay unchanged."""
    if "://" in location:
        return location
    return os.path.normpath(folder / Path(location).expanduser())


def output_below(location: str, folder: Path) -> str:
    """The output of a recipe; a relative path is below the recipe's folder. Raises `RecipeError` if
    nothing can be written there.
    """
    try:
        possible = b"\0" not in os.fsencode(location)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise RecipeError(f"output: {shown(location)} holds a character that no path can hold.")
    output = below(location, folder).rstrip("/")
    if is_web(output):
        raise RecipeError(
            f"output: {redacted(output)} is a web address, where nothing can be written. Name a "
            "folder or a store."
        )
    try:
        is_file = "://" not in output and Path(output).exists() and not Path(output).is_dir()
    except OSError as error:
        raise RecipeError(f"output: {shown(output)}: {error.strerror}. Name a folder.") from error
    if is_file:
        raise RecipeError(f"output: {output} is a file. Name a folder.")
    return output


def refuse_secrets(storage: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `RecipeError` if options of stores hold secrets."""
    for protocol, options in storage.items():
        secret = _secret_option(options)
        if secret is not None:
            raise RecipeError(
                f"storage.{protocol}.{secret}: secrets are not allowed in recipes. Put them where "
                "the store looks for them: "
                f"{_PLACES.get(protocol, 'the environment or its configuration file')}."
            )


def _secret_option(options: Any) -> str | None:
    """The key of the first option that holds a secret, at any depth. None: no secrets."""
    for key, value in options.items() if isinstance(options, Mapping) else enumerate(options):
        if _SECRETS.search(str(key)) and not (
            isinstance(value, str | bool | None) and value in _NO_SECRETS
        ):
            return str(key)
        inner = _secret_option(value) if isinstance(value, Mapping | list) else None
        if inner is not None:
            return f"{key}.{inner}"
    return None


def _refuse_secret_addresses(value: Any, path: str, inputs: Sequence[str]) -> None:
    if isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            _refuse_secret_addresses(item, f"{path}.{key}".strip("."), inputs)
    elif isinstance(value, str):
        require_no_password(value, path)
        if is_signed(value) and path.partition(".")[0] not in inputs:
            raise RecipeError(
                f"{path}: only inputs may have a signed address, since their signatures are never "
                "written. Remove the signature."
            )


def _parsed(text: str, what: str) -> Any:
    """The value of YAML text. Raises `RecipeError` if it is not YAML or too large."""
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        values, _ = _measure(node, {}, _DEEPEST)
        if values > MOST_VALUES:
            raise RecipeError(
                f"{what} holds more than {MOST_VALUES} values, including those that anchors "
                "repeat. Put long lists into a list file."
            )
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise RecipeError(f"{what} is not YAML: {_place(error)}") from error
    except RecursionError:
        raise RecipeError(
            f"{what} is nested too deeply: more than {_DEEPEST} levels, or an anchor that holds "
            "itself."
        ) from None
    # Dates and numbers of YAML, e.g. 2026-02-31 or a number of 5,000 digits.
    except (ValueError, OverflowError, TypeError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(
            f"{what} has a date or a number that cannot be read: {error}. If it is text, put "
            "it in quotes."
        ) from error


def _place(error: yaml.YAMLError) -> str:
    """The error in YAML with its line and column, in one line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + ", ".join(filter(None, [error.context, error.problem]))


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]], room: int) -> tuple[int, int]:
    """Numbers of values and of levels of a node with its anchors expanded.

    Raises `RecursionError` if there are more levels than `room`, or if the node contains itself.
    """
    if id(node) not in known:
        if room < 0:
            raise RecursionError
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        parts = [_measure(part, known, room - 1) for part in inner]
        known[id(node)] = (
            1 + sum(values for values, _ in parts),
            1 + max((levels for _, levels in parts), default=0),
        )
    if known[id(node)][1] > room + 1:
        raise RecursionError
    return known[id(node)]


def _change(document: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {shown(change)}: expected key.sub=value.")
    place = document
    *parents, last = key.split(".")
    if len(parents) > _DEEPEST:
        raise RecipeError(f"--set {key[:60]!r}...: keys have at most {_DEEPEST} levels.")
    for parent in parents:
        inner = place.setdefault(parent, {})
        if isinstance(inner, str):
            inner = {"kind": inner}
        if not isinstance(inner, dict):
            raise RecipeError(
                f"--set {shown(change)}: {parent} is {inner!r}, which has no key {last!r}."
            )
        place[parent] = inner
        place = inner
    place[last] = read_value(text, f"--set {shown(change)}")


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
            raise RecipeError(
                f"{path}: the environment variable {name} is not set; {value!r} needs it."
            )
        return os.environ[name]

    return _VARIABLE.sub(lookup, value)
