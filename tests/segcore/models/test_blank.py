"""What stands for a model where no pixel could teach one, and what models know against results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest

from maskloom.segcore.errors import FitError, ModelMismatch
from maskloom.segcore.fold import observe_all
from maskloom.segcore.models.protocols import Blank, caution_of, concluded, is_blank
from maskloom.segcore.segmenters.connected_parts import ConnectedParts
from maskloom.segcore.segmenters.kmeans import KMeans
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.testing.segmenters import Picture

PHOTO = Picture(
    np.random.default_rng(0).integers(0, 256, (20, 30, 1)).astype(np.uint8), np.ones((20, 30), bool)
)
BLANK = replace(PHOTO, valid=np.zeros((20, 30), bool))


def conclusion(recipe, picture, names=()):
    fitter = recipe.start()
    return concluded(fitter, observe_all(fitter, picture.blocks(fitter)), names)


def test_a_fitter_that_saw_pixels_ends_as_its_model():
    model = conclusion(Threshold(), PHOTO)
    assert not is_blank(model)
    assert model.classes == ("background", "foreground")


def test_a_fitter_that_saw_none_ends_as_a_blank_of_its_classes():
    model = conclusion(Threshold(), BLANK)

    assert isinstance(model, Blank)
    assert model.classes == ("background", "foreground")
    (block,) = BLANK.blocks(model)
    assert model.segment(block).values.shape == (20, 30)


def test_a_blank_of_an_unknown_number_of_classes_has_the_first_and_those_asked_for():
    model = conclusion(KMeans(clusters="auto"), BLANK, ("cluster_4", "cluster_0"))
    assert model.classes == ("cluster_0", "cluster_4")


def test_a_blank_refuses_an_image_that_has_data():
    model = conclusion(Threshold(), BLANK)
    (block,) = PHOTO.blocks(model)
    with pytest.raises(ModelMismatch, match=r"memory\.tif has valid pixels"):
        model.segment(block)


def test_a_model_around_a_blank_is_blank():
    assert is_blank(conclusion(ConnectedParts(KMeans(clusters=2)), BLANK))
    assert not is_blank(conclusion(ConnectedParts(KMeans(clusters=2)), PHOTO))


def test_other_faults_of_a_fit_are_raised():
    fitter = SimpleNamespace(finish=_fail)
    with pytest.raises(FitError, match="too few"):
        concluded(fitter, None)


def _fail(_):
    raise FitError("too few")


@dataclass(frozen=True)
class Doubtful:
    """A model that says one thing of every image."""

    text: str | None
    classes = ()
    exactness = requirements = select = provenance = ()

    def caution(self, spec, shares):
        return self.text


def test_each_thing_that_models_know_is_told_once():
    told = [Doubtful("dark"), Doubtful(None), Doubtful("blurred"), Doubtful("dark"), object()]
    assert caution_of(told, PHOTO.spec, {}) == "dark; blurred"
    assert caution_of([Doubtful(None), object()], PHOTO.spec, {}) is None
