"""The picture of a comparison shows what the segmenters found, where they found it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data, segmentation

from flows import compare as module
from flows.compare import CLASSICAL, compare
from segcore.errors import MaskloomError, RecipeError, StoreError
from segcore.model import SEGMENTERS
from segcore.segmenters.kmeans import KMeans
from segcore.testing.segmenters import Picture, fitted, labelled

GAP, TITLE = 12, 46


def written(pixels: np.ndarray, folder: Path, name: str = "photo.png") -> str:
    path = folder / name
    Image.fromarray(pixels).save(path)
    return str(path)


def cells(path: Path, shape: tuple[int, int], number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The upper and the lower picture of each cell, found by their size."""
    picture = np.array(Image.open(path).convert("RGB"))
    height, width = shape
    column, row, across = max(width, 240) + GAP, TITLE + 2 * height + 2 * GAP, min(4, number)
    assert picture.shape == (-(-number // across) * row + GAP, across * column + GAP, 3)
    found = []
    for i in range(number):
        y, x = GAP + i // across * row + TITLE, GAP + i % across * column
        upper, lower = (picture[top : top + height, x : x + width] for top in (y, y + height + GAP // 2))
        found.append((upper, lower))
    return found


def test_shows_boundaries_and_mean_colours(tmp_path: Path) -> None:
    photo = data.astronaut()[:120, 100:260].copy()
    kinds = [{"kind": "kmeans", "clusters": 4}, "threshold"]
    compare(written(photo, tmp_path), kinds, tmp_path / "out.png")
    (first, nothing), (outlined, colours), _ = cells(tmp_path / "out.png", (120, 160), 3)
    assert np.array_equal(first, photo)
    assert (nothing == 255).all()
    picture = Picture(photo, np.ones(photo.shape[:2], bool), "rgb")
    model = fitted(KMeans(clusters=4), [picture])
    labels = labelled(model, picture).astype(int)
    marked = (outlined == (255, 220, 0)).all(axis=2)
    # Lines lie on one side of each boundary, and nowhere else.
    both_sides = segmentation.find_boundaries(labels, mode="thick", connectivity=1)
    assert not (marked & ~both_sides).any()
    assert ((labels[:, :-1] == labels[:, 1:]) | marked[:, :-1]).all()
    assert ((labels[:-1] == labels[1:]) | marked[:-1]).all()
    assert np.array_equal(outlined[~marked], photo[~marked])
    # The mean colour of a cluster is its centre.
    centres = np.array([photo[labels == label].mean(axis=0) for label in range(4)])
    assert np.abs(colours - centres[labels]).max() <= 0.5


def test_all_classical_segmenters_by_default(tmp_path: Path) -> None:
    kinds = {kind["kind"] for kind in CLASSICAL if not isinstance(kind, str)}
    assert kinds == {"threshold", "kmeans", "mixture", "mean_shift", "quickshift"}
    assert kinds <= set(SEGMENTERS)
    photo = data.coffee()[100:180, 150:260].copy()
    compare(written(photo, tmp_path), None, tmp_path / "out.png")
    found = cells(tmp_path / "out.png", (80, 110), len(CLASSICAL) + 1)
    for outlined, colours in found[1:]:
        assert (outlined == (255, 220, 0)).all(axis=2).any()
        assert not (colours == 255).all()
    # Objects: many more colours than classes.
    assert len(np.unique(found[-1][1].reshape(-1, 3), axis=0)) > len(np.unique(found[3][1].reshape(-1, 3), axis=0)) == 5


def test_titles_say_what_was_run_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[module.Cell] = []
    draw = module._draw

    def spy(drawn: list[module.Cell]) -> Image.Image:
        seen.extend(drawn)
        return draw(drawn)

    monkeypatch.setattr(module, "_draw", spy)
    blocks = np.kron(np.array([[10, 200], [200, 10]], "uint8"), np.ones((20, 30), "uint8"))
    kinds = [{"kind": "threshold", "method": "multi-otsu", "levels": 2}, {"kind": "mean_shift", "space": "joint", "min_size": 9}]
    compare(written(blocks, tmp_path, "two by two.png"), kinds, tmp_path / "out.png")
    assert [cell.title for cell in seen] == ["two by two.png", "threshold", "mean_shift"]
    assert seen[1].text == "method multi-otsu · levels 2 · 2 classes"
    assert seen[2].text == "space joint · min_size 9 · 4 objects"


def test_large_images_are_reduced_by_means(tmp_path: Path) -> None:
    small = data.astronaut()[:200, :480] // 2 * 2
    large = np.kron(small, np.ones((3, 3, 1), "uint8"))
    compare(written(large, tmp_path), ["threshold"], tmp_path / "out.png")
    assert np.abs(cells(tmp_path / "out.png", (200, 480), 2)[0][0].astype(int) - small).max() <= 1


def test_pixels_without_data_are_grey_and_have_no_class(tmp_path: Path) -> None:
    photo = np.dstack([data.astronaut()[:60, :250], np.full((60, 250), 255, "uint8")])
    photo[:, 100:150, 3] = 0
    compare(written(photo, tmp_path), ["threshold"], tmp_path / "out.png")
    for outlined, colours in cells(tmp_path / "out.png", (60, 250), 2)[1:]:
        assert (outlined[:, 101:148] == 54).all()
        assert (colours[:, 100:150] == 54).all()


@pytest.mark.parametrize(
    "pixels", [np.zeros((1, 1), "uint8"), np.full((40, 500), 7, "uint16"), np.arange(900, dtype="uint16").reshape(30, 30) * 70]
)
def test_odd_images(pixels: np.ndarray, tmp_path: Path) -> None:
    compare(written(pixels, tmp_path), ["threshold", {"kind": "threshold", "method": "local"}], tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 0


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    path = written(data.coins(), tmp_path)
    with pytest.raises(RecipeError, match=r"segmenter 2\.kind: There is no segmenter 'otsu'"):
        compare(path, ["threshold", "otsu"], tmp_path / "out.png")
    with pytest.raises(RecipeError, match=r"segmenter 1.*clusters"):
        compare(path, [{"kind": "kmeans", "clusters": 1}], tmp_path / "out.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    for name in ("broken.png", "absent.png", "notes.txt"):
        with pytest.raises(MaskloomError, match=name):
            compare(str(tmp_path / name), ["threshold"], tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
    with pytest.raises(StoreError, match="Check that its folder exists"):
        compare(path, ["threshold"], tmp_path / "nowhere" / "out.png")


@pytest.mark.skipif("MASKLOOM_TEST_DATA" not in os.environ, reason="needs the folder of test images")
def test_a_real_scene_of_16_bits_with_nodata(tmp_path: Path) -> None:
    (path,) = Path(os.environ["MASKLOOM_TEST_DATA"], "satseg_spacenet", "images").glob("*.tif")
    compare(str(path), ["threshold", {"kind": "kmeans", "clusters": 3}], tmp_path / "out.png")
    photo = cells(tmp_path / "out.png", (480, 480), 3)[0][0]
    assert photo.std() > 20
