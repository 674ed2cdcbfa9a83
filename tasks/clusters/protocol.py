"""The base of clusters: a kind is a frozen dataclass that a recipe configures and a run opens."""

from __future__ import annotations

import contextlib
import importlib
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

from maskloom.segcore.errors import MaskloomError, RecipeError, RunError
from maskloom.segcore.registry import Registry

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from maskloom.tasks.fanout.protocol import Fanout


class Cluster(ABC):
    """Where jobs run. The fields of a kind are the keys of `cluster` in a recipe.

    A new kind is one file in this folder with one class, registered by
    `@CLUSTERS.register("name")`; only `open` must be written.
    """

    __slots__ = ()

    in_process: ClassVar[bool] = False
    """Whether jobs run in the driver's process, and so see its memory."""

    @property
    def worker_memory(self) -> int | None:
        """Bytes that one worker may hold. None: unknown to the driver."""
        return None

    @property
    def worker_threads(self) -> int:
        """Threads that a multi-threaded library may use in one worker."""
        return 1

    def with_one_worker_per_gpu(self) -> Self:
        """This cluster with one worker per GPU, if the recipe gives no number of workers and the
        driver knows the GPUs; otherwise unchanged.
        """
        return self

    def look(self) -> str:
        """Look whether a run could start here, without starting anything; what was found, in words,
        empty if there is nothing to ask. Raises `RunError` with what is missing.
        """
        return ""

    @abstractmethod
    def open(self, prepare: Callable[[], None], stop: threading.Event) -> Fanout:
        """A fan-out on this cluster, not started yet.

        `prepare` is called once in every process that runs jobs, so it must pickle; setting `stop`
        ends the work.
        """

    @contextlib.contextmanager
    def opened(
        self, prepare: Callable[[], None], stop: threading.Event, jobs: int | None = None
    ) -> Iterator[Fanout]:
        """A started fan-out on this cluster; see `open`. `jobs`: how many there are at first. None:
        as many as there are workers. Raises `RunError` if a plug-in's cluster cannot be opened.
        """
        with contextlib.ExitStack() as stack:
            try:
                fanout = self.open(prepare, stop)
                # A fan-out of a plug-in for an earlier version cannot be told.
                if jobs is not None and hasattr(fanout, "expect"):
                    fanout.expect(jobs)
                stack.enter_context(fanout)
            except MaskloomError:
                raise
            except Exception as error:
                kind = next(
                    (name for name in CLUSTERS if CLUSTERS[name] is type(self)), type(self).__name__
                )
                raise RunError(
                    f"The cluster {kind!r} cannot be opened ({type(error).__name__}: {error}). "
                    "Check the section `cluster` of the recipe, and what it needs on this machine."
                ) from error
            yield fanout


CLUSTERS: Registry[type[Cluster]] = Registry("cluster", "maskloom.tasks.clusters")
"""Kinds of clusters by the name that recipes use."""


def import_extra(module: str, extra: str) -> Any:
    """A module that a kind of cluster needs. Raises `RunError` with the command to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RunError(
            f"cluster.kind {extra} needs the package {error.name}: pip install 'maskloom[{extra}]'."
        ) from error


def parse_bytes(text: str) -> int:
    """Bytes from a number and a unit. Raises `RecipeError` for anything else.

    >>> parse_bytes("4 GiB"), parse_bytes("800 MB")
    (4294967296, 800000000)
    """
    match = re.fullmatch(r"([0-9.]+)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise RecipeError(
            f"cluster.memory must be a number and a unit, e.g. '4 GiB' or '800 MB', not {text!r}."
        )
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))
