"""Quick shift finds the links of scikit-image, and the same regions whatever the tiles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy import stats
from skimage import color, data, filters, segmentation

from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.geometry import Box, Tile
from maskloom.segcore.kernels.quickshift import fill_noise, number_trees
from maskloom.segcore.segmenters.quickshift import (
    Quickshift,
    QuickshiftModel,
    scaled_planes,
    smooth,
)
from maskloom.segcore.testing import segmenters as check
from maskloom.segcore.testing.segmenters import Picture, object_mask


def full(pixels: np.ndarray, interpretation: Any = "bands") -> Picture:
    return Picture(pixels, np.ones(pixels.shape[:2], bool), interpretation)


def holey(picture: Picture) -> Picture:
    """The picture with a hole, an edge and a scatter of pixels without data, which hold
    nonsense.
    """
    height, width = picture.valid.shape
    valid = np.random.default_rng(3).random((height, width)) > 0.1
    valid[height // 3 : height // 2, width // 4 : width // 2] = False
    valid[:, : width // 9] = False
    pixels = picture.pixels.copy()
    pixels[~valid] = 255 if pixels.dtype.kind in "iu" else np.nan
    return Picture(pixels, valid, picture.interpretation)


def ids(recipe: Quickshift, picture: Picture, tile: tuple[int, int] | None = None) -> np.ndarray:
    return np.asarray(object_mask(recipe.start(), picture, tile)[0])


def links(model: QuickshiftModel, planes: np.ndarray, noise: np.ndarray) -> np.ndarray:
    whole = Box.whole(noise.shape)
    return model.parents_of(np.ascontiguousarray(planes), noise.copy(), whole, whole)


def trees(parents: np.ndarray) -> np.ndarray:
    values = np.zeros(parents.shape, np.uint32)
    number_trees(parents, values)
    return values


def same_regions(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two label images cut the picture into the same regions."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]).astype(np.int64), axis=1).shape[1]
    return pairs == len(np.unique(one)) == len(np.unique(other))


def scikit_image(
    colours: np.ndarray, seed: int, **parameters: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """scikit-image's regions and links of (y, x, band) colours, and the noise that it drew from
    `seed`.
    """
    noise = np.random.default_rng(seed).normal(scale=1e-5, size=colours.shape[:2])
    found = segmentation.quickshift(
        colours, rng=seed, return_tree=True, **{"convert2lab": False, **parameters}
    )
    regions, parents, distances = (np.asarray(each) for each in found)
    roots = distances > parameters["max_dist"]
    return regions, np.where(roots, np.arange(roots.size).reshape(roots.shape), parents), noise


ASTRONAUT, CAMERA = data.astronaut(), data.camera()
RGB = full(np.ascontiguousarray(ASTRONAUT[60:130, 190:280]), "rgb")
COLOURS = {
    "astronaut": color.rgb2lab(ASTRONAUT[60:190, 180:300]),
    "coffee": color.rgb2lab(data.coffee()[150:260, 200:330]),
    "chelsea": color.rgb2lab(data.chelsea()[80:190, 150:270]),
    "black parts": color.rgb2lab(ASTRONAUT[300:400, 400:512]),
    "one band": CAMERA[100:210, 200:320, None] / 2.55,
    "five bands": np.concatenate([ASTRONAUT, ASTRONAUT[::-1, :, :2]], axis=-1)[100:200, 100:210]
    / 3.0,
    "random": np.random.default_rng(1).random((90, 100, 3)) * 20,
    "even": np.zeros((80, 90, 3)),
}


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize(
    "parameters",
    [{"kernel_size": 5.0, "max_dist": 10.0}, {"kernel_size": 2.4, "max_dist": 14.5, "ratio": 0.6}],
    ids=str,
)
def test_links_and_regions_are_those_of_scikit_image(
    name: str, parameters: dict[str, float]
) -> None:
    colours = COLOURS[name]
    regions, parents, noise = scikit_image(colours, 42, **parameters)
    planes = np.moveaxis(colours, -1, 0) * parameters.get("ratio", 1.0)
    ours = links(Quickshift(**parameters).start(), planes, noise)
    assert np.array_equal(ours, parents)
    assert same_regions(trees(ours), regions)


@pytest.mark.parametrize(
    "photo",
    [ASTRONAUT[:200, 180:400], data.coffee()[100:260, 200:400]],
    ids=["astronaut", "coffee"],
)
def test_regions_of_a_photo_are_those_of_scikit_image(photo: np.ndarray) -> None:
    regions, parents, noise = scikit_image(
        photo, 7, kernel_size=3.0, max_dist=6.0, convert2lab=True
    )
    ours = links(
        Quickshift(kernel_size=3, max_dist=6).start(),
        scaled_planes(photo, 1 / 255, lab=True),
        noise,
    )
    # Colours agree to the last bits only, so that parents may differ where two pixels are equally
    # near but for rounding.
    assert np.mean(ours != parents) < 1e-4
    assert np.mean(trees(ours) != trees(parents.astype(np.int64))) < 1e-2
    assert same_regions(trees(ours), regions)


@given(st.data())
def test_links_of_small_pictures_are_those_of_scikit_image(draw: st.DataObject) -> None:
    shape = tuple(draw.draw(st.integers(1, most)) for most in (14, 14, 4))
    levels = draw.draw(st.sampled_from([1, 2, 4, 256]))
    colours = np.random.default_rng(draw.draw(st.integers(0, 99))).integers(0, levels, shape) * (
        40.0 / levels
    )
    parameters = {
        "kernel_size": draw.draw(st.sampled_from([1.0, 1.5, 3.0])),
        "max_dist": draw.draw(st.sampled_from([0.0, 1.5, 4.0, 99.0])),
    }
    regions, parents, noise = scikit_image(colours, 5, **parameters)
    ours = links(Quickshift(**parameters).start(), np.moveaxis(colours, -1, 0), noise)
    assert np.array_equal(ours, parents)
    assert same_regions(trees(ours), regions)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64"])
def test_lab_is_that_of_scikit_image(dtype: str) -> None:
    generator = np.random.default_rng(0)
    most = 1 if dtype == "float64" else np.iinfo(dtype).max
    pixels = (generator.random((50, 60, 3)) ** 3 * most).astype(dtype)
    pixels[0, :2] = np.array([[0, 0, 0], [most] * 3])
    expected = np.moveaxis(color.rgb2lab(pixels), -1, 0)
    assert np.allclose(scaled_planes(pixels, 1 / most, lab=True), expected, rtol=0, atol=1e-11)


def test_smoothing_is_that_of_scikit_image_and_leaves_holes_out() -> None:
    colours = COLOURS["coffee"]
    planes = np.ascontiguousarray(np.moveaxis(colours, -1, 0))
    everywhere = planes.copy()
    smooth(everywhere, np.ones(planes.shape[1:], bool), 2.5)
    expected = filters.gaussian(colours, 2.5, mode="reflect", channel_axis=-1)
    assert np.array_equal(everywhere, np.moveaxis(expected, -1, 0))
    valid = np.ones(planes.shape[1:], bool)
    valid[40:50, 30:60] = False
    planes[:, ~valid] = np.nan
    smooth(planes, valid, 2.5)
    # 4 standard deviations are 10 pixels: farther from the hole nothing has changed in any bit.
    assert np.array_equal(planes[:, :30], everywhere[:, :30])
    assert np.array_equal(planes[:, :, 70:], everywhere[:, :, 70:])
    assert not np.array_equal(planes[:, 30:40], everywhere[:, 30:40])
    constant = np.where(valid, 5.0, 99.0)[None]
    smooth(constant, valid, 2.5)
    assert np.allclose(constant[0][valid], 5.0, rtol=1e-14)


def test_noise_is_normal_and_follows_from_the_place_and_the_seed() -> None:
    noise, part, other = np.empty((200, 300)), np.empty((50, 60)), np.empty((200, 300))
    fill_noise((0, 0), 0, noise)
    fill_noise((100, 30), 0, part)
    fill_noise((0, 0), 1, other)
    assert np.array_equal(part, noise[100:150, 30:90])
    assert stats.kstest(noise.ravel() / 1e-5, "norm").pvalue > 1e-3
    assert len(np.unique(noise)) == noise.size
    for one, two in ((noise, other), (noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.02


PICTURES = {
    "rgb": RGB,
    "rgb with holes": holey(RGB),
    "16 bit": holey(full(RGB.pixels.astype("uint16") * 257, "rgb")),
    "one band": full(np.ascontiguousarray(CAMERA[100:170, 200:290, None])),
    "float": holey(full((CAMERA[100:170, 200:290, None] / 7).astype("float32"))),
    "five bands": holey(full(np.concatenate([RGB.pixels, RGB.pixels[::-1, :, :2]], axis=-1))),
    "constant": full(np.full((70, 90, 3), 9, "uint8"), "rgb"),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(
    "recipe",
    [Quickshift(), Quickshift(kernel_size=1.2, max_dist=3, sigma=1.1, ratio=0.8, seed=4)],
    ids=str,
)
def test_tiles_give_the_regions_of_the_whole(name: str, recipe: Quickshift) -> None:
    picture = PICTURES[name]
    whole = ids(recipe, picture)
    assert len(np.unique(whole)) > 3
    assert np.array_equal(whole == 0, ~picture.valid)
    for tile in ((64, 64), (21, 90), (7, 13)):
        assert np.array_equal(ids(recipe, picture, tile), whole), tile


@pytest.mark.parametrize("bands", [1, 3])
def test_the_halo_is_all_that_a_tile_needs_and_no_more(bands: int) -> None:
    model = Quickshift(kernel_size=2, max_dist=4, sigma=1).start()
    picture = full(np.ascontiguousarray(RGB.pixels[..., :bands]), "rgb" if bands == 3 else "bands")
    (block,) = picture.blocks(model)
    spec, whole = block.spec, block.tile.core
    core = Box((30, 35), (45, 60))
    # Smoothing, densities, links: what each needs of the one before.
    for halo in (model.requirements.halo, model.requirements.halo - 1):
        read = core.grow((halo, halo))
        inner = core.grow((model.reach,) * 2)
        seen = inner.grow((model.width,) * 2) & read
        everywhere = model._colours(block, whole)
        colours = model._colours(picture.block(Tile((0, 0), core, read), spec), seen)
        densities, of_all = np.zeros(seen.shape), np.zeros(whole.shape)
        model.parents_of(colours, densities, inner.relative_to(seen), core.relative_to(seen))
        model.parents_of(everywhere, of_all, whole, whole)
        enough = halo == model.requirements.halo
        assert np.array_equal(colours, everywhere[:, *seen.slices]) == enough
        assert (
            np.array_equal(densities[inner.relative_to(seen).slices], of_all[inner.slices])
            == enough
        )


@given(st.data())
def test_any_tiles_give_the_regions_of_the_whole(draw: st.DataObject) -> None:
    height, width, bands = (draw.draw(st.integers(1, most)) for most in (17, 17, 3))
    generator = np.random.default_rng(draw.draw(st.integers(0, 99)))
    levels = draw.draw(st.sampled_from([1, 2, 256]))
    valid = generator.random((height, width)) >= draw.draw(st.sampled_from([0.0, 0.3, 0.95]))
    picture = Picture(
        generator.integers(0, levels, (height, width, bands)).astype("uint8"),
        valid,
        "rgb" if bands == 3 else "bands",
    )
    recipe = Quickshift(
        kernel_size=draw.draw(st.sampled_from([1.0, 2.0])),
        max_dist=draw.draw(st.sampled_from([0.5, 2.0, 4.0, 50.0])),
        sigma=draw.draw(st.sampled_from([0.0, 0.7, 3.0])),
        scale=draw.draw(st.sampled_from([None, 0.01])),
    )
    tile = draw.draw(st.tuples(st.integers(1, 17), st.integers(1, 17)))
    assert np.array_equal(ids(recipe, picture, tile), ids(recipe, picture))


def plain_links(planes: np.ndarray, noise: np.ndarray, model: QuickshiftModel) -> np.ndarray:
    """The definition, pixel by pixel, with pixels of no data left out."""
    valid = np.isfinite(planes[0])
    places = np.argwhere(valid)
    points = np.concatenate([places.astype(float), planes[:, valid].T], axis=1)
    squares = ((points[:, None] - points) ** 2).sum(axis=2)
    near = np.abs(places[:, None] - places).max(axis=2) <= model.width
    density = noise[valid] + np.where(near, np.exp(squares * (-0.5 / model.kernel_size**2)), 0).sum(
        axis=1
    )
    squares[~near | (density[None] <= density[:, None])] = np.inf
    flat = np.flatnonzero(valid)
    nearest = np.argmin(squares, axis=1) if len(flat) else flat
    far = np.sqrt(squares[np.arange(len(flat)), nearest]) > model.max_dist
    parents = np.full(valid.size, -1)
    parents[flat] = np.where(far, flat, flat[nearest])
    return parents.reshape(valid.shape)


@pytest.mark.parametrize("bands", [1, 3])
def test_pixels_without_data_take_no_part(bands: int) -> None:
    generator = np.random.default_rng(8)
    planes = generator.random((bands, 30, 34)) * 9
    planes[:, generator.random((30, 34)) < 0.3] = np.inf
    noise = 1e-5 * generator.standard_normal((30, 34))
    model = Quickshift(kernel_size=1.6, max_dist=5).start()
    assert np.array_equal(links(model, planes, noise), plain_links(planes, noise, model))


def test_what_stands_in_pixels_without_data_does_not_matter() -> None:
    recipe = Quickshift(kernel_size=2, sigma=1.5)
    picture = PICTURES["rgb with holes"]
    other = Picture(
        np.where(picture.valid[..., None], picture.pixels, np.uint8(13)), picture.valid, "rgb"
    )
    assert np.array_equal(ids(recipe, picture), ids(recipe, other))


def test_infinite_values_are_no_data() -> None:
    pixels = PICTURES["one band"].pixels.astype("float32")
    pixels[10, 10:13, 0] = [np.inf, -np.inf, np.nan]
    found = ids(Quickshift(kernel_size=2), full(pixels))
    assert np.array_equal(np.argwhere(found == 0), [[10, 10], [10, 11], [10, 12]])


@pytest.mark.parametrize(("kernel_size", "sigma"), [(5, 0), (5, 30), (1000, 0)])
def test_single_pixels_lines_and_pictures_without_data(kernel_size: float, sigma: float) -> None:
    recipe = Quickshift(kernel_size=kernel_size, sigma=sigma)
    assert ids(recipe, full(np.zeros((1, 1, 3), "uint8"), "rgb")).tolist() == [[1]]
    nothing = Picture(np.zeros((9, 8, 1), "uint8"), np.zeros((9, 8), bool))
    assert not ids(recipe, nothing, (5, 5)).any()
    assert np.array_equal(
        ids(recipe, full(np.zeros((1, 30, 1))), (1, 4)), ids(recipe, full(np.zeros((1, 30, 1))))
    )
    one = Picture(np.zeros((9, 8, 1), "uint8"), np.eye(9, 8, 3) * np.arange(9)[:, None] == 2)
    assert np.argwhere(ids(recipe, one, (2, 2))).tolist() == [[2, 5]]


def test_without_links_every_pixel_is_a_region_and_with_long_ones_there_is_one() -> None:
    small = full(RGB.pixels[:12, :13], "rgb")
    assert np.array_equal(
        ids(Quickshift(max_dist=0.9), small, (5, 5)), np.arange(1, 157).reshape(12, 13)
    )
    assert ids(Quickshift(max_dist=1e9), small, (5, 5)).max() == 1


def test_ratio_weighs_colour() -> None:
    # Without colour an even plane is cut alike whatever it shows; with it no region crosses an edge
    # of 100 steps of lightness.
    halves = np.zeros((40, 40, 1), "uint8")
    halves[:, 20:] = 255
    found = ids(Quickshift(), full(halves))
    assert not set(found[:, :20].ravel()) & set(found[:, 20:].ravel())
    assert np.array_equal(
        ids(Quickshift(ratio=0), full(halves)), ids(Quickshift(), full(halves * 0))
    )


def test_lab_is_for_pictures_of_whole_numbers_unless_asked_for() -> None:
    plain = Picture(RGB.pixels, RGB.valid, "bands")
    assert np.array_equal(ids(Quickshift(convert_to_lab=True), plain), ids(Quickshift(), RGB))
    assert np.array_equal(ids(Quickshift(convert_to_lab=False), RGB), ids(Quickshift(), plain))
    assert not np.array_equal(ids(Quickshift(), plain), ids(Quickshift(), RGB))
    # 8 bits, the same in 16, and floats from 0 to 1 are the same colours but for rounding.
    wide, floats = full(RGB.pixels.astype("uint16") * 257, "rgb"), full(RGB.pixels / 255, "rgb")
    for other in (ids(Quickshift(), wide), ids(Quickshift(convert_to_lab=True), floats)):
        assert np.mean(other != ids(Quickshift(), RGB)) < 0.02
    floats = full(RGB.pixels / 255)
    assert np.array_equal(
        ids(Quickshift(scale=100), floats), ids(Quickshift(), full(floats.pixels * 100))
    )


def test_bands_are_chosen_and_seeds_decide() -> None:
    assert np.array_equal(
        ids(Quickshift(bands=(2,)), RGB), ids(Quickshift(), full(RGB.pixels[..., 1:2]))
    )
    assert not np.array_equal(
        ids(Quickshift(seed=1), PICTURES["constant"]), ids(Quickshift(), PICTURES["constant"])
    )
    with pytest.raises(ModelMismatch, match=r"Lab takes three bands.*got 1"):
        Quickshift(convert_to_lab=True).start().select(PICTURES["one band"].spec)


def test_classes_have_the_background_first() -> None:
    assert Quickshift().start().classes == ("background", "region")
    model = Quickshift(classes=("field",)).start()
    assert model.classes == ("background", "field")
    found, classes = object_mask(model, PICTURES["rgb with holes"], (30, 40))
    assert np.array_equal(classes > 0, found > 0)
    assert set(np.unique(classes)) == {0, 1}


@pytest.mark.parametrize("name", ["rgb", "five bands", "float"])
def test_the_contract_of_segmenters_holds(name: str) -> None:
    recipe = Quickshift(
        kernel_size=1.5, sigma=0.8, bands=None if name != "five bands" else (1, 2, 3, 4, 5)
    )
    check.check_values(recipe, PICTURES[name])
    check.check_labels(recipe, PICTURES[name])


@pytest.mark.parametrize(
    ("dtype", "bands"), [("uint8", 1), ("uint8", 3), ("float64", 4), ("float32", 6)]
)
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_memory_stays_within_the_footprint(dtype: str, bands: int, sigma: float) -> None:
    generator = np.random.default_rng(0)
    pixels = (generator.random((420, 400, bands)) * 250).astype(dtype)
    picture = Picture(pixels, generator.random((420, 400)) > 0.1, "rgb" if bands == 3 else "bands")
    recipe = Quickshift(kernel_size=1, max_dist=3, sigma=sigma, bands=tuple(range(1, bands + 1)))
    check.check_memory(recipe, picture)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"kernel_size": 0.9}, "kernel_size"),
        ({"kernel_size": float("nan")}, "kernel_size"),
        ({"kernel_size": 1001}, "kernel_size"),
        ({"max_dist": -1}, "max_dist"),
        ({"max_dist": float("inf")}, "max_dist"),
        ({"ratio": 1.1}, "ratio"),
        ({"ratio": -0.1}, "ratio"),
        ({"sigma": -1}, "sigma"),
        ({"scale": 0}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"bands": [0]}, "bands"),
        ({"bands": [1, 2], "convert_to_lab": True}, "convert_to_lab"),
        ({"classes": ["a", "b"]}, "classes"),
        ({"classes": ["background"]}, "classes"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_parameters_are_refused_by_name(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(Quickshift).validate_python(parameters)


@pytest.mark.skipif("MASKLOOM_TEST_DATA" not in os.environ, reason="needs the test images")
def test_a_satellite_scene_of_16_bits_with_nodata() -> None:
    import rasterio

    (path,) = sorted(Path(os.environ["MASKLOOM_TEST_DATA"], "satseg_spacenet").rglob("*.tif"))[:1]
    with rasterio.open(path) as scene:
        pixels = scene.read(1)[:200, :230, None]
    picture = Picture(pixels, pixels[..., 0] != 0)
    recipe = Quickshift(scale=0.1, kernel_size=3)
    assert np.array_equal(ids(recipe, picture, (64, 100)), ids(recipe, picture))
