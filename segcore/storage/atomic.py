"""Temporary files, and the atomic steps by which they take their names on a local disk.

The name of a temporary file identifies its writer: `maskloom-HOST-PROCESS-MACHINE-….tmp`, where
MACHINE identifies one boot of one machine (or container). So the files of dead processes of this
machine are recognised, and all others left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import platform
import re
import uuid
from functools import lru_cache
from pathlib import Path

from maskloom.segcore.errors import StoreError
from maskloom.segcore.storage.failpoints import failpoint

_HOST = platform.node() or "host"
TEMPORARY = re.compile(
    r"(?:maskloom-)?(?P<host>.+)-(?P<process>\d+)-(?:(?P<machine>[0-9a-f]{12})-)?[0-9a-f]{32}\.tmp"
)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


def is_writer_alive(temporary: Path) -> bool | None:
    """Whether the process named in a temporary file's name is alive. None if unknown: it belongs to
    another machine.
    """
    name = TEMPORARY.fullmatch(temporary.name)
    if name is None or name["machine"] != _machine():
        return None
    try:
        os.kill(int(name["process"]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        # The process belongs to another user.
        pass
    return True


def remove_temporary(path: Path) -> None:
    """Remove a temporary file, unless it is gone or belongs to another user."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        path.unlink()


@lru_cache(maxsize=1)
def _machine() -> str:
    """An identifier of one boot of one machine and one process namespace: each container numbers
    its processes separately.
    """
    boot = space = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{_HOST}\n{boot}\n{space}".encode()).hexdigest()[:12]


def temporary_name() -> str:
    """A new name that identifies this process and machine; see `is_writer_alive`."""
    return f"maskloom-{_HOST}-{os.getpid()}-{_machine()}-{uuid.uuid4().hex}.tmp"


def new_temporary(folder: Path) -> Path:
    """A new temporary path in a folder, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / temporary_name()


def rename_into_place(temporary: Path, target: Path) -> None:
    """Give a temporary file its name in one step, replacing any existing file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(target)
    sync_folder(target.parent)


def link_new(staging: Path, target: Path, content: bytes) -> None:
    """Write a file under a name that must be free, by way of a temporary file in `staging`.

    Raises `FileExistsError`, and `StoreError` as `_rename_new`.
    """
    temporary = new_temporary(staging)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        failpoint("write", str(target))
        try:
            target.hardlink_to(temporary)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _rename_new(temporary, target)
        sync_folder(target.parent)
        failpoint("written", str(target))
    finally:
        temporary.unlink(missing_ok=True)


def _rename_new(temporary: Path, target: Path) -> None:
    """Rename to a name that must be free, on a file system without hard links.

    Raises `FileExistsError`, and `StoreError` if the file system lacks such a rename too: two runs
    could then not detect each other.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        number = errno.ENOSYS
    elif (
        rename(_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
        == 0
    ):
        return
    else:
        number = ctypes.get_errno()
    if number == errno.EEXIST:
        raise FileExistsError(number, os.strerror(number), str(target))
    raise StoreError(
        f"Cannot write {target}: its file system has neither hard links nor renames that replace "
        f"nothing ({os.strerror(number)}), so runs "
        "could not be kept from doing the same work at once. Choose an `output` on another file "
        "system, or in an object store."
    )


def sync_folder(folder: Path) -> None:
    """Flush a local folder to the disk: a rename survives a crash only once its folder is
    flushed.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
