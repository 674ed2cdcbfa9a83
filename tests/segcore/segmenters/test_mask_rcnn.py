"""Objects of a Mask R-CNN: the same under any tiling, complete, of the right class, and only from weights that suit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy import ndimage

from segcore.errors import ModelMismatch, RecipeError, WeightsError
from segcore.inference.card import Card, Reach, Scaling
from segcore.manifest import dump_model, load_model
from segcore.model import Exactness
from segcore.networks.mask_rcnn.detections import Detections
from segcore.networks.mask_rcnn.recipe import MaskRcnn
from segcore.objects.stitch import SeamRule, Stitched
from segcore.segmenters import mask_rcnn
from segcore.segmenters.mask_rcnn import MaskRcnnModel, MaskRcnnObjects
from segcore.testing.segmenters import Picture, check_labels, check_values, fitted, object_mask

CORE, HALO = 64, 24


class BlobFinder:
    """Stands for a network: finds the bright spots of a window, those brighter than 0.8 with class 2, and the larger the surer."""

    def detect(self, image: np.ndarray) -> Detections:
        parts = ndimage.label(image[..., 0] > 0.3)[0]
        boxes, classes, scores, masks = [], [], [], []
        for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
            box = np.array([rows.start, columns.start, rows.stop, columns.stop], float)
            inside = (parts[rows, columns] == number).astype(np.float32)
            places = [(np.arange(28) + 0.5) * side // 28 for side in inside.shape]
            masks.append(inside[np.ix_(*(place.astype(int) for place in places))])
            boxes.append(box)
            classes.append(2 if image[rows, columns].max() > 0.8 else 1)
            scores.append(0.5 + min(0.49, inside.sum() / 2000))
        order = np.argsort(-np.array(scores), kind="stable")
        return Detections(
            np.array(boxes).reshape(-1, 4),
            np.array(classes, np.int64),
            np.array(scores, np.float32),
            np.array(masks, np.float32).reshape(-1, 28, 28),
        )[order]


@pytest.fixture
def card_of(tmp_path: Path) -> Callable[..., str]:
    """Writes a file of weights and its card; gives where."""

    def write(content: bytes = b"weights", **changes: Any) -> str:
        path = tmp_path / "net.keras"
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        card = Card(
            "mask_rcnn", digest, 1, ("background", "dim", "bright"), Scaling(), Reach(halo=None, stride=32), output="objects"
        )
        path.with_suffix(".json").write_bytes(replace(card, **changes).dump())
        return str(path)

    return write


@pytest.fixture
def blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_rcnn, "_finder", lambda *arguments: BlobFinder())


def spots(seed: int, shape: tuple[int, int] = (210, 190), spacing: int = 23) -> Picture:
    """Ellipses smaller than the halo, apart from one another, dim or bright, and a strip without data."""
    generator = np.random.default_rng(seed)
    y, x = np.indices(shape)
    image = np.zeros(shape, np.uint8)
    for cy in range(12, shape[0], spacing):
        for cx in range(12, shape[1], spacing):
            radii = generator.uniform(3, spacing / 2 - 2, 2)
            middle = np.array([cy, cx]) + generator.uniform(-1, 1, 2)
            image[((y - middle[0]) / radii[0]) ** 2 + ((x - middle[1]) / radii[1]) ** 2 <= 1] = generator.choice([120, 250])
    return Picture(image[..., None], np.ones(shape, bool))


def recipe_of(weights: str, **fields: Any) -> MaskRcnnObjects:
    return MaskRcnnObjects(weights, core=CORE, halo=HALO, **fields)


@pytest.mark.usefixtures("blobs")
@pytest.mark.parametrize("tile", [(64, 64), (96, 50), (100, 190), (33, 41)])
def test_every_tiling_gives_the_objects_of_the_whole(card_of: Callable[..., str], tile: tuple[int, int]) -> None:
    picture = spots(1)
    model = fitted(recipe_of(card_of()), [picture])
    whole, classes = object_mask(model, picture)
    assert whole.max() == ndimage.label(picture.pixels[..., 0])[1]
    tiled, tiled_classes = object_mask(model, picture, tile)
    assert np.array_equal(whole, tiled)
    assert np.array_equal(classes, tiled_classes)


@pytest.mark.usefixtures("blobs")
def test_objects_are_the_spots_with_their_classes(card_of: Callable[..., str]) -> None:
    picture = spots(2)
    ids, classes = object_mask(fitted(recipe_of(card_of()), [picture]), picture, (80, 80))
    image = picture.pixels[..., 0]
    # Masks of 28 cells are coarser than pixels only for objects larger than that: here only rims may differ.
    assert np.mean((ids > 0) == (image > 0)) > 0.99
    assert np.mean(np.where(image == 0, 0, np.where(image > 200, 2, 1)) == classes) > 0.99
    parts, count = ndimage.label(image)
    assert all(len(np.unique(ids[(parts == number) & (ids > 0)])) == 1 for number in range(1, count + 1))


@pytest.mark.usefixtures("blobs")
def test_nodata_hides_what_lies_below(card_of: Callable[..., str]) -> None:
    picture = spots(3)
    valid = picture.valid.copy()
    valid[:, 100:130] = False
    garbage = picture.pixels.copy()
    garbage[:, 100:130] = 255
    model = fitted(recipe_of(card_of()), [picture])
    one, _ = object_mask(model, Picture(garbage, valid), (70, 70))
    other, _ = object_mask(model, Picture(np.where(valid[..., None], picture.pixels, 0), valid))
    assert np.array_equal(one, other)
    assert not one[~valid].any()


@pytest.mark.usefixtures("blobs")
def test_small_objects_become_background(card_of: Callable[..., str]) -> None:
    picture = spots(4)
    weights = card_of()
    every, _ = object_mask(fitted(recipe_of(weights), [picture]), picture, (64, 64))
    large, _ = object_mask(fitted(recipe_of(weights, min_size=150), [picture]), picture, (64, 64))
    sizes = np.bincount(every.ravel())
    assert 0 < np.count_nonzero(sizes[1:] < 150) < len(sizes) - 1
    assert np.array_equal(large > 0, (every > 0) & (sizes[every] >= 150))


@pytest.mark.usefixtures("blobs")
def test_the_model_is_a_value(card_of: Callable[..., str]) -> None:
    picture = spots(5, (100, 90))
    recipe = recipe_of(card_of(), stitch={"dim": SeamRule("overlap", 0.4)})
    check_values(recipe, picture)
    check_labels(recipe, picture)
    model = fitted(recipe, [picture])
    assert isinstance(model, Stitched)
    assert model.exactness is Exactness.EXACT_IF_SMALLER_THAN_HALO
    assert isinstance(model.segmenter, MaskRcnnModel)
    assert load_model(dump_model(model)) == model
    assert model.footprint.halo[0] >= CORE + 3 * HALO
    assert model.footprint.process_bytes > 0
    assert json.loads(json.dumps(dict(model.provenance())))["score"] == 0.5


def test_weights_must_be_of_a_mask_rcnn(card_of: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="its card says unet"):
        recipe_of(card_of(kind="unet")).start()
    with pytest.raises(WeightsError, match="belongs to other weights"):
        recipe_of(card_of(sha256="0" * 64)).start()
    Path(card_of()).with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match="expected a card"):
        recipe_of(str(tmp_path / "net.keras")).start()
    with pytest.raises(WeightsError, match="cannot be read"):
        recipe_of(str(tmp_path / "other.keras")).start()


def test_names_bands_and_rules_must_suit_the_weights(card_of: Callable[..., str]) -> None:
    weights = card_of()
    with pytest.raises(RecipeError, match="has 3 classes"):
        recipe_of(weights, classes=("nucleus",)).start()
    with pytest.raises(RecipeError, match="wants 1 band"):
        recipe_of(weights, bands=(1, 2)).start()
    with pytest.raises(RecipeError, match="there is no class 'cell'"):
        recipe_of(weights, stitch={"cell": SeamRule()}).start()
    model = recipe_of(weights, classes=("nothing", "a", "b")).start()
    assert model.classes == ("nothing", "a", "b")
    colours = Picture(np.zeros((40, 40, 3), np.uint8), np.ones((40, 40), bool))
    with pytest.raises(ModelMismatch, match=r"has 3 band\(s\)"):
        model.select(colours.spec)
    assert recipe_of(weights, bands=(2,)).start().select(colours.spec).bands == (2,)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"score": 1.0}, "score"),
        ({"overlap": 0.0}, "overlap"),
        ({"core": 8}, "core: expected 32 to 2048"),
        ({"halo": 1000}, "halo: expected 8 to 512"),
        ({"min_size": 0}, "min_size"),
        ({"bands": (0,)}, "bands"),
        ({"classes": ("a", "a")}, "occurs twice"),
    ],
)
def test_recipes_that_cannot_be_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        MaskRcnnObjects("net.keras", **fields)
    with pytest.raises(ValueError, match=told):
        TypeAdapter(MaskRcnnObjects).validate_python({"weights": "net.keras", **fields})


def test_planning_needs_no_keras(card_of: Callable[..., str]) -> None:
    lines = [
        "import sys",
        "from segcore.segmenters.mask_rcnn import MaskRcnnObjects",
        f"MaskRcnnObjects({card_of()!r}).start()",
        "assert 'keras' not in sys.modules",
    ]
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=Path(__file__).parents[3], check=False).returncode == 0


@pytest.mark.timeout(300)
def test_a_network_with_random_weights_gives_the_same_under_any_tiling(card_of: Callable[..., str], tmp_path: Path) -> None:
    """Every proposal is an object of a random shape here, so boxes overlap in all ways and everything is decided by ranks."""
    import keras

    keras.utils.set_random_seed(3)
    network = MaskRcnn(
        width=8,
        pyramid=16,
        anchors=(6.0, 9.0, 12.0, 15.0),
        ratios=(1.0,),
        candidates=64,
        proposals=24,
        detections=24,
        dense=16,
        mask=8,
    ).build(1, 3)
    # Scores and masks far enough from a guess to differ.
    for head, layer in ((network.box_head, "logits"), (network.mask_head, "masks")):
        head.get_layer(layer).kernel.assign(head.get_layer(layer).kernel * 100)
    network.save(tmp_path / "random.keras")
    weights = card_of((tmp_path / "random.keras").read_bytes())
    picture = Picture(np.random.default_rng(0).integers(0, 256, (150, 140, 1)).astype(np.uint8), np.ones((150, 140), bool))
    model = fitted(MaskRcnnObjects(weights, core=48, halo=24, score=0.05, overlap=0.3), [picture])
    whole, classes = object_mask(model, picture)
    assert whole.max() > 20
    for tile in ((64, 64), (90, 47)):
        tiled, tiled_classes = object_mask(model, picture, tile)
        assert np.array_equal(whole, tiled)
        assert np.array_equal(classes, tiled_classes)


def test_another_network_in_the_file_is_refused(card_of: Callable[..., str], tmp_path: Path) -> None:
    import keras

    keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(2, 1)]).save(tmp_path / "plain.keras")
    picture = spots(6, (40, 40))
    model = fitted(recipe_of(card_of((tmp_path / "plain.keras").read_bytes())), [picture])
    with pytest.raises(WeightsError, match="expected a Mask R-CNN"):
        object_mask(model, picture)
