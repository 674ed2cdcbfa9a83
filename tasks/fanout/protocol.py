"""Fan-out: maps a function over many jobs, in this process or on the workers of a cluster.

Nothing outside this package and `tasks.clusters` knows where jobs run. The jobs of a worker that
dies run again. A job that kills its worker is split until a `WorkerDied` names the part at fault
and the other parts have their results.
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
    """Work for one call of a function: small, frozen, picklable.

    A job with the attribute `wants_gpu` true goes to a worker that offers a GPU, if the cluster has
    such workers.
    """

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

    @property
    def busy(self) -> int:
        """Jobs that run now, as far as the driver knows."""
        ...

    def expect(self, jobs: int) -> None:
        """Prepare for so many jobs at first, before `start`: workers that are not needed for them
        start when more jobs come.
        """
        ...

    def start(self) -> None:
        """Start preparing, and return at once. Errors of the preparation are raised by `map`."""
        ...

    def map(
        self, function: Callable[[JobType], ResultType], jobs: Iterable[JobType]
    ) -> Iterator[tuple[JobType, ResultType | WorkerDied]]:
        """Jobs and their results in order of completion; a split job comes as its parts.

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
    return Stopped("The run was asked to stop. Run the same command again to continue.")
