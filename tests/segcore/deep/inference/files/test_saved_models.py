"""SavedModels give what the network gives that they were exported from, and run nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.segcore.deep.inference.engines.opening import open_engine
from maskloom.segcore.deep.inference.engines.protocol import Choice
from maskloom.segcore.deep.inference.files import examine as examination
from maskloom.segcore.deep.inference.files.saved_models import load_saved_model
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.errors import WeightsError

tensorflow = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

PIXELS = np.random.default_rng(0).random((1, 24, 32, 2), np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder, and the network that it was exported from. Its batch normalisation is one that was
    trained, and two of its variables have the same name and other values.
    """
    layers = keras.layers
    image = keras.Input((None, None, 2))
    maps = layers.BatchNormalization()(layers.Conv2D(3, 3, padding="same", name="same")(image))
    inner_image = keras.Input((None, None, 3))
    inner = keras.Model(inner_image, layers.Conv2D(3, 3, padding="same", name="same")(inner_image))
    model = keras.Model(image, layers.Conv2D(2, 1, activation="softmax")(inner(maps)))
    random = np.random.default_rng(1)
    model.set_weights([random.uniform(0.1, 1, each.shape) for each in model.get_weights()])
    path = tmp_path_factory.mktemp("saved") / "model"
    model.export(str(path), verbose=False)
    return path, model


def test_it_gives_what_the_network_gives(exported: tuple[Path, Any]) -> None:
    path, model = exported
    expected = np.asarray(model(PIXELS))
    weights = Weights.of(str(path))
    assert weights == Weights.of(str(path / "saved_model.pb"))
    card = examination._card_of(weights)
    assert (card.channels, card.classes, card.output) == (2, ("class_0", "class_1"), "scores")
    assert (card.reach.stride, card.reach.fixed) == (1, None)
    for engine in ("tensorflow", "openvino"):
        if engine == "openvino":
            pytest.importorskip("openvino")
        scores = open_engine(weights, card, Choice(engine, "float32"))(PIXELS)
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.nightly
def test_a_graph_of_tensorflow_1_with_channels_first(tmp_path: Path) -> None:
    legacy = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), legacy.Session() as session:
        image = legacy.placeholder(tensorflow.float32, [None, 2, None, None])
        variables = [
            legacy.get_variable("kernel", initializer=np.float32([[1, 2], [3, 4]]), use_resource=r)
            if r
            else legacy.get_variable("bias", initializer=np.float32([5, 6]), use_resource=r)
            for r in (True, False)
        ]
        scores = tensorflow.einsum("nbyx,bs->nsyx", image, variables[0])
        scores = scores + tensorflow.reshape(variables[1], [1, 2, 1, 1])
        session.run(legacy.global_variables_initializer())
        legacy.saved_model.simple_save(
            session, str(tmp_path / "old"), {"image": image}, {"scores": scores}
        )
    model = load_saved_model(Weights.of(str(tmp_path / "old")))
    expected = PIXELS @ np.float32([[1, 2], [3, 4]]) + np.float32([5, 6])
    np.testing.assert_allclose(model.run(PIXELS), expected, rtol=1e-5)


class _Hostile(tensorflow.Module):
    """A network whose functions do more than compute."""

    def __init__(self, act: Callable[[Any], Any]) -> None:
        super().__init__()
        self.act = act

    @tensorflow.function(input_signature=[tensorflow.TensorSpec([1, None, None, 2])])
    def scores(self, image: Any) -> Any:
        return self.act(image)


def endless(image: Any) -> Any:
    return tensorflow.while_loop(lambda _: True, lambda x: [x + 1], [image])[0]


_AT_NIGHT = (pytest.param(name, marks=pytest.mark.nightly) for name in ("PyFunc", "While"))


@pytest.mark.parametrize("name", ["ReadFile", "WriteFile", *_AT_NIGHT])
def test_what_a_network_of_images_does_not_need_is_refused(tmp_path: Path, name: str) -> None:
    secret, written = tmp_path / "secret", tmp_path / "written"
    secret.write_text("a secret")

    def act(image: Any) -> Any:
        if name == "ReadFile":
            text = tensorflow.io.read_file(str(secret))
            return image * tensorflow.cast(tensorflow.strings.length(text), tensorflow.float32)
        if name == "WriteFile":
            with tensorflow.control_dependencies([tensorflow.io.write_file(str(written), "it")]):
                return tensorflow.identity(image)
        if name == "PyFunc":
            return tensorflow.ensure_shape(
                tensorflow.numpy_function(lambda x: x, [image], tensorflow.float32),
                [1, None, None, 2],
            )
        return endless(image)

    module = _Hostile(act)
    tensorflow.saved_model.save(
        module, str(tmp_path / "bad"), {"serving_default": module.scores.get_concrete_function()}
    )
    weights = Weights.of(str(tmp_path / "bad"))
    with pytest.raises(WeightsError, match=f"bad uses the operation '.*{name}"):
        load_saved_model(weights)
    assert not written.exists()


@pytest.mark.nightly
def test_damaged_folders_are_told(exported: tuple[Path, Any], tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(exported[0], tmp_path / name))

    graph = copied("graph") / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-100])
    values = copied("values")
    next(values.glob("variables/variables.data*")).unlink()
    short = next(copied("short").glob("variables/variables.data*"))
    short.write_bytes(short.read_bytes()[:20])
    for name in ("graph", "values", "short"):
        with pytest.raises(WeightsError, match=f"{name} is no SavedModel that can be read"):
            load_saved_model(Weights.of(str(tmp_path / name)))
