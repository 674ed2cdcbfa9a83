"""Local copies of files in object stores, for libraries that read local files only."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from maskloom.segcore.storage.filesystems import filesystem, is_local, store_errors


def local_copy(uri: str, digest: str) -> str:
    """The path of a file, or of a copy of it in the folder for temporary files, which processes of
    a machine share and which is found by `digest`. Raises `StoreError`.
    """
    fs, path = filesystem(uri)
    if is_local(uri):
        return path
    folder = Path(tempfile.gettempdir()) / f"maskloom-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    copy = folder / f"{digest}{Path(path).suffix}"
    if not copy.exists():
        own = copy.with_suffix(f".{os.getpid()}")
        with store_errors(f"read {uri}"):
            fs.get_file(path, str(own))
        own.replace(copy)
    return str(copy)
