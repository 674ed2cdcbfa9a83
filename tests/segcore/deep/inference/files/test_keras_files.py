"""Networks of keras come back as they were saved, and whatever else a file may hold is refused
before keras sees it.
"""

from __future__ import annotations

import io
import json
import os
import resource
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.segcore.deep.inference.card import Card, card_name
from maskloom.segcore.deep.inference.files.keras_config import checked_config
from maskloom.segcore.deep.inference.files.keras_files import check_variables, load_keras
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.runtime import import_keras
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.deeplab import Deeplab
from maskloom.segcore.deep.networks.fcn import Fcn
from maskloom.segcore.deep.networks.mask_rcnn import MaskRcnn
from maskloom.segcore.deep.networks.unet import Unet
from maskloom.segcore.errors import WeightsError

keras = import_keras()
h5py = pytest.importorskip("h5py")

# keras itself, when it turns variables to NumPy's arrays.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

CONFIG, METADATA, VARIABLES = "config.json", "metadata.json", "model.weights.h5"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The entries of a small network's file."""
    path = tmp_path_factory.mktemp("saved") / "small.keras"
    small().save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def small() -> Any:
    inputs = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(
        3, 3, padding="same", activation="relu", kernel_regularizer=keras.regularizers.L2(1e-4)
    )(inputs)
    x = keras.layers.BatchNormalization()(x)
    return keras.Model(inputs, keras.layers.Conv2D(2, 1, activation="softmax")(x))


def written(path: Path, entries: dict[str, bytes]) -> Weights:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return Weights.of(str(path))


def changed(
    saved: dict[str, bytes], change: Callable[[dict[str, Any]], object]
) -> dict[str, bytes]:
    config = json.loads(saved[CONFIG])
    change(config)
    return {**saved, CONFIG: json.dumps(config).encode()}


def refused(weights: Weights, *words: str) -> None:
    with pytest.raises(WeightsError) as caught:
        load_keras(weights)
    assert Path(weights.location).name in str(caught.value)
    for word in words:
        assert word in str(caught.value)


NETWORKS = {
    "unet": lambda: Unet(width=2, depth=2, normalisation="batch").build(3, 2),
    "unpooling": lambda: Unet(width=2, depth=2, upsampling="unpooling").build(1, 2),
    "bed of nails": lambda: Unet(width=2, depth=1, upsampling="bed_of_nails").build(1, 2),
    "fcn": lambda: Fcn(width=2, backbone="resnet18").build(1, 3),
    "operations": lambda: with_operations(),  # noqa: PLW0108 - it is defined below
    "nested": lambda: keras.Sequential(
        [keras.Input((None, None, 1)), small(), keras.layers.Conv2D(2, 1)]
    ),
}


def with_operations() -> Any:
    inputs = keras.Input((None, None, 1))
    x = keras.ops.relu(keras.layers.Conv2D(2, 3, padding="same")(inputs) * 2.0 + 1.0)
    return keras.Model(inputs, keras.ops.softmax(keras.ops.concatenate([x, x], axis=-1)))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_as_it_was_saved(tmp_path: Path, name: str) -> None:
    network = NETWORKS[name]()
    network.save(tmp_path / "it.keras")
    found = load_keras(Weights.of(str(tmp_path / "it.keras")))
    patch = np.random.default_rng(0).random((1, 32, 32, network.inputs[0].shape[-1]), np.float32)
    np.testing.assert_array_equal(network(patch), found(patch))


RECIPES = {
    "unet": Unet(width=2, depth=2, normalisation="batch", upsampling="unpooling"),
    "fcn": Fcn(width=2, backbone="resnet18"),
    "deeplab": Deeplab(backbone="resnet18", width=4, rates=(1, 2)),
    "mask_rcnn": MaskRcnn(width=8, pyramid=8, dense=8, mask=8, proposals=8, detections=8),
}


def with_card(
    weights: Weights, kind: str, network: dict[str, Any], classes: tuple[str, ...] = ("a", "b")
) -> Weights:
    card = Card(kind, weights.sha256, 3, classes, Scaling(), ReceptiveField(None), network=network)
    Path(card_name(weights.location)).write_bytes(card.dump())
    return weights


def arrays(model: Any) -> list[Any]:
    return [np.asarray(variable) for variable in model.weights]


@pytest.mark.parametrize("kind", RECIPES)
def test_a_network_of_ours_is_built_from_the_recipe_in_its_card(tmp_path: Path, kind: str) -> None:
    network = RECIPES[kind].build(3, 2)
    network.compile("adam", loss="mse")  # what an optimiser keeps is no weight
    network.optimizer.build(network.trainable_variables)
    network.save(tmp_path / "it.keras")
    with zipfile.ZipFile(tmp_path / "it.keras") as archive:
        saved = {name: archive.read(name) for name in archive.namelist()}
    # A description that says nothing shows that only the arrays are read.
    weights = written(tmp_path / "ours.keras", {**saved, CONFIG: b"{}"})
    found = load_keras(with_card(weights, kind, asdict(RECIPES[kind])))
    assert type(found) is type(network)
    for one, other in zip(arrays(network), arrays(found), strict=True):
        np.testing.assert_array_equal(one, other)
    refused(
        with_card(weights, kind, asdict(RECIPES[kind]), ("a", "b", "c")),
        "says 3 classes (a, b, c); the file has weights for 2.",
    )


@pytest.mark.parametrize(
    ("kind", "network", "words"),
    [
        ("unet", {"width": 512, "depth": 8}, "describes a network of"),
        ("unet", {"width": 4, "depth": 2}, "arrays that the file does not have, of the shapes"),
        ("unet", {**asdict(RECIPES["unet"]), "depth": 1}, "and the file has others too, of"),
        ("unet", {"wide": 2}, "wide"),
        ("none_of_ours", {}, "There is no network"),
    ],
)
def test_a_recipe_that_does_not_fit_the_arrays_is_refused(
    tmp_path: Path, kind: str, network: dict[str, Any], words: str
) -> None:
    RECIPES["unet"].build(3, 2).save(tmp_path / "it.keras")
    refused(with_card(Weights.of(str(tmp_path / "it.keras")), kind, network), words)


def test_what_it_was_trained_with_is_not_loaded(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable(package="elsewhere")
    def loss(truth: Any, scores: Any) -> Any:
        return keras.ops.mean(truth - scores)

    inner = small()
    inner.compile("adam", loss=loss)
    outer = keras.Sequential([keras.Input((None, None, 1)), inner])
    outer.compile("adam", loss=loss)
    outer.save(tmp_path / "it.keras")
    found = load_keras(Weights.of(str(tmp_path / "it.keras")))
    assert not found.compiled
    assert not found.layers[0].compiled


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_a_network_of_another_precision_is_loaded_in_float32(tmp_path: Path, policy: str) -> None:
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(policy)
        network = small()
    finally:
        keras.config.set_dtype_policy(before)
    network.save(tmp_path / "it.keras")
    found = load_keras(Weights.of(str(tmp_path / "it.keras")))
    patch = np.random.default_rng(0).random((1, 16, 16, 1), np.float32)
    scores = found(patch)
    assert {layer.compute_dtype for layer in found.layers} == {"float32"}
    assert {keras.backend.standardize_dtype(variable.dtype) for variable in found.variables} == {
        "float32"
    }
    np.testing.assert_allclose(
        np.asarray(keras.ops.cast(network(patch), "float32")), scores, atol=0.02
    )


def layer(
    class_name: str, module: str = "keras.layers", config: Any = None, registered: str | None = None
) -> dict[str, Any]:
    return {
        "module": module,
        "class_name": class_name,
        "config": config or {},
        "registered_name": registered,
    }


HOSTILE = {
    "lambda layer": layer(
        "Lambda",
        config={
            "function": {
                "class_name": "__lambda__",
                "config": {"code": "4wEA", "defaults": None, "closure": None},
            }
        },
    ),
    "lambda": {"class_name": "__lambda__", "config": {"value": ["4wEA", None, None]}},
    "function by its module": {
        "module": "os",
        "class_name": "function",
        "config": "system",
        "registered_name": "system",
    },
    "function of keras": {
        "module": "builtins",
        "class_name": "function",
        "config": "relu",
        "registered_name": "function",
    },
    "class of another module": layer("Popen", "subprocess"),
    "download": layer("get_file", "keras.utils", {"fname": "x", "origin": "http://localhost/x"}),
    "unsafe switch": layer("enable_unsafe_deserialization", "keras.config"),
    "saved model": layer("TFSMLayer", config={"filepath": "/etc"}),
    "pickled module": layer("TorchModuleWrapper", config={"module": "gASV"}),
    "file of words": layer("StringLookup", config={"vocabulary": "/etc/passwd"}),
    "inside of keras": layer("Wrapper", "keras.src.utils.file_utils"),
    "private": layer("_Layer"),
    "another's layer": layer("Mine", "elsewhere", registered="elsewhere>Mine"),
    "unknown one of ours": layer(
        "Mine", "maskloom.segcore.deep.networks", registered="maskloom>Mine"
    ),
    "two names": layer("Conv2D", registered="elsewhere>Conv2D"),
    "no module": {"class_name": "Conv2D", "config": {}},
    "type specification": {
        "class_name": "__typespec__",
        "spec_name": "TensorSpec",
        "module": "tensorflow",
        "config": [],
        "registered_name": None,
    },
    "a list for a module": {
        "class_name": "Conv2D",
        "module": ["keras.layers"],
        "config": {},
        "registered_name": None,
    },
    "a list for a policy": {
        "class_name": "DTypePolicy",
        "module": "keras.x",
        "config": {"name": []},
        "registered_name": None,
    },
    "no name": {
        "class_name": ["Conv2D"],
        "module": "keras.layers",
        "config": {},
        "registered_name": None,
    },
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["as a layer", "deep inside"])
def test_hostile_descriptions_are_refused(
    tmp_path: Path, saved: dict[str, bytes], name: str, place: str
) -> None:
    def change(config: dict[str, Any]) -> None:
        if place == "as a layer":
            config["config"]["layers"].append({**HOSTILE[name], "name": "x", "inbound_nodes": []})
        else:
            config["config"]["layers"][1]["config"]["kernel_initializer"] = {
                "anything": [[HOSTILE[name]]]
            }

    refused(written(tmp_path / "bad.keras", changed(saved, change)), "trust")


def test_a_class_that_is_hidden_behind_an_equal_key_is_not_loaded(
    tmp_path: Path, saved: dict[str, bytes]
) -> None:
    # Parsers differ in which of two equal keys counts; keras gets what was checked.
    text = saved[CONFIG].replace(
        b'"class_name": "Conv2D"', b'"class_name": "Lambda", "class_name": "Conv2D"', 1
    )
    assert (
        load_keras(written(tmp_path / "two.keras", {**saved, CONFIG: text})).count_params()
        == small().count_params()
    )


ARCHIVES: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
    "a file beside": lambda saved: {**saved, "assets/words.txt": b"x"},
    "a path upwards": lambda saved: {**saved, "../evil.py": b"x"},
    "no weights": lambda saved: {
        name: content for name, content in saved.items() if name != VARIABLES
    },
    "a pickle": lambda saved: {**saved, "data.pkl": b"\x80\x04."},
    "no JSON": lambda saved: {**saved, CONFIG: b"{"},
    "no object": lambda saved: {**saved, CONFIG: b"[]"},
    "deep JSON": lambda saved: {**saved, CONFIG: b"[" * 200_000 + b"]" * 200_000},
    "nested JSON": lambda saved: {
        **saved,
        CONFIG: saved[CONFIG].replace(b'"trainable": true', b'"x": ' + b"[" * 300 + b"]" * 300, 1),
    },
    "no HDF5": lambda saved: {**saved, VARIABLES: b"nothing"},
    "half the weights": lambda saved: {
        **saved,
        VARIABLES: saved[VARIABLES][: len(saved[VARIABLES]) // 2],
    },
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_anything_else_are_refused(
    tmp_path: Path, saved: dict[str, bytes], name: str
) -> None:
    refused(written(tmp_path / "bad.keras", ARCHIVES[name](saved)))


def test_a_bomb_is_not_unfolded(tmp_path: Path, saved: dict[str, bytes]) -> None:
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(METADATA, saved[METADATA])
        archive.writestr(VARIABLES, saved[VARIABLES])
        archive.writestr(CONFIG, b" " * (65 << 20))
    refused(Weights.of(str(path)), "unfold")


def test_every_truncation_is_told(tmp_path: Path, saved: dict[str, bytes]) -> None:
    whole = Path(written(tmp_path / "whole.keras", saved).location).read_bytes()
    for size in [0, 3, *range(10, len(whole), len(whole) // 20), len(whole) - 1]:
        path = tmp_path / "short.keras"
        path.write_bytes(whole[:size])
        refused(Weights.of(str(path)))


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".pb", ".pt", ".pkl", ".npz", ""])
def test_other_kinds_of_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x04.")
    refused(Weights.of(str(path)), ".keras")


@pytest.mark.parametrize("content", [b"\x89HDF\r\n\x1a\nxx", b"\x80\x04.", b"II*\0", b"\x08\x07"])
def test_renamed_files_are_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "renamed.keras"
    path.write_bytes(content)
    refused(Weights.of(str(path)), "model.save")


def test_weights_of_another_network_are_told(tmp_path: Path, saved: dict[str, bytes]) -> None:
    config = changed(
        saved, lambda config: config["config"]["layers"][1]["config"].update(filters=5)
    )
    refused(written(tmp_path / "mixed.keras", config), "keras cannot load")


def test_a_network_of_more_weights_than_its_file_gets_no_memory(
    tmp_path: Path, saved: dict[str, bytes]
) -> None:
    def widen(config: dict[str, Any]) -> None:
        # Each size by itself is that of some network; together they ask for eight gigabytes.
        for entry, filters in zip(config["config"]["layers"][1:4:2], (50_000, 40_000), strict=True):
            entry["config"]["filters"] = filters
            entry.pop("build_config")
        config["config"]["layers"][2].pop("build_config")

    limit = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + (2 << 30), limit[1]))
    try:
        refused(written(tmp_path / "wide.keras", changed(saved, widen)), "2000740000 weights")
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limit)
    # Nothing of it waits to be made by whatever keras builds next.
    assert (
        small().count_params() == load_keras(written(tmp_path / "it.keras", saved)).count_params()
    )


def _data_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))


def test_operations_on_nothing_of_the_image_are_not_run(
    tmp_path: Path, saved: dict[str, bytes]
) -> None:
    def fill(config: dict[str, Any]) -> None:
        entry = layer(
            "BroadcastTo",
            "keras.src.ops.numpy",
            {"name": "x", "shape": [1 << 14, 1 << 14]},
            "BroadcastTo",
        )
        config["config"]["layers"].append(
            {**entry, "name": "x", "inbound_nodes": [{"args": [1.0], "kwargs": {}}]}
        )

    refused(written(tmp_path / "full.keras", changed(saved, fill)), "has no input from the image")


def hdf5(fill: Callable[[Any], object]) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["layers/conv/vars/0"] = np.ones(3, np.float32)
        fill(file)
    return content.getvalue()


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(3,))
    file.create_virtual_dataset("v", layout)


def endless(file: Any) -> None:
    file["layers/again"] = file["layers"]


LINKED: dict[str, Callable[[Any], object]] = {
    "external link": lambda file: file.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/x")),
    "soft link": lambda file: file.__setitem__("x", h5py.SoftLink("/layers")),
    "external storage": lambda file: file.create_dataset(
        "x", (3,), "u1", external=[("/etc/passwd", 0, 3)]
    ),
    "virtual": virtual,
    "text": lambda file: file.create_dataset("x", data=["a"], dtype=h5py.string_dtype()),
    "references": lambda file: file.create_dataset("x", (3,), h5py.ref_dtype),
    "records": lambda file: file.create_dataset("x", (3,), np.dtype([("a", "u1"), ("b", "u1")])),
    "named type": lambda file: file.__setitem__("x", np.dtype("f4")),
    "never written": lambda file: file.create_dataset(
        "x", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024)
    ),
    "a bomb": lambda file: file.create_dataset(
        "x", data=np.zeros(40 << 20, np.float32), chunks=(1 << 20,), compression="gzip"
    ),
    "groups without end": endless,
}


@pytest.mark.parametrize("name", LINKED)
def test_weights_that_are_not_arrays_of_their_own_are_refused(
    tmp_path: Path, saved: dict[str, bytes], name: str
) -> None:
    check_variables(hdf5(lambda file: None), "it")
    refused(written(tmp_path / "bad.keras", {**saved, VARIABLES: hdf5(LINKED[name])}), "weights")


def test_trust_loads_what_is_refused_otherwise(tmp_path: Path) -> None:
    inputs = keras.Input((None, None, 1))
    doubled = keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs))
    path = tmp_path / "own.keras"
    doubled.save(path)
    refused(Weights.of(str(path)), "Lambda")
    found = load_keras(Weights.of(str(path), trust=True))
    assert float(np.max(found(np.ones((1, 4, 4, 1), np.float32)))) == 2


def test_a_file_that_was_exchanged_is_not_loaded(tmp_path: Path, saved: dict[str, bytes]) -> None:
    weights = written(tmp_path / "it.keras", saved)
    written(tmp_path / "it.keras", {**saved, METADATA: b"{}"})
    refused(weights, "changed")


@pytest.mark.skipif(os.name != "posix", reason="stands in for what a hostile file would start")
def test_nothing_of_a_hostile_file_runs(tmp_path: Path, saved: dict[str, bytes]) -> None:
    proof = tmp_path / "proof"
    call = {
        "module": "os",
        "class_name": "function",
        "config": "system",
        "registered_name": "system",
    }
    entry = layer("Lambda", config={"function": call, "arguments": {"command": f"touch {proof}"}})
    refused(
        written(
            tmp_path / "bad.keras",
            changed(saved, lambda config: config["config"]["layers"].append(entry)),
        )
    )
    assert not proof.exists()


@pytest.mark.parametrize(
    "entry",
    [{"filters": 10**9}, {"batch_shape": [None, 10**5, 10**4, 3]}, {"kernel_size": [9999, 99999]}],
)
def test_sizes_beyond_all_networks_are_refused_before_keras_sees_them(entry):
    config = {
        "class_name": "Conv2D",
        "module": "keras.layers",
        "registered_name": None,
        "config": {**entry, "seed": 2**40},
    }
    with pytest.raises(WeightsError, match="more than any network needs"):
        checked_config(json.dumps(config).encode(), "a.keras")
