"""Keras files, checked before keras reads them.

A `.keras` file is a ZIP archive of a description (JSON), metadata (JSON) and weights (HDF5).
Archive, description and weights are checked separately, and keras receives nothing but the checked
description and weights. So no ambiguous entry, no link out of the file and no decompression bomb
reaches it. The network is first built without memory for its weights: a description may ask for any
amount, and gets no more than the weights in the file need. Other kinds of files are loaded only if
the user trusts them.

Networks trained by maskloom need no description: their cards hold the recipe that builds them, and
only arrays are read from the file.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.files.keras_config import checked_config, import_layers
from maskloom.segcore.deep.inference.files.misfit import misfit
from maskloom.segcore.deep.inference.runtime import import_keras, import_tensorflow
from maskloom.segcore.deep.networks.recipe import NETWORKS
from maskloom.segcore.deep.networks.vectors import build_with_vectors
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    import h5py

    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.deep.inference.files.weights import Weights

_CONFIG, _METADATA, _VARIABLES = "config.json", "metadata.json", "model.weights.h5"
_MOST_TEXT = 1 << 26
_SLACK, _MOST_EXPANSION = 1 << 26, 8
"""Bytes to which any file may decompress, and the factor on its own size beyond that. Weights
hardly compress.
"""
_SPARE_NUMBERS = 1 << 22
"""Numbers that a network may create beyond the stored weights."""
_MOST_ENTRIES, _MOST_LEVELS = 200_000, 64
_EXPORT = "Weights of PyTorch are arrays without their network: export it with torch.onnx.export."
_CONVERT = "Convert the folder of a SegFormer with `maskloom convert`; export others to ONNX."
_SAVE = (
    "HDF5 files can run arbitrary code. Save the network again with model.save('name.keras'); or, "
    "if you trust the maker of the file, set trust: true."
)
_OTHERWISE = "Give the file that holds the trained network."
_REMEDIES = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), _EXPORT),
    ".safetensors": _CONVERT,
    **dict.fromkeys((".h5", ".hdf5"), _SAVE),
}
"""What to do with weights of a kind that is not read."""
_MAGIC_ZIP, _MAGIC_HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"


def load_keras(weights: Weights) -> Any:
    """Load the `keras.Model` of a file, in float32 and not compiled.

    Raises `WeightsError` if the file is broken, malicious or of another kind. With `weights.trust`
    nothing is checked, the saved precision is kept, and HDF5 files are accepted too.
    """
    content, where = weights.read(), weights.location
    if weights.trust:
        suffix = ".h5" if content.startswith(_MAGIC_HDF5) else ".keras"
        import_layers()
        with _load_errors(where):
            return _trusted(content, suffix)
    if weights.suffix != ".keras":
        raise WeightsError(
            f"{where}: expected a .keras, .onnx or .tflite file, or the folder of a model; got "
            f"{weights.suffix or 'no suffix'}. {_REMEDIES.get(weights.suffix, _OTHERWISE)}"
        )
    if content.startswith(_MAGIC_HDF5):
        raise WeightsError(
            f"{where} is an HDF5 file by another name. Save the network again with "
            "model.save('name.keras')."
        )
    if not content.startswith(_MAGIC_ZIP):
        raise WeightsError(
            f"{where} is no .keras file: it is not a ZIP archive. Save the network with "
            "model.save('name.keras')."
        )
    config, variables = _read_parts(content, where)
    stored = check_variables(variables, where)
    card = weights.card()
    if card is None or card.network is None:
        build = partial(_from_description, checked_config(config, where))
    else:
        build = partial(_from_recipe, card, card.network, len(card.classes))
    with _load_errors(where):
        model = _build(build, stored, where)
        if card is not None and card.network is not None:
            others = partial(_from_recipe, card, card.network)
            reason = misfit(
                card, variables, model, lambda n: _build(partial(others, n), stored, where)
            )
            if reason is not None:
                raise WeightsError(f"{where}: {reason}")
        with _temporary_file(variables, ".weights.h5") as path, warnings.catch_warnings():
            # keras leaves random weights in layers without stored arrays, and warns.
            warnings.simplefilter("error", UserWarning)
            model.load_weights(path)
    check_finite(model, where)
    return model


def functional(weights: Weights) -> Any:
    """The network of a keras file. Raises `WeightsError` unless it has one input of images or
    volumes, and one output.
    """
    model = load_keras(weights)
    # Subclassed models may lack either attribute.
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    if len(inputs) != 1 or len(inputs[0].shape) not in (4, 5) or len(outputs) != 1:
        shapes = [tuple(tensor.shape) for tensor in inputs]
        raise WeightsError(
            f"{weights.location}: expected one input (patch, [z,] y, x, band) and one output; got "
            f"inputs {shapes} and {len(outputs)} outputs."
        )
    return model


def check_finite(model: Any, where: str) -> None:
    """Raise `WeightsError` if a weight is NaN or infinite.

    A ReLU may hide it, so that labels are silently wrong.
    """
    for variable in model.weights:
        values = np.asarray(variable)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise WeightsError(
                f"{where}: {variable.path} holds NaN or infinite numbers. The file is damaged, or "
                "its training diverged."
            )


def _trusted(content: bytes, suffix: str) -> Any:
    with _temporary_file(content, suffix) as path:
        return import_keras().saving.load_model(path, compile=False, safe_mode=False)


def _from_recipe(card: Card, network: Mapping[str, Any], classes: int) -> Any:
    """Build a network trained by maskloom from its recipe, ignoring the file's description."""
    recipe = NETWORKS[card.kind](**network)
    if card.vectors:
        return build_with_vectors(recipe, card.channels, classes, card.vectors)
    return recipe.build(card.channels, classes)


def _from_description(description: dict[str, Any]) -> Any:
    return import_keras().saving.deserialize_keras_object(description, safe_mode=True)


def _build(build: Callable[[], Any], stored: int, where: str) -> Any:
    """Call `build` without reading weights.

    Raises `WeightsError` if the network has more weights than are stored.
    """
    from keras.src.backend.common import global_state
    from keras.src.initializers.random_initializers import RandomInitializer

    keras, pending = import_keras(), "uninitialized_variables"
    global_state.set_global_attribute(pending, [])
    try:
        # In this scope variables have only a shape; leaving the next scope allocates their memory.
        with keras.StatelessScope(initialize_variables=False):
            model = build()
        numbers = sum(
            math.prod(variable.shape) for variable in global_state.get_global_attribute(pending)
        )
        if numbers > stored + _SPARE_NUMBERS:
            raise WeightsError(
                f"{where} describes a network of {numbers} weights, but holds {stored} numbers. "
                "Save the network again."
            )
        # All values come from the file. Random ones would be compiled for each shape on JAX, which
        # takes most of a minute.
        for variable in global_state.get_global_attribute(pending):
            if isinstance(variable._initializer, RandomInitializer):  # noqa: SLF001
                variable._initializer = keras.initializers.Zeros()  # noqa: SLF001
        with keras.StatelessScope():
            pass
    finally:
        global_state.set_global_attribute(pending, [])
    return model


@contextmanager
def _temporary_file(content: bytes, suffix: str) -> Iterator[Path]:
    """Temporary file with this content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"network{suffix}")
        path.write_bytes(content)
        yield path


@contextmanager
def _load_errors(where: str) -> Iterator[None]:
    """Convert exceptions of keras while loading a network to `WeightsError`."""
    keras = import_keras()
    errors: tuple[type[Exception], ...] = (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        OSError,
        RuntimeError,
        MemoryError,
        UserWarning,
    )
    if keras.backend.backend() == "tensorflow":
        errors += (import_tensorflow().errors.OpError,)
    try:
        yield
    except WeightsError:
        raise
    except errors as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise WeightsError(
            f"keras cannot load {where}: {reason[:300]} Expected a network saved by this version "
            "of keras or an older one."
        ) from error


def _read_parts(content: bytes, where: str) -> tuple[bytes, bytes]:
    """Return the unchecked description (JSON) and weights (HDF5) of a `.keras` archive.

    Raises `WeightsError` if it is damaged or holds any other entry.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_entries(archive, len(content), where)
            config, metadata, variables = (
                archive.read(name) for name in (_CONFIG, _METADATA, _VARIABLES)
            )
        json.loads(metadata)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
        RecursionError,
        NotImplementedError,
    ) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{where} is truncated or damaged: {error}. Copy it again.") from error
    return config, variables


def _check_entries(archive: zipfile.ZipFile, size: int, where: str) -> None:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if sorted(names) != [_CONFIG, _METADATA, _VARIABLES]:
        listed = ", ".join(names[:5])
        raise WeightsError(
            f"{where}: expected an archive of {_CONFIG}, {_METADATA} and {_VARIABLES}, nothing "
            f"else; got {len(names)} entries ({listed[:200]}). "
            "Save the network as one .keras file, without assets or shards."
        )
    for entry in entries:
        if entry.flag_bits & 1 or entry.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise WeightsError(
                f"{where}: {entry.filename} is encrypted, or compressed by an unsupported method. "
                "Save the network again."
            )
        most = _MOST_TEXT if entry.filename != _VARIABLES else _SLACK + _MOST_EXPANSION * size
        if entry.file_size > most:
            raise WeightsError(
                f"{where}: {entry.filename} would unfold to {entry.file_size} bytes, more than "
                f"{most}. Save the network again."
            )


def check_variables(content: bytes, where: str) -> int:
    """Return the number of values in an HDF5 file.

    Raises `WeightsError` if it holds anything but arrays of numbers stored in the file itself, or
    if they are implausibly large for it.
    """
    import h5py

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            return _check_group(file, _SLACK + _MOST_EXPANSION * len(content), where)
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{where}: its weights are truncated or damaged: {error}. Copy it again."
        ) from error


def _check_group(file: h5py.File, most: int, where: str) -> int:
    import h5py

    numbers = unfolded = entries = 0
    pending: list[tuple[h5py.Group, int]] = [(file, 0)]
    while pending:
        group, level = pending.pop()
        for name in group:
            entries += 1
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise WeightsError(
                    f"{where}: {name[:80]!r} in its weights is a link. Expected all weights in the "
                    "file itself."
                )
            if entries > _MOST_ENTRIES or level > _MOST_LEVELS:
                raise WeightsError(
                    f"{where}: its weights are nested too deeply, or in more than {_MOST_ENTRIES} "
                    "parts."
                )
            item = group[name]
            if isinstance(item, h5py.Group):
                pending.append((item, level + 1))
                continue
            _check_array(item, where)
            numbers += item.size
            unfolded += item.nbytes
            if unfolded > most:
                raise WeightsError(
                    f"{where}: its weights would unfold to more than {most} bytes. Save the "
                    "network again."
                )
    return numbers


def _check_array(item: h5py.Dataset | h5py.Datatype, where: str) -> None:
    import h5py

    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
        raise WeightsError(
            f"{where}: {str(item.name)[:80]!r} in its weights is in another file. Expected all "
            "weights in the file itself."
        )
    # keras stores bfloat16 as opaque pairs of bytes.
    if item.dtype.kind not in "fiub" and not (
        item.dtype.kind == "V" and item.dtype.names is None and item.dtype.itemsize == 2
    ):
        raise WeightsError(
            f"{where}: {str(item.name)[:80]!r} in its weights is not an array of numbers. Save the "
            "network again."
        )
