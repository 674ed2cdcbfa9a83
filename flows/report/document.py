"""Pages in one file: a head, and sections that are made one by one from their templates."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import maskloom
from maskloom.flows.report import charts
from maskloom.segcore.raster.classes import ClassTable

if TYPE_CHECKING:
    from jinja2 import Environment

T = TypeVar("T")
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Section(Generic[T]):
    """A part of a page about a `T`."""

    template: str
    """Its file below `templates`; the name of the file is the section's place in the page."""
    title: str
    """In the list of sections."""
    heading: str
    values: Callable[[T], Mapping[str, Any] | None]
    """What the template shows. None: there is nothing to show."""

    @property
    def place(self) -> str:
        """What comes behind # in an address."""
        return Path(self.template).stem


@dataclass(frozen=True, slots=True)
class Head:
    """The top of a page."""

    title: str
    heading: str
    kind: str
    """done, partly, stopped: the colour of the state."""
    state: str
    lead: Sequence[str]
    """Sentences."""
    facts: Sequence[Mapping[str, Any]]
    notice: str = ""
    """What is not done. Empty: all is."""
    command: str = ""
    """What does the rest."""


def document(
    head: Head,
    classes: ClassTable,
    sections: Sequence[Section[T]],
    of: T,
    template: str,
    **more: Any,
) -> bytes:
    """A page from its sections. `more`: values of the template of the page."""
    parts = []
    for section in sections:
        values = section.values(of)
        if values is not None:
            body = environment().get_template(section.template).render(values)
            parts.append((section, markup(body)))
    return _rendered(
        template, {**more, "head": head, "parts": parts, "palette": markup(charts.palette(classes))}
    )


def markup(text: str) -> Any:
    """Text that a template has escaped already, or that needs no escaping."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates, which escape what they are given."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def fact(name: str, value: str, *, bad: bool = False) -> dict[str, Any]:
    """A number at the top of the page."""
    return {"name": name, "value": value, "bad": bad}


def embedded(value: Any) -> Any:
    """A value as JSON that cannot end the element that holds it."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(value, separators=(",", ":"))


def base64_of(content: bytes) -> str:
    """Bytes as a page holds them."""
    return base64.b64encode(content).decode()


def _rendered(template: str, values: Mapping[str, Any]) -> bytes:
    script = (_TEMPLATES / "script.js").read_text("utf-8")
    digest = base64_of(hashlib.sha256(script.encode()).digest())
    text = (
        environment()
        .get_template(template)
        .render(
            values,
            version=maskloom.__version__,
            style=markup((_TEMPLATES / "style.css").read_text("utf-8")),
            script=markup(script),
            script_hash=f"sha256-{digest}",
        )
    )
    return text.encode("utf-8", "backslashreplace")
