"""Servers and files that all test processes of one session share: the first that needs one makes
it, under a lock, and the servers end with the session.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

STARTED: list[subprocess.Popen[str]] = []
"""Servers of this process: to forget one that runs is a warning, and so a failure."""


def once(factory, name: str, make: Callable[[Path], str]) -> str:
    """What `make(folder)` said when the first process of the session called it."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder /= f"shared-{name}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = folder / "said"
        if not said.exists():
            said.write_text(make(folder))
        return said.read_text()


def serve(kind: str, folder: Path) -> str:
    """Start a server as a process of its own, which ends with the session; its address."""
    session = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    log = folder / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [sys.executable, __file__, kind, str(session)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            start_new_session=True,
        )
    STARTED.append(server)
    assert server.stdout is not None
    with server.stdout as said:
        address = said.readline().strip()
    assert address, f"{kind} did not start:\n{log.read_text()}"
    return address


def main(kind: str, session: int) -> None:
    """Serve until the session is gone."""
    if kind == "dask":
        import distributed

        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        )
        address = cluster.scheduler_address
    else:
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        with contextlib.redirect_stdout(sys.stderr):
            server.start()
        address = "http://{}:{}".format(*server.get_host_and_port())
    print(address, flush=True)
    while psutil.pid_exists(session):
        time.sleep(0.5)
    if kind == "dask":
        cluster.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
