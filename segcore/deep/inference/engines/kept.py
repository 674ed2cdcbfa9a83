"""Converted networks, kept in a folder of the user, so that a run need not import TensorFlow to
start one in OpenVINO.

To convert a `.keras` file takes TensorFlow, and with it most of the start of a run. What comes out
is kept as OpenVINO's own files, under a digest of all that it depends on: the bytes of the weights,
the recipe of the network, precision, and the versions of the libraries and of this code. Whatever
fails here only costs the time to convert again.

The folder is `MASKLOOM_CACHE`, or `maskloom` in the user's cache (`~/.cache`). `MASKLOOM_CACHE` set
to nothing keeps none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import maskloom
from maskloom.segcore import deep

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.deep.inference.engines.protocol import Precision
    from maskloom.segcore.deep.inference.files.weights import Weights

VARIABLE = "MASKLOOM_CACHE"
_LIBRARIES = ("openvino", "tensorflow", "keras")
_MOST_BYTES = 2_000_000_000
"""Of all kept networks; the least recently used go first."""
_NETWORK = "network.xml"
_OTHERS_WRITE = 0o022


def kept_or(
    convert: Callable[[], Any],
    read: Callable[[Path], Any],
    weights: Weights,
    card: Card,
    precision: Precision,
) -> Any:
    """The converted network that is kept, as `read` gives it; else what `convert` gives, which is
    then kept.
    """
    folder = _folder()
    if folder is None:
        return convert()
    place = folder / _key(weights, card, precision)
    if place.exists():
        try:
            model = read(place / _NETWORK)
            os.utime(place)
        except (OSError, RuntimeError):
            shutil.rmtree(place, ignore_errors=True)
        else:
            return model
    model = convert()
    with suppress(OSError, RuntimeError):
        _keep(model, place)
    return model


def _folder() -> Path | None:
    """The folder of kept networks; None if there is none to which this user alone can write."""
    named = os.environ.get(VARIABLE)
    if named == "":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(named or Path(home, "maskloom"), "networks")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):
        return None
    # What others write there, they could make this process run.
    mine = status.st_uid == os.getuid() and not status.st_mode & _OTHERS_WRITE
    return folder if mine else None


def _key(weights: Weights, card: Card, precision: Precision) -> str:
    parts = {
        "weights": weights.sha256,
        "trust": weights.trust,
        "network": [card.kind, card.network, card.channels, len(card.classes)],
        "precision": precision,
        "versions": [maskloom.__version__, _code(), *map(_version, _LIBRARIES)],
    }
    text = json.dumps(parts, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code() -> str:
    """A digest of the code that builds and converts networks."""
    digest = hashlib.sha256()
    for path in sorted(Path(next(iter(deep.__path__))).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _keep(model: Any, place: Path) -> None:
    """Write a model under a name of its own first, so that others see it whole or not at all."""
    import openvino

    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as folder:
        written = Path(folder, "kept")
        written.mkdir()
        openvino.save_model(model, written / _NETWORK, compress_to_fp16=False)
        # Fails where another process was faster.
        written.rename(place)
    _drop_oldest(place.parent.iterdir())


def _drop_oldest(places: Iterable[Path]) -> None:
    total = 0
    for place in sorted(places, key=lambda each: each.stat().st_mtime, reverse=True):
        total += sum(file.stat().st_size for file in place.rglob("*"))
        if total > _MOST_BYTES:
            shutil.rmtree(place, ignore_errors=True)
