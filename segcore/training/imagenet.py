"""The start of a training with a backbone of keras.applications, trained on ImageNet.

Keras loads the weights into its cache, which it checks by their hash, or reads a file of the same
kind. They are copied layer by layer; the other layers of the network begin as ever.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import tempfile
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.files.weights import Weights, file_name
from maskloom.segcore.deep.inference.runtime import import_keras
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.layers.applications import (
    APPLICATIONS,
    Application,
    kernels_for,
    layer_in,
)
from maskloom.segcore.errors import RecipeError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

IMAGENET = "imagenet"
_SUFFIX = ".h5"
_SUBFOLDER = "models"
_SECONDS = 30.0
_UNFETCHED = re.compile("URL fetch failure|file hash")
_MD5_LENGTH = 32
_VGG_ENDS = tuple(f"stage{number}_pool" for number in range(1, 6))
_NUMBERED = re.compile(r"layer_normalization(_\d+)?")


def is_imagenet(location: str) -> bool:
    """Whether a start is a backbone trained on ImageNet: the word, or a file of keras.applications.

    >>> is_imagenet("imagenet"), is_imagenet("vgg16_notop.h5"), is_imagenet("roads.keras")
    (True, True, False)
    """
    return location == IMAGENET or location.endswith(_SUFFIX)


@dataclass(frozen=True, slots=True)
class ImageNet:
    """Weights of a backbone."""

    location: str
    """`imagenet`, or a file of keras.applications without its top layers."""
    application: str
    """Name in `APPLICATIONS`."""
    weights: Weights | None
    """The file. None: Keras' own."""

    @classmethod
    def of(cls, location: str, network: Any) -> ImageNet:
        """Weights for the backbone of a network's recipe. Raises `RecipeError`."""
        application = getattr(network, "application", None)
        if application is None:
            raise RecipeError(
                f"initial: {file_name(location)} fits backbones of keras.applications, and "
                "`network` has none. Set network.backbone (fcn, deeplab), network.encoder (unet) "
                f"or network.size (mask_rcnn) to one of {', '.join(APPLICATIONS)}, as far as the "
                "network takes it; VGG needs `normalisation: none` and `width: 64` in an fcn."
            )
        if location == IMAGENET:
            return cls(location, application, None)
        try:
            weights = Weights.of(location)
            _checked(weights)
        except WeightsError as error:
            raise RecipeError(f"initial: {str(error).removeprefix('weights: ')}") from error
        return cls(location, application, weights)

    @property
    def identity(self) -> str:
        """What tells it from other starts."""
        if self.weights is not None:
            return self.weights.sha256
        return hashlib.sha256(f"{IMAGENET} {self.application}".encode()).hexdigest()

    def scaling_for(self, channels: int, factor: float | None) -> Scaling | None:
        """How values become what the backbone was trained with. `factor` brings them to 0 to 1;
        None: no such factor is known, and the recipe must say.
        """
        if factor is None:
            return None
        kind = APPLICATIONS[self.application]
        mean, deviation = (_per_band(values, channels) for values in (kind.mean, kind.deviation))
        full = 255 * factor
        return Scaling(
            tuple(float(value) for value in mean / full),
            tuple(float(value) for value in full / deviation),
        )

    def check(self) -> None:
        """Load the weights once, before images are read. Raises `RecipeError`."""
        self._arrays()

    def give(self, model: Any) -> str:
        """Give a network the weights of its backbone, in place; a sentence about it for the user.
        Raises `RecipeError` if they cannot be had or do not fit.
        """
        arrays, kind = self._arrays(), APPLICATIONS[self.application]
        first = True
        for layer in (each for stage in reversed(self.stages(model)) for each in stage):
            values = arrays[layer_in(layer.name, self.application)]
            if first:
                wanted = layer.get_weights()[0].shape[2]
                values = [kernels_for(wanted, values[0], kind.reverse), *values[1:]]
                first = False
            if [value.shape for value in values] != [tuple(each.shape) for each in layer.weights]:
                raise RecipeError(
                    f"initial: {layer.name} of {file_name(self.location)} has other shapes than in "
                    f"{self.application}. Give the file of this backbone without its top layers."
                )
            layer.set_weights(values)
        return f"Starting with {kind.constructor} trained on ImageNet."

    def stages(self, model: Any) -> list[list[Any]]:
        """The layers of the backbone with weights, up to each halving of its maps."""
        names = _names(self.application)
        stages: list[list[Any]] = [[]]
        ends = {*APPLICATIONS[self.application].maps, *_VGG_ENDS}
        for layer in _leaves(model):
            if layer.weights and layer_in(layer.name, self.application) in names:
                stages[-1].append(layer)
            if layer.name in ends:
                stages.append([])
        return [stage for stage in reversed(stages) if stage]

    def prepare(self, model: Any) -> None:
        """Batch normalisation of the backbone keeps the means of ImageNet: those of a few patches
        are worse.
        """
        keras = import_keras()
        for stage in self.stages(model):
            for layer in stage:
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.trainable = False

    def _arrays(self) -> dict[str, list[NDArray[Any]]]:
        """Arrays of the layers that have names of their own."""
        from maskloom.segcore.deep.inference.files.keras_files import check_finite

        kind, model = APPLICATIONS[self.application], _empty(self.application)
        with self._file() as path, warnings.catch_warnings():
            # Keras leaves random weights in layers without stored arrays, and warns.
            warnings.simplefilter("error", UserWarning)
            try:
                model.load_weights(path)
            except (ValueError, KeyError, OSError, TypeError, UserWarning) as error:
                raise RecipeError(
                    f"initial: {path.name} does not fit {kind.constructor} without its top layers: "
                    f"{str(error).splitlines()[0][:200]}"
                ) from error
        try:
            check_finite(model, self.location)
        except WeightsError as error:
            raise RecipeError(f"initial: {error}") from error
        return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}

    @contextmanager
    def _file(self) -> Iterator[Path]:
        """The file on this machine."""
        if self.weights is None:
            yield _fetched(APPLICATIONS[self.application])
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, file_name(self.location))
            path.write_bytes(self.weights.read())
            yield path


def _fetched(kind: Application) -> Path:
    """The file in Keras' cache, which Keras fetches if it is not there. Raises `RecipeError`."""
    folder = _cache()
    try:
        with _time_limit():
            folder.mkdir(parents=True, exist_ok=True)
            found = import_keras().utils.get_file(
                kind.file_name,
                kind.address,
                cache_dir=str(folder),
                cache_subdir=_SUBFOLDER,
                file_hash=kind.digest,
            )
        return Path(found)
    except Exception as error:
        said = str(error)
        # Keras raises bare exceptions for addresses that do not answer.
        if not isinstance(error, OSError | HTTPException) and not _UNFETCHED.search(said):
            raise
        reason = (said.splitlines() or [type(error).__name__])[0].rpartition(" -- ")[2][:300]
        algorithm = "MD5" if len(kind.digest) == _MD5_LENGTH else "SHA-256"
        raise RecipeError(
            f"initial: imagenet: the weights of {kind.constructor} could not be fetched: {reason}. "
            f"Where there is internet, fetch {kind.address} ({algorithm} {kind.digest}). Then put "
            f"it into {folder / _SUBFOLDER} on this machine (the variable KERAS_HOME names another "
            "folder than ~/.keras), or name it where it lies, by a path or fsspec URI: initial: "
            f"s3://bucket/{kind.file_name}"
        ) from error


def _cache() -> Path:
    """The folder of Keras, or the one that it takes if that cannot be written to."""
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    with suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    return home if os.access(home, os.W_OK) else Path(tempfile.gettempdir(), ".keras")


@contextmanager
def _time_limit() -> Iterator[None]:
    """New connections that say nothing for some time fail."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _empty(application: str) -> Any:
    """The network of keras.applications, with random weights."""
    kind = APPLICATIONS[application]
    build = getattr(import_keras().applications, kind.constructor)
    return build(include_top=False, weights=None, input_shape=(None, None, 3), **kind.options)


@cache
def _names(application: str) -> frozenset[str]:
    """Names of the layers that have weights and, unlike those that keras numbers, a name of their
    own. To build the network takes a second.
    """
    layers = [layer for layer in _empty(application).layers if layer.weights]
    return frozenset(each.name for each in layers if not _NUMBERED.fullmatch(each.name))


def _checked(weights: Weights) -> None:
    """Raise `WeightsError` for a file that holds anything but arrays of numbers."""
    from maskloom.segcore.deep.inference.files.keras_files import check_variables

    check_variables(weights.read(), weights.location)


def _per_band(values: tuple[float, ...], channels: int) -> NDArray[np.float64]:
    """Values of red, green and blue for other bands: for further ones, and one or two alone, the
    mean.
    """
    own = values if channels >= len(values) else ()
    return np.array([*own, *[float(np.mean(values))] * (channels - len(own))])


def _leaves(model: Any) -> Iterator[Any]:
    """The layers of a model and of the models in it."""
    keras = import_keras()
    for layer in model.layers:
        if isinstance(layer, keras.Model) and not isinstance(layer, keras.Sequential):
            yield from _leaves(layer)
        else:
            yield layer
