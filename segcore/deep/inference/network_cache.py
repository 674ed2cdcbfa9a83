"""What was found out about a file of weights once, kept in a folder of the user, so that a run
starts in seconds.

Three things take most of the start of a run with a network: to convert a `.keras` file for
OpenVINO, which takes TensorFlow, to select an engine, and to examine a file without a card. What
comes out is kept under a digest of all that it depends on: the bytes of the weights, the recipe of
the network, precision, and the versions of the libraries and of this code; for an engine, also the
machine and the pixels on which engines were compared. Whatever fails here only costs the time to do
it again.

The folder is `MASKLOOM_CACHE`, or `maskloom` in the user's cache (`~/.cache`). `MASKLOOM_CACHE` set
to nothing keeps nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import maskloom
from maskloom.segcore import deep
from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.engines.protocol import Choice
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.engines.protocol import Precision
    from maskloom.segcore.deep.inference.files.weights import Weights

Value = TypeVar("Value")

VARIABLE = "MASKLOOM_CACHE"
_LIBRARIES = (
    "ai-edge-litert",
    "jax",
    "keras",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorflow",
    "tensorflow-cpu",
    "tf2onnx",
    "torch",
)
_MOST_BYTES = 2_000_000_000
"""Of all that is kept; the least recently used goes first."""
_NETWORK, _CARD, _CHOICE, _ONNX = "network.xml", "card.json", "choice.json", "network.onnx"
_OTHERS_WRITE = 0o022


def kept_network(
    weights: Weights,
    card: Card,
    precision: Precision,
    convert: Callable[[], Any],
    read: Callable[[Path], Any],
) -> Any:
    """OpenVINO's model of a network: as `read` gives the one that is kept, else what `convert`
    gives, which is then kept.
    """

    def write(model: Any, folder: Path) -> None:
        import openvino

        openvino.save_model(model, folder / _NETWORK, compress_to_fp16=False)

    # The recipe builds networks of ours; it is in the card, which has no digest of its own.
    recipe = [card.kind, card.network, card.channels, len(card.classes), card.vectors]
    key = _key(weights, "network", weights.suffix, precision, recipe)
    return _kept(key, lambda folder: read(folder / _NETWORK), convert, write)


def kept_export(weights: Weights, card: Card, export: Callable[[], bytes]) -> bytes:
    """The ONNX file of a keras network: the one that is kept, else what `export` gives, which is
    then kept.
    """
    recipe = [card.kind, card.network, card.channels, len(card.classes), card.vectors]
    return _kept(
        _key(weights, "onnx", recipe),
        lambda place: (place / _ONNX).read_bytes(),
        export,
        lambda content, place: (place / _ONNX).write_bytes(content),
    )


def kept_card(weights: Weights, examine: Callable[[], Card]) -> Card:
    """The card of a file without one: the one that is kept, else what `examine` finds, which is
    then kept.
    """

    def read(folder: Path) -> Card:
        return Card.load((folder / _CARD).read_bytes(), weights.location)

    def write(card: Card, folder: Path) -> None:
        (folder / _CARD).write_bytes(card.dump())

    return _kept(_key(weights, "card", weights.suffix), read, examine, write)


def kept_choice(
    weights: Weights, depends_on: Sequence[Any], select: Callable[[], Choice]
) -> Choice:
    """The engine of a network: the one that is kept, else the one that `select` finds, which is
    then kept. `depends_on`: JSON values that the choice depends on, apart from the weights.
    """
    return _kept(
        _key(weights, "choice", weights.suffix, *depends_on),
        lambda place: Choice(**json.loads((place / _CHOICE).read_bytes())),
        select,
        lambda choice, place: (place / _CHOICE).write_text(json.dumps(asdict(choice))),
    )


def _kept(
    key: str,
    read: Callable[[Path], Value],
    make: Callable[[], Value],
    write: Callable[[Value, Path], Any],
) -> Value:
    folder = folder_for("networks")
    if folder is None:
        return make()
    place = folder / key
    if place.exists():
        try:
            value = read(place)
            os.utime(place)
        except (OSError, RuntimeError, TypeError, ValueError, WeightsError):
            shutil.rmtree(place, ignore_errors=True)
        else:
            return value
    value = make()
    with suppress(OSError, RuntimeError), tempfile.TemporaryDirectory(dir=folder) as temporary:
        written = Path(temporary, "written")
        written.mkdir()
        write(value, written)
        # Others see all of it or nothing. Fails where another process was faster.
        written.rename(place)
        _drop_oldest(folder.iterdir())
    return value


def folder_for(what: str) -> Path | None:
    """The folder of what is kept of a kind; None if there is none to which this user alone can
    write.
    """
    named = os.environ.get(VARIABLE)
    if named == "":
        return None
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        folder = Path(named or Path(home, "maskloom"), what)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):
        return None
    # What others write there, they could make this process run.
    mine = status.st_uid == os.getuid() and not status.st_mode & _OTHERS_WRITE
    return folder if mine else None


def folder_for_compiled(what: str, model: bytes) -> Path | None:
    """The folder of what a library compiles of a model: another for each model, whatever names the
    library gives to its files (TensorRT's are the same for other weights). None as for
    `folder_for`.
    """
    folder = folder_for(what)
    if folder is None:
        return None
    place = folder / hashlib.sha256(model).hexdigest()
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        os.utime(place)
        _drop_oldest(folder.iterdir())
    except OSError:
        return None
    return place


def _key(weights: Weights, *parts: Any) -> str:
    versions = [maskloom.__version__, _code(), *map(_version, _LIBRARIES)]
    text = json.dumps([weights.sha256, weights.trust, *parts, versions], default=list)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code() -> str:
    """A digest of the code that builds, examines and converts networks."""
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


def _drop_oldest(places: Iterable[Path]) -> None:
    total = 0
    for place in sorted(places, key=lambda each: each.stat().st_mtime, reverse=True):
        total += sum(file.stat().st_size for file in place.rglob("*"))
        if total > _MOST_BYTES:
            shutil.rmtree(place, ignore_errors=True)
