"""The runtime of networks: TensorFlow and keras as this process wants them, quiet and with a set
number of threads.

TensorFlow writes notices to standard error while it is imported, below Python and before any of its
switches for that works; and it takes its threads only before its first operation. So nobody imports
it by himself: `import_tensorflow` and `import_keras` see to both.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from maskloom.segcore.errors import WeightsError

LIBRARY_BYTES = 800_000_000
"""What TensorFlow and OpenVINO take in a process that has tried a network with both (measured)."""
_NOTICE = re.compile(
    rb"[IWE]\d{4} |\d{4}-\d\d-\d\d .*: [IWE] |WARNING: All log messages before absl"
    rb"|To enable the following|INFO: |WARNING: "
)


@dataclass(slots=True)
class _Settings:
    threads: int | None = None
    claims: dict[int, IO[bytes]] = field(default_factory=dict)
    """Lock files of the GPUs that this process has to itself."""


_settings = _Settings()


def set_threads(threads: int) -> None:
    """Lets every engine that this process opens from now on use so many threads.

    TensorFlow takes the number only before its first operation in a process; what it has then
    stays.
    """
    if threads < 1:
        raise ValueError(f"threads: expected at least one; got {threads}")
    _settings.threads = threads
    if "tensorflow" in sys.modules:
        _set_up(sys.modules["tensorflow"])


def threads() -> int | None:
    """How many threads an engine uses. None: nobody said, so each library decides."""
    return _settings.threads


def import_tensorflow() -> Any:
    """TensorFlow, without its notices. Raises `WeightsError` where it is not installed."""
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    if importlib.util.find_spec("tensorflow") is None:
        raise WeightsError(
            "This file of weights needs TensorFlow, which is not installed: pip install tensorflow."
        )
    # For what it would write later, in this process and in those that it starts.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with quiet():
        tensorflow = importlib.import_module("tensorflow")
    _set_up(tensorflow)
    return tensorflow


def import_keras() -> Any:
    """The package keras. Its backend is TensorFlow unless keras was told otherwise."""
    if importlib.util.find_spec("tensorflow") is not None:
        import_tensorflow()
    if importlib.util.find_spec("keras") is None:
        raise WeightsError(
            "This file of weights needs keras, which is not installed: pip install keras "
            "tensorflow."
        )
    return importlib.import_module("keras")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps notices of TensorFlow and LiteRT off standard error; whatever else is written there
    follows at the end.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            for line in written:
                if not _NOTICE.match(line):
                    os.write(2, line)


def _set_up(tensorflow: Any) -> None:
    config = tensorflow.config
    try:
        if _settings.threads is not None:
            config.threading.set_intra_op_parallelism_threads(_settings.threads)
            config.threading.set_inter_op_parallelism_threads(1)
        gpus = config.list_physical_devices("GPU")
        if gpus:
            own = gpus[_claimed(len(gpus))]
            config.set_visible_devices([own], "GPU")
            config.experimental.set_memory_growth(own, True)
            # Without it the same patch may be summed in another order the next time.
            config.experimental.enable_op_determinism()
    except RuntimeError:
        # It has begun to work: its threads and devices stay as they are.
        return


def _claimed(count: int) -> int:
    """The first of so many GPUs that no other process of this user has claimed; the first of all
    where none is left.
    """
    for number in range(count):
        if number not in _settings.claims:
            # By user: nobody may open another's file there.
            file = (Path(tempfile.gettempdir()) / f"maskloom-{os.getuid()}-gpu-{number}").open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            # Held until the process ends.
            _settings.claims[number] = file
        return number
    return 0
