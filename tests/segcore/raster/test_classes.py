"""Legends: colours that differ, and a nodata label that is no class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable


@given(st.integers(0, 400))
def test_every_class_has_a_colour_of_its_own(count: int) -> None:
    class_table = ClassTable.of(tuple(f"class {i}" for i in range(count)))

    assert len(class_table.colours) == count
    assert len(set(class_table.colours)) == count
    assert all(
        0 <= value <= 255 and isinstance(value, int)
        for colour in class_table.colours
        for value in colour
    )


@pytest.mark.parametrize("count", [0, 1, 2, 254, 255, 256, 300, 65535])
def test_the_nodata_label_fits_the_type_and_is_no_class(count: int) -> None:
    class_table = ClassTable(tuple(map(str, range(count))), ())

    assert class_table.nodata == np.iinfo(class_table.dtype).max
    assert class_table.nodata >= count
    assert class_table.dtype == ("uint8" if count <= 255 else "uint16")


@pytest.mark.parametrize("name", [*sorted(BACKGROUND_NAMES), "Background", "VOID"])
def test_background_is_dark_grey_and_takes_no_hue(name: str) -> None:
    with_background, without = (
        ClassTable.of((name, "water", "forest")),
        ClassTable.of(("water", "forest")),
    )

    assert with_background.colours[0] == (40, 40, 40)
    assert with_background.colours[1:] == without.colours


@given(st.integers(1, 60), st.integers(1, 60))
def test_colours_depend_on_the_place_not_on_the_number_of_classes(few: int, more: int) -> None:
    names = tuple(f"class {i}" for i in range(few + more))

    assert ClassTable.of(names).colours[:few] == ClassTable.of(names[:few]).colours


def test_names_keep_their_order() -> None:
    assert ClassTable.of(("water", "background", "soil")).names == ("water", "background", "soil")
