"""Ensembles decide as their members' votes or scores say, whatever the tiling and the order of
merging.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from skimage import data
from sklearn.mixture import GaussianMixture

from maskloom.segcore.errors import FitError, ModelMismatch, RecipeError
from maskloom.segcore.fold import observe_all
from maskloom.segcore.geometry import Grid
from maskloom.segcore.methods.expectation import posteriors
from maskloom.segcore.methods.samples import SAMPLE_SIZE
from maskloom.segcore.models.protocols import (
    SEGMENTERS,
    Exactness,
    Fitter,
    Requirements,
    Scorer,
    Segmenter,
    SegmenterRecipe,
)
from maskloom.segcore.raster.spec import Block, Labels, RasterSpec
from maskloom.segcore.segmenters.connected_parts import ConnectedParts
from maskloom.segcore.segmenters.ensemble import Ensemble, EnsembleModel, majority
from maskloom.segcore.segmenters.kmeans import KMeans
from maskloom.segcore.segmenters.mixture import MixtureModel, MixtureOfGaussians
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.testing import segmenters as check
from maskloom.segcore.testing.segmenters import Picture, fitted, labelled


def photo(channels: int = 3, dtype: str = "uint8") -> Picture:
    pixels = data.astronaut()[60:160, 190:310, :channels].astype(dtype)
    valid = np.ones(pixels.shape[:2], bool)
    valid[20:60, 30:80] = False
    return Picture(pixels, valid, "rgb" if channels == 3 else "bands")


RGB = photo()
BINARY = (Threshold(), KMeans(clusters=2), Threshold(method="local", window=21, offset=-4))


def model_of(
    recipe: Ensemble, picture: Picture = RGB, tile: tuple[int, int] | None = None
) -> EnsembleModel:
    model = fitted(recipe, [picture], tile)
    assert isinstance(model, EnsembleModel)
    return model


@pytest.mark.parametrize(
    "member",
    [KMeans(clusters=3), MixtureOfGaussians(components=3), Threshold(method="multi-otsu")],
    ids=str,
)
@pytest.mark.parametrize("by", ["auto", "vote"])
def test_equal_members_decide_as_one(member: Any, by: Any) -> None:
    alone = labelled(fitted(member, [RGB]), RGB)
    assert np.array_equal(labelled(model_of(Ensemble((member, member, member), by)), RGB), alone)


def test_votes_by_hand() -> None:
    said = [
        np.array(row, np.uint8)
        for row in ([0, 2, 1, 1, 2, 0], [1, 0, 1, 0, 1, 0], [1, 1, 0, 1, 0, 3], [2, 2, 0, 0, 0, 3])
    ]
    #      1 twice; 2 twice; 1 and 0 twice, 1 earlier; the same; 0 twice; 0 and 3 twice, 0 earlier
    assert majority(said).tolist() == [1, 2, 1, 1, 0, 0]
    # All differ: the first.
    assert majority([np.array([2]), np.array([1]), np.array([0])]).tolist() == [2]
    # The earliest member among the tied, not the smallest class, nor the first member.
    assert majority([np.array([x]) for x in (9, 3, 1, 3, 1)]).tolist() == [3]


@given(st.lists(stn.arrays("uint8", 12, elements=st.integers(0, 3)), min_size=2, max_size=6))
def test_votes_as_counted_one_by_one(said: list[np.ndarray]) -> None:
    for place, winner in enumerate(majority(said)):
        column = [int(labels[place]) for labels in said]
        assert winner == max(column, key=lambda label: (column.count(label), -column.index(label)))


def test_votes_of_real_members() -> None:
    model = model_of(Ensemble(BINARY))
    assert model.by == "vote"
    each = np.array([labelled(fitted(member, [RGB]), RGB) for member in BINARY])
    assert (each[0] != each[1]).any()
    assert np.array_equal(labelled(model, RGB)[RGB.valid], (each.sum(axis=0) >= 2)[RGB.valid])


def with_parameters(model: MixtureModel) -> GaussianMixture:
    reference = GaussianMixture(len(model.means), covariance_type="full")
    reference.weights_, reference.means_, reference.covariances_ = map(
        np.array, (model.weights, model.means, model.covariances)
    )
    reference.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(reference.covariances_))
    return reference


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.parametrize(
    ("channels", "dtype"),
    [(3, "uint8"), (1, "uint8"), (2, "uint16"), (3, "float32"), (1, "float64")],
)
def test_scores_of_a_mixture_are_its_posteriors(covariance: Any, channels: int, dtype: str) -> None:
    picture = photo(channels, dtype)
    model = fitted(MixtureOfGaussians(components=4, covariance=covariance), [picture])
    assert isinstance(model, MixtureModel)
    assert isinstance(model, Scorer)
    (block,) = picture.blocks(model)
    scores = model.scores(block)
    assert scores.shape == (*block.valid.shape, 4)
    assert scores.dtype == np.float32
    expected = with_parameters(model).predict_proba(
        picture.pixels.reshape(-1, channels).astype(float)
    )
    assert np.allclose(scores.reshape(-1, 4), expected, atol=2e-6)
    assert np.allclose(scores.sum(axis=-1), 1, atol=1e-6)
    certain = scores.max(axis=-1) > 0.5 + 1e-6
    assert np.array_equal(scores.argmax(axis=-1)[certain], model.segment(block).values[certain])
    # A part of the block gives the same bits.
    part = Picture(picture.pixels[7:50, 3:91], picture.valid[7:50, 3:91], picture.interpretation)
    assert np.array_equal(model.scores(part.blocks(model)[0]), scores[7:50, 3:91])


def test_scores_where_nothing_is_known_are_equal() -> None:
    scorer = (np.zeros(4), np.zeros((4, 1)), np.ones((4, 1, 1)))
    found = posteriors(np.array([[np.nan], [np.inf], [0.0], [1e200]]), scorer)
    assert np.array_equal(found, np.full((4, 4), 0.25, "float32"))


def test_scores_are_averaged() -> None:
    members = (
        MixtureOfGaussians(components=3),
        MixtureOfGaussians(components=3, bands=(1,)),
        MixtureOfGaussians(components=3, covariance="spherical", bands=(3, 2)),
    )
    model = model_of(Ensemble(members))
    assert model.by == "scores"
    mean = np.zeros((RGB.valid.size, 3))
    for member, bands in zip(model.members, ([0, 1, 2], [0], [2, 1]), strict=True):
        assert isinstance(member, MixtureModel)
        mean += (
            with_parameters(member).predict_proba(
                RGB.pixels[..., bands].reshape(-1, len(bands)).astype(float)
            )
            / 3
        )
    ours = labelled(model, RGB, (37, 50)).ravel()
    top = np.sort(mean, axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-5
    assert clear.mean() > 0.99
    assert np.array_equal(ours[clear], mean.argmax(axis=1)[clear])
    voted = labelled(model_of(Ensemble(members, "vote")), RGB).ravel()
    assert (voted != ours).any()


def test_members_see_what_they_would_see_alone() -> None:
    four = Picture(np.concatenate([RGB.pixels, RGB.pixels[::-1, :, :1]], axis=-1), RGB.valid, "rgb")
    for members in (
        (KMeans(clusters=2, bands=(3, 1)), Threshold()),
        (KMeans(clusters=2, bands=(4,)), Threshold(), KMeans(clusters=2)),
        (Threshold(band=2), Threshold(band="luminance", above=False), Threshold(bands=(3, 2, 1))),
    ):
        model = model_of(Ensemble(members), four, (40, 64))
        alone = [fitted(member, [four]) for member in members]
        assert list(model.members) == alone
        expected = majority([labelled(each, four) for each in alone])
        assert np.array_equal(labelled(model, four, (33, 50))[four.valid], expected[four.valid])
    needed = Ensemble((Threshold(band=4), KMeans(clusters=2, bands=(2,)))).start()
    assert needed.select(four.spec).bands == (2, 4)


def test_bands_beyond_those_of_the_image_need_to_be_named() -> None:
    spec = RasterSpec(
        "file:///a.tif", "memory", (5, 5), (1, 2, 3), "uint8", (5, 5), "1", 4, interpretation="rgb"
    )
    fitter = Ensemble((KMeans(clusters=2), Threshold(band=4))).start()
    with pytest.raises(ModelMismatch, match=r"member 1 .*\[1, 2, 3\].*Set `bands`"):
        fitter.select(spec)
    assert Ensemble((KMeans(clusters=2, bands=(1, 2)), Threshold(band=4))).start().select(
        spec
    ).bands == (1, 2, 4)


CONTRACT = [
    Ensemble(BINARY),
    Ensemble((Threshold(value=90), Threshold(method="local", window=9))),
    Ensemble(
        (MixtureOfGaussians(components=2), MixtureOfGaussians(components=2, bands=(2,))),
        classes=("shade", "light"),
    ),
    Ensemble(
        (
            Ensemble((Threshold(), Threshold(method="li"))),
            KMeans(clusters=2),
            Threshold(method="triangle"),
        )
    ),
    Ensemble(
        (
            KMeans(clusters="auto", max_clusters=2),
            Threshold(method="local", window=31, window_statistic="median"),
        )
    ),
]


@pytest.mark.parametrize("recipe", CONTRACT, ids=range(len(CONTRACT)))
def test_contract(recipe: Ensemble) -> None:
    check.check_tiling(recipe, RGB, (32, 47))
    check.check_tiling(recipe, RGB, (7, 129))
    check.check_merging(recipe, RGB, (48, 64))
    check.check_values(recipe, RGB)
    check.check_labels(recipe, RGB)
    assert isinstance(recipe.start(), Fitter | Segmenter)


@pytest.mark.parametrize("recipe", CONTRACT[:3], ids=range(3))
def test_memory_stays_within_the_footprint(recipe: Ensemble) -> None:
    large = Picture(np.tile(RGB.pixels, (10, 9, 1)), np.tile(RGB.valid, (10, 9)), "rgb")
    check.check_memory(recipe, large, slack=SAMPLE_SIZE * 48)


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    stn.arrays("float32", (17, 23), elements=st.integers(0, 40)),
)
def test_any_tiling_with_members_that_take_several_rounds(
    tile: tuple[int, int], pixels: np.ndarray
) -> None:
    # Otsu on floats takes two rounds, multi-otsu of levels the same, k-means one, local none.
    recipe = Ensemble((Threshold(), KMeans(clusters=2), Threshold(method="local", window=5)))
    pixels[0, 0], pixels[0, 1] = 50, -3
    check.check_tiling(recipe, Picture(pixels[..., None], pixels < 39), tile)


def test_members_that_are_ready_wait() -> None:
    pixels = photo(1, "float32")
    recipe = Ensemble((Threshold(), Threshold(value=100), KMeans(clusters=2)))
    first = recipe.start()
    assert isinstance(first, Fitter)
    state = observe_all(first, pixels.blocks(first, (50, 50)))
    assert state is not None
    assert state[1] is None
    second = first.finish(state)
    assert isinstance(second, Fitter)
    state = second.observe(pixels.blocks(second)[0])
    assert [part is None for part in state] == [False, True, True]
    assert isinstance(second.finish(state), EnsembleModel)


def test_names_are_those_of_the_recipe_or_of_the_member_that_has_some() -> None:
    assert model_of(Ensemble((KMeans(clusters=2), Threshold()))).classes == (
        "cluster_0",
        "cluster_1",
    )
    assert model_of(Ensemble((KMeans(clusters=2), Threshold(classes=("a", "b"))))).classes == (
        "a",
        "b",
    )
    assert model_of(Ensemble((KMeans(clusters=2), Threshold()), classes=("a", "b"))).classes == (
        "a",
        "b",
    )
    late = Ensemble(
        (KMeans(clusters="auto", max_clusters=2), KMeans(clusters="auto", max_clusters=2))
    ).start()
    assert isinstance(late, Fitter)
    assert late.expected_classes == ()
    for recipe in (
        Ensemble((KMeans(clusters="auto", max_clusters=2), Threshold())),
        Ensemble((Threshold(), KMeans(clusters=2))),
    ):
        started = recipe.start()
        assert isinstance(started, Fitter)
        assert model_of(recipe).classes == started.expected_classes == ("background", "foreground")
    named = KMeans(classes={"dark": "#000000", "light": "#ffffff"})
    assert model_of(Ensemble((named, Threshold(classes=("dark", "light"))))).classes == (
        "dark",
        "light",
    )


@dataclass(frozen=True)
class Rough:
    """A segmenter that is ready, far-sighted and not exact."""

    classes: tuple[str, ...] = ("a", "b")
    exactness: Exactness = Exactness.APPROXIMATE
    requirements: Requirements = field(default_factory=lambda: Requirements(40, 100, 7))

    def start(self) -> Rough:
        return self

    def select(self, spec: RasterSpec) -> RasterSpec:
        return spec

    def segment(self, block: Block) -> Labels:
        return Labels(np.zeros(block.valid.shape, np.uint8))

    def provenance(self) -> Mapping[str, Any]:
        return {}


def test_is_as_exact_and_as_large_as_its_members() -> None:
    model = Ensemble((Threshold(method="local", window=21), Rough())).start()
    assert isinstance(model, EnsembleModel)
    assert model.exactness is Exactness.APPROXIMATE
    assert model.requirements.halo == 40
    assert model.requirements.cost == 11
    assert model.requirements.bytes_per_pixel > 100
    assert Ensemble((Threshold(value=1), Threshold(value=2))).start().requirements.halo == 0
    assert model_of(Ensemble(BINARY)).exactness is Exactness.EXACT


def test_provenance_tells_of_every_member() -> None:
    told = model_of(Ensemble(BINARY)).provenance()
    assert told["by"] == "vote"
    assert [member["kind"] for member in told["members"]] == [
        "threshold",
        "kmeans",
        "threshold_local",
    ]
    assert told["members"][0]["thresholds"] == fitted(Threshold(), [RGB]).provenance()["thresholds"]
    json.dumps(told, allow_nan=False)


def test_kinds_of_images() -> None:
    fitter = Ensemble((Threshold(), KMeans(clusters=2))).start()
    assert isinstance(fitter, Fitter)
    kinds = {fitter.kind_of(fitter.select(photo(channels).spec)) for channels in (1, 2, 3)}
    assert kinds == {1, 2, 3}
    mixed = Ensemble((KMeans(clusters=2, bands=(1,)), KMeans(clusters=2))).start()
    assert isinstance(mixed, Fitter)
    assert len({mixed.kind_of(mixed.select(photo(channels).spec)) for channels in (1, 2, 3)}) == 3
    only = Ensemble((Threshold(), Threshold(method="li"))).start()
    assert isinstance(only, Fitter)
    assert only.kind_of(photo(1).spec) == only.kind_of(RGB.spec)


class Finder(Rough):
    """A segmenter of objects."""

    segment: Any = None

    def fragment(self, block: Block) -> Any: ...

    def join(self, grid: Grid, seams: Any) -> Any: ...


@pytest.mark.parametrize(
    ("members", "more", "message"),
    [
        ((KMeans(),), {}, "members: an ensemble needs at least 2"),
        ((KMeans(), KMeans()), {"by": "luck"}, "by: expected"),
        ((KMeans(clusters=2), KMeans(clusters=2)), {"classes": ("a", "a")}, "occurs twice"),
        (
            (KMeans(clusters=3), MixtureOfGaussians(components=4)),
            {},
            r"member 2 \(mixture\) has 4 classes, member 1 \(kmeans\) has 3",
        ),
        (
            (KMeans(clusters=3), KMeans(clusters=3)),
            {"classes": ("a", "b")},
            r"member 1 \(kmeans\) has 3 classes, the ensemble has 2",
        ),
        (
            (KMeans(classes=("a", "b")), Threshold(classes=("b", "a"))),
            {},
            r"member 2 \(threshold\) names its classes \['b', 'a'\]",
        ),
        (
            (Threshold(), Threshold(classes=("b", "a"))),
            {"classes": ("a", "b")},
            r"member 2 .*the ensemble \['a', 'b'\]",
        ),
        (
            (Threshold(value=1), Threshold(value=2)),
            {"by": "scores"},
            r"member 1 \(threshold\) has no scores",
        ),
        ((Rough(), Finder()), {}, r"member 2 \(Finder\) finds objects"),
        (
            (Threshold(), ConnectedParts(Threshold())),
            {},
            r"member 2 \(connected_parts\) finds objects",
        ),
    ],
)
def test_members_that_do_not_suit_are_named(
    members: tuple[SegmenterRecipe, ...], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Ensemble(members, **more).start()


@pytest.mark.parametrize(
    ("members", "by", "message"),
    [
        (
            (KMeans(clusters="auto", max_clusters=2), KMeans(clusters=3)),
            "auto",
            r"member 2 \(kmeans\) has 3 classes, member 1 \(kmeans\) has 2",
        ),
        (
            (KMeans(clusters=3), MixtureOfGaussians(components=3)),
            "scores",
            r"member 1 \(kmeans\) has no scores",
        ),
    ],
)
def test_what_only_fitting_shows_is_a_fit_error(
    members: Any, by: Literal["auto", "scores"], message: str
) -> None:
    with pytest.raises(FitError, match=message):
        fitted(Ensemble(members, by), [RGB])


def test_mistakes_are_recipe_errors_before_any_work() -> None:
    with pytest.raises(RecipeError):
        Ensemble((KMeans(clusters=3), KMeans(clusters=4))).start()
    assert SEGMENTERS["ensemble"] is Ensemble
