"""TensorFlow and keras, imported quietly and with a set number of threads.

TensorFlow writes notices to standard error during import, below Python and before any of its
switches take effect, and it accepts the number of threads only before its first operation. Import
it only through `import_tensorflow` and `import_keras`, which handle both.
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
"""Memory of TensorFlow and OpenVINO in a process that has tried a network with both (measured)."""
_NOTICE = re.compile(
    rb"[IWE]\d{4} |\d{4}-\d\d-\d\d .*: [IWE] |WARNING: All log messages before absl"
    rb"|To enable the following|INFO: |WARNING: "
)


@dataclass(slots=True)
class _Settings:
    threads: int | None = None
    claims: dict[int, IO[bytes]] = field(default_factory=dict)
    """Lock files of the GPUs that this process has claimed."""


_settings = _Settings()


def set_threads(threads: int) -> None:
    """Set the number of threads of every engine opened in this process from now on.

    TensorFlow accepts the number only before its first operation in a process; later calls do not
    change it. Raises `ValueError` for less than one.
    """
    if threads < 1:
        raise ValueError(f"threads: expected at least one; got {threads}")
    _settings.threads = threads
    if "tensorflow" in sys.modules:
        _set_up(sys.modules["tensorflow"])


def threads() -> int | None:
    """Return the number of threads per engine. None: each library decides."""
    return _settings.threads


def import_tensorflow() -> Any:
    """Import TensorFlow without its notices. Raises `WeightsError` if it is not installed."""
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    if importlib.util.find_spec("tensorflow") is None:
        raise WeightsError(
            "This file of weights needs TensorFlow, which is not installed: pip install tensorflow."
        )
    # Also silences later messages, in this process and its children.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with quiet():
        tensorflow = importlib.import_module("tensorflow")
    _set_up(tensorflow)
    return tensorflow


def import_keras() -> Any:
    """Import keras, with TensorFlow as backend unless configured otherwise.

    Raises `WeightsError` if it is not installed.
    """
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
    """Suppress notices of TensorFlow and LiteRT on standard error.

    Other output is written to standard error at the end.
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
            gpu = gpus[_claim_gpu(len(gpus))]
            config.set_visible_devices([gpu], "GPU")
            config.experimental.set_memory_growth(gpu, True)
            # Without it, the same patch may be summed in a different order the next time.
            config.experimental.enable_op_determinism()
    except RuntimeError:
        # TensorFlow is already initialised: its threads and devices cannot change.
        return


def _claim_gpu(count: int) -> int:
    """Claim the first of `count` GPUs not claimed by another process of this user.

    Returns its index; 0 if none is left.
    """
    for number in range(count):
        if number not in _settings.claims:
            # Per user, because a user cannot open another user's file there.
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
