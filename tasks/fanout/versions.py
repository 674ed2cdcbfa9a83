"""Versions of the code of a process, which must be equal on driver, scheduler and workers."""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import maskloom
from maskloom import segcore, tasks
from maskloom.segcore.errors import RunError


@cache
def worker_versions() -> tuple[str, ...]:
    """The versions of this process: of maskloom, a digest of its code, of Python and of
    distributed.
    """
    code = hashlib.sha256()
    for folder in (*tasks.__path__, *segcore.__path__):
        package = Path(folder)
        for path in sorted(package.rglob("*.py")):
            code.update(
                f"{package.name}/{path.relative_to(package).as_posix()}\0".encode()
                + path.read_bytes()
            )
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return maskloom.__version__, code.hexdigest()[:12], python, version("distributed")


def require_same(name: str, versions: tuple[str, ...], driver: tuple[str, ...]) -> None:
    """Raise `RunError` if a process runs other versions than the driver, since its results might
    differ.
    """
    if versions != driver:
        raise RunError(
            f"{name} runs {_in_words(versions)}, the driver {_in_words(driver)}. Install the same "
            "versions on the scheduler and on all workers, and start them again."
        )


def _in_words(versions: tuple[str, ...]) -> str:
    if len(versions) != len(worker_versions()):
        return f"another maskloom ({', '.join(versions)})"
    release, code, python, distributed = versions
    return f"maskloom {release} (code {code}) with Python {python} and distributed {distributed}"
