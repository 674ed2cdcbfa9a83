"""What is kept of networks: the same bits as converted anew, the card that was found, and never
those of another one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.segcore.deep.inference import network_cache
from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.engines import openvino, selection
from maskloom.segcore.deep.inference.engines.opening import is_installed
from maskloom.segcore.deep.inference.engines.protocol import Choice
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.network_model import NetworkModel
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.runtime import import_keras, set_threads
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.unet import Unet
from maskloom.segcore.segmenters.network import Network
from maskloom.segcore.testing import segmenters as check

pytestmark = pytest.mark.skipif(not is_installed("openvino"), reason="OpenVINO is not installed")
set_threads(1)
keras = import_keras()
PATCH = np.random.default_rng(0).random((1, 32, 48, 2), np.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Weights:
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("unet") / "unet.keras"
    Unet(width=2, depth=1, normalisation="batch").build(2, 3).save(path)
    return Weights.of(str(path))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(network_cache.VARIABLE, str(tmp_path))
    return tmp_path / "networks"


def card(weights: Weights) -> Card:
    return Card("network", weights.sha256, 2, ("a", "b", "c"), Scaling(), ReceptiveField(9, 2))


def answer(weights: Weights, precision: str) -> np.ndarray:
    return np.array(openvino.openvino_runner(weights, card(weights), precision)(PATCH))


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)]
)
def test_a_kept_network_gives_the_same_bits_without_being_converted(
    weights, folder, monkeypatch, precision
):
    monkeypatch.setenv(network_cache.VARIABLE, "")
    expected = answer(weights, precision)
    monkeypatch.setenv(network_cache.VARIABLE, str(folder.parent))
    assert np.array_equal(answer(weights, precision), expected)
    monkeypatch.setattr(openvino, "frozen", None)
    assert np.array_equal(answer(weights, precision), expected)
    (place,) = folder.iterdir()
    # Whatever has happened to the file, it is made again.
    (place / "network.xml").write_text("<net")
    monkeypatch.undo()
    monkeypatch.setenv(network_cache.VARIABLE, str(folder.parent))
    assert np.array_equal(answer(weights, precision), expected)
    assert (place / "network.xml").stat().st_size > 100


def test_a_folder_of_others_is_not_used(weights, folder, monkeypatch):
    folder.mkdir()
    folder.chmod(0o777)
    answer(weights, "float32")
    assert not list(folder.iterdir())
    folder.chmod(0o700)
    monkeypatch.setenv(network_cache.VARIABLE, str(folder / "file" / "below"))
    (folder / "file").touch()
    answer(weights, "float32")


def test_a_file_is_examined_once(weights, folder):
    found = replace(card(weights), classes=("sky", "land", "sea"), network={"pooling": ((1, 2),)})
    asked = []

    def examine() -> Card:
        asked.append(1)
        return found

    assert [network_cache.kept_card(weights, examine) for _ in range(3)] == [found] * 3
    assert len(asked) == 1
    assert network_cache.kept_card(replace(weights, sha256="0" * 64), examine) == found
    (folder / "other").mkdir()
    for place in folder.glob("*/card.json"):
        place.write_text("{}")
    assert network_cache.kept_card(weights, examine) == found
    assert len(asked) == 3


def test_an_engine_is_selected_once_for_the_same_pixels(weights, folder, monkeypatch):
    """And in float32, where engines differ by rounding alone, once for all pixels."""
    model = Network(weights.location, halo=9, engine="openvino").start()
    tried = []
    monkeypatch.setattr(selection, "native_bfloat16", lambda: True)
    monkeypatch.setattr(NetworkModel, "_verify_receptive_field", lambda _, choice: None)
    monkeypatch.setattr(
        selection,
        "select_engine",
        lambda *_: tried.append(1) or Choice("openvino", "bfloat16", {"tried": [len(tried)]}),
    )

    def chosen(pixels: np.ndarray, **changes: Any) -> Mapping[str, Any]:
        shown = check.Picture(pixels, np.ones(pixels.shape[:2], bool))
        (block,) = shown.blocks(model)
        return replace(model, **changes).select_engine(block)

    first, other = np.zeros((64, 64, 2), np.uint8), np.ones((64, 64, 2), np.uint8)
    assert chosen(first) == chosen(first)
    assert len(tried) == 1
    assert chosen(other)["record"] == {"tried": [2]}
    for change in ({"engine": "auto"}, {"classes": ("x", "y", "z")}, {"patch": 32}):
        assert chosen(first, **change)["record"] == {"tried": [len(tried)]}
    assert len(tried) == 5
    assert chosen(first, precision="float32") == chosen(other, precision="float32")
    monkeypatch.setattr(selection, "native_bfloat16", lambda: False)
    assert chosen(other) == chosen(first)
    assert len(tried) == 7
    for place in folder.glob("*/choice.json"):
        place.write_text('{"engine": ')
    chosen(first)
    assert len(tried) == 8


def test_networks_that_differ_in_anything_have_places_of_their_own(weights, folder, monkeypatch):
    own = card(weights)
    cases = [
        (weights, own, "float32"),
        (weights, own, "bfloat16"),
        (replace(weights, sha256="0" * 64), own, "float32"),
        (replace(weights, trust=True), own, "float32"),
        (weights, replace(own, network={"width": 2}), "float32"),
        (weights, replace(own, network={"width": (2, 3)}), "float32"),
        (weights, replace(own, vectors=2), "float32"),
    ]

    def kept_names() -> set[Path]:
        for case in cases:
            network_cache.kept_network(*case, lambda: "model", lambda _: "model")
        return set(folder.iterdir())

    monkeypatch.setattr("openvino.save_model", lambda _, path, **__: path.touch())
    assert len(kept_names()) == len(kept_names()) == len(cases)
    monkeypatch.setattr(network_cache, "_code", lambda: "other")
    assert len(kept_names()) == 2 * len(cases)


def test_the_least_recently_used_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(network_cache, "_MOST_BYTES", 25)
    for age, name in enumerate(["new", "older", "oldest"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "network.bin").write_bytes(bytes(10))
        network_cache.os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    network_cache._drop_oldest(tmp_path.iterdir())
    assert {each.name for each in tmp_path.iterdir()} == {"new", "older"}


@pytest.mark.nightly
def test_a_run_of_a_kept_network_does_not_import_tensorflow(folder):
    """Of the weights in the box, in a process of its own."""
    code = (
        "import sys, numpy as np\n"
        "from maskloom.segcore.deep.inference.engines.opening import open_engine\n"
        "from maskloom.segcore.deep.inference.engines.protocol import Choice\n"
        "from maskloom.segcore.deep.inference.files.weights import Weights\n"
        "weights = Weights.of('nuclei')\n"
        "engine = open_engine(weights, weights.card(), Choice('openvino', 'bfloat16'))\n"
        "engine(np.zeros((1, 64, 64, 3), np.float32))\n"
        "print('tensorflow' in sys.modules)\n"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert printed == ["True", "False"]
    assert len(list(folder.iterdir())) == 1
