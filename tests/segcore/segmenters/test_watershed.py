"""Watershed: touching objects are split, the same under any tiling, and nothing is lost at
seams.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import ndimage

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.models.files import dump_model, load_model
from maskloom.segcore.models.protocols import Exactness
from maskloom.segcore.objects.stitching import SeamRule, Stitched
from maskloom.segcore.segmenters.kmeans import KMeans
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.segmenters.watershed import Watershed, WatershedModel, split_touching
from maskloom.segcore.testing.segmenters import Picture, fitted, object_mask

HALF = Threshold(value=0.5)
OVERLAP = SeamRule("overlap")


def picture_of(mask: np.ndarray, valid: np.ndarray | None = None) -> Picture:
    return Picture(
        mask[..., None].astype(np.uint8), np.ones(mask.shape, bool) if valid is None else valid
    )


def union_of_discs(
    shape: tuple[int, ...], centres: list[tuple[int, ...]], radius: int
) -> np.ndarray:
    """Discs in images, balls in volumes."""
    places = np.moveaxis(np.indices(shape), 0, -1)
    return np.any([((places - at) ** 2).sum(axis=-1) <= radius**2 for at in centres], axis=0)


def model_of(recipe: Watershed, picture: Picture) -> Stitched:
    model = fitted(recipe, [picture])
    assert isinstance(model, Stitched)
    return model


def objects_of(
    recipe: Watershed, picture: Picture, tile: tuple[int, ...] | None = None
) -> np.ndarray:
    return object_mask(model_of(recipe, picture), picture, tile)[0]


def squares_of(classes: np.ndarray, reach: int) -> np.ndarray:
    from maskloom.segcore.kernels.watershed import squared_distances

    volume = classes.astype(np.int32).reshape((1, *classes.shape)[-3:])
    squares = np.empty(volume.shape, np.int32)
    squared_distances(volume, reach, squares)
    return squares.reshape(classes.shape)


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)) | st.tuples(*[st.integers(1, 12)] * 3),
    reach=st.integers(1, 12),
)
def test_distances_are_those_of_scipy_clipped(
    seed: int, shape: tuple[int, ...], reach: int
) -> None:
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 3, shape)
    if seed % 2 == 0:
        classes = np.kron(classes, np.ones((4, 6, 5)[-len(shape) :], int))
        classes = classes[tuple(slice(length) for length in shape)]
    squares = squares_of(classes, reach)
    for number in range(3):
        inside = classes == number
        # SciPy counts distances from nowhere where there is no background at all.
        exact = (
            ndimage.distance_transform_edt(inside) if not inside.all() else np.full(shape, np.inf)
        )
        expected = np.zeros(shape) if number == 0 else np.minimum(exact, reach)
        assert np.array_equal(squares[inside], np.rint(expected**2)[inside])


def test_two_touching_discs_are_two_objects_and_split_at_the_neck() -> None:
    mask = union_of_discs((50, 80), [(25, 25), (25, 51)], 15)
    ids = objects_of(Watershed(HALF), picture_of(mask))
    assert ids.max() == 2
    assert np.array_equal(ids > 0, mask)
    x = np.indices(mask.shape)[1]
    assert np.array_equal(ids[mask & (x < 38)], np.ones_like(ids[mask & (x < 38)]))
    assert np.array_equal(ids[mask & (x > 38)], np.full_like(ids[mask & (x > 38)], 2))


def test_agrees_with_the_watershed_of_scikit_image() -> None:
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    generator = np.random.default_rng(4)
    centres = [
        (y, x) for y in range(15, 300, 20) for x in range(15, 300, 20) if generator.random() < 0.8
    ]
    mask = union_of_discs((310, 310), centres, 11)
    distances = ndimage.distance_transform_edt(mask)
    markers = np.zeros(mask.shape, int)
    for i, place in enumerate(peak_local_max(distances, min_distance=5, labels=mask.astype(int))):
        markers[tuple(place)] = i + 1
    theirs = watershed(-distances, markers, mask=mask, connectivity=2)
    ours = objects_of(Watershed(HALF), picture_of(mask))
    assert ours.max() == theirs.max() == len(centres)
    best = np.array([np.bincount(theirs[ours == i]).argmax() for i in range(1, ours.max() + 1)])
    assert len(np.unique(best)) == len(best)
    assert np.mean(best[ours[mask] - 1] == theirs[mask]) > 0.97


def test_prominence_decides_what_is_a_neck() -> None:
    # Radius 15, and a neck of half width about 7.5: the smaller peak rises some 7 pixels above it.
    mask = union_of_discs((50, 80), [(25, 25), (25, 51)], 15)
    counts = [
        int(objects_of(Watershed(HALF, prominence=prominence), picture_of(mask)).max())
        for prominence in (1, 5, 9)
    ]
    assert counts == [2, 2, 1]


def test_distance_clips_what_is_wider() -> None:
    # The neck is 15 pixels wide: clipped at 6, both its sides are one plateau.
    mask = union_of_discs((50, 80), [(25, 25), (25, 51)], 15)
    assert objects_of(Watershed(HALF, distance=6), picture_of(mask)).max() == 1
    assert objects_of(Watershed(HALF, distance=12), picture_of(mask)).max() == 2


@given(
    centres=st.lists(
        st.tuples(st.integers(0, 89), st.integers(0, 99)), min_size=1, max_size=20, unique=True
    ),
    radius=st.integers(2, 6),
    tile=st.tuples(st.integers(20, 90), st.integers(20, 100)),
    min_size=st.sampled_from([1, 30]),
)
def test_discs_come_out_the_same_for_any_tiling(
    centres: list[tuple[int, int]], radius: int, tile: tuple[int, int], min_size: int
) -> None:
    mask = union_of_discs((90, 100), centres, radius)
    model = model_of(Watershed(HALF, distance=16, min_size=min_size), picture_of(mask))
    clumps, _ = ndimage.label(mask, np.ones((3, 3)))
    extents = [
        max(piece.stop - piece.start for piece in found) for found in ndimage.find_objects(clumps)
    ]
    whole, classes = object_mask(model, picture_of(mask))
    ids, tiled_classes = object_mask(model, picture_of(mask), tile)
    fitting = np.isin(clumps, 1 + np.flatnonzero(np.array(extents) < model.requirements.halo))
    # Where larger clumps are about, ids after theirs may shift; the objects themselves do not.
    pairs = np.unique(np.stack([whole[fitting], ids[fitting]]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
    assert np.array_equal(whole[fitting] > 0, ids[fitting] > 0)
    assert np.array_equal(classes[fitting], tiled_classes[fitting])
    assert min_size > 1 or np.array_equal(ids > 0, mask)


@given(
    centres=st.lists(
        st.tuples(st.integers(0, 23), st.integers(0, 33), st.integers(0, 29)),
        min_size=1,
        max_size=9,
        unique=True,
    ),
    radius=st.integers(2, 4),
    tile=st.tuples(st.integers(10, 24), st.integers(10, 34), st.integers(10, 30)),
    min_size=st.sampled_from([1, 30]),
)
def test_balls_come_out_the_same_for_any_tiling(
    centres: list[tuple[int, ...]], radius: int, tile: tuple[int, int, int], min_size: int
) -> None:
    mask = union_of_discs((24, 34, 30), centres, radius)
    recipe = Watershed(HALF, distance=5, min_size=min_size)
    model = model_of(recipe, picture_of(mask))
    clumps, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    extents = [
        max(piece.stop - piece.start for piece in found) for found in ndimage.find_objects(clumps)
    ]
    whole, ids = objects_of(recipe, picture_of(mask)), objects_of(recipe, picture_of(mask), tile)
    fitting = np.isin(clumps, 1 + np.flatnonzero(np.array(extents) < model.requirements.halo))
    pairs = np.unique(np.stack([whole[fitting], ids[fitting]]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
    assert np.array_equal(whole[fitting] > 0, ids[fitting] > 0)
    assert min_size > 1 or np.array_equal(ids > 0, mask)


def test_touching_balls_are_split_as_by_scikit_image() -> None:
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    generator = np.random.default_rng(4)
    centres = [
        (z, y, x)
        for z in range(9, 40, 12)
        for y in range(9, 60, 12)
        for x in range(9, 60, 12)
        if generator.random() < 0.8
    ]
    mask = union_of_discs((45, 66, 66), centres, 7)
    distances = ndimage.distance_transform_edt(mask)
    markers = np.zeros(mask.shape, int)
    for i, place in enumerate(peak_local_max(distances, min_distance=4, labels=mask.astype(int))):
        markers[tuple(place)] = i + 1
    theirs = watershed(-distances, markers, mask=mask, connectivity=3)
    for tile in (None, (20, 33, 31)):
        ours = objects_of(Watershed(HALF, distance=8), picture_of(mask), tile)
        assert ours.max() == theirs.max() == len(centres)
        best = np.array([np.bincount(theirs[ours == i]).argmax() for i in range(1, ours.max() + 1)])
        assert len(np.unique(best)) == len(best)
        assert np.mean(best[ours[mask] - 1] == theirs[mask]) > 0.97


@pytest.mark.parametrize("rule", [SeamRule(), OVERLAP], ids=["ownership", "overlap"])
@pytest.mark.parametrize("tile", [(64, 64), (96, 50)])
def test_objects_larger_than_the_halo_are_neither_cut_nor_merged(
    rule: SeamRule, tile: tuple[int, int]
) -> None:
    # Radius 45 against a halo of 60; distances are clipped inside the discs, but not at the necks.
    mask = union_of_discs((220, 310), [(60, 60), (60, 148), (140, 104), (140, 250)], 45)
    recipe = Watershed(HALF, distance=20, prominence=2, stitch=rule)
    whole, ids = objects_of(recipe, picture_of(mask)), objects_of(recipe, picture_of(mask), tile)
    assert whole.max() == ids.max() == 4
    assert np.array_equal(ids > 0, mask)
    for each in range(1, 5):
        assert np.bincount(ids[whole == each]).max() > 0.95 * np.count_nonzero(whole == each)


@pytest.mark.parametrize("tile", [(32, 32), (50, 70), (64, 64)])
def test_what_the_other_segmenter_looks_at_beyond_the_core_shows_no_seams(
    tile: tuple[int, int],
) -> None:
    generator = np.random.default_rng(3)
    grid = [
        (12 + 22 * i + generator.integers(-3, 4), 12 + 22 * j + generator.integers(-3, 4))
        for i in range(9)
        for j in range(8)
    ]
    blobs = union_of_discs((210, 190), grid, 8)
    grey = np.clip(60 + 90 * blobs + generator.normal(0, 3, blobs.shape), 0, 255).astype(np.uint8)
    recipe = Watershed(Threshold(method="local", window=31, offset=-10), distance=12, min_size=20)
    picture = Picture(grey[..., None], np.ones(grey.shape, bool))
    whole = objects_of(recipe, picture)
    assert len(np.unique(whole)) > 60
    assert np.array_equal(objects_of(recipe, picture, tile), whole)


def test_a_road_longer_than_any_tile_stays_one_object() -> None:
    mask = np.zeros((150, 200), bool)
    mask[70:82, :] = True
    mask[:, 100:112] = True
    ids = objects_of(
        Watershed(HALF, distance=8, prominence=3, stitch=OVERLAP), picture_of(mask), (64, 64)
    )
    assert ids.max() == 1


def test_classes_are_split_apart_and_chosen_by_name() -> None:
    values = np.zeros((40, 60), np.uint8)
    values[union_of_discs((40, 60), [(20, 15)], 9)] = 100
    values[union_of_discs((40, 60), [(20, 31)], 9) & (values == 0)] = 200
    picture = Picture(values[..., None], np.ones(values.shape, bool))
    inner = KMeans(clusters=3, classes=("background", "leaf", "fruit"))
    ids, classes = object_mask(model_of(Watershed(inner), picture), picture)
    assert ids.max() == 2
    assert np.array_equal(classes, values // 100)
    model = model_of(Watershed(inner, parts=("fruit",)), picture)
    assert model.classes == ("background", "fruit")
    ids, classes = object_mask(model, picture)
    assert np.array_equal(ids > 0, values == 200)
    assert np.array_equal(classes, values // 200)


def test_a_background_is_put_in_front_where_the_first_class_is_none() -> None:
    values = np.repeat(np.array([[10, 200]], np.uint8), 20, axis=0).repeat(20, axis=1)
    picture = Picture(values[..., None], np.ones(values.shape, bool))
    model = model_of(Watershed(KMeans(clusters=2)), picture)
    assert model.classes == ("background", "cluster_0", "cluster_1")
    assert np.array_equal(object_mask(model, picture)[1], np.where(values == 10, 1, 2))


def test_small_objects_become_background_wherever_seams_run() -> None:
    mask = union_of_discs((60, 60), [(20, 20), (45, 45)], 8)
    mask[31:34, 20:22] = True
    for tile in (None, (32, 21)):
        assert objects_of(Watershed(HALF, distance=8), picture_of(mask), tile).max() == 3
        ids = objects_of(Watershed(HALF, distance=8, min_size=7), picture_of(mask), tile)
        assert ids.max() == 2
        assert not ids[31:34, 20:22].any()


def test_the_end_of_a_large_object_is_not_taken_for_a_small_one() -> None:
    # The first tile sees 26 pixels of a line of 150, two of them in its core.
    mask = np.zeros((32, 200), bool)
    mask[16, 30:180] = True
    recipe = Watershed(HALF, distance=8, min_size=60, stitch=OVERLAP)
    assert np.array_equal(
        objects_of(recipe, picture_of(mask), (32, 32)), objects_of(recipe, picture_of(mask))
    )
    assert np.array_equal(objects_of(recipe, picture_of(mask)) == 1, mask)


def test_invalid_pixels_are_in_no_object() -> None:
    mask = union_of_discs((40, 40), [(20, 20)], 12)
    valid = np.ones(mask.shape, bool)
    valid[:, 19:21] = False
    ids = objects_of(Watershed(HALF), picture_of(mask, valid), (16, 16))
    assert np.array_equal(ids > 0, mask & valid)
    assert not objects_of(Watershed(HALF), picture_of(mask, np.zeros_like(mask)), (16, 16)).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (40, 40), (1, 1, 1), (3, 20, 1)])
@pytest.mark.parametrize("filled", [False, True])
def test_an_empty_image_has_no_object_and_a_full_one_has_one(
    shape: tuple[int, ...], filled: bool
) -> None:
    ids = objects_of(
        Watershed(HALF, distance=4), picture_of(np.full(shape, filled)), (16,) * len(shape)
    )
    assert np.array_equal(ids, np.full(shape, int(filled)))


def test_labels_do_not_depend_on_where_the_block_begins() -> None:
    generator = np.random.default_rng(1)
    classes = ndimage.gaussian_filter(generator.random((80, 80)), 2.5) > 0.5
    framed = np.zeros((99, 120), np.int32)
    framed[7:87, 13:93] = classes
    padded = np.zeros((82, 82), np.int32)
    padded[1:-1, 1:-1] = classes
    assert np.array_equal(
        split_touching(framed, 32, 1.0)[0][7:87, 13:93],
        split_touching(padded, 32, 1.0)[0][1:-1, 1:-1],
    )


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"distance": 0}, "distance"),
        ({"distance": 5000}, "distance"),
        ({"prominence": 0}, "prominence"),
        ({"prominence": float("nan")}, "prominence"),
        ({"min_size": 0}, "min_size"),
        ({"parts": ()}, "parts"),
        ({"parts": ("a", "a")}, "parts"),
    ],
)
def test_wrong_parameters_are_refused_by_name(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Watershed(HALF, **parameters)


def test_names_that_do_not_exist_are_refused_before_any_work() -> None:
    with pytest.raises(RecipeError, match=r"no class 'cell'.*foreground"):
        Watershed(Threshold(), parts=("cell",)).start()
    with pytest.raises(RecipeError, match="nothing to split"):
        Watershed(Threshold(classes=("other", "background"))).start()
    with pytest.raises(RecipeError, match=r"stitch: there is no class 'cell'"):
        Watershed(HALF, stitch={"cell": OVERLAP}).start()


def test_a_rule_for_each_class_from_a_recipe() -> None:
    read = TypeAdapter(SeamRule | Mapping[str, SeamRule]).validate_python(
        {"foreground": {"by": "overlap"}}
    )
    model = Watershed(HALF, stitch=read).start()
    assert isinstance(model, Stitched)
    assert model.rules == (SeamRule(), OVERLAP)


def test_the_model_is_a_value_in_a_file() -> None:
    model = Watershed(HALF, stitch=OVERLAP).start()
    assert isinstance(model, Stitched)
    assert load_model(dump_model(model)) == model
    assert isinstance(model.segmenter, WatershedModel)
    assert model.exactness is Exactness.EXACT_IF_SMALLER_THAN_HALO
    assert model.provenance()["watershed"] == {"distance": 32, "prominence": 1.0, "min_size": 1}
    assert model.requirements.halo == 96


DATA = os.environ.get("MASKLOOM_TEST_DATA")


@pytest.mark.skipif(DATA is None, reason="MASKLOOM_TEST_DATA is not set")
@pytest.mark.parametrize(
    ("name", "tile"),
    [("nuc_002_fluo", (200, 200)), ("nuc_044_fluo", (96, 128)), ("nuc_046_fluo", (130, 90))],
)
def test_real_nuclei_are_the_same_in_tiles(name: str, tile: tuple[int, int]) -> None:
    from PIL import Image

    folder = Path(DATA or "") / "dsb2018"
    pixels = np.array(Image.open(folder / "images" / f"{name}.png"))[..., :3]
    truth = np.unique(np.array(Image.open(folder / "labels" / f"{name}.png"))).size - 1
    picture = Picture(pixels, np.ones(pixels.shape[:2], bool), "rgb")
    recipe = Watershed(Threshold(method="otsu"), distance=24, min_size=16)
    whole = objects_of(recipe, picture)
    assert np.array_equal(objects_of(recipe, picture, tile), whole)
    parts = ndimage.label(whole > 0, np.ones((3, 3)))[1]
    # Otsu leaves out dim nuclei, so that not all can be found; splitting comes nearer to the truth
    # than parts alone.
    assert (
        abs(int(whole.max()) - truth) < abs(parts - truth)
        or abs(int(whole.max()) - truth) <= 0.05 * truth
    )
    assert abs(int(whole.max()) - truth) < 0.21 * truth
