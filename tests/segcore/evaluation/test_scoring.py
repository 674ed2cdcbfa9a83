"""The comparison of an image does not show the tiles, from files of any kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from matching_support import matched_share
from PIL import Image
from scipy import ndimage
from tests_support import write_tiff

from maskloom.segcore.annotations.label_mapping import (
    VOID,
    LabelMapping,
    ValueRule,
    default_rules,
    parse_values,
)
from maskloom.segcore.annotations.metrics import Confusion
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.evaluation.scoring import (
    EvaluatedImage,
    EvaluationOptions,
    score,
    total,
    view,
)

NAMES = ("background", "cell")


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cells as the truth has them, by number, and as a mask has them, by class."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(150, 170)), 4)
    truth = ndimage.label(field > 0.02, np.ones((3, 3)))[0]
    predicted = np.roll(field > 0.025, 1, 0)
    return truth.astype(np.uint16), predicted.astype(np.uint8)


def subject(
    folder: Path,
    truth: np.ndarray,
    mask: np.ndarray,
    table: tuple[int, ...] = (0, 1),
    beyond: int = VOID,
) -> EvaluatedImage:
    write_tiff(folder / "truth.tif", truth[..., None])
    write_tiff(folder / "mask.tif", mask[..., None])
    return EvaluatedImage(
        "a", "none", str(folder / "mask.tif"), str(folder / "truth.tif"), np.array(table), beyond
    )


def terms(
    *values: str, objects: bool = True, numbered: bool = False, tile: int = 1024
) -> EvaluationOptions:
    rules = parse_values(values) if values else default_rules(NAMES, ("cell",))
    return EvaluationOptions(
        LabelMapping.of(rules, NAMES), 2.0, (1,) if objects else (), numbered, tile
    )


def test_any_tiling_says_the_same(tmp_path: Path) -> None:
    truth, mask = scene()
    mask[20:30, 40:60] = 255
    truth[:9, :50] = 60_000
    one = subject(tmp_path, truth, mask)
    given = terms("0=background", "1..=cell")
    given = replace(
        given,
        mapping=LabelMapping.of(
            [*default_rules(NAMES, ("cell",)), ValueRule(60_000, 60_000, None)], NAMES
        ),
    )
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
    assert found.ap_dsb2018[1, 0] == pytest.approx(matched_share(parts, truth))
    # A class that the truth gives by a single value has connected parts, too.
    again = score(
        subject(tmp_path, (truth > 0).astype(np.uint8), mask),
        terms("0=background", "1=cell", tile=64),
    ).objects
    assert again is not None
    np.testing.assert_array_equal(again.tallies, found.tallies)


def test_masks_of_objects_are_compared_by_their_ids(tmp_path: Path) -> None:
    truth, mask = scene(2)
    ids = ndimage.label(mask, np.ones((3, 3)))[0].astype(np.uint32) * 3
    # Ids 3 and 6 are of no known object: the only class is theirs.
    one = subject(tmp_path, truth, ids, (0, 1, 1), 1)
    found = score(one, terms(numbered=True, tile=64))
    assert found.objects is not None
    assert found.objects.ap_dsb2018[1, 0] == pytest.approx(matched_share(ids, truth))
    expected = Confusion.of((truth > 0).astype(int), mask.astype(int), 2)
    np.testing.assert_array_equal(found.confusion.counts, expected.counts)
    with pytest.raises(RecipeError, match="min_size"):
        score(replace(one, beyond=-2), terms(numbered=True))
    count = len(np.unique(ids)) - 1
    scored = score(
        replace(one, scores=np.linspace(0, 1, 3 * count + 1)), terms(numbered=True)
    ).objects
    assert scored is not None
    assert scored.ap_coco is not None
    assert 0 < scored.ap_coco[1, 0] <= 1
    # Objects that the table leaves out come last, those beyond its last row too.
    cut = np.linspace(1, 0.5, 3 * count + 1)
    cut[3 * (count // 2) + 1 :] = 0
    zeros = score(replace(one, scores=cut), terms(numbered=True)).objects
    short = score(replace(one, scores=cut[: 3 * (count // 2) + 1]), terms(numbered=True)).objects
    assert zeros is not None
    assert short is not None
    np.testing.assert_array_equal(short.ap_coco, zeros.ap_coco)


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


def test_objects_in_void_are_not_marked_as_errors(tmp_path: Path) -> None:
    truth, mask = np.zeros((40, 50), np.uint16), np.zeros((40, 50), np.uint8)
    truth[:, 30:], mask[5:9, 28:40], mask[20:30, 5:15] = 9, 1, 1
    given = terms("0=background", "1..8=cell")
    given = replace(
        given,
        mapping=LabelMapping.of(
            [*parse_values(["0=background", "1..8=cell"]), ValueRule(9, 9, None)], NAMES
        ),
    )
    seen = view(subject(tmp_path, truth, mask), given, 0)
    expected = np.zeros(truth.shape, bool)
    expected[20:30, 5:15] = True
    np.testing.assert_array_equal(seen.unmatched, expected)


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


PLACE = (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_300_000.0)


def placed(folder: Path, place: tuple[float, ...] | None, crs: str | None) -> EvaluatedImage:
    """A mask at `PLACE` in zone 33, and its truth somewhere."""
    truth, mask = scene()
    one = subject(folder, truth, mask)
    write_tiff(folder / "mask.tif", mask[..., None], crs="EPSG:32633", transform=Affine(*PLACE))
    grid = {} if place is None else {"transform": Affine(*place)}
    write_tiff(folder / "truth.tif", truth[..., None], crs=crs, **grid)
    return one


@pytest.mark.parametrize(
    ("place", "crs"),
    [
        pytest.param((*PLACE[:5], PLACE[5] + 0.2), "EPSG:32633", id="less than a pixel north"),
        pytest.param(
            (*PLACE[:5], PLACE[5] + 4), "EPSG:32633", id="little for the coordinates, 8 pixels"
        ),
        pytest.param((0.505, *PLACE[1:]), "EPSG:32633", id="pixels a little wider"),
        pytest.param((0, 0.5, PLACE[2], -0.5, 0, PLACE[5]), "EPSG:32633", id="turned"),
        pytest.param(PLACE, "EPSG:32634", id="the same numbers in another zone"),
        pytest.param((5e-6, 0, 15, 0, -5e-6, 47.85), "EPSG:4326", id="degrees"),
        pytest.param(
            PLACE, "+proj=tmerc +lon_0=15 +k=0.9996 +x_0=500000 +R=1737400", id="on the moon"
        ),
    ],
)
def test_truth_of_another_place_is_refused(
    tmp_path: Path, place: tuple[float, ...], crs: str
) -> None:
    with pytest.raises(RecipeError, match=r"truth\.tif lies elsewhere.*Warp"):
        score(placed(tmp_path, place, crs), terms())


@pytest.mark.parametrize(
    ("place", "crs"),
    [
        pytest.param((*PLACE[:5], PLACE[5] + 0.001), "EPSG:32633", id="rounded"),
        pytest.param(PLACE, "EPSG:25833", id="the same place by another name"),
        pytest.param(PLACE, None, id="no reference system"),
        pytest.param(None, None, id="no place"),
    ],
)
def test_truth_of_the_same_place_is_compared(
    tmp_path: Path, place: tuple[float, ...] | None, crs: str | None
) -> None:
    truth, mask = scene()
    found = score(placed(tmp_path, place, crs), terms()).confusion
    np.testing.assert_array_equal(
        found.counts, Confusion.of((truth > 0).astype(int), mask.astype(int), 2).counts
    )


def test_longitudes_may_be_counted_from_either_side_of_the_antimeridian(tmp_path: Path) -> None:
    truth, mask = scene()
    one = subject(tmp_path, truth, mask)
    for name, west, pixels in (("mask", 179.9, mask), ("truth", -180.1, truth)):
        place = Affine(0.001, 0, west, 0, -0.001, 10)
        write_tiff(tmp_path / f"{name}.tif", pixels[..., None], crs="EPSG:4326", transform=place)
    assert score(one, terms()).confusion.pixels == mask.size
    place = Affine(0.001, 0, -180.09, 0, -0.001, 10)
    write_tiff(tmp_path / "truth.tif", truth[..., None], crs="EPSG:4326", transform=place)
    with pytest.raises(RecipeError, match="10 pixels apart"):
        score(one, terms())


def test_a_mask_of_another_kind_than_the_others_is_refused(tmp_path: Path) -> None:
    """Else the ids of objects would be read as classes, and most of them as no data."""
    truth, mask = scene()
    with pytest.raises(
        RecipeError, match=r"mask\.tif holds ids of objects, other masks of the run hold classes"
    ):
        score(subject(tmp_path, truth, mask.astype(np.uint32)), terms())
    with pytest.raises(
        RecipeError, match=r"mask\.tif holds classes, other masks of the run hold ids"
    ):
        score(subject(tmp_path, truth, mask), terms(numbered=True))


def test_masks_may_be_pictures(tmp_path: Path) -> None:
    truth, mask = scene()
    Image.fromarray(truth).save(tmp_path / "t.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    one = subject(tmp_path, truth, mask)
    by_picture = replace(one, truth=str(tmp_path / "t.png"), mask=str(tmp_path / "m.png"))
    np.testing.assert_array_equal(
        score(by_picture, terms()).confusion.counts, score(one, terms()).confusion.counts
    )
