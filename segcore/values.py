"""What frozen dataclasses need: checks of their numbers and, where a run has a million of them,
quick pickling and quick tests of whether they follow a protocol.
"""

from __future__ import annotations

from abc import ABCMeta
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

T = TypeVar("T", bound=type)


def check_range(name: str, value: float, least: float, most: float) -> None:
    """Raise `ValueError`, which names the field, unless `least` <= value <= `most`."""
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}; got {value}")


def pickled_by_fields(cls: T) -> T:
    """A decorator for frozen dataclasses with slots, all of whose fields their constructor takes:
    they pickle in a tenth of the time that `dataclasses` needs, which looks up all fields.
    """
    values = attrgetter(*(field.name for field in fields(cls)))

    def reduced(self: Any) -> tuple[type, tuple[Any, ...]]:
        return cls, values(self)

    cls.__reduce__ = reduced  # type: ignore[assignment,method-assign]
    return cls


if TYPE_CHECKING:
    _ProtocolType = ABCMeta
else:
    _ProtocolType = type(Protocol)


# Not in the class, whose annotations Python 3.11 would take for those of each protocol.
_answers: dict[tuple[type, type], bool] = {}
"""Whether objects of a class follow a protocol, by protocol and class."""


class CheckedOnce(_ProtocolType):
    """The type of protocols with which `isinstance` is answered once for a class. Otherwise each
    answer takes some 30 microseconds, since all members are looked up.

    Objects that may have attributes of their own are looked at each time.
    """

    def __instancecheck__(self, instance: object) -> bool:
        key = self, type(instance)
        answer = _answers.get(key)
        if answer is None:
            answer = super().__instancecheck__(instance)
            if not hasattr(instance, "__dict__"):
                _answers[key] = answer
        return answer
