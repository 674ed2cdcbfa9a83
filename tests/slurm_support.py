"""A real SLURM of one node on this machine, for tests: nothing of it outlives the block, and it
touches no file outside its folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
# Four cores, however many there are.
SlurmdParameters=config_overrides
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Memory is enforced by the next three lines: there are no cgroups.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MpiDefault=none
KillWait=5
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no SLURM can run here; empty if it can."""
    absent = [name for name in PROGRAMS if _path(name) is None]
    if absent:
        return f"SLURM is not installed (no {', '.join(absent)})"
    if os.geteuid() != 0:
        return "slurmd starts jobs as root only"
    host = socket.gethostname().partition(".")[0]
    try:
        address = socket.gethostbyname(host)
    except OSError:
        address = ""
    return "" if address.startswith("127.") else f"the name {host} is not that of 127.0.0.1"


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """SLURM with one node of four cores and 8 GB; its commands find it by the environment."""
    before = os.environ.get("SLURM_CONF")
    host = socket.gethostname().partition(".")[0]
    controller, node = _free_port(), _free_port()
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o755)
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(host=host, folder=folder, controller=controller, node=node))
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    os.environ["SLURM_CONF"] = str(conf)
    pid_files = [folder / "munge" / "pid", folder / "slurmctld.pid", folder / "slurmd.pid"]
    try:
        _run(
            "munged",
            "--force",
            f"--socket={folder}/munge/socket",
            f"--key-file={key}",
            f"--pid-file={pid_files[0]}",
            f"--log-file={folder}/munge/log",
            f"--seed-file={folder}/munge/seed",
        )
        _run("slurmctld", "-f", str(conf))
        _run("slurmd", "-f", str(conf))
        _wait_until_idle(folder)
        yield
    finally:
        for job in squeue("%A"):
            subprocess.run(["scancel", "--signal=KILL", job], check=False)
        for file in reversed(pid_files):
            _end(file)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def squeue(form: str) -> list[str]:
    """The jobs of SLURM, one line each."""
    answer = subprocess.run(
        ["squeue", "--noheader", f"--format={form}"], capture_output=True, text=True, check=False
    )
    return answer.stdout.split()


def _path(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def _run(program: str, *arguments: str) -> None:
    path = _path(program)
    assert path is not None
    subprocess.run([path, *arguments], check=True, timeout=60)


def _wait_until_idle(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, check=False
        )
        if answer.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    raise RuntimeError((folder / "slurmctld.log").read_text()[-2000:])


def _end(pid_file: Path) -> None:
    with suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int(pid_file.read_text()))
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
