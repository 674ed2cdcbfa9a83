"""Objects of a Mask R-CNN: the same under any tiling, complete, of the right class, and only from
weights that suit.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detections_support import BlobFinder, write_weights
from pydantic import TypeAdapter
from scipy import ndimage

from maskloom.segcore.deep.inference.scaling import AS_THEY_ARE, ImageScaling
from maskloom.segcore.deep.networks.mask_rcnn.detections import Detections
from maskloom.segcore.deep.networks.mask_rcnn.recipe import MaskRcnn
from maskloom.segcore.errors import ModelMismatch, RecipeError, WeightsError
from maskloom.segcore.models.files import dump_model, load_model
from maskloom.segcore.models.protocols import Exactness
from maskloom.segcore.objects.stitching import SeamRule, Stitched
from maskloom.segcore.segmenters import mask_rcnn
from maskloom.segcore.segmenters.mask_rcnn import MaskRcnnModel, MaskRcnnObjects
from maskloom.segcore.testing.segmenters import (
    Picture,
    check_labels,
    check_values,
    fitted,
    object_mask,
)

CORE, HALO = 64, 24


@pytest.fixture
def card_of(tmp_path: Path) -> Callable[..., str]:
    """Writes a file of weights and its card; gives where."""
    return partial(write_weights, tmp_path)


@pytest.fixture
def blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_rcnn, "_detector", lambda *arguments: BlobFinder())


def spots(seed: int, shape: tuple[int, int] = (210, 190), spacing: int = 23) -> Picture:
    """Ellipses smaller than the halo, apart from one another, dim or bright, and a strip without
    data.
    """
    generator = np.random.default_rng(seed)
    y, x = np.indices(shape)
    image = np.zeros(shape, np.uint8)
    for cy in range(12, shape[0], spacing):
        for cx in range(12, shape[1], spacing):
            radii = generator.uniform(3, spacing / 2 - 2, 2)
            middle = np.array([cy, cx]) + generator.uniform(-1, 1, 2)
            image[((y - middle[0]) / radii[0]) ** 2 + ((x - middle[1]) / radii[1]) ** 2 <= 1] = (
                generator.choice([120, 250])
            )
    return Picture(image[..., None], np.ones(shape, bool))


def recipe_of(weights: str, **fields: Any) -> MaskRcnnObjects:
    return MaskRcnnObjects(weights, core=CORE, halo=HALO, **fields)


def scattered(seed: int, largest: int, shape: tuple[int, int] = (300, 280)) -> Picture:
    """Ellipses of up to `largest` pixels, some of them of just so many, anywhere, apart from one
    another.
    """
    generator = np.random.default_rng(seed)
    y, x = np.indices(shape) + 0.5
    image, taken = np.zeros(shape, np.uint8), np.zeros(shape, bool)
    for _ in range(150):
        sides = generator.integers(largest // 2, largest + 1, 2)
        sides[generator.integers(2)] = largest
        top, left = (
            int(generator.integers(0, length - side))
            for length, side in zip(shape, sides, strict=True)
        )
        around = np.s_[max(0, top - 2) : top + sides[0] + 2, max(0, left - 2) : left + sides[1] + 2]
        if not taken[around].any():
            radii = sides / 2
            inside = ((y - top - radii[0]) / radii[0]) ** 2 + (
                (x - left - radii[1]) / radii[1]
            ) ** 2 <= 1
            taken[around], image[inside] = True, generator.choice([120, 250])
    return Picture(image[..., None], np.ones(shape, bool))


def pieces(ids: np.ndarray, picture: Picture) -> list[tuple[int, float]]:
    """For each object of the picture how many ids it has, and which part of it has one."""
    parts, count = ndimage.label(picture.pixels[..., 0])
    inside = [ids[parts == number] for number in range(1, count + 1)]
    return [(len(np.unique(each[each > 0])), float(np.mean(each > 0))) for each in inside]


@pytest.mark.usefixtures("blobs")
def test_objects_up_to_the_halo_are_whole_and_the_same_under_every_tiling(
    card_of: Callable[..., str],
) -> None:
    picture = scattered(1, HALO)
    model = fitted(recipe_of(card_of()), [picture])
    whole, classes = object_mask(model, picture)
    assert whole.max() == ndimage.label(picture.pixels[..., 0])[1] > 40
    # What the rim of a mask of 28 cells may lack.
    assert all(count == 1 and part > 0.9 for count, part in pieces(whole, picture))
    for tile in ((96, 96), (128, 128), (256, 256), (120, 67)):
        tiled, tiled_classes = object_mask(model, picture, tile)
        assert np.array_equal(whole, tiled)
        assert np.array_equal(classes, tiled_classes)


@pytest.mark.usefixtures("blobs")
def test_objects_are_those_of_an_image_with_another_gain_if_its_own_values_scale_it(
    card_of: Callable[..., str],
) -> None:
    picture = spots(0)
    expected = object_mask(fitted(recipe_of(card_of()), [picture]), picture)
    other = Picture(3 * picture.pixels.astype(np.uint16) + 10, picture.valid)
    recipe = recipe_of(card_of(scaling=AS_THEY_ARE, image_scaling=ImageScaling("range")))
    for shown in (picture, other):
        model = fitted(recipe, [shown])
        assert model.provenance()["scaling"]["offset"] == (float(shown.pixels.min()),)
        for tile in (None, (96, 96)):
            found = object_mask(model, shown, tile)
            for ours, theirs in zip(found, expected, strict=True):
                assert np.array_equal(ours, theirs)


@pytest.mark.usefixtures("blobs")
def test_large_objects_are_whole_where_the_card_tells_of_them(card_of: Callable[..., str]) -> None:
    picture = scattered(0, 90)
    cut, _ = object_mask(fitted(recipe_of(card_of()), [picture]), picture)
    assert min(part for _, part in pieces(cut, picture)) < 0.8
    known = MaskRcnnObjects(card_of(about={"largest_object": 90}), core=CORE)
    for tile in (None, (128, 128)):
        ids, _ = object_mask(fitted(known, [picture]), picture, tile)
        assert all(count == 1 and part > 0.9 for count, part in pieces(ids, picture))


@pytest.mark.parametrize(
    ("told", "halo"),
    [
        ({}, 64),
        ({"largest_object": 20}, 64),
        ({"largest_object": 97}, 128),
        ({"largest_object": 999}, 512),
    ],
)
def test_the_halo_follows_from_the_objects_of_the_training(
    card_of: Callable[..., str], told: dict[str, Any], halo: int
) -> None:
    weights = card_of(about=told)
    assert MaskRcnnObjects(weights).start().provenance()["halo"] == halo
    assert MaskRcnnObjects(weights, halo=40).start().provenance()["halo"] == 40


def test_a_card_with_a_strange_size_of_objects_is_refused(card_of: Callable[..., str]) -> None:
    with pytest.raises(WeightsError, match="largest_object"):
        MaskRcnnObjects(card_of(about={"largest_object": "huge"})).start()


@pytest.mark.usefixtures("blobs")
def test_objects_are_the_spots_with_their_classes(card_of: Callable[..., str]) -> None:
    picture = spots(2)
    ids, classes = object_mask(fitted(recipe_of(card_of()), [picture]), picture, (80, 80))
    image = picture.pixels[..., 0]
    # Masks of 28 cells are coarser than pixels only for objects larger than that: here only rims
    # may differ.
    assert np.mean((ids > 0) == (image > 0)) > 0.99
    assert np.mean(np.where(image == 0, 0, np.where(image > 200, 2, 1)) == classes) > 0.99
    parts, count = ndimage.label(image)
    assert all(
        len(np.unique(ids[(parts == number) & (ids > 0)])) == 1 for number in range(1, count + 1)
    )


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
    assert model.requirements.halo >= CORE + 3 * HALO
    assert model.requirements.process_bytes > 0
    assert model.requirements.device == "gpu"
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
        "from maskloom.segcore.segmenters.mask_rcnn import MaskRcnnObjects",
        f"MaskRcnnObjects({card_of()!r}).start()",
        "assert 'keras' not in sys.modules",
    ]
    assert (
        subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], cwd=Path(__file__).parents[3], check=False
        ).returncode
        == 0
    )


class OnceFinder:
    """A finder that remembers what it found in windows of the same pixels, to the last bit; tiles
    share most of their windows.
    """

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        self.found: dict[bytes, Detections] = {}

    def detect(self, image: np.ndarray) -> Detections:
        key = image.tobytes()
        if key not in self.found:
            self.found[key] = self.detector.detect(image)
        return self.found[key]


@pytest.mark.timeout(300)
def test_a_network_with_random_weights_gives_the_same_under_any_tiling(
    card_of: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every proposal is an object of a random shape here, so boxes overlap in all ways and
    everything is decided by ranks.
    """
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
    picture = Picture(
        np.random.default_rng(0).integers(0, 256, (150, 140, 1)).astype(np.uint8),
        np.ones((150, 140), bool),
    )
    model = fitted(MaskRcnnObjects(weights, core=48, halo=24, score=0.05, overlap=0.3), [picture])
    detector = OnceFinder(mask_rcnn._detector(model.segmenter.weights, 0.05, 0.3))
    monkeypatch.setattr(mask_rcnn, "_detector", lambda *arguments: detector)
    whole, classes = object_mask(model, picture)
    assert whole.max() > 20
    # The lattice alone decides what the network is shown: 4 x 3 windows, whatever the tile.
    assert len(detector.found) == 12
    for tile in ((64, 64), (90, 47)):
        tiled, tiled_classes = object_mask(model, picture, tile)
        assert np.array_equal(whole, tiled)
        assert np.array_equal(classes, tiled_classes)
    assert len(detector.found) == 12
    # And the network says the same of the same pixels.
    key, found = next(iter(detector.found.items()))
    again = detector.detector.detect(np.frombuffer(key, np.float32).reshape(96, 96, 1))
    assert np.array_equal(again.boxes, found.boxes)
    assert np.array_equal(again.masks, found.masks)


def test_another_network_in_the_file_is_refused(
    card_of: Callable[..., str], tmp_path: Path
) -> None:
    import keras

    keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(2, 1)]).save(
        tmp_path / "plain.keras"
    )
    picture = spots(6, (40, 40))
    model = fitted(recipe_of(card_of((tmp_path / "plain.keras").read_bytes())), [picture])
    with pytest.raises(WeightsError, match="expected a Mask R-CNN"):
        object_mask(model, picture)
