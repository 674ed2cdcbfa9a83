"""Connected parts are those of SciPy and scikit-image on the whole image, for any tiling."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from objects_support import boundary_bytes
from scipy import ndimage
from skimage import measure

from maskloom.segcore.geometry import Box, Grid, Tile
from maskloom.segcore.objects.components import Components
from maskloom.segcore.objects.numbering import first_positions, number_objects

NO_DATA = 255
Place = tuple[int, ...]


def over_tiles(
    values: np.ndarray, parts: Components, tile: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and classes of the parts under this tiling, as the pipeline finds them."""
    grid = Grid(values.shape, tile)
    fragments = [parts.fragment(values[each.core.slices], each, values.shape) for each in grid]
    for each, found in zip(grid, fragments, strict=True):
        numbers = np.unique(np.append(found.values, 0))
        assert found.values.dtype == np.uint32
        assert found.values.shape == each.core.shape
        assert np.array_equal(numbers, np.arange(len(found.class_of))), "every fragment has a pixel"
        border = 2 * sum(each.core.size // side for side in each.core.shape)
        most = 4 * border * (20 if parts.largest is None else 40) + 64
        assert boundary_bytes(found.boundary) <= most + 40 * len(parts.classes) * (
            parts.largest or 0
        )
    groupings = parts.join(grid, [found.boundary for found in fragments])

    def read(number: int) -> tuple[np.ndarray, np.ndarray]:
        return first_positions(fragments[number].values, grid[number], values.shape), fragments[
            number
        ].class_of

    ids, classes = np.zeros(values.shape, np.int64), np.zeros(values.shape, np.int64)
    for each, found, numbers in zip(
        grid, fragments, number_objects(grid, groupings, read, "memory"), strict=True
    ):
        ids[each.core.slices] = numbers.ids[found.values]
        classes[each.core.slices] = numbers.class_of[found.values]
    return ids, classes


def structures(parts: Components, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Structure of parts and of holes."""
    of_parts = {None: axes, 4: 1, 8: 2, 6: 1, 18: 2, 26: 3}[parts.connectivity]
    return (
        ndimage.generate_binary_structure(axes, of_parts),
        ndimage.generate_binary_structure(axes, axes if of_parts == 1 else 1),
    )


def numbered(
    ids: np.ndarray, min_size: int, largest: int | None = None, classes: np.ndarray | None = None
) -> np.ndarray:
    """Drop what is small, and of each class what is not among the largest; number the rest by first
    pixels.
    """
    names, first, sizes = np.unique(ids, return_index=True, return_counts=True)
    kept = (names > 0) & (sizes >= min_size)
    of_class = np.zeros_like(names) if classes is None else classes.ravel()[first]
    for each in np.unique(of_class[kept]) if largest is not None else ():
        places = np.flatnonzero(kept & (of_class == each))
        ranked = sorted(places.tolist(), key=lambda i: (-sizes[i], first[i]))
        kept[ranked[largest:]] = False
    order = names[kept][np.argsort(first[kept])]
    number = np.zeros(int(ids.max()) + 1, np.int64)
    number[order] = np.arange(1, len(order) + 1)
    return number[ids]


def by_scipy(values: np.ndarray, parts: Components) -> np.ndarray:
    """The parts of a single class."""
    (chosen,) = parts.classes
    structure, of_holes = structures(parts, values.ndim)
    mask = values == chosen
    if parts.fill_holes:
        # Holes that touch nodata are open: nodata is taken for a gap to the outside by way of a
        # frame of background.
        gaps = values == NO_DATA
        outside = ndimage.binary_dilation(gaps, of_holes, iterations=-1, mask=~mask, border_value=1)
        if not gaps.any():
            assert np.array_equal(~outside, ndimage.binary_fill_holes(mask, of_holes))
        mask = ~outside & ~gaps
    return numbered(ndimage.label(mask, structure)[0], parts.min_size, parts.largest)


def by_flooding(values: np.ndarray, parts: Components) -> tuple[np.ndarray, np.ndarray]:
    """Any classes, pixel by pixel, as the definition says."""
    structure, of_holes = structures(parts, values.ndim)
    mask = values.astype(int)
    chosen = np.isin(mask, parts.classes)
    if parts.fill_holes:
        for hole in _floods(~chosen & (values != NO_DATA), np.zeros_like(mask), of_holes):
            around = {
                mask[place] if chosen[place] else -1
                for place in _neighbours(hole, mask.shape, of_holes)
            }
            if len(around) == 1 and around != {-1}:
                for place in hole:
                    mask[place] = next(iter(around))
    ids = np.zeros(mask.shape, np.int64)
    for number, flood in enumerate(_floods(np.isin(mask, parts.classes), mask, structure), 1):
        for place in flood:
            ids[place] = number
    ids = numbered(ids, parts.min_size, parts.largest, mask)
    return ids, np.where(ids > 0, mask, 0)


def _beside(place: Place, structure: np.ndarray) -> list[Place]:
    steps = [step for step in np.argwhere(structure) - 1 if step.any()]
    return [tuple(int(at) for at in np.add(place, step)) for step in steps]


def _is_inside(place: Place, shape: tuple[int, ...]) -> bool:
    return all(0 <= at < length for at, length in zip(place, shape, strict=True))


def _neighbours(places: list[Place], shape: tuple[int, ...], structure: np.ndarray) -> set[Place]:
    """What is around a set of pixels; nothing where they touch the border."""
    found = {beside for place in places for beside in _beside(place, structure)} - set(places)
    return found if all(_is_inside(place, shape) for place in found) else set()


def _floods(mask: np.ndarray, values: np.ndarray, structure: np.ndarray) -> list[list[Place]]:
    left, floods = mask.copy(), []
    for start in zip(*np.nonzero(mask), strict=True):
        if not left[start]:
            continue
        flood, queue = [], deque([start])
        left[start] = False
        while queue:
            here = queue.popleft()
            flood.append(here)
            for place in _beside(here, structure):
                inside = _is_inside(place, mask.shape)
                if inside and left[place] and values[place] == values[start]:
                    left[place] = False
                    queue.append(place)
        floods.append(flood)
    return floods


@st.composite
def masks(draw: st.DrawFn, classes: int) -> np.ndarray:
    """Masks of some roughness: classes up to this number, some with pixels without data."""
    height, width, coarse = (
        draw(st.integers(1, 21)),
        draw(st.integers(1, 21)),
        draw(st.integers(1, 3)),
    )
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    weights = generator.dirichlet(np.full(classes + 1, 1.5))
    blocks = generator.choice(classes + 1, size=(height, width), p=weights).astype(np.uint8)
    values = np.kron(blocks, np.ones((coarse, coarse), np.uint8))[:height, :width]
    values[generator.random(values.shape) < draw(st.sampled_from([0, 0, 0.01, 0.1]))] = NO_DATA
    return values


tiles = st.tuples(st.integers(1, 12), st.integers(1, 12))


def rules(classes: tuple[int, ...]) -> st.SearchStrategy[Components]:
    return st.builds(
        Components,
        st.just(classes),
        st.sampled_from([4, 8, None]),
        st.sampled_from([1, 1, 2, 3, 7, 30]),
        st.booleans(),
        st.sampled_from([None, None, 1, 2]),
    )


@given(masks(classes=1), rules((1,)), tiles)
@example(np.eye(7, dtype=np.uint8), Components((1,), 8), (1, 1))
@example(np.eye(7, dtype=np.uint8)[::-1].copy(), Components((1,), 8), (2, 3))
@example(
    np.indices((9, 8)).sum(axis=0).astype(np.uint8) % 2,
    Components((1,), 8, fill_holes=True),
    (2, 2),
)
@example(
    np.indices((9, 8)).sum(axis=0).astype(np.uint8) % 2,
    Components((1,), 4, fill_holes=True),
    (2, 2),
)
@example(np.zeros((1, 1), np.uint8), Components((1,), fill_holes=True), (1, 1))
@example(np.full((5, 6), NO_DATA, np.uint8), Components((1,), fill_holes=True), (2, 2))
@example(np.ones((5, 6), np.uint8), Components((1,), min_size=30), (2, 2))
@example(np.ones((5, 6), np.uint8), Components((1,), min_size=31), (2, 2))
def test_one_class_is_labelled_as_by_scipy(
    values: np.ndarray, parts: Components, tile: tuple[int, int]
) -> None:
    ids, classes = over_tiles(values, parts, tile)
    assert np.array_equal(ids, by_scipy(values, parts))
    assert np.array_equal(classes, ids > 0)
    assert np.array_equal(parts.label(values)[0], ids)


@given(masks(classes=3), rules((1, 3)) | rules((2, 0, 1)), tiles)
def test_classes_are_kept_apart(
    values: np.ndarray, parts: Components, tile: tuple[int, int]
) -> None:
    ids, classes = over_tiles(values, parts, tile)
    wanted, wanted_classes = by_flooding(values, parts)
    assert np.array_equal(ids, wanted)
    assert np.array_equal(classes, wanted_classes)
    labels, class_of = parts.label(values)
    assert np.array_equal(labels, wanted)
    assert np.array_equal(class_of[labels], wanted_classes)


@given(masks(classes=4), st.sampled_from([4, 8]), tiles)
def test_all_classes_are_labelled_as_by_scikit_image(
    values: np.ndarray, connectivity: int, tile: tuple[int, int]
) -> None:
    wanted = measure.label(
        np.where(values == NO_DATA, 0, values + 1), connectivity=connectivity // 4
    )
    assert np.array_equal(
        over_tiles(values, Components((0, 1, 2, 3, 4), connectivity), tile)[0], numbered(wanted, 1)
    )


def test_small_objects_go_as_in_scikit_image() -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(4).random((120, 150)), 1.5) > 0.5
    ids, _ = over_tiles(mask.astype(np.uint8), Components((1,), 8, min_size=20), (32, 32))
    labels = measure.label(mask, connectivity=2)
    sizes = np.bincount(labels.ravel())
    assert np.array_equal(ids > 0, mask & (sizes[labels] >= 20))
    assert (np.bincount(ids.ravel())[1:] >= 20).all()


def spiral(size: int) -> np.ndarray:
    """A line that winds inwards, one pixel wide, with as wide a gap."""
    out = np.zeros((size, size), np.uint8)
    y, x = 0, -1
    lengths = [size, size - 1, size - 1, *(n for n in range(size - 3, 0, -2) for _ in (0, 1))]
    for turn, length in enumerate(lengths):
        dy, dx = ((0, 1), (1, 0), (0, -1), (-1, 0))[turn % 4]
        for _ in range(length):
            y, x = y + dy, x + dx
            out[y, x] = 1
    return out


@pytest.mark.parametrize("tile", [(16, 16), (7, 129), (3, 11)])
@pytest.mark.parametrize("fill", [False, True])
def test_objects_that_wind_through_many_tiles_are_one(tile: tuple[int, int], fill: bool) -> None:
    line = spiral(65)
    comb = np.zeros((48, 67), np.uint8)
    comb[::2], comb[:, 0] = 1, 1
    for values in (
        line,
        comb,
        1 - comb,
        np.pad(comb, 3),
        ndimage.binary_dilation(line).astype(np.uint8),
    ):
        parts = Components((1,), 8, fill_holes=fill)
        ids, _ = over_tiles(values, parts, tile)
        assert np.array_equal(ids, by_scipy(values, parts))
        assert np.array_equal(
            over_tiles(values, replace(parts, connectivity=4), tile)[0],
            by_scipy(values, replace(parts, connectivity=4)),
        )
    assert over_tiles(comb, Components((1,), 4), tile)[0].max() == 1


@pytest.mark.parametrize("tile", [(8, 8), (5, 40)])
def test_a_hole_over_many_tiles_takes_its_islands_in(tile: tuple[int, int]) -> None:
    values = np.zeros((40, 40), np.uint8)
    values[2:38, 2:38] = 1
    values[4:36, 4:36] = 0
    generator = np.random.default_rng(0)
    islands = generator.random((40, 40)) < 0.2
    islands[:6], islands[34:], islands[:, :6], islands[:, 34:] = False, False, False, False
    values[islands] = 1
    filled, _ = over_tiles(values, Components((1,), 8, min_size=3, fill_holes=True), tile)
    assert (filled[2:38, 2:38] == 1).all()
    assert filled.sum() == 36 * 36
    for opening in ("border", "nodata", "other class"):
        opened = values.copy()
        if opening == "border":
            opened[:20, 20] = 0
        elif opening == "nodata":
            opened[35, 35] = NO_DATA
        else:
            opened[5, 5] = 2
        parts = Components((1, 2), 8, min_size=3, fill_holes=True)
        ids, _ = over_tiles(opened, parts, tile)
        assert ids[4, 4] == 0
        assert np.array_equal(ids, by_flooding(opened, parts)[0])
        assert ids.max() > 3


@pytest.mark.parametrize(("min_size", "kept"), [(1000, True), (1792, True), (1793, False)])
def test_what_a_hole_holds_counts_for_the_size_of_its_object(min_size: int, kept: bool) -> None:
    values = np.zeros((62, 64), np.uint8)
    values[2:34, 2:58] = 1
    values[3:33, 3:57] = 0
    # A large island that lies in the upper tile alone, in a thin hole that reaches into the lower
    # one.
    values[4:29, 4:56] = 1
    parts = Components((1,), 8, min_size, fill_holes=True)
    ids, _ = over_tiles(values, parts, (31, 64))
    assert np.array_equal(ids, by_scipy(values, parts))
    assert ids.sum() == (32 * 56 if kept else 0)


def test_each_hole_takes_its_own_islands() -> None:
    values = np.zeros((20, 40), np.uint8)
    for left in (1, 21):
        values[1:19, left : left + 18] = 1
        values[2:18, left + 1 : left + 17] = 0
        values[[4, 6, 13, 15], left + 3 : left + 9] = 1
    for opened in ((18, 5), (18, 25)):
        values[opened] = 0
        parts = Components((1,), 8, min_size=4, fill_holes=True)
        ids, _ = over_tiles(values, parts, (10, 40))
        assert np.array_equal(ids, by_scipy(values, parts))
        assert ids.max() == 6
        values[opened] = 1


@st.composite
def volumes(draw: st.DrawFn, classes: int) -> np.ndarray:
    """Volumes of some roughness, with shells around cavities; some with voxels without data."""
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    density = draw(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]))
    values = generator.integers(1, classes + 1, shape) * (generator.random(shape) < density)
    if draw(st.booleans()):
        # Spheres in spheres: cavities with islands, and walls that tiles cut.
        index = np.indices(shape) - generator.integers(0, 9, 3).reshape(3, 1, 1, 1)
        rings = np.sqrt((index**2).sum(axis=0)).astype(int) // draw(st.integers(1, 2))
        values = np.where(rings % 2 == 0, generator.integers(1, classes + 1), 0)
        values[generator.random(shape) < draw(st.sampled_from([0, 0.02]))] = 1
    values = values.astype(np.uint8)
    values[generator.random(shape) < draw(st.sampled_from([0, 0, 0.02]))] = NO_DATA
    return values


cubes = st.tuples(*[st.integers(1, 6)] * 3)


def rules_of_volumes(classes: tuple[int, ...]) -> st.SearchStrategy[Components]:
    return st.builds(
        Components,
        st.just(classes),
        st.sampled_from([6, 18, 26, None]),
        st.sampled_from([1, 1, 2, 5, 20]),
        st.booleans(),
        st.sampled_from([None, None, 1, 2]),
    )


@given(volumes(classes=1), rules_of_volumes((1,)), cubes)
@example(np.ones((3, 3, 3), np.uint8), Components((1,), 6, fill_holes=True), (2, 2, 2))
@example(
    np.indices((4, 5, 6)).sum(axis=0).astype(np.uint8) % 2,
    Components((1,), 18, fill_holes=True),
    (2, 3, 1),
)
def test_volumes_are_labelled_as_by_scipy_whatever_the_tiling(
    values: np.ndarray, parts: Components, tile: tuple[int, int, int]
) -> None:
    ids, classes = over_tiles(values, parts, tile)
    assert np.array_equal(ids, by_scipy(values, parts))
    assert np.array_equal(classes, ids > 0)
    assert np.array_equal(parts.label(values)[0], ids)


@given(volumes(classes=3), rules_of_volumes((1, 3)) | rules_of_volumes((2, 0, 1)), cubes)
def test_classes_of_volumes_are_kept_apart(
    values: np.ndarray, parts: Components, tile: tuple[int, int, int]
) -> None:
    ids, classes = over_tiles(values, parts, tile)
    wanted, wanted_classes = by_flooding(values, parts)
    assert np.array_equal(ids, wanted)
    assert np.array_equal(classes, wanted_classes)


def test_volumes_keep_classes_apart_and_drop_small_parts() -> None:
    values = np.random.default_rng(3).integers(0, 4, (12, 10, 8)).astype(np.uint16)
    values[values == 3] = 65535
    labels, class_of = Components((0, 1, 2), 26, min_size=4).label(values)
    wanted = measure.label(np.where(values == 65535, 0, values + 1), connectivity=3)
    assert np.array_equal(labels, numbered(wanted, 4))
    assert np.array_equal(class_of[labels][labels > 0], values[labels > 0])


def test_many_classes_in_16_bits() -> None:
    values = np.random.default_rng(3).integers(0, 900, (50, 61)).astype(np.uint16)
    parts = Components(tuple(range(0, 900, 2)), 8)
    wanted = numbered(
        measure.label(np.where(values % 2 == 0, values + 1, 0).astype(np.int64), connectivity=2), 1
    )
    assert np.array_equal(over_tiles(values, parts, (16, 16))[0], wanted)


def test_layout_in_memory_does_not_matter() -> None:
    values = (np.random.default_rng(3).random((70, 50)) < 0.5).astype(np.uint8)
    parts = Components((1,), 8, fill_holes=True)
    assert np.array_equal(parts.label(values)[0], parts.label(np.asfortranarray(values))[0])
    assert np.array_equal(parts.label(values)[0][::-1] > 0, parts.label(values[::-1])[0] > 0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"classes": ()}, "classes"),
        ({"classes": (1, 1)}, "classes"),
        ({"classes": (-1,)}, "classes"),
        ({"connectivity": 5}, "connectivity"),
        ({"min_size": 0}, "min_size"),
        ({"largest": 0}, "largest"),
    ],
)
def test_wrong_rules_are_refused(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Components(**{"classes": (1,), **parameters})  # type: ignore[arg-type]


def test_masks_that_do_not_suit_are_refused() -> None:
    flat, deep = np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    for parts, values, message in (
        (Components((1,)), flat.astype(np.int64), "uint8 or uint16"),
        (Components((1,), 18), flat, "18 does not suit 2 axes"),
        (Components((255,)), flat, "255 is no class id"),
        (Components((1,), 6), flat, "6 does not suit 2 axes"),
        (Components((1,), 8), deep, "8 does not suit 3 axes"),
    ):
        with pytest.raises(ValueError, match=message):
            parts.label(values)
    with pytest.raises(ValueError, match=r"class ids of the core, \(4, 4\)"):
        Components((1,)).fragment(
            flat[:2], Tile((0, 0), Box.whole((4, 4)), Box.whole((4, 4))), (4, 4)
        )


@pytest.mark.skipif(
    "MASKLOOM_TEST_DATA" not in os.environ, reason="needs the folder of test images"
)
def test_a_real_mask() -> None:
    from PIL import Image

    path = min(Path(os.environ["MASKLOOM_TEST_DATA"], "satseg_dubai", "labels_index").glob("*.png"))
    with Image.open(path) as file:
        values = np.asarray(file)
    assert values.dtype == np.uint8
    classes = tuple(np.unique(values[values < NO_DATA]).tolist())
    assert len(classes) > 2
    labels = measure.label(np.where(values == NO_DATA, 0, values + 1), connectivity=2)
    assert np.array_equal(
        over_tiles(values, Components(classes, min_size=5), (128, 256))[0], numbered(labels, 5)
    )
    for chosen in classes:
        parts = Components((chosen,), 4, fill_holes=True)
        assert np.array_equal(over_tiles(values, parts, (100, 77))[0], by_scipy(values, parts))
