"""Fitted models as files, and the values that digests are taken of."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.models.files import dump_model, load_model, model_of
from maskloom.segcore.pipeline.in_memory import fit_to
from maskloom.segcore.segmenters.ensemble import Ensemble
from maskloom.segcore.segmenters.kmeans import KMeans
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.segmenters.watershed import Watershed
from maskloom.segcore.storage.canonical import canonical, digest
from maskloom.segcore.testing.segmenters import Picture

PICTURE = Picture(
    np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8), np.ones((20, 30), bool)
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    "recipe",
    [
        Threshold(method="multi-otsu"),
        KMeans(clusters=3, standardise=True),
        Watershed(Threshold(value=100)),
        Ensemble((Threshold(), Threshold(method="li"))),
    ],
    ids=lambda recipe: type(recipe).__name__,
)
def test_a_model_comes_back_from_its_file_with_the_models_inside_it(recipe):
    model = fit_to(recipe.start(), [PICTURE])
    text = dump_model(model)
    assert load_model(text) == model
    assert dump_model(load_model(text)) == text


@pytest.mark.parametrize("record", [None, [], {}, {"model": "x"}, {"fields": {}, "mode": 1}])
def test_what_is_no_model_is_refused(record):
    with pytest.raises(ValueError, match="it holds no model"):
        model_of(record)


def test_a_model_of_an_unknown_kind_is_named():
    with pytest.raises(KeyError, match="no fitted model 'oracle'"):
        model_of({"model": "oracle", "fields": {}})


@given(st.dictionaries(st.text(), values, max_size=4))
def test_digests_do_not_depend_on_the_order_of_keys(value):
    assert digest(value) == digest(dict(reversed(value.items())))
    assert json.loads(canonical(value)) == value
    assert "\n" not in canonical(value)
