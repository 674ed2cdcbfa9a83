"""The images of an output as the page asks for them: the list, facts of one, and what is opened.

Images are named by their ids in the tables, and by nothing else. The last few that were looked at
stay open.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from maskloom.flows.viewer.facts import facts_of
from maskloom.flows.viewer.listing import Listing
from maskloom.flows.viewer.opened import Opened, open_image
from maskloom.segcore.errors import MaskloomError, ReadError

if TYPE_CHECKING:
    from maskloom.tasks.output import Output

_OPEN = 3
"""Images that stay open."""

_Key = tuple[str, tuple[int, ...]]


@dataclass(slots=True)
class Gallery:
    """The images of an output."""

    output: Output
    listing: Listing = field(init=False)
    progress: dict[str, float] = field(default_factory=dict)
    """The done share of what is read before an image can be shown, by image."""
    _opened: dict[_Key, Opened] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _opening: dict[_Key, threading.Lock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.listing = Listing(self.output)

    def facts(
        self, image_id: str, bands: tuple[int, ...] = (), search: str = "", order: str = "name"
    ) -> dict[str, Any]:
        """What the page shows of an image: of one that cannot be shown, why. Raises
        `UnknownImage`.
        """
        around = self.listing.around(image_id, search, order)
        state = self.listing.state(image_id)
        if state["status"] != "ok":
            kind = state["error_type"]
            return {**around, "status": state["status"], "reason": state["error"], "kind": kind}
        try:
            image = self.opened(image_id, bands)
        except (MaskloomError, OSError) as error:
            kind = type(error).__name__
            return {**around, "status": "unreadable", "reason": str(error), "kind": kind}
        return {**around, "status": "ok", **facts_of(image)}

    def opened(self, image_id: str, bands: tuple[int, ...] = ()) -> Opened:
        """An image, opened with some of its bands; none: the first three. Raises
        `UnknownImage`, and `MaskloomError`.
        """
        state, key = self.listing.state(image_id), (image_id, bands)
        if state["status"] != "ok":
            raise ReadError(f"{image_id} was not segmented: {state['error']}")
        with self._lock:
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:
            with self._lock:
                if key in self._opened:
                    self._opened[key] = self._opened.pop(key)
                    return self._opened[key]
            try:
                found = open_image(
                    self.output, image_id, bands, lambda done: self._report(image_id, done)
                )
            finally:
                self.progress.pop(image_id, None)
            with self._lock:
                self._opened[key] = found
                surplus = list(self._opened)[:-_OPEN]
                old = [self._opened.pop(each) for each in surplus]
        for each in old:
            each.close()
        return found

    def close(self) -> None:
        """Close all images."""
        with self._lock:
            opened, self._opened = list(self._opened.values()), {}
        for each in opened:
            each.close()

    def _report(self, image_id: str, done: float) -> None:
        self.progress[image_id] = done
