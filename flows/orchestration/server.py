"""The embedded Prefect server: the handle of the run, and the child process that serves.

The child (`python -m maskloom.flows.orchestration.server DESCRIPTOR`) inherits a listening socket,
so that no other process can take its port. It reports on standard output: `configured URL` (the
environment or the profile names a server, so this one is not needed) or `serving URL`. Its standard
input is a pipe whose other end only the run holds: when that closes, for whatever reason, the
server writes its data and ends. It runs in its own session, so Ctrl-C does not reach it.

It serves one run from Prefect's usual database. Scheduling, triggers, the user interface and usage
statistics are off.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import select
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from maskloom.segcore.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import uvicorn

_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    # The migration runs here, under a lock.
    "PREFECT_API_DATABASE_MIGRATE_ON_START": "false",
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
}
_START_SECONDS = 120.0
"""How long the server may take to start; the very first start creates the database."""
_END_SECONDS = 30.0
"""How long the server may take to end: usually a quarter of a second, longer while it creates the
database.
"""


class EmbeddedServer:
    """The run's handle of the server: starts it and ends it."""

    def __init__(self) -> None:
        self.serves = False
        """Whether the child serves. False: not yet, or another server is configured."""
        self.is_ending = False
        """Whether it was asked to end."""
        self._reading = threading.Lock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(128)
            self._deadline = time.monotonic() + _START_SECONDS
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    # Without -P, a checkout of maskloom in the current folder would be imported.
                    "-P",
                    "-m",
                    "maskloom.flows.orchestration.server",
                    str(listening.fileno()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                pass_fds=[listening.fileno()],
                start_new_session=True,
            )

    def url(self) -> str:
        """Wait for the address of the API: this server's, or the configured one. Raises `RunError`
        if the server does not start.
        """
        with self._reading:
            assert self._child.stdout is not None
            ready, _, _ = select.select(
                [self._child.stdout], [], [], max(0.0, self._deadline - time.monotonic())
            )
            words = self._child.stdout.readline().decode().split() if ready else []
        if not words:
            self._errors.seek(0)
            last_words = (
                "".join(self._errors.read().decode(errors="replace").strip().splitlines()[-1:])
                or "no message"
            )
            raise RunError(
                f"The embedded Prefect server did not start within {_START_SECONDS:.0f} s "
                f"({last_words}). "
                "Run with --no-prefect, or start a server with `prefect server start` and set "
                "PREFECT_API_URL."
            )
        self.serves = words[0] == "serving"
        return words[1]

    def end(self) -> None:
        """Ask the server to end, and do not wait for it."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self.is_ending = True

    def close(self) -> None:
        """End the server, by force if it does not end in time."""
        self.end()
        try:
            self._child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        # By now a thread that waits for a line has read the end of the pipe.
        with self._reading:
            assert self._child.stdout is not None
            self._child.stdout.close()
        self._errors.close()


@contextmanager
def started_early(wanted: bool) -> Iterator[EmbeddedServer | None]:
    """A server for the run that the block may make, which starts while the recipe is read. It ends
    with the block. None: no server is wanted, or another one is configured.
    """
    server = EmbeddedServer() if wanted and configured_server() is None else None
    try:
        yield server
    finally:
        if server is not None and server.is_ending:
            server.close()
        elif server is not None:
            # No run has used it. It may still be creating its database; nothing waits for that.
            threading.Thread(target=server.close, daemon=True).start()


def configured_server() -> str | None:
    """The address of the API that the environment names, if it names one."""
    return os.environ.get("PREFECT_API_URL") or None


def import_prefect() -> None:
    """Import Prefect without the changes that it makes to the logging of the whole process."""
    # Read only at import: no usage statistics.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    import prefect.main  # noqa: F401 - takes a second or two, so it happens in the background

    # The import has taken over the logging of the whole process.
    root.handlers, root.level = handlers, level
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    # Errors in a flow or a task reach our caller as exceptions.
    console.addFilter(
        lambda record: not record.name.startswith(("prefect.flow_runs", "prefect.task_runs"))
    )
    prefect_logger = logging.getLogger("prefect")
    prefect_logger.handlers, prefect_logger.propagate = [console], False
    for worker in ("EventsWorker", "APILogWorker"):
        # Whenever they are waited for, as here, they warn about work left.
        logging.getLogger(worker).setLevel(logging.ERROR)
    logging.getLogger("prefect._internal").handlers = []


def main(descriptor: int) -> None:
    """Serve at the inherited socket until the parent is gone."""
    os.environ.update(_SETTINGS)
    # Imports make much and drop almost nothing, and the collector would go through it again and
    # again: an eighth of the start.
    gc.disable()
    ending = _Ending()
    threading.Thread(target=ending.follow_parent, daemon=True).start()
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url:
        _report(f"configured {settings.api.url}")
        return
    with _exclusive(settings.home) as known, ending.postponed:
        _migrate(known)
    import uvicorn
    from prefect.server.api.server import create_app

    listening = socket.socket(fileno=descriptor)
    host, port = listening.getsockname()
    # `create_app` collects garbage itself, which is to look at nothing of the imports.
    gc.freeze()
    _dump_no_settings()
    ending.server = uvicorn.Server(
        uvicorn.Config(create_app(ephemeral=True), log_level="error", lifespan="on")
    )
    gc.freeze()
    gc.enable()
    announcing = threading.Thread(
        target=_announce, args=(ending.server, f"serving http://{host}:{port}/api"), daemon=True
    )
    announcing.start()
    ending.server.run(sockets=[listening])
    # Everything is written; shutting down the interpreter would delay the run by a second.
    os._exit(0)


def _dump_no_settings() -> None:
    """Let `create_app` not write out all settings three times, which takes longer than to make the
    app: twice as the key of a cache, once to configure the logging.
    """
    from prefect.logging import configuration
    from prefect.settings import Settings

    # This process makes one app, and what it logs goes to a file that is read if it fails.
    Settings.hash_key = lambda _: ""  # type: ignore[method-assign,assignment]
    configuration.setup_logging = lambda incremental=None: {}  # noqa: ARG005


class _Ending:
    """Ends the process when its parent does."""

    def __init__(self) -> None:
        self.server: uvicorn.Server | None = None
        self.postponed = threading.Lock()
        """Held while the process must not end: a half-migrated database would break every later
        run.
        """

    def follow_parent(self) -> None:
        """Wait for the end of standard input, then end the process."""
        while os.read(sys.stdin.fileno(), 1):
            pass
        if self.server is not None:
            self.server.should_exit = True
            time.sleep(_END_SECONDS)
        with self.postponed:
            os._exit(0)


@contextmanager
def _exclusive(home: Path) -> Iterator[IO[str]]:
    """Exclude other maskloom processes with the same Prefect home from migrating the database.
    Yields the file that says which database was migrated last.
    """
    import fcntl

    home.mkdir(parents=True, exist_ok=True)
    with (home / "maskloom.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _migrate(known: IO[str]) -> None:
    """Create the database or bring it up to date, unless this version of Prefect did so before: its
    migrations take most of a second to load.
    """
    from prefect.server.database import provide_database_interface

    database = provide_database_interface()
    url = database.database_config.connection_url
    known.seek(0)
    if known.read() == _state(url) != "":
        return
    asyncio.run(database.create_db())
    known.truncate(0)
    known.write(_state(url))


def _state(url: str) -> str:
    """The version of Prefect, the file of a SQLite database and its revision; empty for others."""
    from prefect import __version__
    from sqlalchemy.engine import make_url

    found = make_url(url)
    if found.get_backend_name() != "sqlite" or not found.database:
        return ""
    if not Path(found.database).is_file():
        return ""
    try:
        with closing(sqlite3.connect(found.database)) as connection:
            revisions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error:
        return ""
    return f"{__version__} {found.database} {sorted(revisions)}"


def _announce(server: uvicorn.Server, line: str) -> None:
    """Tell the parent when the server serves."""
    while not server.started:
        time.sleep(0.02)
    _report(line)


def _report(line: str) -> None:
    """Write one line for the parent."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
