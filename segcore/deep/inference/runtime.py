"""Keras and the library that does its arithmetic, imported quietly and with a number of threads.

Keras runs on TensorFlow, JAX or PyTorch, one of them for the life of a process. Which one is
decided here, before keras is imported: that of `KERAS_BACKEND`, or else the first of the three that
is installed. TensorFlow writes notices to standard error during import, below Python and before any
of its switches take effect, and libraries accept the number of threads and a GPU only before their
first operation. Import them only through `import_keras` and `import_tensorflow`, which handle all
of this.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, get_args

from maskloom.segcore.errors import WeightsError

Backend = Literal["tensorflow", "jax", "torch"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
"""Libraries that Keras runs networks on, the preferred one first."""
LIBRARY_BYTES = 800_000_000
"""Memory of TensorFlow and OpenVINO in a process that has tried a network with both (measured)."""
_NOTICE = re.compile(
    rb"[IWE]\d{4} |\d{4}-\d\d-\d\d .*: [IWE] |WARNING: All log messages before absl"
    rb"|To enable the following|INFO: |WARNING: "
)


@dataclass(slots=True)
class _Settings:
    """What this process has set once for all engines."""

    threads: int | None = None
    claims: dict[int, IO[bytes]] = field(default_factory=dict)
    """Lock files of the GPUs that this process has claimed."""


_settings = _Settings()


def set_threads(threads: int) -> None:
    """Set the number of threads of every engine opened in this process from now on.

    TensorFlow and JAX accept the number only before their first operation in a process; later calls
    do not change it. Raises `ValueError` for less than one.
    """
    if threads < 1:
        raise ValueError(f"threads: expected at least one; got {threads}")
    _settings.threads = threads
    for name in ("tensorflow", "torch"):
        module = sys.modules.get(name)
        if module is not None:
            _SET_UP[name](module)


def threads() -> int | None:
    """Return the number of threads per engine. None: each library decides."""
    return _settings.threads


def keras_backend() -> Backend | None:
    """The library that Keras runs on in this process, imported or not. None: there is none.

    Raises `WeightsError` if `KERAS_BACKEND` names one that is unknown or not installed.
    """
    if "keras" in sys.modules:
        loaded: Backend = sys.modules["keras"].config.backend()
        return loaded
    named = os.environ.get("KERAS_BACKEND")
    if not named:
        return next((name for name in BACKENDS if _is_installed(name)), None)
    if named not in BACKENDS:
        raise WeightsError(
            f"KERAS_BACKEND: maskloom runs networks on {', '.join(BACKENDS)}; got {named!r}. "
            "Change or unset it."
        )
    if not _is_installed(named):
        raise WeightsError(
            f"KERAS_BACKEND names {named}, which is not installed: pip install "
            f"'maskloom[{named}]'. Or unset it."
        )
    return named


def use_backend(name: Backend) -> None:
    """Let Keras run on this library in this process.

    Raises `WeightsError` if it is not installed, or keras was imported with another.
    """
    if keras_backend() == name:
        return
    if not _is_installed(name):
        raise WeightsError(f"engine: {name} is not installed here: pip install 'maskloom[{name}]'.")
    if "keras" in sys.modules or os.environ.get("KERAS_BACKEND"):
        raise WeightsError(
            f"engine: Keras runs on {keras_backend()} in this process, which cannot change; {name} "
            f"was asked for. Set the environment variable KERAS_BACKEND={name}, or engine: auto."
        )
    os.environ["KERAS_BACKEND"] = name


def import_keras() -> Any:
    """Import keras on its backend. Raises `WeightsError` if none is installed."""
    if "keras" in sys.modules:
        return sys.modules["keras"]
    backend = keras_backend()
    if backend is None:
        raise WeightsError(
            "Networks need TensorFlow, JAX or PyTorch, and none of them is installed: pip install "
            "'maskloom[tensorflow]' (or [jax], or [torch])."
        )
    # Also for child processes, which must give the same labels.
    os.environ["KERAS_BACKEND"] = backend
    if backend == "tensorflow":
        import_tensorflow()
    else:
        _prepare_environment(backend)
        _SET_UP[backend](importlib.import_module(backend))
    return importlib.import_module("keras")


def import_tensorflow() -> Any:
    """Import TensorFlow without its notices. Raises `WeightsError` if it is not installed."""
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    if not _is_installed("tensorflow"):
        raise WeightsError(
            "This needs TensorFlow, which is not installed: pip install 'maskloom[tensorflow]'."
        )
    # Also silences later messages, in this process and its children.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with quiet():
        tensorflow = importlib.import_module("tensorflow")
    _set_up_tensorflow(tensorflow)
    return tensorflow


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


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


def _set_up_tensorflow(tensorflow: Any) -> None:
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


def _prepare_environment(backend: Backend) -> None:
    """Settings that are read when the library is imported."""
    if backend == "jax":
        # Like TensorFlow above: memory as it is needed, not three quarters of the GPU.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _set_up_jax(jax: Any) -> None:
    before = os.environ.get("NPROC")
    if _settings.threads is not None:
        # The only way to tell XLA the size of its thread pool, read when devices are made.
        os.environ["NPROC"] = str(_settings.threads)
    try:
        devices = jax.local_devices()
    finally:
        if before is None:
            os.environ.pop("NPROC", None)
        else:
            os.environ["NPROC"] = before
    if devices[0].platform == "gpu":
        jax.config.update("jax_default_device", devices[_claim_gpu(len(devices))])


def _set_up_torch(torch: Any) -> None:
    if _settings.threads is not None:
        torch.set_num_threads(_settings.threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(_claim_gpu(torch.cuda.device_count()))


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


_SET_UP: dict[str, Callable[[Any], None]] = {
    "tensorflow": _set_up_tensorflow,
    "jax": _set_up_jax,
    "torch": _set_up_torch,
}
