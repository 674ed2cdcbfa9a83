"""Checks of a network's configuration: only layers of keras and of maskloom are allowed.

A `.keras` file holds a description in JSON that keras turns into objects. A description can name
any class of any module, marshalled code, or files to be read (CVE-2025-1550, CVE-2025-8747,
CVE-2025-9906, CVE-2025-12058, CVE-2026-1462), and keras' own checks were bypassed repeatedly. So
every object is checked here first, against a list of what is known to be harmless rather than of
what is known to be dangerous.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
from typing import Any

import maskloom.segcore.deep.networks
from maskloom.segcore.deep.inference.runtime import import_keras
from maskloom.segcore.errors import WeightsError

_PUBLIC = ("layers", "initializers", "regularizers", "constraints", "dtype_policies")
_INTERNAL = {
    "keras": ("keras", "dtype_policies"),
    "keras.models": ("keras.src.models",),
    "keras.src.models.functional": ("keras.src.models",),
    "keras.src.models.sequential": ("keras.src.models",),
    "keras.src.models.model": ("keras.src.models",),
}
"""Other modules that a description may name, and the modules in which to look up their classes."""
_OPERATIONS = (
    "keras.src.ops.nn",
    "keras.src.ops.numpy",
    "keras.src.ops.math",
    "keras.src.ops.image",
)
_REFUSED = {
    *(
        "Lambda",
        "TFSMLayer",
        "TorchModuleWrapper",
        "JaxLayer",
        "FlaxLayer",
    ),  # run foreign code
    *(
        "TextVectorization",
        "StringLookup",
        "IntegerLookup",
    ),  # read files named in the description
}
_PLAIN = {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}
_HALF_POLICIES = ("mixed_bfloat16", "mixed_float16", "bfloat16", "float16")
_MOST_LEVELS = 200
_LARGEST, _MOST_NUMBERS = 2**16, 2**28
"""Limits on sizes in a description: a single number, and the product of a shape."""
_NO_SIZES = ("class_name", "seed", "shared_object_id")
_PACKAGE = "maskloom>"


def checked_config(text: bytes, where: str) -> dict[str, Any]:
    """Parse and check the JSON description of a network.

    It is returned in float32 and without its training setup (losses, optimizers). Raises
    `WeightsError` if it is invalid or names anything but layers of keras and of maskloom.
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{where} holds no readable description of a network: {error}. Save the network again."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise WeightsError(
            f"{where} holds no description of a network: expected an object with a class_name. "
            "Save the network again."
        )
    import_layers()
    pending: list[tuple[Any, int]] = [(config, 0)]
    while pending:
        entry, level = pending.pop()
        if level > _MOST_LEVELS:
            raise WeightsError(
                f"{where} holds a description that is nested too deeply. Save the network again."
            )
        if isinstance(entry, dict):
            if "class_name" in entry:
                _check(entry, where)
            _in_float32(entry)
            _check_nodes(entry.get("inbound_nodes"), where)
            pending += [(value, level + 1) for key, value in entry.items() if key not in _NO_SIZES]
        elif isinstance(entry, list):
            sides = [abs(side) for side in entry if isinstance(side, int) and side]
            if math.prod(sides) > _MOST_NUMBERS:
                raise WeightsError(
                    f"{where} asks for an array of {entry}: more than any network needs. Save the "
                    "network again."
                )
            pending += [(value, level + 1) for value in entry]
        elif isinstance(entry, int) and abs(entry) > _LARGEST:
            raise WeightsError(
                f"{where} asks for a size of {entry}: more than any network needs. Save the "
                "network again."
            )
    return config


def import_layers() -> None:
    """Import every module of `segcore.deep.networks`, which registers its layers with keras."""
    import_keras()
    for module in pkgutil.walk_packages(
        maskloom.segcore.deep.networks.__path__, "maskloom.segcore.deep.networks."
    ):
        importlib.import_module(module.name)


def _check(entry: dict[str, Any], where: str) -> None:
    name, module, registered = (
        entry["class_name"],
        entry.get("module"),
        entry.get("registered_name"),
    )
    entry.pop("compile_config", None)
    known = isinstance(name, str) and (
        name in _PLAIN or _is_ours(name, registered) or _is_of_keras(name, str(module), registered)
    )
    if not known:
        origin = f"{module}.{name}" if module else str(name)
        raise WeightsError(
            f"{where} names {origin[:100]!r}, which is neither a layer of maskloom nor a harmless "
            "one of keras. Such a file can run arbitrary code. Build the network from other "
            "layers; or, if you trust its maker, set trust: true."
        )


def _check_nodes(nodes: object, where: str) -> None:
    """Raise `WeightsError` if an operation of a graph does not take another's feature map.

    Keras would run it at once, on whatever size it asks for.
    """
    for node in nodes if isinstance(nodes, list) else ():
        if isinstance(node, dict) and not _takes_a_map(node):
            raise WeightsError(
                f"{where} holds an operation that has no input from the image. Save the network "
                "again."
            )


def _takes_a_map(node: object) -> bool:
    pending = [node]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            if part.get("class_name") == "__keras_tensor__":
                return True
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return False


def _is_ours(name: str, registered: object) -> bool:
    from keras import saving

    known = (
        saving.get_registered_object(registered)
        if isinstance(registered, str) and registered.startswith(_PACKAGE)
        else None
    )
    return isinstance(known, type) and known.__name__ == name


def _is_of_keras(name: str, module: str, registered: object) -> bool:
    import keras
    from keras.src.ops.operation import Operation

    if registered not in (None, name) or name in _REFUSED or name.startswith("_"):
        return False
    kinds = (
        Operation,  # includes layers and networks
        keras.initializers.Initializer,
        keras.regularizers.Regularizer,
        keras.constraints.Constraint,
        keras.dtype_policies.DTypePolicy,
        keras.dtype_policies.DTypePolicyMap,
    )
    found = [vars(importlib.import_module(place)).get(name) for place in _modules(module)]
    return any(isinstance(item, type) and issubclass(item, kinds) for item in found)


def _modules(module: str) -> tuple[str, ...]:
    if module in _OPERATIONS:
        return (module,)
    if module in _INTERNAL:
        return tuple(
            place if place.startswith("keras") else f"keras.{place}" for place in _INTERNAL[module]
        )
    return tuple(f"keras.{public}" for public in _PUBLIC if module == f"keras.{public}")


def _in_float32(entry: dict[str, Any]) -> None:
    """Reset the precision of training to float32: here the engine decides."""
    if (
        entry.get("class_name") == "DTypePolicy"
        and isinstance(entry.get("config"), dict)
        and entry["config"].get("name") in _HALF_POLICIES
    ):
        entry["config"] = {**entry["config"], "name": "float32"}
    if isinstance(entry.get("dtype"), str) and entry["dtype"] in _HALF_POLICIES:
        entry["dtype"] = "float32"
