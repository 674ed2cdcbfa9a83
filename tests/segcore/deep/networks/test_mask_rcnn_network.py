"""The whole Mask R-CNN: it learns, detects on images of any size, and comes back from its file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from maskloom.segcore.deep.networks.mask_rcnn.network import MaskRcnnNetwork
from maskloom.segcore.deep.networks.mask_rcnn.prediction import Detector, detect
from maskloom.segcore.deep.networks.mask_rcnn.recipe import MaskRcnn
from maskloom.segcore.deep.networks.mask_rcnn.targets import training_batch
from maskloom.segcore.deep.networks.recipe import NETWORKS
from maskloom.segcore.geometry import Box

TINY = MaskRcnn(
    width=8,
    pyramid=16,
    anchors=(8.0, 16.0, 32.0, 64.0),
    candidates=64,
    proposals=32,
    detections=16,
    sampled=32,
    dense=32,
    mask=16,
)


def squares() -> tuple[np.ndarray, np.ndarray]:
    """Two images of bright and dark rectangles on grey, and their instances: 1, 2 bright (class 1),
    3 dark (class 2).
    """
    masks = np.zeros((2, 64, 64), np.int32)
    masks[0, 4:18, 6:24], masks[0, 30:44, 8:22], masks[0, 40:58, 36:52] = 1, 2, 3
    masks[1, 8:24, 40:56], masks[1, 36:50, 36:60], masks[1, 20:34, 4:22] = 1, 2, 3
    images = np.full((2, 64, 64, 1), 0.5, np.float32)
    images[(masks == 1) | (masks == 2)] = 1.0
    images[masks == 3] = 0.0
    return images, masks


def batch() -> dict[str, Any]:
    images, masks = squares()
    return training_batch(images, masks, [np.array([0, 1, 1, 2])] * 2)[0]


@pytest.fixture(scope="module")
def trained() -> tuple[MaskRcnnNetwork, list[float]]:
    keras.utils.set_random_seed(1)
    network = TINY.build(1, 3)
    network.compile(optimizer=keras.optimizers.Adam(3e-3))
    # Otherwise keras makes the optimizer's variables while it traces the step, and traces it twice.
    network.optimizer.build(network.trainable_variables)
    inputs = batch()
    repeated = {
        name: np.tile(values, (40, *[1] * (values.ndim - 1))) for name, values in inputs.items()
    }
    history = network.fit(repeated, batch_size=2, epochs=5, shuffle=False, verbose=0)
    return network, history.history["loss"]


def test_it_is_registered_under_its_name() -> None:
    assert NETWORKS["mask_rcnn"] is MaskRcnn


@pytest.mark.timeout(300)
@pytest.mark.nightly
def test_it_learns_the_objects_it_is_shown(trained: tuple[MaskRcnnNetwork, list[float]]) -> None:
    network, losses = trained
    assert losses[-1] < 0.3 * losses[0]
    images, masks = squares()
    for image, mask in zip(images, masks, strict=True):
        found = detect(network, image)
        painted = found.paint(Box.whole((64, 64)))
        assert sorted(found.classes.tolist()) == [1, 1, 2]
        for number in range(1, 4):
            best = np.bincount(painted[mask == number]).argmax()
            assert best > 0
            assert found.classes[best - 1] == [0, 1, 1, 2][number]
            common = np.count_nonzero((painted == best) & (mask == number))
            assert common / np.count_nonzero((painted == best) | (mask == number)) > 0.7


def test_it_comes_back_from_its_file(
    trained: tuple[MaskRcnnNetwork, list[float]], tmp_path: Path
) -> None:
    network = trained[0]
    network.save(tmp_path / "tiny.keras")
    again = keras.saving.load_model(tmp_path / "tiny.keras")
    assert isinstance(again, MaskRcnnNetwork)
    assert again.recipe == TINY
    image = squares()[0][0]
    one, other = detect(network, image, 0.1), detect(again, image, 0.1)
    assert len(one) >= 3
    assert np.array_equal(one.boxes, other.boxes)
    assert np.array_equal(one.masks, other.masks)


def test_the_compiled_finder_finds_the_same(trained: tuple[MaskRcnnNetwork, list[float]]) -> None:
    image = squares()[0][1]
    compiled, plain = Detector(trained[0], 0.5, 0.5).detect(image), detect(trained[0], image)
    assert np.array_equal(compiled.classes, plain.classes)
    assert np.allclose(compiled.boxes, plain.boxes, atol=1e-3)
    assert np.allclose(compiled.masks, plain.masks, atol=1e-3)


def test_images_of_any_size_are_padded_within(trained: tuple[MaskRcnnNetwork, list[float]]) -> None:
    network = trained[0]
    image = squares()[0][:1, :50, :61]
    found = {name: keras.ops.convert_to_numpy(value) for name, value in network(image).items()}
    assert found["boxes"].shape == (1, 16, 4)
    assert found["masks"].shape == (1, 16, 28, 28)
    there = found["classes"][0] > 0
    assert there.any()
    assert found["boxes"][0, there].min() >= 0
    assert np.all(found["boxes"][0, there] <= [50, 61, 50, 61])
    assert not found["boxes"][0, ~there].any()
    assert not found["scores"][0, ~there].any()
    # What has no place in an image smaller than one stride is left out, not invented.
    assert network(np.zeros((1, 3, 2, 1), np.float32))["boxes"].shape == (1, 16, 4)


def test_equal_seeds_sample_equally_and_all_losses_are_finite() -> None:
    networks = []
    for seed in (0, 0, 5):
        keras.utils.set_random_seed(7)
        networks.append(MaskRcnn(**{**_fields(TINY), "seed": seed}).build(1, 3))
    losses = [
        {name: float(value) for name, value in net.losses_of(net(batch(), training=True)).items()}
        for net in networks
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert set(losses[0]) == {"objectness", "anchors", "classes", "boxes", "masks"}
    assert np.isfinite(list(losses[0].values())).all()
    # Untrained, classes and masks are guesses.
    assert losses[0]["classes"] == pytest.approx(np.log(3), rel=0.2)
    assert losses[0]["masks"] == pytest.approx(np.log(2), rel=0.2)


def test_images_without_objects_teach_that_there_is_none() -> None:
    network = TINY.build(1, 2)
    images = np.zeros((1, 64, 64, 1), np.float32)
    (inputs,) = training_batch(images, np.zeros((1, 64, 64), np.int32), [np.ones(1, int)])
    losses = {
        name: float(value)
        for name, value in network.losses_of(network(inputs, training=True)).items()
    }
    assert losses["anchors"] == losses["boxes"] == losses["masks"] == 0
    assert losses["objectness"] > 0
    assert losses["classes"] > 0


def test_resnet50_has_the_weights_of_the_papers() -> None:
    network = MaskRcnn(
        size="resnet50",
        pyramid=256,
        anchors=(32.0, 64.0, 128.0, 256.0, 512.0),
        dense=1024,
        mask=256,
    ).build(3, 81)
    # The residual network of He et al. has 23.5 million weights without its last dense layer;
    # biases are left out before norms.
    levels = sum(
        weight.shape.num_elements()
        for layer in network.pyramid.layers
        if layer.name.startswith(("stem", "level"))
        for weight in layer.trainable_variables
    )
    assert levels == 23_508_032
    assert network.recipe.strides == (4, 8, 16, 32, 64)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"size": "huge"}, "size"),
        ({"anchors": (8.0,)}, "anchors"),
        ({"anchors": (8.0, 16.0, 32.0, -1.0)}, "anchors"),
        ({"ratios": ()}, "ratios"),
        ({"width": 12}, "width: expected a multiple of 8"),
        ({"sampled": 1}, "sampled"),
    ],
)
def test_recipes_that_cannot_be_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        MaskRcnn(**fields)


def test_other_bands_and_no_classes_are_refused(
    trained: tuple[MaskRcnnNetwork, list[float]],
) -> None:
    with pytest.raises(ValueError, match="one class"):
        TINY.build(1, 1)
    with pytest.raises(ValueError, match=r"expected an image \(y, x, 1\)"):
        detect(trained[0], np.zeros((8, 8, 3), np.float32))


def test_the_recipe_is_known_without_keras() -> None:
    code = (
        "import sys; import maskloom.segcore.deep.networks.mask_rcnn.recipe; import "
        "maskloom.segcore.deep.networks.mask_rcnn.lattice; assert 'keras' not in sys.modules"
    )
    root = Path(__file__).parents[4]
    assert (
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            check=False,
        ).returncode
        == 0
    )


def _fields(recipe: MaskRcnn) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}
