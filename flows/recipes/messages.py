"""Messages on faults of a recipe: the place, what was expected, what came, and what to do."""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from maskloom.flows.recipes.yaml_files import shown

if TYPE_CHECKING:
    import pydantic

_MOST_LINES = 20
_EXPECTED = {
    "invalid_key": "a key that is text",
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "dict": "a mapping",
    "mapping": "a mapping",
    "list": "a list",
    "tuple": "a list",
    "none_required": "nothing",
}
"""Expected values in words, by the beginning of pydantic's type of error."""
_LIMITS = {
    "greater_than_equal": "at least",
    "greater_than": "more than",
    "less_than_equal": "at most",
    "less_than": "less than",
    "string_too_long": "text no longer than",
}
_UNION_MEMBER = re.compile(r"^(str|int|float|bool|none|constrained-.*|function-.*|[A-Z]\w*)$|\[")


def explain(
    error: pydantic.ValidationError,
    path: str,
    known: list[str],
    nested: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> str:
    """One line per problem that pydantic found: the place, the expected and the actual value, and
    what to do.

    `known` are the keys at `path`, `nested` those of the sections below it.
    """
    found: dict[str, list[_Finding]] = {}
    for problem in error.errors(include_url=False):
        keys = [str(key) for key in problem["loc"]]
        # For a union, pydantic adds the member that it tried, which is no key of the recipe.
        plain = [key for key in keys if not _UNION_MEMBER.search(key)]
        here = known if len(keys) == 1 else list(nested.get(keys[0], ()))
        found.setdefault(".".join(filter(None, [path, *plain])), []).append(
            _finding(problem, keys[-1], here, nested)
        )
    # If one member of a union fits except for a value inside it, only that value is reported.
    lines = [
        f"{where}: {_sentence(findings)}"
        for where, findings in found.items()
        if not any(other.startswith(f"{where}.") for other in found)
    ]
    more = [f"... and {len(lines) - _MOST_LINES} more."] if len(lines) > _MOST_LINES else []
    return "\n".join(lines[:_MOST_LINES] + more)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message on an unknown key, with the key that was probably meant and the known keys."""
    return f"unknown key.{did_you_mean(key, known)} Known keys: {', '.join(known) or 'none'}."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The most similar known word, as a question after a space; empty if none is similar."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


@dataclasses.dataclass(frozen=True, slots=True)
class _Finding:
    """A problem: the expected and the actual value, or a whole sentence."""

    expected: str = ""
    came: Any = None
    hint: str = ""
    sentence: str = ""


def _sentence(findings: list[_Finding]) -> str:
    expected = list(dict.fromkeys(finding.expected for finding in findings if finding.expected))
    sentences = [finding.sentence for finding in findings if finding.sentence]
    if expected:
        several = " or ".join(filter(None, [", ".join(expected[:-1]), expected[-1]]))
        first = next(finding for finding in findings if finding.expected)
        hints = "".join(dict.fromkeys(finding.hint for finding in findings))
        sentences.insert(0, f"expected {several}, got {shown(first.came)}.{hints}")
    return " Or: ".join(dict.fromkeys(sentences))


def _finding(
    problem: Any, key: str, known: list[str], nested: Mapping[str, Iterable[str]]
) -> _Finding:
    kind, came, limits = problem["type"], problem["input"], problem.get("ctx", {})
    sentence = _sentence_on(kind, limits, key, known)
    expected = "" if sentence else _expected(kind, limits, nested.get(key, ()))
    if not expected:
        return _Finding(sentence=sentence or f"{problem['msg']}, got {shown(came)}.")
    if kind == "literal_error":
        return _Finding(
            expected, came, did_you_mean(str(came), re.findall(r"'([^']*)'", limits["expected"]))
        )
    return _Finding(expected, came, quotes_hint(came) if "text" in expected else "")


def _sentence_on(kind: str, limits: Mapping[str, Any], key: str, known: list[str]) -> str:
    """The sentence on a problem other than an unexpected value; empty for an unexpected value."""
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return unknown_key(key, known)
    if kind == "value_error":
        return f"{str(limits['error']).rstrip('.')}.".replace("?.", "?")
    return "this key is required." if kind == "missing" else ""


def _expected(kind: str, limits: Mapping[str, Any], inner: Iterable[str]) -> str:
    """The expected value in words; `inner` are the keys of the section. Empty if unknown for this
    kind of problem.
    """
    if kind == "literal_error":
        return str(limits["expected"]).replace("'", "")
    if kind in ("model_type", "model_attributes_type", "dataclass_type"):
        return f"a mapping with {_keys(inner)}"
    if kind in _LIMITS:
        return f"{_LIMITS[kind]} {next(iter(limits.values()))}"
    if kind == "string_pattern_mismatch":
        return f"text of the characters {limits['pattern'].strip('^$*[]')} only"
    return next((words for begin, words in _EXPECTED.items() if kind.startswith(begin)), "")


def quotes_hint(came: Any) -> str:
    """Why YAML did not read a value as text, after a space; empty if that is not the reason."""
    if isinstance(came, bool):
        return (
            " YAML reads no, off and false (yes, on and true) as a truth value. If a name is "
            "meant, put it in quotes."
        )
    if isinstance(came, dt.date):
        return " YAML reads this as a date. If it is text, put it in quotes."
    if isinstance(came, int | float):
        return " YAML reads this as a number. If it is text, put it in quotes."
    return ""


def _keys(names: Iterable[str]) -> str:
    known = [f"`{name}`" for name in names]
    return f"the key{'s' if len(known) > 1 else ''} {', '.join(known)}" if known else "keys"
