"""What the record of a flow run shows besides its states: tags, log lines, progress, results.

All of it is for people who look at the Prefect server. Nothing of it can fail a run: what the
server does not take is lost, and the run's log says so once.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import threading
import traceback
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext
from prefect.logging.handlers import APILogHandler
from prefect.states import Cancelled

from maskloom.flows.orchestration.settings import changed_settings
from maskloom.flows.progress.displays import Position, Quiet
from maskloom.flows.signals import last_act
from maskloom.flows.terminal import EscapingFormatter, count, escaped, line
from maskloom.segcore.errors import MaskloomError
from maskloom.segcore.storage.addresses import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import State

    from maskloom.flows.run import RunResult
    from maskloom.flows.stages import Watched

LINES = 500
"""Lines of a run's log that are sent to the server."""
SECONDS = 5.0
"""How often the progress is sent, and how soon a cancel at the server is noticed."""
_ANSWER_SECONDS = 10.0
"""How long the server may take to answer."""
_LAST_SECONDS = 1.0
"""The same where the process is about to end."""
_PREFECT_CANCELS = ("CANCELLING", "CANCELLED")

log = logging.getLogger("maskloom.run")


class RunRecord(Quiet):
    """The record of the flow run around this call. A display of the run's progress, too."""

    def __init__(self, run: Watched) -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        self.id: UUID = context.flow_run.id
        self._tags = list(context.flow_run.tags)
        self._run = run
        self._position: Callable[[], Position] | None = None
        self._artifact: UUID | None = None
        self._shown: tuple[float | None, str] | None = None
        self._complained = False
        self._open, self._using = ExitStack(), threading.Lock()
        self._client: SyncPrefectClient | None = None

    def begin(self, position: Callable[[], Position]) -> None:
        """Begin a pass: a line of the log names it."""
        self._position = position
        log.info("%s", position())

    def report(self, text: str) -> None:
        """Send a line to the log."""
        log.info("%s", text)

    def notice(self, text: str) -> None:
        """Send a line to the log."""
        log.info("%s", text)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Record tags, log lines and progress of the block; if the run is cancelled at the server,
        ask it to stop.
        """
        ended = threading.Event()
        # The server's address is in the context of this thread; without it Prefect would start a
        # server of its own.
        attending = threading.Thread(
            target=copy_context().run, args=(self._attend, ended), name="record", daemon=True
        )
        break_off = partial(copy_context().run, self._cancelled)
        with _log_lines(self.id) as handler, last_act(break_off), self._open:
            for note in self._run.notes:
                log.info("%s", note)
            attending.start()
            try:
                yield
            except MaskloomError:
                raise
            except Exception as error:
                # A fault of the program. Its caller shows it too, so it goes to this log alone.
                handler.send(logging.ERROR, "".join(traceback.format_exception(error)))
                raise
            finally:
                ended.set()
                attending.join(_ANSWER_SECONDS)

    def add_results(self, result: RunResult) -> None:
        """Record areas, failures and places of results as artifacts."""
        outcome = result.outcome
        log.info("%s. Results: %s", result, result.output)
        if self._artifact is not None:
            end = Position(str(result), (), 1, 1)
            self._tell(lambda client: self._show_progress(client, end))
        self._position = None
        if outcome is None:
            return
        areas = [
            {"class": escaped(row.name), row.kind: row.size, "share": f"{row.share:.1%}"}
            for row in outcome.classes
        ]
        failures = [
            {
                "image": line(redacted(uri)),
                "error": reason.error_type,
                "reason": escaped(redacted(reason.error)),
            }
            for uri, reason in outcome.failures
        ]
        for uri, reason in outcome.failures:
            log.warning("failed: %s: %s: %s", uri, reason.error_type, reason.error)
        self._tell(lambda client: self._show(client, "results", "markdown", _places(result)))
        if areas:
            self._tell(
                lambda client: self._show(
                    client, "areas", "table", json.dumps(areas), "Total areas of the classes"
                )
            )
        if failures:
            words = f"{count(outcome.failed, 'image')} failed"
            more = "" if outcome.failed == len(failures) else f"; the first {len(failures)}"
            self._tell(
                lambda client: self._show(
                    client, "failures", "table", json.dumps(failures), words + more
                )
            )

    def _tag(self, client: SyncPrefectClient) -> None:
        ours = [f"recipe: {line(self._run.name)}"]
        if self._run.output:
            ours.append(f"output: {line(redacted(self._run.output))}")
        client.update_flow_run(self.id, tags=list(dict.fromkeys([*self._tags, *ours])))

    def _attend(self, ended: threading.Event) -> None:
        """Until the run has ended, send its progress and look for a cancel now and then."""
        self._tell(self._tag)
        while not ended.wait(SECONDS):
            self._tell(self._progress)
            self._tell(self._look_for_cancel)

    def _progress(self, client: SyncPrefectClient) -> None:
        """Create or update the artifact of the progress, if anything has changed."""
        if self._position is None:
            return
        self._show_progress(client, self._position())

    def _show_progress(self, client: SyncPrefectClient, now: Position) -> None:
        share = 100 * min(now.done / now.total, 1.0) if now.done and now.total else 0.0
        shown = (round(share, 1), str(now))
        if shown == self._shown:
            return
        self._shown = shown
        if self._artifact is None:
            self._artifact = self._show(client, "progress", "progress", shown[0], shown[1])
        else:
            change = ArtifactUpdate(data=shown[0], description=shown[1])
            client.update_artifact(self._artifact, change)

    def _look_for_cancel(self, client: SyncPrefectClient) -> None:
        state = client.read_flow_run(self.id).state
        if state is not None and state.type.value in _PREFECT_CANCELS:
            self._run.stop("cancelled at the Prefect server")

    def _show(
        self,
        client: SyncPrefectClient,
        name: str,
        kind: str,
        data: str | float,
        description: str | None = None,
    ) -> UUID:
        """Create an artifact. Those of one recipe have one history."""
        recipe = re.sub("[^a-z0-9]+", "-", self._run.name.lower()).strip("-") or "recipe"
        artifact = ArtifactCreate(
            key=f"{recipe}-{name}",
            type=kind,
            data=data,
            description=description,
            flow_run_id=self.id,
        )
        return client.create_artifact(artifact).id

    def _tell(self, act: Callable[[SyncPrefectClient], object]) -> None:
        """Do something with the server."""
        try:
            with self._using, changed_settings({"client": {"max_retries": 0}}):
                if self._client is None:
                    settings = {"timeout": _ANSWER_SECONDS}
                    client = get_client(sync_client=True, httpx_settings=settings)
                    self._client = self._open.enter_context(client)
                act(self._client)
        except Exception as error:  # noqa: BLE001 - the work counts more
            if not self._complained:
                self._complained = True
                log.warning("Prefect did not record everything: %s", error)

    def _cancelled(self) -> None:
        """Record that the run was broken off: the process ends after this."""
        state: State[Any] = Cancelled(message="Broken off by a second Ctrl-C; nothing is lost.")
        # The other client may be in use, for as long as a server does not answer.
        with (
            changed_settings({"client": {"max_retries": 0}}),
            get_client(sync_client=True, httpx_settings={"timeout": _LAST_SECONDS}) as client,
        ):
            client.set_flow_run_state(self.id, state, force=True)


@contextmanager
def _log_lines(flow_run: UUID) -> Iterator[_RunLog]:
    """Send the lines of maskloom's loggers to the log of the flow run."""
    logger = logging.getLogger("maskloom")
    level, handler = logger.level, _RunLog(flow_run)
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.end()


class _RunLog(APILogHandler):
    """Sends the first lines of a run to its log, without secrets and escapes, from any thread."""

    def __init__(self, flow_run: UUID) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(EscapingFormatter())
        self._flow_run, self._lines = str(flow_run), 0
        self._context = copy_context()

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        self._lines += 1
        if self._lines <= LINES:
            self._send(record)

    def end(self) -> None:
        """Say how many lines were not sent."""
        if self._lines > LINES:
            text = f"{self._lines - LINES} more lines were not sent; the run's own log has them."
            self.send(logging.WARNING, text)

    def send(self, level: int, text: str) -> None:
        """Send one line more."""
        self._send(logging.LogRecord(log.name, level, "", 0, text, None, None))

    def _send(self, record: logging.LogRecord) -> None:
        record = copy.copy(record)
        # Other threads have neither a run around the call nor the server's address.
        record.flow_run_id = self._flow_run
        self._context.copy().run(super().emit, record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        """Lose the line."""
        return


def _places(result: RunResult) -> str:
    """Markdown that says how a run ended and where its results are."""
    output = line(redacted(result.output)).replace("`", "'")
    run = result.outcome.run_id if result.outcome is not None else ""
    places = [
        ("masks", f"{output}/masks"),
        ("previews to look at", f"{output}/previews"),
        ("tables", f"{output}/tables"),
        ("record of the run", f"{output}/runs/{run}"),
    ]
    rows = "\n".join(f"| {name} | `{place}` |" for name, place in places)
    return (
        f"**{result}**\n\n| | |\n|---|---|\n{rows}\n\n"
        f"Reasons of failures: `maskloom status {output}`\n"
    )
