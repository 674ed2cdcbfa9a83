"""What stores say about files."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from maskloom.segcore.storage import filesystems


def info_of(fs: Any, path: str) -> Mapping[str, Any]:
    """The store's information on a file. Empty for a file that does not exist, which becomes a
    failed row with a clear reason.
    """
    try:
        info = filesystems.info_of(fs, path)
    except FileNotFoundError as error:
        # fsspec also reports a missing file if a web server does not answer or refuses access. The
        # reason appears when the file is read.
        answer = getattr(error.__cause__, "status", None)
        return (
            {} if error.__cause__ is None or answer in (404, 410) else {"size": 0, "type": "file"}
        )
    except (NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return {}
        raise
    return info
