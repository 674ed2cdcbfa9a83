"""Colours: distances as another library computes them, and colours that are told apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.raster.classes import ClassTable, ColourChoice
from maskloom.segcore.raster.colours import (
    APART,
    PALETTE,
    colours_of_objects,
    hexadecimal,
    parse_colour,
    pushed_apart,
    seen,
    smallest_distance,
)

COLOUR = st.tuples(*3 * [st.integers(0, 255)])


def test_appearance_is_that_of_colorspacious() -> None:
    colorspacious = pytest.importorskip("colorspacious")
    rgb = np.random.default_rng(3).integers(0, 256, (300, 3))
    views = [rgb / 255] + [
        colorspacious.cspace_convert(
            rgb / 255, {"name": "sRGB1+CVD", "cvd_type": kind, "severity": 100}, "sRGB1"
        )
        for kind in ("protanomaly", "deuteranomaly", "tritanomaly")
    ]
    for ours, view in zip(seen(rgb), views, strict=True):
        theirs = colorspacious.cspace_convert(np.clip(view, 0, 1), "sRGB1", "CAM02-UCS")
        np.testing.assert_allclose(ours, theirs, atol=0.01)


@pytest.mark.parametrize(("count", "least"), [(7, 10), (12, 10), (20, 8), (32, 5)])
def test_the_palette_keeps_colours_apart(count: int, least: float) -> None:
    assert smallest_distance(PALETTE[:count]) >= least


@given(st.lists(COLOUR, min_size=2, max_size=5))
def test_clusters_are_told_apart(colours: list[tuple[int, int, int]]) -> None:
    assert smallest_distance(pushed_apart(colours)) >= APART


def test_clusters_that_are_told_apart_keep_their_colours() -> None:
    colours = (20, 30, 40), (90, 140, 60), (230, 210, 150)

    assert pushed_apart(colours) == colours


def test_the_order_of_decision() -> None:
    names = ("background", "water", "Forests", "cluster_0", "unheard of")
    means = ((1, 2, 3), (4, 5, 6), (7, 8, 9), (120, 90, 60), (0, 0, 0))
    stated = ColourChoice.of({"water": (0, 0, 255)}, {"water": (9, 9, 9), "Forests": (0, 99, 0)})

    found = stated.table(names, means).colours
    assert found[1:4] == ((0, 0, 255), (0, 99, 0), (120, 90, 60))
    plain = ColourChoice().table(names, means).colours
    assert plain[1:3] == (parse_colour("#2166ac"), parse_colour("#0b4d2c"))
    # References that are confused are not used.
    confused = ColourChoice.of({}, {"water": (9, 9, 9), "Forests": (9, 12, 9)})
    assert confused.table(names, means) == ColourChoice().table(names, means)


def test_a_class_without_a_known_name_is_unlike_the_others() -> None:
    for names in (("water", "a", "b", "c"), ("road", "sky", "x"), ("tumour", "y")):
        assert smallest_distance(ClassTable.of(names).colours) >= APART


def test_spellings_of_one_class_have_one_colour() -> None:
    for names in (("river", "Rivers", "WATER"), ("bare soil", "bare_soil", "Bare-Soil")):
        assert len({ClassTable.of((name,)).colours for name in names}) == 1


@pytest.mark.parametrize("text", ["", "#12345", "12345g", "no-such-colour", "rgb(1,2,3)", "#1234"])
def test_what_is_no_colour_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a colour like"):
        parse_colour(text)


@given(COLOUR)
def test_hexadecimal_is_read_back(colour: tuple[int, int, int]) -> None:
    assert parse_colour(hexadecimal(colour)) == colour


def test_objects_with_neighbouring_ids_look_different() -> None:
    colours = colours_of_objects(np.arange(1, 200, dtype=np.uint32))

    assert np.abs(np.diff(colours.astype(int), axis=0)).max(axis=1).min() >= 60
