"""Training on volumes: what steps see, what windows cover, what augmentation leaves true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from maskloom.segcore.annotations.places import Turn
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.space import Frame, Space
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.training.augmentations.geometry import Flip, Rotate90
from maskloom.segcore.training.augmentations.protocols import AUGMENTATIONS, Patch
from maskloom.segcore.training.class_counts import count_classes
from maskloom.segcore.training.dataset import Dataset
from maskloom.segcore.training.labels import VOID, Index
from maskloom.segcore.training.loss_terms import SumOfLosses
from maskloom.segcore.training.losses import loss_of
from maskloom.segcore.training.pairs import Pair, turn_onto_image
from maskloom.segcore.training.sampling import (
    PatchShape,
    Sampler,
    SamplingOptions,
    sliding_windows,
)
from maskloom.segcore.training.scalings import Scalings
from maskloom.segcore.training.warping import Warp

CUBE = PatchShape((8, 24, 16), (0, 0, 0), (2, 4, 4))
SLICE = PatchShape((1, 24, 24), (0, 0, 0), (1, 4, 4), planar=True)
MARGIN = PatchShape((12, 20, 20), (1, 4, 4), (1, 1, 1))


def array(path, voxels):
    np.save(path, voxels)
    return FORMATS["array"].describe(str(path), "1")


@pytest.fixture
def volumes(tmp_path):
    """Two volumes whose masks are a function of their voxels: 1 where the value is odd, void at
    255. One is smaller than a patch.
    """
    random, pairs = np.random.default_rng(0), []
    for i, shape in enumerate([(20, 70, 90), (5, 20, 30)]):
        voxels = random.integers(0, 200, shape).astype(np.uint8)
        mask = voxels % 2
        mask[2:4, 5:9, 3:8] = 255
        files = array(tmp_path / f"{i}.npy", voxels), array(tmp_path / f"{i}_mask.npy", mask)
        pairs.append(Pair(str(i), *files))
    return Dataset(pairs, Index().decoder(("even", "odd")), 64)


def sampler(volumes, shape, augmentation=(), balance=0.5):
    counts = count_classes(volumes, ("even", "odd"), lambda *_: None, shape.cell)
    options = SamplingOptions(shape, 4, balance, 0, augmentation)
    return Sampler(volumes, counts, [0, 1], Scalings(Scaling((0.0,), (1.0,))), options)


@pytest.mark.parametrize("shape", [CUBE, SLICE, MARGIN], ids=["cube", "slice", "margin"])
def test_labels_belong_to_their_voxels(volumes, shape):
    draw = sampler(volumes, shape, (Flip(z=True), Rotate90()))
    sides = shape.target[1:] if shape.planar else shape.target
    for step in range(8):
        batch = draw.batch(0, step)
        voxels = batch.pixels[:, *shape.inner, 0]
        assert voxels.shape == batch.classes.shape == (4, *sides)
        known = batch.classes != VOID
        assert known.any()
        np.testing.assert_array_equal(batch.classes[known], voxels[known] % 2)


def test_a_balanced_slice_shows_the_class_it_was_drawn_for(tmp_path):
    """The class is in one slice of thirty: a neighbour would not show it."""
    mask = np.zeros((30, 40, 40), np.uint8)
    mask[17, 10:12, 20:22] = 1
    files = array(tmp_path / "a.npy", mask), array(tmp_path / "m.npy", mask)
    volumes = Dataset([Pair("a", *files)], Index().decoder(("even", "odd")), 64)
    counts = count_classes(volumes, ("even", "odd"), lambda *_: None, SLICE.cell)
    whole = PatchShape((1, 40, 40), (0, 0, 0), (1, 1, 1), planar=True)
    share = {}
    for balance in (0.0, 1.0):
        options = SamplingOptions(whole, 16, balance, 1)
        draw = Sampler(volumes, counts, [0], Scalings(Scaling()), options)
        shown = [(draw.batch(0, step).classes == 1).any(axis=(1, 2)) for step in range(4)]
        share[balance] = np.mean(shown)
    assert share[1.0] > 0.3 > 0.15 > share[0.0]


@pytest.mark.parametrize("cell", [(16, 16, 16), (1, 64, 64)])
def test_classes_are_counted_by_cell(volumes, cell, monkeypatch):
    """In slabs of one cell, as of large volumes, too."""
    monkeypatch.setattr("maskloom.segcore.training.dataset._STRIP_PIXELS", 1)
    found = count_classes(volumes, ("even", "odd"), lambda *_: None, cell)
    for number, pair in enumerate(volumes.pairs):
        mask = np.load(pair.mask.location)
        assert found.classes[number].tolist() == [(mask == 0).sum(), (mask == 1).sum()]
        cells = found.cells[number]
        for place in np.ndindex(cells.shape[:3]):
            part = mask[tuple(slice(i * n, (i + 1) * n) for i, n in zip(place, cell, strict=True))]
            assert cells[place].tolist() == [(part == 0).sum(), (part == 1).sum()]


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 50), st.integers(1, 50)),
    st.sampled_from([CUBE, SLICE, MARGIN]),
    st.integers(0, 3),
)
def test_sliding_windows_answer_every_voxel_once(shape, patch_shape, context):
    count = np.zeros(shape, int)
    for seen, counted in sliding_windows(shape, patch_shape, (0, context, context)):
        assert seen.shape == patch_shape.patch
        answered = patch_shape.output(seen)
        assert all(
            first % stride == 0
            for first, stride in zip(answered.start, patch_shape.stride, strict=True)
        )
        count[counted.slices] += 1
        assert counted & answered == counted
    assert (count == 1).all()


@given(st.tuples(*[st.integers(-20, 30)] * 3), st.integers(1, 30), st.booleans())
def test_windows_are_mirrored_at_the_border_as_in_inference(tmp_path_factory, start, side, kept):
    voxels = np.arange(7 * 23 * 11).reshape(7, 23, 11).astype(np.uint16)
    spec = array(tmp_path_factory.mktemp("mirror") / "a.npy", voxels)
    box = Box(start, tuple(first + side for first in start))
    inside = box & Box.whole(voxels.shape)
    if inside.size == 0:
        return
    decoder = Index(void="rest").decoder(("even", "odd"))
    volumes = Dataset([Pair("a", spec, spec)], decoder, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dataset, "_whole_at_once", lambda *_: kept)
        window = volumes.window(0, box)
    padded = np.pad(voxels, 60, mode="reflect")
    place = tuple(slice(60 + first, 60 + first + side) for first in start)
    np.testing.assert_array_equal(window.pixels[..., 0], padded[place])
    outside = np.ones(box.shape, bool)
    outside[inside.relative_to(box).slices] = False
    assert (window.classes[outside] == VOID).all()


@pytest.mark.parametrize("shape", [(6, 24, 24), (6, 24, 16)], ids=["square", "oblong"])
def test_mirrored_and_turned_planes_have_the_same_voxels(shape):
    ids = np.arange(np.prod(shape)).reshape(shape)
    whole = Patch(ids[..., None].astype(np.float32), (ids % 200).astype(np.uint8), ids)
    for seed in range(8):
        random = np.random.default_rng(seed)
        warp = Rotate90().warp(Flip().warp(Warp(), shape, random), shape, random)
        patch = warp.apply(whole, shape)
        assert sorted(patch.ids.ravel()) == list(range(ids.size))
        np.testing.assert_array_equal(patch.classes, patch.ids % 200)
        np.testing.assert_array_equal(patch.pixels[..., 0], patch.ids)
        # Voxels stay in their plane.
        assert (patch.ids // np.prod(shape[1:]) == np.arange(6)[:, None, None]).all()


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_volumes_are_augmented_by_all(volumes, name):
    for shape in (CUBE, SLICE):
        batch = sampler(volumes, shape, (AUGMENTATIONS[name](),)).batch(0, 3)
        assert batch.pixels.shape[1:-1] == batch.classes.shape[1:] == shape.patch[shape.planar :]
        assert batch.pixels.dtype == np.float32
        assert (batch.classes != VOID).any()


def test_planes_change_their_order_only_if_asked_for():
    ids = np.arange(4 * 6 * 6).reshape(4, 6, 6)
    whole = Patch(np.zeros((4, 6, 6, 1), np.float32), ids.astype(np.uint8), ids)
    random = np.random.default_rng(0)

    def order(z):
        patch = Flip(z=z).warp(Warp(), ids.shape, random).apply(whole, ids.shape)
        return tuple(patch.ids[:, 0, 0] // 36)

    orders = {z: {order(z) for _ in range(30)} for z in (False, True)}
    assert orders == {False: {(0, 1, 2, 3)}, True: {(0, 1, 2, 3), (3, 2, 1, 0)}}


def test_blur_is_that_of_scipy_along_all_axes():
    voxels = np.zeros((9, 9, 9, 1), np.float32)
    voxels[4, 4, 4] = 1
    blur = AUGMENTATIONS["blur"](by=2.0)
    patch = Patch(voxels.copy(), np.zeros((9, 9, 9), np.uint8))
    blur.change(patch, np.random.default_rng(1))
    sigma = np.random.default_rng(1).uniform(0, 2.0)
    expected = ndimage.gaussian_filter(voxels[..., 0], sigma, mode="mirror")
    np.testing.assert_allclose(patch.pixels[..., 0], expected, atol=1e-6)


@pytest.mark.parametrize("factor", [0.5, -0.7, 1.6])
def test_scaling_keeps_voxels_and_labels_together(factor):
    """Along each axis a ramp stays a ramp, from one end of the window to the other."""
    sides = (8, 24, 20)
    warp = Warp().then(((abs(factor), 0), (0, abs(factor))), factor)
    window = warp.window(sides)
    for axis in range(3):
        ramp = np.broadcast_to(np.arange(window[axis]).reshape(-1, *[1] * (2 - axis)), window)
        pixels = np.repeat(ramp[..., None], 2, axis=3).astype(np.float32)
        found = warp.apply(Patch(pixels, ramp.astype(np.uint8), ramp), sides)
        assert found.pixels.shape == (*sides, 2)
        assert np.abs(found.pixels[..., 1] - found.ids).max() <= 0.5 + 1e-2
        np.testing.assert_array_equal(found.classes, found.ids)
        line = np.moveaxis(found.pixels[..., 0], axis, 0)[:, 0, 0]
        step = factor if axis == 0 else abs(factor)
        # OpenCV interpolates by 32nds of a pixel.
        np.testing.assert_allclose(np.diff(line), step, atol=0.04)


def test_the_loss_of_a_volume_is_that_of_its_voxels_in_an_image():
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, (2, 3, 6, 5)).astype(np.uint8)
    truth[truth == 3] = VOID
    logits = random.normal(size=(2, 3, 6, 5, 3)).astype(np.float32)
    loss = loss_of(SumOfLosses(focal=1.0).terms, np.array([1, 2, 3], np.float32))
    flat = loss(truth.reshape(2, 18, 5), logits.reshape(2, 18, 5, 3))
    np.testing.assert_allclose(float(loss(truth, logits)), float(flat), rtol=1e-6)


def test_a_mask_lies_where_its_image_lies(volumes):
    """A turned one of the same place is read in the image's order; any other is refused: its
    labels would be learned at wrong voxels.
    """
    pair = volumes.pairs[0]
    width = pair.image.shape[-1]

    def placed(spec, *affine):
        return replace(spec, space=Space(axes=spec.space.axes, frame=Frame(affine)))

    ours = (1.0, 0, 0, 5, 0, 1.0, 0, 7, 0, 0, 2.0, 9)
    mirrored = (-1.0, 0, 0, 5 + width - 1, 0, 1.0, 0, 7, 0, 0, 2.0, 9)
    rounded = (1.00001, 0, 0, 5, 0, 1.0, 0, 7, 0, 0, 2.0, 9)
    shifted = (1.0, 0, 0, 6, 0, 1.0, 0, 7, 0, 0, 2.0, 9)
    image = placed(pair.image, *ours)
    for affine in (ours, rounded):
        assert turn_onto_image(image, placed(pair.mask, *affine)) == Turn.none(3)
    assert turn_onto_image(image, pair.mask) == Turn.none(3)
    with pytest.raises(RecipeError, match=r"places it elsewhere: .* up to 1 mm apart"):
        turn_onto_image(image, placed(pair.mask, *shifted))

    turn = turn_onto_image(image, placed(pair.mask, *mirrored))
    turned = Dataset([replace(pair, turn=turn)], volumes.decoder, 64)
    box = Box((0, 1, 0), (2, 3, 2))
    other = Box((0, 1, width - 2), (2, 3, width))
    np.testing.assert_array_equal(
        turned.window(0, box).classes, volumes.window(0, other).classes[..., ::-1]
    )
