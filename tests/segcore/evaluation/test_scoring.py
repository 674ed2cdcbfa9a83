"""The comparison of an image does not show the tiles, from files of any kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from tests_support import write_tiff

from segcore.errors import RecipeError
from segcore.evaluation.confusion import Confusion
from segcore.evaluation.instances import average_precision
from segcore.evaluation.scoring import Subject, Terms, score, total, view
from segcore.evaluation.values import VOID, Key, Rule, default_rules, parse_values

NAMES = ("background", "cell")


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cells as the truth has them, by number, and as a mask has them, by class."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(150, 170)), 4)
    truth = ndimage.label(field > 0.02, np.ones((3, 3)))[0]
    predicted = np.roll(field > 0.025, 1, 0)
    return truth.astype(np.uint16), predicted.astype(np.uint8)


def subject(folder: Path, truth: np.ndarray, mask: np.ndarray, table: tuple[int, ...] = (0, 1), beyond: int = VOID) -> Subject:
    write_tiff(folder / "truth.tif", truth[..., None])
    write_tiff(folder / "mask.tif", mask[..., None])
    return Subject("a", "none", str(folder / "mask.tif"), str(folder / "truth.tif"), np.array(table), beyond)


def terms(*values: str, objects: bool = True, numbered: bool = False, tile: int = 1024) -> Terms:
    rules = parse_values(values) if values else default_rules(NAMES, ("cell",))
    return Terms(Key.of(rules, NAMES), 2.0, (1,) if objects else (), numbered, tile)


def test_any_tiling_says_the_same(tmp_path: Path) -> None:
    truth, mask = scene()
    mask[20:30, 40:60] = 255
    truth[:9, :50] = 60_000
    one = subject(tmp_path, truth, mask)
    given = terms("0=background", "1..=cell")
    given = replace(given, key=Key.of([*default_rules(NAMES, ("cell",)), Rule(60_000, 60_000, "void")], NAMES))
    whole = score(one, given)
    assert whole.confusion.unpredicted == 200
    assert whole.confusion.void == 450
    assert whole.objects is not None
    assert whole.objects.tallies[1, 0].min() > 0
    for tile in (32, 64, 100):
        tiled = score(one, replace(given, tile=tile))
        np.testing.assert_array_equal(tiled.confusion.counts, whole.confusion.counts)
        np.testing.assert_array_equal(tiled.boundary.counts, whole.boundary.counts)
        assert tiled.objects is not None
        np.testing.assert_array_equal(tiled.objects.tallies, whole.objects.tallies)
        np.testing.assert_allclose(tiled.objects.iou, whole.objects.iou)


def test_objects_of_a_semantic_mask_are_its_connected_parts(tmp_path: Path) -> None:
    truth, mask = scene(1)
    parts = ndimage.label(mask, np.ones((3, 3)))[0]
    found = score(subject(tmp_path, truth, mask), terms(tile=64)).objects
    assert found is not None
    assert found.ap_dsb2018[1, 0] == pytest.approx(average_precision(parts, truth))
    # A class that the truth gives by a single value has connected parts, too.
    again = score(subject(tmp_path, (truth > 0).astype(np.uint8), mask), terms("0=background", "1=cell", tile=64)).objects
    assert again is not None
    np.testing.assert_array_equal(again.tallies, found.tallies)


def test_masks_of_objects_are_compared_by_their_ids(tmp_path: Path) -> None:
    truth, mask = scene(2)
    ids = ndimage.label(mask, np.ones((3, 3)))[0].astype(np.uint32) * 3
    # Ids 3 and 6 are of no known object: the only class is theirs.
    one = subject(tmp_path, truth, ids, (0, 1, 1), 1)
    found = score(one, terms(numbered=True, tile=64))
    assert found.objects is not None
    assert found.objects.ap_dsb2018[1, 0] == pytest.approx(average_precision(ids, truth))
    expected = Confusion.of((truth > 0).astype(int), mask.astype(int), 2)
    np.testing.assert_array_equal(found.confusion.counts, expected.counts)
    with pytest.raises(RecipeError, match="min_size"):
        score(replace(one, beyond=-2), terms(numbered=True))
    count = len(np.unique(ids)) - 1
    scored = score(replace(one, scores=np.linspace(0, 1, 3 * count + 1)), terms(numbered=True)).objects
    assert scored is not None
    assert scored.ap_coco is not None
    assert 0 < scored.ap_coco[1, 0] <= 1


def test_a_tile_is_seen_again_for_the_picture(tmp_path: Path) -> None:
    truth, mask = scene(3)
    mask[100:140, 100:160] = 0
    one, given = subject(tmp_path, truth, mask), terms(tile=64)
    found = score(one, given)
    seen = view(one, given, found.worst)
    core = seen.tile.core.slices
    np.testing.assert_array_equal(seen.truth, truth[core] > 0)
    np.testing.assert_array_equal(seen.predicted, mask[core])
    wrong = [((truth > 0) != mask)[tile.core.slices].sum() for tile in given.grid(truth.shape)]
    assert wrong[found.worst] == max(wrong)
    # What is erased is missed, so all of it is marked; what matches is not.
    assert seen.unmatched[(truth[core] > 0) & (ndimage.maximum_filter(mask, 25)[core] == 0)].all()
    assert not view(one, replace(given, foreground=()), found.worst).unmatched.any()


def test_images_add_up(tmp_path: Path) -> None:
    one = score(subject(tmp_path, *scene(1)), terms())
    confusion, boundary, objects = total([one, one], 2)
    np.testing.assert_array_equal(confusion.counts, 2 * one.confusion.counts)
    np.testing.assert_array_equal(boundary.counts, 2 * one.boundary.counts)
    assert objects is not None
    assert one.objects is not None
    np.testing.assert_array_equal(objects.tallies, 2 * one.objects.tallies)
    assert total([score(subject(tmp_path, *scene(1)), terms(objects=False))], 2)[2] is None


def test_other_sizes_and_places_and_strange_values_are_refused(tmp_path: Path) -> None:
    truth, mask = scene()
    with pytest.raises(RecipeError, match=r"170 x 149.*170 x 150"):
        score(subject(tmp_path, truth[1:], mask), terms())
    strange = truth.copy()
    strange[5, :7] = 900
    with pytest.raises(RecipeError, match=r"truth\.tif.*900 \(7 pixels\).*--void"):
        score(subject(tmp_path, strange, mask), terms("0=background", "1..899=cell", tile=64))
    one = subject(tmp_path, truth, mask)
    for name, east in (("truth.tif", 500_000), ("mask.tif", 500_010)):
        grid = {"crs": "EPSG:32633", "transform": (10, 0, east, 0, -10, 5_300_000)}
        import affine

        pixels = truth if name == "truth.tif" else mask
        write_tiff(tmp_path / name, pixels[..., None], crs=grid["crs"], transform=affine.Affine(*grid["transform"]))
    with pytest.raises(RecipeError, match="elsewhere"):
        score(one, terms())


def test_pictures_too(tmp_path: Path) -> None:
    truth, mask = scene()
    Image.fromarray(truth).save(tmp_path / "t.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    one = subject(tmp_path, truth, mask)
    by_picture = replace(one, truth=str(tmp_path / "t.png"), mask=str(tmp_path / "m.png"))
    np.testing.assert_array_equal(score(by_picture, terms()).confusion.counts, score(one, terms()).confusion.counts)
