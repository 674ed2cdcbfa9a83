"""The gathered values are those of the whole picture, whatever the tiling, order and grouping."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

from maskloom.segcore.errors import FitError
from maskloom.segcore.fold import observe_all
from maskloom.segcore.geometry import Grid
from maskloom.segcore.methods.counting import Counted
from maskloom.segcore.methods.samples import Drawn, Samples, State, WeightedValues
from maskloom.segcore.testing.segmenters import Picture


def blocks(picture: Picture, tile: tuple[int, int]) -> list:
    return [picture.block(each, picture.spec) for each in Grid(picture.spec.shape, tile)]


def gathered(
    picture: Picture, tile: tuple[int, int] | None = None, samples: Samples | None = None
) -> WeightedValues:
    samples = samples or Samples()
    total = observe_all(samples, blocks(picture, tile or picture.spec.shape))
    assert total is not None
    return samples.finish(total)


def same(a: WeightedValues, b: WeightedValues) -> bool:
    return (
        np.array_equal(a.values, b.values)
        and np.array_equal(a.weights, b.weights)
        and a.pixels == b.pixels
    )


def full(pixels: np.ndarray) -> Picture:
    return Picture(pixels, np.ones(pixels.shape[:2], bool))


def random_pixels(kind: str, channels: int, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    generator = np.random.default_rng(1)
    if np.dtype(kind).kind == "f":
        return generator.standard_normal((*shape, channels)).astype(kind)
    if kind == "bool":
        return generator.random((*shape, channels)) < 0.5
    # Few different values in one band, so that they repeat.
    low, high = (0, 99) if channels == 1 else (np.iinfo(kind).min, np.iinfo(kind).max + 1)
    return generator.integers(low - (kind[0] == "i") * 50, high, (*shape, channels)).astype(kind)


COUNTABLE = [
    ("uint8", 1),
    ("uint8", 2),
    ("uint8", 3),
    ("int8", 1),
    ("int8", 2),
    ("int8", 3),
    ("uint16", 1),
    ("int16", 1),
    ("bool", 1),
]


@pytest.mark.parametrize(("kind", "channels"), COUNTABLE)
@pytest.mark.parametrize("shape", [(40, 50), (220, 200)])
def test_small_pixels_are_counted_exactly(kind: str, channels: int, shape: tuple[int, int]) -> None:
    pixels = random_pixels(kind, channels, shape)
    valid = np.random.default_rng(2).random(shape) < 0.8
    dataset = gathered(Picture(pixels, valid))
    expected, counts = np.unique(pixels[valid], axis=0, return_counts=True)
    order = np.lexsort(dataset.values[::-1])
    assert np.array_equal(dataset.values.T[order], expected)
    assert np.array_equal(dataset.weights[order], counts)
    assert dataset.exact
    assert dataset.pixels == valid.sum()


def test_counting_leaves_the_lent_table_clean() -> None:
    first, second = full(data.astronaut()), full(data.coffee())
    alone = gathered(second)
    gathered(first)
    assert same(gathered(second), alone)


def test_bands_apart_in_memory_are_read_the_same() -> None:
    interleaved = data.astronaut()
    planar = np.moveaxis(np.ascontiguousarray(np.moveaxis(interleaved, -1, 0)), 0, -1)
    samples, (block,) = Samples(), blocks(full(interleaved), interleaved.shape[:2])
    apart = replace(block, pixels=planar)
    assert block.pixels.flags.c_contiguous
    assert not apart.pixels.flags.c_contiguous
    assert same(samples.finish(samples.observe(apart)), samples.finish(samples.observe(block)))


DRAWN = [("uint16", 3), ("uint8", 4), ("float32", 1), ("float64", 2), ("int32", 1)]


@given(
    st.sampled_from([("uint8", 3), ("uint16", 1), *DRAWN]),
    st.tuples(st.integers(5, 40), st.integers(5, 50)),
    st.integers(0, 99),
    st.integers(0, 99),
)
def test_any_tiling_order_and_grouping(
    kind: tuple[str, int], tile: tuple[int, int], seed: int, order: int
) -> None:
    random = np.random.default_rng(order)
    samples = Samples(seed, size=300)
    picture = Picture(random_pixels(*kind), np.random.default_rng(seed).random((40, 50)) < 0.7)
    whole = gathered(picture, None, samples)
    states = [samples.observe(block) for block in blocks(picture, tile)]
    while len(states) > 1:
        random.shuffle(states)
        a, b = states.pop(), pickle.loads(pickle.dumps(states.pop()))
        states.append(samples.merge(a, b))
    assert same(samples.finish(states[0]), whole)


@pytest.mark.parametrize(("kind", "channels"), DRAWN)
def test_few_pixels_are_all_drawn(kind: str, channels: int) -> None:
    pixels = random_pixels(kind, channels)
    dataset = gathered(full(pixels), (13, 17))
    assert dataset.exact
    expected, counts = np.unique(pixels.reshape(-1, channels), axis=0, return_counts=True)
    assert np.array_equal(dataset.values.T, expected)
    assert np.array_equal(dataset.weights, counts)


def test_a_sample_is_uniform_without_replacement() -> None:
    height, width = 300, 400
    places = np.arange(height * width, dtype="float64").reshape(height, width, 1)
    dataset = gathered(full(places), (64, 64), Samples(size=20_000))
    drawn = dataset.values[0]
    assert np.unique(drawn).size == drawn.size == 20_000
    assert not dataset.exact
    assert dataset.weights.sum() == pytest.approx(height * width)
    # Each of 10 x 10 cells holds 200 on average; 6 standard deviations of a binomial are 84.
    counts = np.histogram2d(
        drawn // width, drawn % width, bins=10, range=((0, height), (0, width))
    )[0]
    assert abs(counts - 200).max() < 84


def test_the_sample_depends_on_seed_and_image_but_not_on_its_folder() -> None:
    picture = full(random_pixels("float32", 2))
    samples = Samples(size=100)
    (block,) = blocks(picture, (40, 50))
    moved = replace(block, spec=replace(block.spec, location="s3://elsewhere/deep/memory.tif"))
    other = replace(block, spec=replace(block.spec, location="file:///pictures/other.tif"))
    changed = replace(block, spec=replace(block.spec, version="2"))
    base = samples.finish(samples.observe(block))
    assert same(samples.finish(samples.observe(moved)), base)
    for fold, seen in ((samples, other), (samples, changed), (Samples(1, 100), block)):
        assert not same(fold.finish(fold.observe(seen)), base)


def test_equal_lots_do_not_depend_on_order() -> None:
    samples = Samples(size=60)
    (one,) = blocks(full(random_pixels("float32", 2)), (40, 50))
    (two,) = blocks(full(random_pixels("float32", 2)[::-1].copy()), (40, 50))
    forth = samples.merge(samples.observe(one), samples.observe(two))
    back = samples.merge(samples.observe(two), samples.observe(one))
    assert same(samples.finish(forth), samples.finish(back))


def test_counted_and_drawn_images_weigh_by_their_pixels() -> None:
    samples = Samples(size=500)
    few, many = (
        full(random_pixels("uint8", 3, (10, 10))),
        full(random_pixels("uint16", 3, (40, 50))),
    )
    states: list[State] = [
        samples.observe(blocks(picture, picture.spec.shape)[0]) for picture in (few, many)
    ]
    dataset = samples.finish(samples.merge(*states))
    assert dataset.weights.sum() == pytest.approx(100 + 2000)
    assert not dataset.exact
    assert same(samples.finish(samples.merge(*states[::-1])), dataset)


def test_infinite_values_are_left_out() -> None:
    pixels = random_pixels("float32", 2)
    pixels[:5, :, 1] = np.inf
    assert gathered(full(pixels)).pixels == 35 * 50


def test_no_valid_pixel_says_what_to_do() -> None:
    with pytest.raises(FitError, match="nodata"):
        gathered(Picture(np.zeros((4, 4, 3), "uint8"), np.zeros((4, 4), bool)))


def test_states_hold_what_their_names_say() -> None:
    samples = Samples()
    (counted,) = samples.observe(blocks(full(data.astronaut()), (512, 512))[0]).values()
    (drawn,) = samples.observe(blocks(full(random_pixels("float32", 2)), (40, 50))[0]).values()
    assert isinstance(counted[1], Counted)
    assert np.all(np.diff(counted[1].keys.astype(np.int64)) > 0)
    assert isinstance(drawn[1], Drawn)
    assert np.all(np.diff(drawn[1].priorities.astype(object)) > 0)
