"""The picture shows the figures and the worst images, however many classes there are and whether or
not the images can be read.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests_support import write_tiff

from maskloom.segcore.annotations.label_mapping import VOID, LabelMapping, default_rules
from maskloom.segcore.evaluation.scoring import EvaluatedImage, EvaluationOptions, score, view
from maskloom.segcore.figures import evaluation as figure
from maskloom.segcore.figures.drawing import NO_DATA, SWATCH, Sheet, photo_of
from maskloom.segcore.figures.evaluation import (
    ClassMeasures,
    Heading,
    Strip,
    _draw_confusion,
    _errors,
    draw,
    make_strip,
)
from maskloom.segcore.raster.classes import ClassTable


def drawn(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


@pytest.mark.parametrize("classes", [1, 2, 5, 20, 40])
def test_any_number_of_classes_has_a_place(classes: int) -> None:
    names = tuple(f"a class with a rather long name {i}" for i in range(classes))
    random = np.random.default_rng(classes)
    measures = ClassMeasures(
        ClassTable.of(names),
        random.integers(0, 1000, (classes, classes)),
        random.random(classes),
        np.full(classes, 0.5),
    )
    shown = drawn(draw(Heading("title " * 60, "text"), measures, []))
    # Nothing is cut: the border stays paper.
    assert shown.shape[1] == 1280
    assert (shown[:, -8:] == 255).all()
    assert (shown[-8:] == 255).all()
    # No word lies over the square of a class's colour. Other things are drawn in the first two
    # colours too.
    for colour in ClassTable.of(names).colours[2:] if classes <= 20 else ():
        assert (shown == colour).all(axis=2).sum() >= (SWATCH - 2) ** 2
    # A class without pixels is drawn without a figure, not as an error.
    nothing = ClassMeasures(
        ClassTable.of(names), np.zeros((classes, classes), np.int64), *undefined(classes)
    )
    assert drawn(draw(Heading("t", "x"), nothing, [])).shape[1] == 1280


def undefined(classes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(classes, np.nan), np.full(classes, np.nan)


def words_of(names: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of the table of confusion of two classes."""
    words: list[str] = []
    monkeypatch.setattr(Sheet, "text", lambda _, at, text, **__: words.append(text))
    _draw_confusion(Sheet.blank(600, 600), (0, 0), names, np.eye(2, dtype=np.int64))
    return words


def test_columns_have_numbers_where_one_name_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(["sea", "land"], monkeypatch)
    assert words[1:] == ["sea", "sea", "1.00", "0.00", "land", "land", "0.00", "1.00"]
    words = words_of(["sea", "land that is never flooded"], monkeypatch)
    assert words[1:3] == ["1  sea", "1"]
    assert words[5].startswith("2  land")
    assert words[6] == "2"


def test_of_many_classes_the_largest_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(f"class {i}" for i in range(30))
    shown: list[ClassMeasures] = []
    monkeypatch.setattr(figure, "_draw_bars", lambda pen, at, measures: shown.append(measures))
    numbers = np.arange(1, 31)
    measures = ClassMeasures(ClassTable.of(names), np.diag(numbers), numbers / 30, numbers / 60)
    draw(Heading("t", "x"), measures, [])
    assert shown[0].table == ClassTable(names[10:], ClassTable.of(names).colours[10:])
    np.testing.assert_array_equal(shown[0].confusion, np.diag(numbers[10:]))
    np.testing.assert_array_equal(shown[0].iou, 2 * shown[0].boundary_f)
    assert shown[0].iou[0] == 11 / 30


def test_objects_without_a_match_are_red_though_their_class_is_right() -> None:
    labels, unmatched = np.ones((4, 6), np.int64), np.zeros((4, 6), bool)
    unmatched[1:3, 2:4] = True
    red = _errors((labels, labels), unmatched, None)
    np.testing.assert_array_equal((red[..., 0] > 170) & (red[..., 1] < 90), unmatched)


def test_errors_are_red_and_void_is_grey(tmp_path: Path) -> None:
    truth, mask = np.zeros((60, 60), np.uint8), np.zeros((60, 60), np.uint8)
    truth[:30], truth[50:] = 1, 9
    mask[:20] = 1
    for name, pixels in (("truth", truth), ("mask", mask)):
        write_tiff(tmp_path / f"{name}.tif", pixels[..., None], nodata=9)
    names = ("background", "field")
    subject = EvaluatedImage(
        "a", "none", str(tmp_path / "mask.tif"), str(tmp_path / "truth.tif"), np.array([0, 1]), VOID
    )
    terms = EvaluationOptions(
        LabelMapping.of(default_rules(names, None), names), 2, (), numbered=False
    )
    seen = view(subject, terms, score(subject, terms).worst)

    def strip_of(photo: np.ndarray | None) -> Strip:
        sides = (seen.truth, seen.predicted)
        return make_strip("a", ClassTable.of(names), photo, sides, seen.outlines, seen.unmatched)

    strip = strip_of(np.full((60, 60, 3), 90, np.uint8))
    image, theirs, ours, errors = strip.cells
    assert errors is not None
    # Each is drawn five times as large.
    red = (errors[..., 0] > 170) & (errors[..., 1] < 90)
    np.testing.assert_array_equal(red[::5, ::5][:50], (truth != mask)[:50])
    assert (errors[250:] == NO_DATA).all()
    assert image is not None
    assert theirs is not None
    assert ours is not None
    assert (ours[:100] == theirs[:100]).all()
    without = strip_of(None)
    assert without.cells[0] is None
    measures = ClassMeasures(ClassTable.of(names), np.zeros((2, 2), np.int64), *undefined(2))
    assert len(draw(Heading("t", "x"), measures, [without])) > 1000


def test_photos_can_be_seen() -> None:
    dark = np.linspace(0, 20, 64).reshape(8, 8, 1).astype(np.uint8)
    valid = np.ones((8, 8), bool)
    assert photo_of(dark, valid).max() == 255
    bright = np.full((8, 8, 4), 130, np.uint8)
    np.testing.assert_array_equal(photo_of(bright, valid), bright[..., :3])
    assert photo_of((dark * 500.0).astype(np.float32), valid).shape == (8, 8, 3)
    assert not photo_of(np.zeros((8, 8, 1), np.uint16), ~valid).any()
