"""Cards tell what shares the classes had in training, and warn of images where they have others."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskloom.flows.recipes.fingerprints import json_values
from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.network_model import NetworkModel
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.errors import WeightsError
from maskloom.segcore.ground.space import Metric, Space
from maskloom.segcore.models.protocols import caution_of, caution_of_objects
from maskloom.segcore.models.rescaled import Rescaled
from maskloom.segcore.models.stated_colours import stated_colours
from maskloom.segcore.models.typical import TypicalObjects
from maskloom.segcore.objects.flow import FlowRule
from maskloom.segcore.objects.stitching import SeamRule, Stitched
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.segmenters.connected_parts import ConnectedPartsModel
from maskloom.segcore.segmenters.ensemble import EnsembleModel
from maskloom.segcore.segmenters.instances import InstancesModel
from maskloom.segcore.segmenters.mean_shift import MeanShift
from maskloom.segcore.segmenters.quickshift import Quickshift
from maskloom.segcore.segmenters.threshold import ThresholdModel
from maskloom.segcore.segmenters.watershed import WatershedModel

CLASSES = ("background", "cell", "wall")
SHARES = {"background": [0.5, 0.9], "cell": [0.1, 0.4], "wall": [0.0, 0.05]}


def card(shares: Any) -> Card:
    about = {} if shares is None else {"shares": shares}
    return Card(
        "unet",
        "0" * 64,
        3,
        ("background", "cell", "wall"),
        Scaling(),
        ReceptiveField(8),
        about=about,
    )


def with_sizes(sizes: Any) -> Card:
    return replace(card(None), about={"sizes": sizes})


def with_least(network: NetworkModel, least: float) -> NetworkModel:
    return replace(network, card=with_sizes({"cell": [least, 900]}))


def sized(um: float) -> RasterSpec:
    metric = Metric((um, um), "um")
    return replace(spec(), shape=(8, 8), chunks=(8, 8), space=Space(metric=metric))


def spec(dtype: str = "uint8") -> RasterSpec:
    return RasterSpec("file:///a.tif", "geotiff", (9, 9), (1, 2, 3), dtype, (9, 9), "1", 3)


@pytest.mark.parametrize(
    ("seen", "named"),
    [
        ({"background": 0.7, "cell": 0.28, "wall": 0.02}, ()),
        ({"background": 0.9, "cell": 0.1, "wall": 0.0}, ()),
        ({"background": 0.57, "cell": 0.41, "wall": 0.02}, ("cell",)),
        ({"background": 0.99, "cell": 0.01, "wall": 0.0}, ("cell",)),
        ({"background": 0.1, "cell": 0.7, "wall": 0.2}, ("cell", "wall")),
        # What is left is no class that a network looks for.
        ({"background": 0.95}, ()),
    ],
)
def test_a_share_that_training_never_saw_is_told(
    seen: dict[str, float], named: tuple[str, ...]
) -> None:
    loaded = Card.load(card(SHARES).dump(), "a.json")
    told = loaded.caution("a.keras", loaded.classes, seen)
    assert (
        tuple(
            name
            for name in ("background", "cell", "wall")
            if told and f"{name} {seen.get(name, 0):.2%} (in" in told
        )
        == named
    )
    assert (told is None) == (not named)
    # By class id, whatever the recipe calls the classes.
    renamed = ("ground", "nucleus", "membrane")
    told = loaded.caution("a.keras", renamed, dict(zip(renamed, seen.values(), strict=False)))
    assert (told is None) == (not named and seen["background"] < 0.91)


@pytest.mark.parametrize("images", [6, 20])
def test_few_images_of_training_give_few_false_warnings(images: int) -> None:
    """Networks of so many images, each asked about others of the same kind. Of these 2 in images +
    1 lie outside the range itself.
    """
    random = np.random.default_rng(images)
    told = plain = 0
    for _ in range(500):
        seen, other = random.lognormal(-3, 0.5, images), random.lognormal(-3, 0.5)
        loaded = card({"cell": [seen.min(), seen.max()]})
        plain += loaded.caution("a.keras", loaded.classes, {"cell": other}) is not None
        loaded = replace(loaded, about={**loaded.about, "data": {"training_images": images}})
        told += loaded.caution("a.keras", loaded.classes, {"cell": other}) is not None
        # What is far outside is told.
        for far in (0.0, seen.min() / 2.1, seen.max() * 2.1):
            assert loaded.caution("a.keras", loaded.classes, {"cell": far}) is not None
    assert told <= 0.5 * plain
    assert plain == pytest.approx(500 * 2 / (images + 1), rel=0.5)


@pytest.mark.parametrize("images", [None, "many", 0, 1, 2])
@pytest.mark.parametrize("seen", [[0.0, 0.0], [0.1, 0.1], [0.0, 1.0]])
def test_warnings_with_unusual_cards(images: Any, seen: list[float]) -> None:
    known = card({"cell": seen})
    loaded = replace(known, about={**known.about, "data": {"training_images": images}})
    slack = 2 if isinstance(images, int) else 1
    for share in (0.0, 0.04, 0.06, 0.15, 0.21, 1.0):
        told = loaded.caution("a.keras", loaded.classes, {"cell": share}) is not None
        assert told == (not seen[0] / slack <= share <= seen[1] * slack)


@pytest.mark.parametrize(
    "shares",
    [None, 3, [], {"cell": 5}, {"cell": [0.1]}, {"cell": ["a", "b"]}, {"cell": [0.9, 0.1]}],
)
def test_cards_that_do_not_tell_give_no_warning(shares: Any) -> None:
    loaded = Card.load(card(shares).dump(), "a.json")
    assert loaded.shares == (None, None, None)
    assert loaded.caution("a.keras", loaded.classes, {"cell": 0.99}) is None


@pytest.mark.nightly
@pytest.mark.skipif(
    "MASKLOOM_TEST_DATA" not in os.environ, reason="needs the folder of test images"
)
def test_the_card_in_the_box_tells_shares_and_sizes_of_its_images() -> None:
    nuclei = Card.load(
        (files("maskloom.segcore.deep.weights") / "nuclei.json").read_bytes(), "nuclei.json"
    )
    shares, sizes = [], []
    for path in Path(os.environ["MASKLOOM_TEST_DATA"], "nuclei_cc0", "labels").iterdir():
        labels = np.asarray(Image.open(path))
        shares.append(float((labels > 0).mean()))
        sizes.append(float(np.median(np.unique(labels[labels > 0], return_counts=True)[1])))
    data = nuclei.about["data"]
    assert len(shares) == data["training_images"] + data["validation_images"]
    assert nuclei.shares[1] == pytest.approx((min(shares), max(shares)), abs=1e-6)
    assert nuclei.shares[0] == pytest.approx((1 - max(shares), 1 - min(shares)), abs=1e-6)
    assert nuclei.sizes == (None, (min(sizes), max(sizes)))


def test_a_size_that_training_never_saw_is_told() -> None:
    loaded = Card.load(with_sizes({"cell": [40.0, 900.5]}).dump(), "a.json")
    assert loaded.sizes == (None, (40.0, 900.5), None)
    for size, told in ((39.0, True), (40.0, False), (900.5, False), (1234.0, True)):
        found = loaded.caution_of_objects(
            "a.keras", loaded.classes, TypicalObjects({"cell": size, "wall": 3.0})
        )
        assert found == (
            f"a.keras may not suit objects of this size: the median is cell {size:g} pixels (in "
            "training 40 to 900.5). Look at the preview"
            if told
            else None
        )
    small = TypicalObjects({"cell": 1.0})
    for broken in (None, 3, {"cell": [40.0]}, {"cell": [90.0, 40.0]}, {"cell": ["a", "b"]}):
        assert with_sizes(broken).caution_of_objects("a.keras", ("", "cell"), small) is None


def test_sizes_are_told_by_the_network_inside_a_segmenter_in_its_own_pixels() -> None:
    network = NetworkModel(Weights("a.keras", "0" * 64), with_sizes({"cell": [40, 900]}), CLASSES)
    watershed = WatershedModel(network, CLASSES, (0, 1, 2), 8, 1.0, 1)
    fine = sized(0.25)
    ensemble = EnsembleModel((network, network), CLASSES, "vote")
    for model in (network, Stitched(watershed, (SeamRule(),) * 3), ensemble):
        assert "cell 1000 pixels" in str(
            caution_of_objects(model, fine, TypicalObjects({"cell": 1000.0}))
        )
        assert caution_of_objects(model, fine, TypicalObjects({"cell": 800.0})) is None
        assert caution_of_objects(model, fine, TypicalObjects({})) is None
    resampled = Rescaled(network, 0.5)
    assert "cell 250 pixels" in str(
        caution_of_objects(
            replace(resampled, model=with_least(network, 300)),
            fine,
            TypicalObjects({"cell": 1000.0}),
        )
    )
    assert caution_of_objects(resampled, fine, TypicalObjects({"cell": 1000.0})) is None


@pytest.mark.parametrize(
    ("score", "images", "told"),
    [(0.9, 1000, False), (0.89, 1000, True), (0.89, 20, False), (0.79, 2, True), (0.95, 5, False)],
)
def test_scores_lower_than_in_any_validation_image_are_told(
    score: float, images: int, told: bool
) -> None:
    """The range of few images is widened, of 2 to twice the doubt."""
    seen = replace(
        with_sizes(None),
        about={"scores": {"cell": [0.9, 0.96]}, "data": {"validation_images": images}},
    )
    loaded = Card.load(seen.dump(), "a.json")
    network = NetworkModel(Weights("a.keras", "0" * 64), loaded, CLASSES)
    typical = TypicalObjects({"cell": 50.0, "wall": 3.0}, {"cell": score, "wall": 0.1})
    text = (
        "a.keras is unsure of these objects and may not suit this kind of image: the median score "
        f"is cell {score:.3f} (in validation 0.900 or more, mostly 0.960). Look at the preview"
    )
    assert caution_of_objects(network, sized(0.5), typical) == (text if told else None)
    found = InstancesModel(network, FlowRule(), None)
    assert caution_of_objects(found, sized(0.5), typical) == (text if told else None)
    # More pixels than in validation belong to objects, of which the network is less sure.
    more = InstancesModel(network, FlowRule(threshold=0.3), None)
    assert caution_of_objects(more, sized(0.5), typical) is None
    # Cards of earlier versions tell nothing.
    assert with_sizes(None).caution_of_objects("a.keras", CLASSES, typical) is None


def test_pixels_of_quite_another_size_are_told_where_they_are_shown_as_they_are() -> None:
    trained = replace(with_sizes(None), pixel_size=0.5)
    network = NetworkModel(Weights("a.keras", "0" * 64), trained, CLASSES)
    told = "a.keras was trained on pixels of 0.5 um, and the image has 0.2 um"
    assert told in str(caution_of([network], sized(0.2), {}))
    for side in (0.3, 0.5, 0.9):
        assert caution_of([network], sized(side), {}) is None
    assert caution_of([network], spec(), {}) is None
    assert told not in str(caution_of([Rescaled(network, 0.5)], sized(0.2), {}))


@dataclass(frozen=True)
class Anxious(ThresholdModel):
    """A segmenter that knows something against every image."""

    def caution(self, spec: RasterSpec, shares: Any) -> str | None:
        return f"{spec.dtype} {sorted(shares)}"


def test_segmenters_around_others_pass_their_warnings_on() -> None:
    inner, calm = (
        Anxious((1.0,), ("background", "cell")),
        ThresholdModel((1.0,), ("background", "cell")),
    )
    watershed = WatershedModel(inner, inner.classes, (0, 1), 8, 1.0, 1)
    around = [
        ConnectedPartsModel(inner, (1,), 8, 1, fill_holes=False),
        watershed,
        Stitched(watershed, (SeamRule(), SeamRule())),
        EnsembleModel((inner, calm, inner), inner.classes, "vote"),
    ]
    for model in around:
        assert caution_of([model], spec(), {"cell": 0.5}) == "uint8 ['cell']"
    assert (
        caution_of([calm, replace(around[3], members=(calm, calm))], spec(), {"cell": 0.5}) is None
    )


def test_defaults_for_8_bits_warn_where_pixels_are_others() -> None:
    joint, quick = MeanShift(space="joint").start(), Quickshift().start()
    assert caution_of([joint, quick], spec("uint8"), {}) is None
    assert "`range_radius` is 15" in str(caution_of([joint], spec("float32"), {}))
    assert "`range_radius` is 15" in str(caution_of([joint], spec("uint16"), {}))
    assert (
        caution_of([MeanShift(space="joint", range_radius=0.02).start(), quick], spec("uint16"), {})
        is None
    )
    assert "set `scale`" in str(caution_of([quick], spec("float32"), {}))
    assert caution_of([Quickshift(scale=100.0).start()], spec("float32"), {}) is None


def test_colours_of_a_card_are_those_of_the_classes_whatever_their_names_in_a_recipe() -> None:
    stated = replace(card(None), colours={"cell": "#112233", "wall": "teal"})
    weights = Weights("cells.keras", "0" * 64)
    network = NetworkModel(weights, stated, ("glass", "nucleus", "membrane"))
    colours = {"nucleus": (0x11, 0x22, 0x33), "membrane": (0, 128, 128)}
    parts = ConnectedPartsModel(network, (1,), 8, 1, fill_holes=False)
    stitched = Stitched(parts, (SeamRule(), SeamRule()))
    without = NetworkModel(weights, card(None), ("a", "b", "c"))
    other = NetworkModel(weights, stated, stated.classes)
    ensemble = EnsembleModel((without, other), network.classes, "vote")
    for model in (network, parts, stitched, Rescaled(network, 0.5), ensemble):
        assert stated_colours(model) == colours
    assert stated_colours(without) == {}


def test_the_temperature_of_a_card_is_kept_and_checked() -> None:
    assert Card.load(replace(card(None), temperature=1.7).dump(), "").temperature == 1.7
    # Earlier versions read cards without one.
    assert "temperature" not in json.loads(card(None).dump())
    assert Card.load(card(None).dump(), "").temperature == 1
    for wrong in (0, -1.0, "hot"):
        with pytest.raises(ValueError, match="temperature: expected a number above 0"):
            replace(card(None), temperature=wrong)


def test_colours_of_a_card_are_kept_and_decide_no_label() -> None:
    plain, stated = card(None), replace(card(None), colours={"cell": "#112233"})
    assert Card.load(stated.dump(), "").colours == stated.colours
    # Earlier versions read cards without colours.
    assert "colours" not in json.loads(plain.dump())
    assert json_values(stated) == json_values(plain)
    for wrong, said in (({"cel": "red"}, "'cel'"), ({"cell": "rde"}, "'rde'"), (["red"], "names")):
        content = json.dumps({**json.loads(plain.dump()), "colours": wrong}).encode()
        with pytest.raises(WeightsError, match=said):
            Card.load(content, "cells.json")


@pytest.mark.parametrize(
    "scaling",
    [
        Scaling(),
        Scaling((103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
        Scaling((123.675, 116.28, 103.53), (1 / 58.395, 1 / 57.12, 1 / 57.375)),
        Scaling((7.5,), (0.1, 0.2, 0.3)),
    ],
)
@pytest.mark.parametrize("shape", [(3,), (5, 3), (4, 6, 3), (2, 4, 6, 3), (0, 6, 3), (4, 0, 3)])
def test_scaling_is_that_of_each_pixel_to_the_last_bit(scaling, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = pixels.astype(np.float32) - np.array(scaling.offset, np.float32)
    expected *= np.array(scaling.factor, np.float32)
    for given in (pixels, pixels.astype(np.float64), pixels.astype(np.float32)):
        found = scaling.apply(given)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected)
        assert not np.shares_memory(found, given)
    if pixels.ndim > 2:
        turned = pixels.swapaxes(-2, -3)
        assert np.array_equal(scaling.apply(turned), expected.swapaxes(-2, -3))
