"""The picture shows the figures and the worst images, however many classes there are and whether or not the images can be read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests_support import write_tiff

from segcore.evaluation.boundary import Boundary
from segcore.evaluation.confusion import Confusion
from segcore.evaluation.picture import Heading, draw, make_strip, photo_of
from segcore.evaluation.scoring import Subject, Terms, score
from segcore.evaluation.values import VOID, Key, default_rules
from segcore.legend import Legend


def drawn(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


@pytest.mark.parametrize("classes", [1, 2, 5, 40])
def test_any_number_of_classes_has_a_place(classes: int) -> None:
    names = tuple(f"a class with a rather long name {i}" for i in range(classes))
    random = np.random.default_rng(classes)
    confusion = Confusion(random.integers(0, 1000, (classes, classes + 1)))
    boundary = Boundary(np.tile([10, 5, 8, 4], (classes, 1)))
    picture = drawn(draw(Heading("title " * 60, "text"), Legend.of(names), (confusion, boundary), []))
    # Nothing is cut: the border stays paper.
    assert picture.shape[1] == 1280
    assert (picture[:, -8:] == 255).all()
    assert (picture[-8:] == 255).all()
    # A class that neither has is drawn without a figure, not as an error.
    nothing = Confusion(np.zeros((classes, classes + 1), np.int64))
    assert drawn(draw(Heading("t", "x"), Legend.of(names), (nothing, Boundary.none(classes)), [])).shape[1] == 1280


def test_errors_are_red_and_void_is_grey(tmp_path: Path) -> None:
    truth, mask = np.zeros((60, 60), np.uint8), np.zeros((60, 60), np.uint8)
    truth[:30], truth[50:] = 1, 9
    mask[:20] = 1
    for name, pixels in (("truth", truth), ("mask", mask)):
        write_tiff(tmp_path / f"{name}.tif", pixels[..., None], nodata=9)
    names = ("background", "field")
    subject = Subject("a", "none", str(tmp_path / "mask.tif"), str(tmp_path / "truth.tif"), np.array([0, 1]), VOID)
    terms = Terms(Key.of(default_rules(names, None), names), 2, (), numbered=False)
    strip = make_strip(score(subject, terms), terms, "a", np.full((60, 60, 3), 90, np.uint8))
    image, theirs, ours, errors = strip.cells
    assert errors is not None
    # Each is drawn five times as large.
    red = (errors[..., 0] > 170) & (errors[..., 1] < 90)
    np.testing.assert_array_equal(red[::5, ::5][:50], (truth != mask)[:50])
    assert (errors[250:] == 150).all()
    assert image is not None
    assert theirs is not None
    assert ours is not None
    assert (ours[:100] == theirs[:100]).all()
    without = make_strip(score(subject, terms), terms, "a", None)
    assert without.cells[0] is None
    assert len(draw(Heading("t", "x"), Legend.of(names), (Confusion.none(2), Boundary.none(2)), [without])) > 1000


def test_photos_can_be_seen() -> None:
    dark = np.linspace(0, 20, 64).reshape(8, 8, 1).astype(np.uint8)
    valid = np.ones((8, 8), bool)
    assert photo_of(dark, valid).max() == 255
    bright = np.full((8, 8, 4), 130, np.uint8)
    np.testing.assert_array_equal(photo_of(bright, valid), bright[..., :3])
    assert photo_of((dark * 500.0).astype(np.float32), valid).shape == (8, 8, 3)
    assert not photo_of(np.zeros((8, 8, 1), np.uint16), ~valid).any()
