"""Networks of Hugging Face: arrays (safetensors) and a configuration, converted to a `.keras` file
with its card.

The arrays belong to a network that is defined in Python elsewhere; nothing of that is run. A
network can be converted if maskloom has the same one: SegFormer. Its recipe is made from the
configuration, and each array must have its place in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.files.folders import Folder, folder_at
from maskloom.segcore.deep.inference.runtime import import_keras
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.segformer import Segformer
from maskloom.segcore.errors import NotInstalled, WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SUFFIX = ".safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_CONFIG, _PREPROCESSOR, _README = "config.json", "preprocessor_config.json", "README.md"
_MOST_TEXT = 1 << 22
_ATTENTION_BYTES = 256
"""Memory of attention per pixel and head: 64 numbers of 4 bytes in windows of 512 pixels."""
_ARCHITECTURE = "SegformerForSemanticSegmentation"
_FIXED: dict[str, Any] = {
    "hidden_act": "gelu",
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "reshape_last_stage": True,
}
"""What the network is built with, which a configuration may say but not change."""
_KINDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_UNUSED = ("num_batches_tracked",)
_PARTS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
          "running_var": "moving_variance"}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Converted:
    """A network as the bytes of a `.keras` file, and its card."""

    content: bytes
    card: Card
    notes: tuple[str, ...]
    """What a user should know."""


def convert(location: str) -> Converted:
    """Convert the network in a folder or ZIP archive.

    Raises `WeightsError` if it is not one that can be converted, `NotInstalled` without
    safetensors.
    """
    folder = folder_at(location)
    if folder is None or _CONFIG not in folder.names:
        raise WeightsError(
            f"{location}: expected the folder of a model of Hugging Face, with {_CONFIG} and "
            f"arrays in {_SUFFIX}; got {'another one' if folder else 'no folder or archive'}. "
            "Download the whole model. SavedModels, ONNX and models of bioimage.io need no "
            "conversion: give their folder to `segment -s network` as `weights`."
        )
    config = _json(folder, _CONFIG)
    recipe, classes, channels = _recipe(config, location)
    arrays = _arrays(folder)
    _check_sizes(recipe, (channels, len(classes)), arrays, location)
    import_keras()
    model = recipe.build(channels, len(classes))
    _fill(model, arrays, location)
    scaling, notes = _scaling(folder, channels)
    content = _saved(model)
    from maskloom.segcore.deep.inference.files.model_cards import card_of_model

    card = card_of_model(
        model,
        "segformer",
        classes,
        scaling,
        hashlib.sha256(content).hexdigest(),
        _about(folder, config),
    )
    card = dataclasses.replace(
        card,
        network=dataclasses.asdict(recipe),
        # Feature maps alone were counted, not what pixels of the first stage attend to.
        bytes_per_pixel=card.bytes_per_pixel + _ATTENTION_BYTES * recipe.heads[0],
        dtype="uint8",
        interpretation="rgb" if channels == 3 else "bands",
    )
    return Converted(content, card, notes)


def _recipe(config: Mapping[str, Any], where: str) -> tuple[Segformer, tuple[str, ...], int]:
    named = config.get("architectures")
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    if config.get("model_type") != "segformer" or architectures != [_ARCHITECTURE]:
        raise WeightsError(
            f"{where} is {', '.join(architectures)[:100] or 'of no stated architecture'}; only "
            f"{_ARCHITECTURE} can be converted. Export others to ONNX where they run "
            "(torch.onnx.export, or optimum-cli export onnx), and use the .onnx file."
        )
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise WeightsError(
                f"{where}: {key} of {_CONFIG} is {config[key]!r:.80}; expected {value!r}. Export "
                "the network to ONNX where it runs."
            )
    try:
        classes = _names(config["id2label"])
        if len(classes) < 2:
            raise ValueError(f"id2label: expected the names of two or more classes; got {classes}")
        recipe = Segformer(
            widths=_counts(config, "hidden_sizes"),
            depths=_counts(config, "depths"),
            heads=_counts(config, "num_attention_heads"),
            reductions=_counts(config, "sr_ratios"),
            expansions=_counts({"mlp_ratios": [4, 4, 4, 4], **config}, "mlp_ratios"),
            decoder=_count("decoder_hidden_size", config.get("decoder_hidden_size", 256)),
        )
        return recipe, classes, _count("num_channels", config.get("num_channels", 3))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise WeightsError(f"{where}: {_CONFIG}: {reason[:300]}") from error


def _counts(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    said = config[key]
    if not isinstance(said, list):
        raise ValueError(f"{key}: expected a list; got {said!r:.80}")
    return tuple(_count(key, each) for each in said)


def _count(key: str, said: Any) -> int:
    if not isinstance(said, int) or isinstance(said, bool) or said < 1:
        raise ValueError(f"{key}: expected whole numbers from 1 on; got {said!r:.80}")
    return said


def _names(said: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes; those that come twice get their number too."""
    labels = {int(number): str(name) for number, name in said.items()}
    names = [labels[number] for number in range(len(labels))]
    return tuple(
        f"{name} {number}" if names.count(name) > 1 else name for number, name in enumerate(names)
    )


def _arrays(folder: Folder) -> dict[str, NDArray[Any]]:
    """The arrays of all files, by name."""
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError:
        raise NotInstalled(
            "Models of Hugging Face need the extra 'huggingface': pip install "
            "'maskloom[huggingface]'."
        ) from None
    import ml_dtypes

    names = sorted(each for each in folder.names if each.endswith(_SUFFIX))
    pickled = [each for each in folder.names if each.endswith(_PICKLED)]
    if not names and pickled:
        raise WeightsError(
            f"{folder.location}: its weights are pickled ({pickled[0]}), which can run arbitrary "
            f"code, and are not read. Download them as {_SUFFIX}, or write them so where PyTorch "
            "is installed: model.save_pretrained(..., safe_serialization=True)."
        )
    arrays = {}
    for name in names:
        try:
            found: Any = deserialize(folder.read(name))  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise WeightsError(
                f"{folder.location}: {name} is truncated or damaged: {error}. Copy it again."
            ) from error
        for key, stored in found:
            kind = _KINDS.get(stored["dtype"])
            if kind is None:
                if not key.endswith(_UNUSED):
                    raise WeightsError(
                        f"{folder.location}: {key[:80]!r} has numbers of {stored['dtype']}; "
                        f"expected {', '.join(_KINDS)}."
                    )
                continue
            dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
            arrays[key] = np.frombuffer(stored["data"], dtype).reshape(stored["shape"])
    return arrays


def _check_sizes(
    recipe: Segformer, ends: tuple[int, int], arrays: Mapping[str, NDArray[Any]], where: str
) -> None:
    """Raise `WeightsError` unless the sizes that the configuration says are those of the arrays,
    before a network of these sizes is made. `ends` are the numbers of bands and classes.
    """
    top, head = "segformer.encoder", "decode_head"
    shapes: dict[str, tuple[int, ...]] = {
        f"{head}.linear_fuse.weight": (recipe.decoder, 4 * recipe.decoder, 1, 1),
        f"{head}.classifier.weight": (ends[1], recipe.decoder, 1, 1),
    }
    befores = (ends[0], *recipe.widths)
    for stage, (before, width) in enumerate(zip(befores, recipe.widths, strict=False)):
        kernel = _FIXED["patch_sizes"][stage]
        shapes[f"{top}.patch_embeddings.{stage}.proj.weight"] = (width, before, kernel, kernel)
        block = f"{top}.block.{stage}"
        wide = width * recipe.expansions[stage]
        shapes[f"{block}.{recipe.depths[stage] - 1}.mlp.dense1.weight"] = (wide, width)
        blocks = {key.split(".")[4] for key in arrays if key.startswith(f"{block}.")}
        if arrays and len(blocks) != recipe.depths[stage]:
            raise WeightsError(
                f"{where}: it has {len(blocks)} blocks in stage {stage + 1}, and {_CONFIG} says "
                f"{recipe.depths[stage]}. They belong to different networks."
            )
    for key, shape in shapes.items():
        if key not in arrays:
            raise WeightsError(f"{where}: the array {key} is missing. Download the whole model.")
        if arrays[key].shape != shape:
            raise WeightsError(
                f"{where}: {key} has the shape {arrays[key].shape}, and {_CONFIG} says {shape}. "
                "They belong to different networks."
            )


def _fill(model: Any, arrays: Mapping[str, NDArray[Any]], where: str) -> None:
    """Give a network its arrays. Raises `WeightsError` unless each has exactly one place."""
    layers = {layer.name: layer for layer in model.layers}
    left = {variable.path for variable in model.weights}
    for key, array in arrays.items():
        if key.endswith(_UNUSED):
            continue
        module, _, part = key.removeprefix("segformer.").rpartition(".")
        layer = layers.get(module.replace(".", "_"))
        variable = _variable(layer, part)
        if variable is None:
            raise WeightsError(
                f"{where}: the array {key[:100]!r} has no place in the network that {_CONFIG} "
                "describes. They belong to different networks."
            )
        values = _turned(type(layer).__name__, part, np.asarray(array, np.float32))
        if values.shape != tuple(variable.shape):
            raise WeightsError(
                f"{where}: {key[:100]} has the shape {array.shape}, which does not fit "
                f"{_CONFIG}. They belong to different networks."
            )
        if not np.isfinite(values).all():
            raise WeightsError(
                f"{where}: {key[:100]} holds NaN or infinite numbers. The file is damaged, or its "
                "training diverged."
            )
        variable.assign(values)
        left.discard(variable.path)
    if left:
        raise WeightsError(
            f"{where}: {len(left)} arrays are missing, such as that of {min(left)}. Download the "
            "whole model."
        )


def _variable(layer: Any, part: str) -> Any:
    if hasattr(layer, "gamma"):
        return getattr(layer, _PARTS.get(part, ""), None)
    return getattr(layer, {"weight": "kernel", "bias": "bias"}.get(part, ""), None)


def _turned(kind: str, part: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """An array of PyTorch with its axes in the order of keras."""
    if part != "weight":
        return array
    orders = {"Conv2D": (2, 3, 1, 0), "DepthwiseConv2D": (2, 3, 0, 1), "Dense": (1, 0)}
    order = orders.get(kind)
    return array if order is None or array.ndim != len(order) else array.transpose(order)


def _scaling(folder: Folder, channels: int) -> tuple[Scaling, tuple[str, ...]]:
    if _PREPROCESSOR not in folder.names:
        note = (
            f"It has no {_PREPROCESSOR}: 8-bit pixels are scaled to 0 ... 1. If it was trained "
            "otherwise, set `scaling`."
        )
        return Scaling(), (note,)
    said, where = _json(folder, _PREPROCESSOR), folder.location
    try:
        factor = float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 1.0
        mean, spread = np.zeros(channels), np.ones(channels)
        if said.get("do_normalize", True):
            mean = np.broadcast_to(np.asarray(said["image_mean"], float), channels)
            spread = np.broadcast_to(np.asarray(said["image_std"], float), channels)
        scaling = Scaling(tuple((mean / factor).tolist()), tuple((factor / spread).tolist()))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise WeightsError(f"{where}: {_PREPROCESSOR}: {reason[:300]}") from error
    if not (said.get("do_resize", True) and said.get("size")):
        return scaling, ()
    note = (
        f"It was trained on images resized to {json.dumps(said['size'])[:100]}; here it sees "
        "pixels as they are. Compare with truth by `maskloom evaluate`."
    )
    return scaling, (note,)


def _about(folder: Folder, config: Mapping[str, Any]) -> dict[str, Any]:
    """Where the network comes from, as far as it is said."""
    said: Any = {}
    if _README in folder.names and folder.size(_README) <= _MOST_TEXT:
        text = folder.read(_README).decode(errors="replace")
        front = text.split("---\n", 2)[1] if text.startswith("---\n") else ""
        try:
            said = yaml.safe_load(front)
        except (yaml.YAMLError, ValueError, RecursionError):
            said = {}
    front_matter = said if isinstance(said, Mapping) else {}
    licence = front_matter.get("license_name") or front_matter.get("license") or "not stated"
    about = {
        "licence": str(licence)[:200],
        "name": str(config.get("_name_or_path") or folder.location.rstrip("/").rsplit("/", 1)[-1]),
        "format": "Hugging Face, SegFormer",
    }
    return {key: value[:200] for key, value in about.items()}


def _json(folder: Folder, name: str) -> dict[str, Any]:
    if folder.size(name) > _MOST_TEXT:
        raise WeightsError(f"{folder.location}: {name} has more than {_MOST_TEXT} bytes.")
    try:
        found = json.loads(folder.read(name))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{folder.location}: {name} cannot be read: {error!s:.200}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{folder.location}: {name}: expected names and values.")
    return found


def _saved(model: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.keras")
        model.save(path)
        return path.read_bytes()
