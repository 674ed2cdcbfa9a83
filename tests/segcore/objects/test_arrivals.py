"""Objects whose pixels belong to a part elsewhere are those of the whole image under any tiling,
however large they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from maskloom.segcore.geometry import Grid
from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
from maskloom.segcore.models.protocols import Exactness, Requirements
from maskloom.segcore.objects.arrivals import Maps
from maskloom.segcore.objects.borders import BorderRule
from maskloom.segcore.objects.flow import LEAST_ARRIVALS, RATE, FlowRule
from maskloom.segcore.raster.spec import Block, RasterSpec
from maskloom.segcore.testing.segmenters import Picture, object_mask

CLASSES = ("background", "round", "long")


@dataclass(frozen=True)
class Shown:
    """A segmenter whose images are maps: scores of the classes, then x and y."""

    rule: FlowRule | BorderRule
    classes: tuple[str, ...] = CLASSES
    exactness: Exactness = Exactness.EXACT

    @property
    def requirements(self) -> Requirements:
        return Requirements(self.rule.margin)

    def select(self, spec: RasterSpec) -> RasterSpec:
        return spec

    def fragment(self, block: Block) -> Fragments:
        count = block.pixels.shape[-1] - 2
        classes, vectors = (
            np.ascontiguousarray(part) for part in np.split(block.pixels, [count], axis=-1)
        )
        maps = Maps(block.tile.read, classes, vectors, block.valid)
        return self.rule.fragment(maps, block.tile.core, block.spec.shape)

    def join(self, grid: Grid, boundaries: Sequence[TileBoundary]) -> list[Equivalences]:
        return self.rule.join(grid, boundaries)

    def provenance(self) -> Mapping[str, object]:
        return {}


def expected_objects(maps: np.ndarray, valid: np.ndarray, rule: FlowRule) -> np.ndarray:
    """The objects of the whole image, by other means: all pixels walk at once, and each object is
    painted alone.
    """
    scores, vectors = maps[..., :-2].astype(float), maps[..., -2:].astype(float)
    foreground = valid & (1 - maps[..., 0] > rule.threshold)
    start = np.argwhere(foreground).T
    place, most = start.astype(float), np.array(valid.shape)[:, None] - 1
    length = np.sqrt((vectors**2).sum(axis=-1, keepdims=True))
    # Places of 1/65536 pixel, of which floats hold sums exactly.
    steps = np.floor(vectors * np.where(length > 0, RATE * 65536 / length, 0) + 0.5) / 65536
    for _ in range(rule.steps):
        place -= steps[tuple(np.floor(place + 0.5).astype(int))][:, ::-1].T
        outside = ((np.floor(place + 0.5) < 0) | (np.floor(place + 0.5) > most)).any(axis=0)
        place[:, outside] = np.clip(place[:, outside], 0, most)
    ends = np.floor(place + 0.5).astype(int)
    arrivals = np.zeros(valid.shape, int)
    np.add.at(arrivals, tuple(ends), 1)
    around = np.ones((3, 3))
    parts, _ = ndimage.label(ndimage.binary_dilation(arrivals >= LEAST_ARRIVALS, around), around)
    owners = np.zeros(valid.shape, int)
    owners[tuple(start)] = parts[tuple(ends)]
    out, classes = np.zeros(valid.shape, int), np.zeros(valid.shape, int)
    names, firsts = np.unique(owners, return_index=True)
    for name in names[np.argsort(firsts)]:
        pixels = owners == name
        if name > 0 and pixels.sum() >= rule.min_size:
            out[pixels] = out.max() + 1
            classes[pixels] = 1 + scores[pixels].sum(axis=0)[1:].argmax()
    return np.stack([out, classes])


def maps_of(shape: tuple[int, int], kind: str, seed: int) -> np.ndarray:
    """Scores and vectors (y, x, class + 2), float32: of any kind, or such that objects are larger
    than what a tile reads.
    """
    random = np.random.default_rng(seed)
    rows, columns = np.indices(shape).astype(float)
    if kind == "noise":
        coarse = random.normal(0, 1, (*(-(-n // 4) for n in shape), 2))
        vectors = np.kron(coarse, np.ones((4, 4, 1)))[: shape[0], : shape[1]]
    elif kind == "ridge":
        # All walk to one long bent line.
        middle = shape[0] / 2 + shape[0] / 4 * np.sin(columns / 7 + seed)
        vectors = np.stack([np.zeros(shape), rows - middle], axis=-1)
    else:
        centres = random.uniform(0, 1, (1 + seed % 7, 2)) * shape
        away = np.stack([rows, columns], axis=-1)[:, :, None] - centres
        nearest = (away**2).sum(axis=-1).argmin(axis=-1)
        vectors = np.take_along_axis(away, nearest[..., None, None], axis=2)[:, :, 0, ::-1] / 20
    scores = random.dirichlet([2, 1, 1], (-(-shape[0] // 3), -(-shape[1] // 3)))
    scores = np.kron(scores, np.ones((3, 3, 1)))[: shape[0], : shape[1]]
    if kind != "noise":
        scores[..., 0] *= 0.3
        scores /= scores.sum(axis=-1, keepdims=True)
    return np.concatenate([scores, vectors], axis=-1).astype(np.float32)


KINDS = ("noise", "ridge", "middles")


@given(
    shape=st.tuples(st.integers(3, 60), st.integers(3, 60)),
    tile=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    kind=st.sampled_from(KINDS),
    steps=st.integers(1, 12),
    min_size=st.sampled_from([1, 9, 40]),
    seed=st.integers(0, 99),
)
def test_objects_of_any_size_are_those_of_the_whole_image(shape, tile, kind, steps, min_size, seed):
    # Tiles of a few pixels take long and meet the same seams as larger ones.
    tile = tuple(max(side, n // 8) for side, n in zip(tile, shape, strict=True))
    maps, rule = maps_of(shape, kind, seed), FlowRule(0.5, steps, min_size)
    valid = np.random.default_rng(seed).random(shape) < (0.95 if seed % 3 == 0 else 2)
    expected = expected_objects(maps, valid, rule)
    for sides in (None, tile):
        ids, classes = object_mask(Shown(rule), Picture(maps, valid), sides)
        assert np.array_equal(ids, expected[0])
        assert np.array_equal(classes, expected[1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_has_one_score_in_all_tiles(kind):
    shape, rule = (40, 50), FlowRule(0.5, 8, 5)
    maps, valid = maps_of(shape, kind, 4), np.ones((40, 50), bool)
    model, grid = Shown(rule), Grid(shape, (16, 16), rule.margin)
    found = [model.fragment(block) for block in Picture(maps, valid).blocks(model, (16, 16))]
    scores = np.zeros(shape, np.float32)
    joined = model.join(grid, [each.boundary for each in found])
    for tile, each, joins in zip(grid, found, joined, strict=True):
        score_of = each.score_of.copy()
        score_of[joins.fragments] = np.where(joins.groups > 0, joins.score_of, 0)
        scores[tile.core.slices] = score_of[each.values]
    ids, _ = expected_objects(maps, valid, rule)
    assert ids.max() > 0
    for number in range(ids.max() + 1):
        mean = (1 - maps[..., 0].astype(float))[ids == number].mean() if number else 0
        assert np.abs(scores[ids == number] - mean).max() < 2e-5


def test_the_ridge_is_larger_than_what_a_tile_reads():
    shape = (40, 60)
    ids, _ = object_mask(
        Shown(FlowRule(0.5, 8)), Picture(maps_of(shape, "ridge", 0), np.ones(shape, bool))
    )
    columns = np.flatnonzero((ids == np.bincount(ids[ids > 0]).argmax()).any(axis=0))
    assert np.ptp(columns) > 2 * FlowRule(0.5, 8).margin


@given(
    shape=st.tuples(st.integers(3, 50), st.integers(3, 50)),
    tile=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    grow=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_parts_grow_into_their_border_as_in_the_whole_image(shape, tile, grow, seed):
    tile = tuple(max(side, n // 8) for side, n in zip(tile, shape, strict=True))
    random = np.random.default_rng(seed)
    labels = np.kron(random.choice(4, (20, 20), p=[0.2, 0.4, 0.3, 0.1]), np.ones((3, 3), int))
    labels = labels[: shape[0], : shape[1]]
    maps = np.eye(4, 6, dtype=np.float32)[labels]
    # Class 2 is the border; of the others, objects have the one with more pixels.
    inside, _ = ndimage.label((labels == 1) | (labels == 3))
    owners = inside.copy()
    for place in np.argwhere(labels == 2):
        near = np.argwhere(inside > 0)
        away = near - place
        near, away = (each[np.abs(away).max(axis=1) <= grow] for each in (near, away))
        if len(near):
            owners[tuple(place)] = inside[tuple(near[(away**2).sum(axis=1).argmin()])]
    expected, names = np.zeros(shape, int), np.zeros(shape, int)
    present, firsts = np.unique(owners, return_index=True)
    for each in present[np.argsort(firsts)]:
        pixels = owners == each
        if each > 0 and pixels.sum() >= 6:
            expected[pixels] = expected.max() + 1
            names[pixels] = 1 if (labels[pixels] == 1).sum() >= (labels[pixels] == 3).sum() else 2
    model, picture = Shown(BorderRule(2, grow, 6)), Picture(maps, np.ones(shape, bool))
    for sides in (None, tile):
        ids, classes = object_mask(model, picture, sides)
        assert np.array_equal(ids, expected)
        assert np.array_equal(classes, names)
