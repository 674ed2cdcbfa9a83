"""The commands of SLURM: the queue, time limits, and what it says of jobs that it does not take."""

from __future__ import annotations

import getpass
import re
import subprocess
from collections.abc import Sequence

from maskloom.segcore.errors import RecipeError, RunError

_WALLTIME = re.compile(r"(?:(\d+)-)?(\d{1,2}):([0-5]\d):([0-5]\d)")
_COMMAND_SECONDS = 60.0
"""How long a command of SLURM may take."""


def jobs_in_queue() -> dict[str, tuple[str, str]] | None:
    """State and reason of the user's jobs by their ids. None: SLURM does not answer."""
    command = ["squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%A|%T|%r"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = [line.strip().split("|", 2) for line in answer.stdout.splitlines() if line.strip()]
    return {number: (state, reason) for number, state, reason in found if state != "COMPLETING"}


def require_accepted(options: Sequence[str]) -> None:
    """Raise `RunError` unless SLURM would take a job with these options of sbatch. Nothing is
    submitted.
    """
    command = ["sbatch", "--test-only", "--ntasks=1", *options, "--wrap=true"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(
            f"SLURM does not answer (sbatch --test-only: {error}). Try `sinfo` on this machine."
        ) from error
    if answer.returncode:
        said = " ".join(answer.stderr.split()) or f"exit code {answer.returncode}"
        raise refusal(f"{said.rstrip('.')}.")


def refusal(said: str) -> RunError:
    """The error of a job that SLURM does not take, for a reason in its words."""
    if "contact slurm controller" in said or "configuration source" in said:
        return RunError(
            f"SLURM does not answer: {said} Try `sinfo` on this machine; if that fails too, ask "
            "those who run SLURM."
        )
    if "generic resource" in said or "gres" in said.lower():
        remedy = (
            "No node of this partition offers GPUs under the name gpu: remove cluster.gpu, or name "
            "another partition"
        )
    else:
        remedy = (
            "Correct the section `cluster` of the recipe (partition, account, walltime, memory, "
            "directives)"
        )
    return RunError(f"SLURM refused a job: {said} {remedy}, then run the same command again.")


def words_of(error: RuntimeError) -> str:
    """What a command of SLURM wrote, from dask-jobqueue's message."""
    text = str(error)
    said = text.partition("stderr:\n")[2].strip() or text.strip()
    return said.replace("\n", " ").rstrip(".") + "."


def seconds_of(walltime: str) -> int:
    """Seconds of a time limit. Raises `RecipeError` for another form, or less than a minute.

    >>> seconds_of("1-02:00:30")
    93630
    """
    found = _WALLTIME.fullmatch(walltime)
    days, hours, minutes, seconds = map(int, found.groups("0")) if found else (0, 0, 0, 0)
    total = ((24 * days + hours) * 60 + minutes) * 60 + seconds
    if total < 60:
        raise RecipeError(
            "walltime: must be [days-]hours:minutes:seconds, a minute or more, e.g. 04:00:00 in "
            f"quotes, not {walltime!r}."
        )
    return total


def margin_of(walltime: str) -> float:
    """Seconds before its time limit at which a worker has ended."""
    return min(600.0, seconds_of(walltime) / 6)
