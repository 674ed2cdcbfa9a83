"""Samples: what steps see, what windows cover, what augmentation leaves true."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from tests_support import write_tiff

from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.training.augmentations.geometry import Elastic, Flip, Rotate, Rotate90, Scale
from maskloom.segcore.training.augmentations.mixtures import CutMix
from maskloom.segcore.training.augmentations.pixels import Cutout
from maskloom.segcore.training.augmentations.protocols import AUGMENTATIONS, Patch, PixelChange
from maskloom.segcore.training.class_counts import count_classes
from maskloom.segcore.training.dataset import Dataset
from maskloom.segcore.training.labels import VOID, Index, Instances
from maskloom.segcore.training.pairs import Pair
from maskloom.segcore.training.sampling import (
    PatchShape,
    Sampler,
    SamplingOptions,
    sliding_windows,
)
from maskloom.segcore.training.scalings import Scalings, find_scalings
from maskloom.segcore.training.warping import Warp


def png(path, array):
    Image.fromarray(array).save(path)
    return FORMATS["picture"].describe(str(path), "1")


@pytest.fixture
def dataset(tmp_path):
    """Two pictures whose masks are a function of their pixels: 1 where the value is odd, void at
    255.
    """
    random, pairs = np.random.default_rng(0), []
    for i, shape in enumerate([(90, 140), (20, 30)]):
        pixels = random.integers(0, 200, shape).astype(np.uint8)
        mask = pixels % 2
        mask[5:9, 3:8] = 255
        pairs.append(
            Pair(str(i), png(tmp_path / f"{i}.png", pixels), png(tmp_path / f"{i}_mask.png", mask))
        )
    return Dataset(pairs, Index().decoder(("even", "odd")), 64)


SQUARE = PatchShape.square(32)


def sampler(dataset, frame=SQUARE, augmentation=(), seed=0, balance=0.5):
    found = count_classes(dataset, ("even", "odd"), lambda *_: None)
    return Sampler(
        dataset,
        found,
        [0, 1],
        Scalings(Scaling((0.0,), (1.0,))),
        SamplingOptions(frame, 4, balance, seed, augmentation),
    )


@pytest.mark.parametrize("frame", [PatchShape.square(32), PatchShape.square(48, 10)])
def test_labels_belong_to_the_middle_of_their_pixels(dataset, frame):
    draw = sampler(dataset, frame, (Flip(), Rotate90()))
    for step in range(10):
        batch = draw.batch(0, step)
        pixels = batch.pixels[:, *frame.inner, 0]
        assert pixels.shape == batch.classes.shape == (4, *frame.target)
        known = batch.classes != VOID
        assert known.any()
        np.testing.assert_array_equal(batch.classes[known], pixels[known] % 2)


def test_a_step_depends_on_seed_epoch_and_step_alone(dataset):
    one, other = (
        sampler(dataset, augmentation=(Flip(), Scale(0.5))),
        sampler(dataset, augmentation=(Flip(), Scale(0.5))),
    )
    for step in (3, 0, 1):
        other.batch(7, step)
    for name in ("pixels", "classes"):
        np.testing.assert_array_equal(
            getattr(one.batch(2, 5), name), getattr(other.batch(2, 5), name)
        )
    drawn = [
        sampler(dataset, seed=seed).batch(epoch, step).pixels.tobytes()
        for seed in (0, 1)
        for epoch in (0, 1)
        for step in (0, 1)
    ]
    assert len(set(drawn)) == len(drawn)


def test_pixels_without_data_are_0_however_they_are_augmented(tmp_path):
    """So is what the network is shown in use."""
    pixels = np.random.default_rng(0).integers(100, 140, (64, 64, 1)).astype(np.uint8)
    pixels[10:30, 5:50] = 0
    write_tiff(tmp_path / "a.tif", pixels, nodata=0)
    pair = Pair(
        "a",
        FORMATS["tiff"].describe(str(tmp_path / "a.tif"), "1"),
        png(tmp_path / "m.png", np.eye(64, dtype=np.uint8)),
    )
    dataset = Dataset([pair], Index().decoder(("even", "odd")), 64)
    found = count_classes(dataset, ("even", "odd"), lambda *_: None)
    # What is cut out is 0 too, and keeps its label.
    names = [name for name in sorted(AUGMENTATIONS) if name != "cutout"]
    moved = {"scale", "rotate", "elastic"}
    changes = tuple(AUGMENTATIONS[name]() for name in names if name not in moved)
    by_image = find_scalings(dataset, ImageScaling("deviation"), lambda *_: None, {})
    for augmentation, scalings in (
        (changes, Scalings(Scaling())),
        (tuple(AUGMENTATIONS[name]() for name in names), Scalings(Scaling())),
        (changes, by_image),
    ):
        options = SamplingOptions(SQUARE, 8, 0.5, 3, augmentation)
        draw = Sampler(dataset, found, [0], scalings, options)
        batch = draw.batch(0, 0)
        void = batch.classes == VOID
        assert void.any()
        assert not batch.pixels[void].any()
        assert batch.pixels[~void].all()


def test_rare_classes_are_found(tmp_path):
    mask = np.zeros((600, 600), np.uint8)
    mask[400:404, 500:504] = 1
    pair = Pair("a", png(tmp_path / "a.png", mask), png(tmp_path / "m.png", mask))
    dataset = Dataset([pair], Index().decoder(("even", "odd")), 64)
    found = count_classes(dataset, ("even", "odd"), lambda *_: None)
    share = {}
    for balance in (0.0, 1.0):
        draw = Sampler(
            dataset,
            found,
            [0],
            Scalings(Scaling()),
            SamplingOptions(PatchShape.square(96), 8, balance, 0),
        )
        share[balance] = np.mean(
            [(draw.batch(0, step).classes == 1).any(axis=(1, 2)).mean() for step in range(12)]
        )
    # Half of the balanced patches are drawn for the rare class, and nearly all of those show it.
    assert share[1.0] > 0.3 > 0.15 > share[0.0]


def test_the_survey_counts_every_pixel_by_class(dataset):
    found = count_classes(dataset, ("even", "odd"), lambda *_: None)
    for number, pair in enumerate(dataset.pairs):
        mask = np.asarray(Image.open(pair.mask.location))
        assert found.classes[number].tolist() == [(mask == 0).sum(), (mask == 1).sum()]
        for row, column in np.ndindex(found.cells[number].shape[:2]):
            cell = mask[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
            assert found.cells[number][row, column].tolist() == [
                (cell == 0).sum(),
                (cell == 1).sum(),
            ]


@given(
    st.tuples(st.integers(1, 150), st.integers(1, 90)),
    st.integers(24, 64),
    st.integers(0, 7),
    st.integers(0, 7),
    st.sampled_from([1, 2, 8]),
)
def test_sliding_windows_answer_every_pixel_once(shape, patch, margin, context, stride):
    frame = PatchShape.square(patch, margin, stride)
    count = np.zeros(shape, int)
    for seen, counted in sliding_windows(
        shape, frame, min(context, max(0, (frame.target[0] - stride) // 2))
    ):
        assert seen.shape == (patch, patch)
        answered = seen.grow((-margin, -margin))
        assert all(start % stride == 0 for start in answered.start)
        count[counted.slices] += 1
        assert counted & answered == counted
    assert (count == 1).all()


def of_kind(kind):
    return sorted(name for name in AUGMENTATIONS if isinstance(AUGMENTATIONS[name](), kind))


@pytest.mark.parametrize("name", of_kind(PixelChange))
def test_changes_of_pixels_keep_shape_type_and_labels(name):
    pixels = np.random.default_rng(3).random((24, 32, 6)).astype(np.float32)
    ids = np.arange(24 * 32).reshape(24, 32)
    patch = Patch(pixels.copy(), (ids % 200).astype(np.uint8), ids)
    for seed in range(4):
        AUGMENTATIONS[name]().change(patch, np.random.default_rng(seed))
    assert patch.pixels.shape == pixels.shape
    assert patch.pixels.dtype == np.float32
    assert (patch.pixels != pixels).any()
    np.testing.assert_array_equal(patch.ids, np.arange(24 * 32).reshape(24, 32))
    np.testing.assert_array_equal(patch.classes, patch.ids % 200)


@pytest.mark.parametrize("shape", [(24, 24), (24, 16)], ids=["square", "oblong"])
def test_mirrored_and_turned_patches_have_the_same_pixels_at_other_places(shape):
    ids = np.arange(np.prod(shape)).reshape(shape)
    whole = Patch(
        np.stack([ids, -ids], axis=-1).astype(np.float32), (ids % 200).astype(np.uint8), ids
    )
    seen = set()
    for seed in range(60):
        random = np.random.default_rng(seed)
        warp = Rotate90().warp(Flip().warp(Warp(), shape, random), shape, random)
        assert warp.window(shape) == shape
        patch = warp.apply(whole, shape)
        assert sorted(patch.ids.ravel()) == list(range(ids.size))
        np.testing.assert_array_equal(patch.classes, patch.ids % 200)
        np.testing.assert_array_equal(patch.pixels, np.stack([patch.ids, -patch.ids], axis=-1))
        seen.add(patch.ids.tobytes())
    flat = [ids, ids[::-1], ids[:, ::-1], ids[::-1, ::-1]]
    turned = [each.T for each in flat] if shape[0] == shape[1] else []
    assert seen == {np.ascontiguousarray(each).tobytes() for each in flat + turned}


def test_street_scenes_are_mirrored_but_never_upside_down():
    ids = np.arange(64).reshape(8, 8)
    whole = Patch(np.zeros((8, 8, 1), np.float32), ids.astype(np.uint8))
    flip, random = Flip(vertical=False), np.random.default_rng(0)
    seen = [flip.warp(Warp(), (8, 8), random).apply(whole, (8, 8)).classes for _ in range(40)]
    assert {each.tobytes() for each in seen} == {
        each.astype(np.uint8).tobytes() for each in (ids, ids[:, ::-1])
    }


def place_of(warp, sides, window):
    """Rows and columns that a warp shows, by its definition."""
    grid = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), axis=-1).astype(float)
    offsets = (
        grid - (np.array(sides) - 1) / 2 + sum(np.moveaxis(shift, 0, -1) for shift in warp.shifts)
    )
    return np.moveaxis(offsets @ np.array(warp.matrix).T + (np.array(window) - 1) / 2, -1, 0)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(32, 32), (20, 48)]))
def test_warped_patches_show_the_places_of_their_warp(seed, sides):
    """Pixels as SciPy interpolates them, labels of the nearest pixel, all inside of the window."""
    random = np.random.default_rng(seed)
    warp = Warp()
    for change in (Flip(), Rotate90(), Rotate(), Scale(0.6), Elastic(by=2.0, spacing=16)):
        if random.random() < 0.8:
            warp = change.warp(warp, sides, random)
    window = warp.window(sides)
    rows, columns = place_of(warp, sides, window)
    for place, size in ((rows, window[0]), (columns, window[1])):
        assert place.min() >= -1e-3
        assert place.max() <= size - 1 + 1e-3
        # Not more is read than is shown, but for shifts, which may be opposite at the corners.
        assert warp.shifts or place.max() - place.min() > size - 2
    pixels = random.random((*window, 2), np.float32)
    ids = np.arange(np.prod(window)).reshape(window)
    patch = warp.apply(Patch(pixels, (ids % 2).astype(np.uint8), ids, ids % 3 > 0), sides)
    for band in range(2):
        expected = ndimage.map_coordinates(
            pixels[..., band], [rows, columns], order=1, mode="nearest"
        )
        # OpenCV interpolates by 32nds of a pixel along each axis.
        np.testing.assert_allclose(patch.pixels[..., band], expected, atol=2 / 64)
    found = np.stack(np.unravel_index(patch.ids, window))
    assert np.abs(found - [rows, columns]).max() <= 0.5 + 0.02
    np.testing.assert_array_equal(patch.classes, patch.ids % 2)
    np.testing.assert_array_equal(patch.valid, patch.ids % 3 > 0)


def test_pixels_of_a_much_larger_window_are_averaged():
    """Every pixel of the window counts: a fine chequerboard becomes grey."""
    warp = Warp().then(((4.0, 0.0), (0.0, 4.0)))
    window = warp.window((16, 16))
    pixels = (np.indices(window).sum(0) % 2).astype(np.float32)[..., None]
    patch = warp.apply(Patch(pixels, np.zeros(window, np.uint8)), (16, 16))
    assert np.abs(patch.pixels - 0.5).max() < 0.2


def test_elastic_deformation_never_folds_a_patch_over():
    """Not even if all points of the lattice move as far as they may, against their neighbours."""

    class Worst:
        def standard_normal(self, shape, dtype):
            return (
                np.where(np.indices(shape[1:]).sum(0)[None] % 2, 9, -9).repeat(2, 0).astype(dtype)
            )

        def uniform(self, least, most):
            return most

    sides = (96, 128)
    warp = Elastic(by=4, spacing=32).warp(Warp(), sides, Worst())
    rows, columns = place_of(warp, sides, warp.window(sides))
    (dyy, dyx), (dxy, dxx) = np.gradient(rows), np.gradient(columns)
    assert (dyy * dxx - dyx * dxy > 0).all()
    with pytest.raises(ValueError, match="spacing: expected at least 2 pixels, and eight times"):
        Elastic(by=5, spacing=32)


def test_cut_out_pixels_are_0_and_keep_their_labels():
    patch = Patch(np.ones((40, 60, 3), np.float32), np.ones((40, 60), np.uint8))
    Cutout(count=1, side=0.5).change(patch, np.random.default_rng(0))
    hole = (patch.pixels == 0).all(axis=-1)
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    assert 0 < len(rows) <= 20
    assert 0 < len(columns) <= 30
    assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert hole.sum() == len(rows) * len(columns) == (patch.pixels[..., 0] == 0).sum()
    assert (patch.classes == 1).all()


def test_mixed_patches_have_pixels_and_labels_of_both_and_objects_of_none_twice():
    ids = np.kron(np.arange(4).reshape(2, 2), np.ones((8, 8), int)).astype(np.uint8)
    patches = [
        Patch(np.full((16, 16, 1), n, np.float32), np.full((16, 16), n, np.uint8), ids)
        for n in range(3)
    ]
    mixed = CutMix(fraction=1).mix(patches, np.random.default_rng(0))
    for number, patch in enumerate(mixed):
        other = (number + 1) % 3
        assert set(np.unique(patch.classes)) == {number, other}
        np.testing.assert_array_equal(patch.pixels[..., 0], patch.classes)
        kept, added = patch.classes == number, patch.classes == other
        np.testing.assert_array_equal(patch.ids[kept], ids[kept])
        np.testing.assert_array_equal(patch.ids[added & (ids > 0)], ids[added & (ids > 0)] + 3)
        assert not patch.ids[added & (ids == 0)].any()
    assert CutMix(fraction=1).mix(patches[:1], np.random.default_rng(0)) == patches[:1]


@given(st.integers(-40, 60), st.integers(-40, 60), st.integers(1, 80))
def test_windows_are_mirrored_at_the_border_as_in_inference(top, left, side):
    pixels = np.arange(23 * 31).reshape(23, 31).astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    import fsspec

    fsspec.filesystem("memory").pipe_file("/mirror.png", out.getvalue())
    spec = FORMATS["picture"].describe("memory://mirror.png", "1")
    box = Box((top, left), (top + side, left + side))
    if (box & Box.whole(pixels.shape)).size == 0:
        return
    dataset = Dataset([Pair("a", spec, spec)], Instances().decoder(("background", "cell")), 8)
    window = dataset.window(0, box)
    padded = np.pad(pixels, 200, mode="reflect")[
        200 + top : 200 + top + side, 200 + left : 200 + left + side
    ]
    np.testing.assert_array_equal(window.pixels[..., 0], padded)
    outside = np.ones(box.shape, bool)
    outside[(box & Box.whole(pixels.shape)).relative_to(box).slices] = False
    assert (window.classes[outside] == VOID).all()
    assert (window.classes[~outside] != VOID).all()
    np.testing.assert_array_equal(window.ids[~outside], padded[~outside])
    assert not window.ids[outside].any()


@given(
    st.integers(1, 3),
    st.integers(0, 90),
    st.integers(0, 60),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_borders_of_objects_are_the_same_in_every_window(reach, top, left, side, seed):
    random = np.random.default_rng(seed)
    ids = np.kron(random.integers(0, 4, (20, 14)), np.ones((5, 5), int)).astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(ids).save(out, "PNG")
    import fsspec

    fsspec.filesystem("memory").pipe_file("/borders.png", out.getvalue())
    spec = FORMATS["picture"].describe("memory://borders.png", "1")
    kind, classes = Instances(of="cell", border="gap", reach=reach), ("background", "cell", "gap")
    table = kind.decoder(classes)
    whole = table.decode(ids, np.ones(ids.shape, bool))
    box = Box((top, left), (top + side, left + side)) & Box.whole(ids.shape)
    dataset = Dataset([Pair("a", spec, spec)], table, 8)
    strips = []
    with pytest.MonkeyPatch.context() as patch:
        # Strips of 64 rows, as those of large images.
        patch.setattr("maskloom.segcore.training.dataset._STRIP_PIXELS", 1)
        found = count_classes(dataset, classes, lambda *_: None)
        strips = [window.classes for _, window, _ in dataset.strips(0, 64)]
    assert len(strips) == 2
    np.testing.assert_array_equal(np.concatenate(strips), whole)
    assert found.classes[0].tolist() == np.bincount(whole.ravel(), minlength=3).tolist()
    np.testing.assert_array_equal(dataset.window(0, box).classes, whole[box.slices])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dataset, "_whole_at_once", lambda *_: False)
        read = Dataset([Pair("a", spec, spec)], table, 8)
        np.testing.assert_array_equal(read.window(0, box).classes, whole[box.slices])


def test_no_more_images_are_kept_than_the_memory_takes(tmp_path):
    random, pairs, images = np.random.default_rng(2), [], []
    for i in range(4):
        images.append(random.integers(0, 2, (500, 400)).astype(np.uint8))
        spec = png(tmp_path / f"{i}.png", images[-1])
        pairs.append(Pair(str(i), spec, spec))
    # Of 600,000 bytes each: the pixels, whether they are valid, and their classes.
    dataset = Dataset(pairs, Index().decoder(("even", "odd")), 2)
    for number in (0, 1, 0, 3, 2, 3, 0, 0, 1):
        window = dataset.window(number, Box((3, 4), (90, 80)))
        np.testing.assert_array_equal(window.classes, images[number][3:90, 4:80])
        np.testing.assert_array_equal(window.pixels[..., 0], images[number][3:90, 4:80])
    assert [dataset.memory.flag(number) for number in range(4)] == [True, True, True, False]
    assert dataset.memory.size < 2 * 2**20


def test_large_images_are_read_by_windows_and_palettes_by_index(tmp_path):
    random = np.random.default_rng(1)
    pixels = random.integers(0, 255, (700, 900, 3)).astype(np.uint8)
    classes = random.integers(0, 2, (700, 900)).astype(np.uint8)
    write_tiff(tmp_path / "a.tif", pixels)
    mask = Image.fromarray(classes, "L").convert("P")
    mask.putpalette([200, 0, 0, 0, 0, 90] + [0] * 750)
    mask.putdata(classes.ravel())
    mask.save(tmp_path / "m.png")
    pair = Pair(
        "a",
        FORMATS["tiff"].describe(str(tmp_path / "a.tif"), "1"),
        FORMATS["picture"].describe(str(tmp_path / "m.png"), "1"),
    )
    assert pair.mask.channels == 3
    kept, read = (
        Dataset([pair], Index().decoder(("even", "odd")), megabytes) for megabytes in (1024, 1)
    )
    box = Box((100, -20), (180, 70))
    for dataset in (kept, read):
        window = dataset.window(0, box)
        np.testing.assert_array_equal(window.pixels[:, 20:], pixels[100:180, :70])
        np.testing.assert_array_equal(window.classes[:, 20:], classes[100:180, :70])
        assert dataset.memory.flag(0) == (dataset is kept)
        dataset.close()
