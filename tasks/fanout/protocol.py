"""Fan-out: maps a function over many jobs, in this process or on the workers of a cluster.

Nothing above this room knows where jobs run. A worker that dies gives its jobs back; a job that
kills its worker is taken apart until the part at fault is named by a `WorkerDied` and the others
have their results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from maskloom.segcore.errors import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from maskloom.segcore.errors import WorkerDied

GRACE_SECONDS = 20.0
"""How long running jobs may continue after the run was asked to stop."""


class Job(Protocol):
    """Work for one call of a function: small, frozen, picklable."""

    def split(self) -> Sequence[Self]:
        """The parts of a batch, in order. A job that cannot be divided returns itself alone."""
        ...


JobType = TypeVar("JobType", bound=Job)
ResultType = TypeVar("ResultType")


class Fanout(Protocol):
    """Runs a function on many jobs. Safe to use from several threads at once."""

    @property
    def workers(self) -> int:
        """Jobs that can run at the same time."""
        ...

    def start(self) -> None:
        """Start getting ready, and return at once. Errors on the way are raised by `map`."""
        ...

    def map(
        self, function: Callable[[JobType], ResultType], jobs: Iterable[JobType]
    ) -> Iterator[tuple[JobType, ResultType | WorkerDied]]:
        """Jobs and their results in order of completion; a job that was taken apart comes as its
        parts.

        `jobs` is read only as far as jobs can be submitted. An error of the function is raised
        here. Raises `Stopped` when the run was asked to stop, `RunError` when the workers are gone.
        """
        ...

    def close(self) -> None:
        """Release what `start` took."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def stopped() -> Stopped:
    """The error of a run that was asked to stop."""
    return Stopped("The run was asked to stop. The same command continues where it stopped.")
