"""Helpers: processes that answer the same kind of question over and over.

A helper is a plain child process with a fresh interpreter: forking a process in which a framework
has started threads may deadlock. It gets a function once, then questions, and answers them in their
order. Questions and answers are pickled through pipes; large arrays pass through `SharedMemory`. A
helper that dies is replaced, and its questions are asked again, so every helper must
give the same answer. It does not outlive the thread that started it (`segcore.processes.lifeline`).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, Self

from maskloom.segcore.errors import RunError
from maskloom.segcore.processes import lifeline
from maskloom.segcore.processes.shared_memory import SharedMemory

_MOST_DEATHS = 3
"""Helpers that may die before one of them answers again."""
_WORTH_SECONDS = 5.0
"""Work that one process has left from which helpers, which take a second to start, share it."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(slots=True)
class _Helper:
    """A helper process and what belongs to it."""

    child: subprocess.Popen[bytes]
    errors: IO[bytes]
    """What it wrote to standard error."""
    closing: ExitStack
    asked: deque[Any] = field(default_factory=deque)
    """Questions that it has not answered."""

    def close(self) -> None:
        """Close all that belongs to it, once it is killed."""
        # The pipe may hold a question that could not be sent.
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.close()  # type: ignore[union-attr]
        self.closing.close()


class Helpers:
    """Some helpers, of one thread of this process at a time.

    `prepare()` is called in each helper and gives the function that answers questions. `shared` is
    the memory that pickled values refer to.
    """

    def __init__(
        self,
        count: int,
        prepare: Callable[[], Callable[[Any], Any]],
        shared: Iterable[SharedMemory] = (),
    ) -> None:
        self.count = count
        self._start = pickle.dumps(sys.path) + pickle.dumps(prepare)
        # Held, because descriptors of memory that nobody holds are closed, and numbers used again.
        self._shared = list(shared)
        self._helpers: list[_Helper] = []
        self._next_asked = self._next_answer = self._deaths = 0

    def __enter__(self) -> Self:
        try:
            for _ in range(self.count):
                self._helpers.append(self._started())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all helpers."""
        for helper in self._helpers:
            helper.child.kill()
        for helper in self._helpers:
            helper.close()
        self._helpers.clear()

    def ask(self, question: Any) -> None:
        """Ask the next helper."""
        helper = self._helpers[self._next_asked % self.count]
        self._next_asked += 1
        helper.asked.append(question)
        # A dead one is noticed, and replaced, when its answer is due.
        with contextlib.suppress(BrokenPipeError):
            _send(helper, question)

    def answer(self) -> Any:
        """The answer to the first question without one. Raises what the helper raised, and
        `RunError` if helpers keep dying.
        """
        number = self._next_answer % self.count
        while True:
            helper = self._helpers[number]
            try:
                raised, value = pickle.load(helper.child.stdout)  # type: ignore[arg-type]
            except (EOFError, pickle.UnpicklingError):
                self._helpers[number] = self._replaced(helper)
                continue
            self._deaths = 0
            self._next_answer += 1
            helper.asked.popleft()
            if raised:
                raise value
            return value

    def answers(self, questions: Iterable[Any], ahead: int = 2) -> Iterator[Any]:
        """The answers to many questions, in their order; each helper has up to `ahead` of them."""
        waiting = 0
        for question in questions:
            if waiting == ahead * self.count:
                yield self.answer()
                waiting -= 1
            self.ask(question)
            waiting += 1
        for _ in range(waiting):
            yield self.answer()

    def _started(self) -> _Helper:
        with ExitStack() as closing:
            line = closing.enter_context(lifeline.child_lifeline())
            errors = closing.enter_context(tempfile.TemporaryFile())
            child = closing.enter_context(
                subprocess.Popen(
                    # Import nothing from the current folder, not even a checkout of maskloom.
                    [sys.executable, "-P", "-m", __name__, str(line)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    pass_fds=(line, *(memory.descriptor for memory in self._shared)),
                    env={**os.environ, **_ONE_THREAD},
                )
            )
            helper = _Helper(child, errors, closing.pop_all())
        with contextlib.suppress(BrokenPipeError):
            helper.child.stdin.write(self._start)  # type: ignore[union-attr]
            helper.child.stdin.flush()  # type: ignore[union-attr]
        return helper

    def _replaced(self, dead: _Helper) -> _Helper:
        """A new helper that has been asked what the dead one did not answer."""
        dead.child.kill()
        code = dead.child.wait()
        self._deaths += 1
        ending = _ending(code, dead.errors)
        dead.close()
        if self._deaths > _MOST_DEATHS:
            raise RunError(
                f"A helping process {ending}, and so did {_MOST_DEATHS} in its place. Use fewer "
                "processes if the machine lacks memory."
            )
        helper = self._started()
        helper.asked = dead.asked
        with contextlib.suppress(BrokenPipeError):
            for question in helper.asked:
                _send(helper, question)
        return helper


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(
    here: Callable[[Any], Any],
    prepare: Callable[[], Callable[[Any], Any]],
    questions: Sequence[Any],
    processes: int,
    shared: Iterable[SharedMemory] = (),
) -> Iterator[Any]:
    """The answers to questions, in their order: by `here`, in this process, as long as that will
    take only seconds, and by helpers, which `prepare` makes ready, if it takes longer.
    """
    spent = 0.0
    for done, question in enumerate(questions):
        if processes > 1 and spent * (len(questions) - done) > _WORTH_SECONDS * max(done, 1):
            with Helpers(min(processes, len(questions) - done), prepare, shared) as helpers:
                yield from helpers.answers(questions[done:])
            return
        started = time.monotonic()
        answer = here(question)
        spent += time.monotonic() - started
        yield answer


def _send(helper: _Helper, question: Any) -> None:
    pickle.dump(question, helper.child.stdin, pickle.HIGHEST_PROTOCOL)  # type: ignore[arg-type]
    helper.child.stdin.flush()  # type: ignore[union-attr]


def _ending(code: int, errors: IO[bytes]) -> str:
    """How a helper ended, as part of a sentence."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    errors.seek(0)
    last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
    return f"ended with exit code {code}{f' ({last[0]})' if last else ''}"


def _serve(line: int) -> None:
    """The work of a helper."""
    lifeline.exit_with_parent(line)
    # Ctrl+C goes to the whole group of processes; its parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Text that libraries print must not get into the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    questions = sys.stdin.buffer
    sys.path[:] = pickle.load(questions)
    answer: Callable[[Any], Any] = pickle.load(questions)()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            reply = _tried(partial(answer, pickle.load(questions)))
            answers.write(reply)
            answers.flush()


def _tried(call: Callable[[], Any]) -> bytes:
    """The pickled result of a call, or what it raised."""
    try:
        return pickle.dumps((False, call()), pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001  it is raised again where the answer is read
        try:
            reply = pickle.dumps((True, error), pickle.HIGHEST_PROTOCOL)
            pickle.loads(reply)
        # Exceptions of libraries may lose their arguments.
        except Exception:  # noqa: BLE001
            message = f"A helping process failed: {type(error).__name__}: {error}"
            reply = pickle.dumps((True, RunError(message)), pickle.HIGHEST_PROTOCOL)
        return reply


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
