"""Labels: values, colours and objects as class ids; what is void, what is unknown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from maskloom.segcore.annotations.masks import packed_colours
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.training.labels import UNKNOWN, VOID, Colours, Index, Instances, Values

CLASSES = ("water", "forest", "town")


def decode(kind, raw, valid=None, classes=CLASSES):
    raw = np.asarray(raw)
    raw = packed_colours(raw) if raw.ndim == 3 else raw
    return kind.decoder(classes).decode(raw, np.ones(raw.shape, bool) if valid is None else valid)


@given(arrays.arrays(np.uint8, (5, 7)))
def test_indices_are_class_ids_and_all_else_is_void_or_unknown(raw):
    found = decode(Index(void=(255, 9)), raw)
    expected = np.where(raw < 3, raw, np.where((raw == 255) | (raw == 9), VOID, UNKNOWN))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(decode(Index(void="rest"), raw), np.where(raw < 3, raw, VOID))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.uint32])
def test_values_of_any_type(dtype):
    raw = np.array([[0, 100, 7, 99]], dtype)
    kind = Values({0: "water", 100: "forest", 7: "town"}, void=99)
    assert decode(kind, raw).tolist() == [[0, 1, 2, VOID]]
    assert decode(kind, raw + dtype(2)).tolist() == [[UNKNOWN] * 4]


def test_very_large_values_and_negative_ones_are_unknown():
    raw = np.array([[-1, 70_000, 0]], np.int32)
    assert decode(Index(), raw).tolist() == [[UNKNOWN, UNKNOWN, 0]]
    assert decode(Index(void="rest"), raw).tolist() == [[VOID, VOID, 0]]


def test_colours_become_classes_and_others_void_or_unknown():
    raw = np.array(
        [[[0xE2, 0xA9, 0x29], [0x3C, 0x10, 0x98], [0, 0xFF, 0], [0x9B, 0x9B, 0x9B], [1, 2, 3]]],
        np.uint8,
    )
    names = {"water": "#E2A929", "town": "3c1098", "forest": "#00FF00"}
    assert decode(Colours(names, void="#9B9B9B"), raw).tolist() == [[0, 2, 1, VOID, UNKNOWN]]
    assert decode(Colours(names, void="rest"), raw).tolist() == [[0, 2, 1, VOID, VOID]]
    decoder = Colours(names).decoder(CLASSES)
    assert decoder.mapping.by == "colour"
    assert decoder.name(int(packed_colours(raw)[0, 1])) == "#3C1098"


def test_pixels_without_data_are_void():
    valid = np.array([[True, False]])
    assert decode(Index(), [[1, 1]], valid).tolist() == [[1, VOID]]


def test_objects_of_any_number_are_one_class():
    raw = np.array([[0, 1, 65_535, 70_000, 5]], np.uint32)
    assert decode(Instances(void=5), raw, classes=("background", "cell")).tolist() == [
        [0, 1, 1, 1, VOID]
    ]


@given(
    arrays.arrays(np.uint16, (9, 11), elements=st.sampled_from([0, 0, 0, 1, 2, 700])),
    st.integers(1, 3),
)
def test_border_is_where_two_objects_are_near(ids, reach):
    kind = Instances(of="cell", border="gap", reach=reach)
    found = decode(kind, ids, classes=("background", "cell", "gap"))
    window = np.ones((2 * reach + 1, 2 * reach + 1))
    near = (
        sum(ndimage.binary_dilation(ids == number, window).astype(int) for number in (1, 2, 700))
        > 1
    )
    np.testing.assert_array_equal(found, np.where(near, 2, ids > 0))


@given(
    arrays.arrays(np.uint16, (9, 11), elements=st.sampled_from([0, 0, 1, 1, 2, 700])),
    st.integers(1, 2),
    st.integers(1, 2),
)
def test_outline_is_all_around_each_object_and_inside_it(ids, reach, outline):
    kind = Instances(of="cell", border="gap", reach=reach, outline=outline)
    classes = ("background", "cell", "gap")
    found = decode(kind, ids, classes=classes)
    window = np.ones((2 * outline + 1, 2 * outline + 1))
    cores = [
        (ids == each) & ndimage.binary_erosion(ids == each, window, border_value=1)
        for each in (1, 2, 700)
    ]
    between = decode(replace(kind, outline=0), ids, classes=classes) == 2
    rim = (ids > 0) & ~np.any(cores, axis=0)
    np.testing.assert_array_equal(found, np.where(between | rim, 2, ids > 0))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Values({0: "water", 1: "forest"}), "town"),
        (Values({0: "water", 1: "forest", 2: "twon", 3: "town"}), "twon"),
        (Values({0: "water", 1: "forest", 2: "town"}, void=1), "void"),
        (Colours({"water": "#12", "forest": "#000000", "town": "#000001"}), "hexadecimal"),
        (Colours({"water": "#000000", "forest": "#000000", "town": "#000001"}), "one colour"),
        (Instances(of="forest"), "town"),
        (Instances(of="water", border="town"), "water|forest"),
    ],
)
def test_labels_that_do_not_suit_the_classes_are_refused(kind, message):
    with pytest.raises(RecipeError, match=message):
        kind.decoder(CLASSES)
