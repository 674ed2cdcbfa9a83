"""Stitching neither cuts objects at seams nor merges neighbours, whatever the tiling and whatever
tiles say of their halos.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from objects_support import boundary_bytes
from pydantic import TypeAdapter, ValidationError

from maskloom.segcore.geometry import Grid
from maskloom.segcore.models.protocols import Exactness, ObjectSegmenter, Requirements
from maskloom.segcore.objects.stitching import SeamRule, Stitched, rules_of
from maskloom.segcore.raster.spec import Block, Labels, RasterSpec
from maskloom.segcore.testing.segmenters import Picture, object_mask

OWNERSHIP, OVERLAP = SeamRule(), SeamRule("overlap", 0.5)
SEED = 7


@dataclass(frozen=True)
class Told:
    """A segmenter of instances that knows the truth: the pixels hold each pixel's object, and its
    class is that number modulo the classes.

    Each tile numbers instances in its own way. With `noise`, each tile moves and reshapes instances
    as it pleases beyond its core's inner part.
    """

    halo: int
    noise: int = 0
    """Most pixels by which a tile shifts an instance that reaches into the outer part of what it
    sees.
    """
    missing: tuple[tuple[int, int, int], ...] = ()
    """(row of the tile, column, object) that a tile does not see."""
    merged: tuple[tuple[int, int, int, int], ...] = ()
    """(row of the tile, column, object, object): a tile takes the second for a part of the
    first.
    """
    classes: tuple[str, ...] = ("background", "cell", "vessel")
    exactness: Exactness = Exactness.EXACT_IF_SMALLER_THAN_HALO

    @property
    def requirements(self) -> Requirements:
        return Requirements(self.halo, 32)

    def select(self, spec: RasterSpec) -> RasterSpec:
        return spec

    def segment(self, block: Block) -> Labels:
        objects = block.pixels[..., 0].astype(np.int64)
        generator = np.random.default_rng([SEED, *block.tile.index])
        if self.noise:
            objects = shaken(objects, self.noise, generator)
        for *index, absent in self.missing:
            if tuple(index) == block.tile.index:
                objects = np.where(objects == absent, 0, objects)
        for *index, kept, taken in self.merged:
            if tuple(index) == block.tile.index:
                objects = np.where(objects == taken, kept, objects)
        present = np.setdiff1d(objects, [0])
        generator.shuffle(present)
        number = {int(each): i + 1 for i, each in enumerate(present)}
        values = np.vectorize(lambda each: number.get(int(each), 0), otypes=[np.int64])(objects)
        return Labels(values, (0, *(1 + int(each) % (len(self.classes) - 1) for each in present)))

    def provenance(self) -> Mapping[str, Any]:
        return {}


def shaken(objects: np.ndarray, noise: int, generator: np.random.Generator) -> np.ndarray:
    """Every instance moved by up to `noise` pixels, and its outline eaten here and there; instances
    drawn later give way.
    """
    out = np.zeros_like(objects)
    for each in np.setdiff1d(objects, [0]):
        down, across = generator.integers(0, 2 * noise + 1, 2)
        moved = np.pad(objects == each, noise)[down:, across:][
            : objects.shape[0], : objects.shape[1]
        ]
        out[moved & (out == 0)] = each
    eaten = (generator.random(objects.shape) < 0.1) & edge_of(out)
    out[eaten] = 0
    return out


def edge_of(objects: np.ndarray) -> np.ndarray:
    padded = np.pad(objects, 1)
    return np.any([np.roll(padded, 1, axis) != padded for axis in (0, 1)], axis=0)[1:-1, 1:-1]


def picture_of(objects: np.ndarray, valid: np.ndarray | None = None) -> Picture:
    return Picture(
        objects[..., None].astype(np.int32),
        np.ones(objects.shape, bool) if valid is None else valid,
    )


def discs(shape: tuple[int, ...], centres: list[tuple[int, ...]], radius: int) -> np.ndarray:
    """Discs, or balls, numbered from 1; of a pixel in several the nearest centre decides."""
    places = np.moveaxis(np.indices(shape), 0, -1)
    out, nearest = np.zeros(shape, int), np.full(shape, radius**2 + 1)
    # One disc at a time: an array of the image for each of thousands of discs would fill the
    # machine.
    for number, centre in enumerate(centres):
        distance = ((places - centre) ** 2).sum(axis=-1)
        out[distance < nearest] = number + 1
        nearest = np.minimum(nearest, distance)
    return out


def lattice(shape: tuple[int, int], radius: int, gap: int) -> np.ndarray:
    """Discs in rows and columns, `gap` pixels apart; with 0 or less they touch."""
    step = 2 * radius + gap
    centres = [
        (y, x)
        for y in range(radius + 2, shape[0] - radius, step)
        for x in range(radius + 2, shape[1] - radius, step)
    ]
    return discs(shape, centres, radius)


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1] and bool(
        np.all((pairs[0] == 0) == (pairs[1] == 0))
    )


def stitched(segmenter: Told, rule: SeamRule) -> Stitched:
    return Stitched(segmenter, (rule,) * len(segmenter.classes))


def matched(truth: np.ndarray, ids: np.ndarray) -> tuple[int, int]:
    """How many true objects lie mostly in one found object that is mostly theirs, and how many
    objects were found.
    """
    good = 0
    for each in np.setdiff1d(truth, [0]):
        inside = truth == each
        found, counts = np.unique(ids[inside], return_counts=True)
        best = found[counts.argmax()]
        union = np.count_nonzero(inside | (ids == best))
        good += bool(best and counts.max() > 0.6 * union)
    return good, int(ids.max())


@pytest.mark.parametrize("rule", [OWNERSHIP, OVERLAP], ids=["ownership", "overlap"])
@pytest.mark.parametrize("gap", [3, 0, -2], ids=["apart", "touching", "squeezed"])
@pytest.mark.parametrize("tile", [(32, 32), (40, 23), (100, 64), (9, 14)])
def test_small_objects_come_out_the_same_for_any_tiling(
    rule: SeamRule, gap: int, tile: tuple[int, int]
) -> None:
    truth = lattice((100, 110), 6, gap)
    model = stitched(Told(halo=14), rule)
    whole, whole_classes = object_mask(model, picture_of(truth))
    ids, classes = object_mask(model, picture_of(truth), tile)
    assert same_partition(truth, whole)
    assert np.array_equal(ids, whole)
    assert np.array_equal(classes, whole_classes)


@given(
    centres=st.lists(
        st.tuples(st.integers(0, 69), st.integers(0, 79)), min_size=1, max_size=25, unique=True
    ),
    radius=st.integers(1, 6),
    tile=st.tuples(st.integers(14, 70), st.integers(14, 80)),
    rule=st.sampled_from([OWNERSHIP, OVERLAP]),
    holes=st.booleans(),
)
def test_random_discs_come_out_the_same_for_any_tiling(
    centres: list[tuple[int, int]], radius: int, tile: tuple[int, int], rule: SeamRule, holes: bool
) -> None:
    truth = discs((70, 80), centres, radius)
    valid = np.random.default_rng(len(centres)).random(truth.shape) > 0.1 * holes
    model = stitched(Told(halo=14), rule)
    whole = object_mask(model, picture_of(truth, valid))
    ids = object_mask(model, picture_of(truth, valid), tile)
    assert np.array_equal(ids, whole)
    assert same_partition(np.where(valid, truth, 0), whole[0])


@given(
    centres=st.lists(
        st.tuples(st.integers(0, 17), st.integers(0, 25), st.integers(0, 21)),
        min_size=1,
        max_size=12,
        unique=True,
    ),
    radius=st.integers(1, 3),
    tile=st.tuples(st.integers(7, 18), st.integers(7, 26), st.integers(7, 22)),
    rule=st.sampled_from([OWNERSHIP, OVERLAP]),
    holes=st.booleans(),
)
def test_balls_come_out_the_same_for_any_tiling(
    centres: list[tuple[int, ...]],
    radius: int,
    tile: tuple[int, int, int],
    rule: SeamRule,
    holes: bool,
) -> None:
    truth = discs((18, 26, 22), centres, radius)
    valid = np.random.default_rng(len(centres)).random(truth.shape) > 0.1 * holes
    model = stitched(Told(halo=8), rule)
    whole = object_mask(model, picture_of(truth, valid))
    ids = object_mask(model, picture_of(truth, valid), tile)
    assert np.array_equal(ids, whole)
    assert same_partition(np.where(valid, truth, 0), whole[0])


class PlanarTold(Told):
    @property
    def requirements(self) -> Requirements:
        return Requirements(self.halo, 32, planar=True)


@pytest.mark.parametrize("rule", [OWNERSHIP, OVERLAP], ids=["ownership", "overlap"])
def test_instances_of_planes_are_stitched_in_their_plane_and_have_ids_of_their_own(
    rule: SeamRule,
) -> None:
    truth = discs((7, 40, 44), [(2, 12, 12), (4, 28, 20), (3, 15, 33)], 5)
    # An object in each plane is one of its own.
    planes = np.where(truth > 0, truth + 10 * np.arange(7).reshape(7, 1, 1), 0)
    whole = object_mask(stitched(PlanarTold(halo=12), rule), picture_of(truth))[0]
    assert same_partition(planes, whole)
    for tile in ((1, 16, 17), (3, 20, 44)):
        ids = object_mask(stitched(PlanarTold(halo=12), rule), picture_of(truth), tile)[0]
        assert np.array_equal(ids, whole)


@pytest.mark.parametrize("rule", [OWNERSHIP, OVERLAP], ids=["ownership", "overlap"])
@pytest.mark.parametrize("gap", [2, 0], ids=["apart", "touching"])
@pytest.mark.parametrize("tile", [(64, 64), (50, 80)])
def test_tiles_that_disagree_a_little_neither_cut_nor_merge(
    rule: SeamRule, gap: int, tile: tuple[int, int]
) -> None:
    truth = lattice((230, 240), 9, gap)
    ids, _ = object_mask(stitched(Told(halo=24, noise=1), rule), picture_of(truth), tile)
    assert matched(truth, ids) == (truth.max(), truth.max())


@pytest.mark.parametrize("rule", [OWNERSHIP, OVERLAP], ids=["ownership", "overlap"])
@pytest.mark.parametrize("noise", [0, 1])
def test_objects_larger_than_the_halo_are_neither_cut_nor_merged(
    rule: SeamRule, noise: int
) -> None:
    truth = discs((260, 300), [(80, 75), (80, 215), (190, 145)], 69)
    ids, _ = object_mask(stitched(Told(halo=12, noise=noise), rule), picture_of(truth), (64, 64))
    assert matched(truth, ids) == (3, 3)


def test_a_bent_object_is_joined_over_both_its_arms() -> None:
    truth = np.zeros((60, 90), int)
    truth[10:50, 10:80] = 1
    # Two arms from the left, joined far right of the seam; between them lies another object.
    truth[20:40, 10:70] = 0
    truth[26:34, 5:60] = 2

    class Blind(Told):
        """Sees arms as two instances where it does not see what joins them."""

        def segment(self, block: Block) -> Labels:
            from skimage.measure import label

            objects = block.pixels[..., 0].astype(np.int64)
            values = label(objects, background=0, connectivity=2)
            class_of = np.zeros(values.max() + 1, int)
            class_of[values.ravel()] = objects.ravel()
            return Labels(values, tuple(class_of.tolist()))

    ids, classes = object_mask(stitched(Blind(halo=8), OVERLAP), picture_of(truth), (60, 40))
    assert same_partition(truth, ids)
    assert np.array_equal(classes, truth)


def test_touching_alone_never_joins() -> None:
    truth = np.zeros((40, 64), int)
    truth[10:30, 12:32] = 1
    truth[10:30, 32:52] = 3
    for rule in (OWNERSHIP, OVERLAP):
        ids, _ = object_mask(stitched(Told(halo=24), rule), picture_of(truth), (40, 32))
        assert same_partition(truth, ids)


def seam_disc(column: int) -> np.ndarray:
    """A disc of radius 8 about this column, near a seam at 32, in an image of two tiles; another
    disc far from it.
    """
    return discs((40, 64), [(20, column), (20, 8)], 8)


def test_what_only_a_witness_sees_is_not_written() -> None:
    # All of the disc lies in the right tile's core, which does not see it.
    truth = seam_disc(44)
    model = stitched(Told(halo=24, missing=((0, 1, 1),)), OWNERSHIP)
    ids, _ = object_mask(model, picture_of(truth), (40, 32))
    assert same_partition(np.where(truth == 1, 0, truth), ids)


@pytest.mark.parametrize("rule", [OWNERSHIP, OVERLAP], ids=["ownership", "overlap"])
def test_slivers_of_what_a_neighbour_denies_become_background(rule: SeamRule) -> None:
    truth = seam_disc(36)
    ids, _ = object_mask(
        stitched(Told(halo=24, missing=((0, 1, 1),)), rule), picture_of(truth), (40, 32)
    )
    assert ids.max() == 1
    assert not ids[:, 20:].any()


@pytest.mark.parametrize("rule", [OWNERSHIP, OVERLAP], ids=["ownership", "overlap"])
def test_most_of_an_object_stays_though_a_neighbour_misses_it(rule: SeamRule) -> None:
    truth = seam_disc(28)
    ids, _ = object_mask(
        stitched(Told(halo=24, missing=((0, 1, 1),)), rule), picture_of(truth), (40, 32)
    )
    expected = truth.copy()
    expected[:, 32:] = 0
    assert same_partition(expected, ids)


@pytest.mark.parametrize("rule", [OWNERSHIP, OVERLAP], ids=["ownership", "overlap"])
def test_slivers_of_what_a_neighbour_takes_for_one_object_go_to_it(rule: SeamRule) -> None:
    # The left tile sees a disc and a cap of it as two, the right one sees them as one; the cap's
    # greater part lies to the right.
    truth = seam_disc(33)
    truth[12:16][truth[12:16] == 1] = 3
    truth[12:16, :30] = 0
    ids, _ = object_mask(
        stitched(Told(halo=24, merged=((0, 1, 1, 3),)), rule), picture_of(truth), (40, 32)
    )
    assert ids.max() == 2
    assert len(np.unique(ids[(truth == 1) | (truth == 3)])) == 1


def test_a_tile_that_merges_neighbours_joins_the_better_of_them_alone() -> None:
    # The right tile takes both blocks for one; each overlaps it by more than the least that is
    # asked for.
    truth = np.zeros((40, 64), int)
    truth[8:20, 12:40] = 1
    truth[20:28, 12:40] = 2
    merging = Told(halo=24, merged=((0, 1, 1, 2),))
    ids, _ = object_mask(stitched(merging, SeamRule("overlap", 0.2)), picture_of(truth), (40, 32))
    assert ids.max() == 2
    assert same_partition(np.where(truth == 2, 2, truth)[:, :32], ids[:, :32])
    assert np.array_equal(ids[8:28, 32:40], np.full((20, 8), ids[8, 12]))


def test_the_owner_of_an_anchor_decides_however_little_the_tiles_agree() -> None:
    # The anchor of the upright block is the upper tile's, which sees it as a part of the large one.
    truth = np.zeros((64, 60), int)
    truth[28:44, 20:28] = 1
    truth[4:32, 28:51] = 2
    merging = Told(halo=24, merged=((0, 0, 1, 2),))
    by_ownership, _ = object_mask(stitched(merging, OWNERSHIP), picture_of(truth), (32, 60))
    by_overlap, _ = object_mask(stitched(merging, OVERLAP), picture_of(truth), (32, 60))
    assert by_ownership.max() == 1
    assert by_overlap.max() == 2
    assert np.array_equal(by_ownership > 0, truth > 0)


def test_tiles_that_disagree_on_the_class_make_one_object_of_the_larger_parts_class() -> None:
    class Fickle(Told):
        """Calls everything a vessel in the right tile."""

        def segment(self, block: Block) -> Labels:
            labels = super().segment(block)
            assert labels.class_of is not None
            return Labels(
                labels.values, (0, *((1 + block.tile.index[1],) * (len(labels.class_of) - 1)))
            )

    for column, expected in ((30, 1), (34, 2)):
        truth = np.where(seam_disc(column) == 1, 1, 0)
        ids, classes = object_mask(stitched(Fickle(halo=24), OVERLAP), picture_of(truth), (40, 32))
        assert same_partition(truth, ids)
        assert np.array_equal(classes, expected * truth)


def test_boundaries_grow_with_the_border_and_not_with_the_area() -> None:
    sizes = []
    for side in (120, 240):
        # The same 60 pixels again and again, each with objects of its own.
        small = lattice((60, 60), 4, 2)
        times = 3 * side // 60
        more = np.kron(np.arange(times**2).reshape(times, times), np.full_like(small, small.max()))
        truth = np.where(
            np.tile(small, (times, times)) > 0, np.tile(small, (times, times)) + more, 0
        )
        model, picture = stitched(Told(halo=10), OWNERSHIP), picture_of(truth)
        middle = Grid(truth.shape, (side, side), 10)[4]
        found = model.fragment(picture.block(middle, picture.spec))
        sizes.append(boundary_bytes(found.boundary))
    assert sizes[1] < 2.3 * sizes[0]


def test_nothing_to_find_is_nothing_found() -> None:
    model = stitched(Told(halo=4), OVERLAP)
    for shape in ((1, 1), (20, 30)):
        ids, _ = object_mask(model, picture_of(np.zeros(shape, int)), (8, 8))
        assert not ids.any()
    nowhere = picture_of(lattice((30, 30), 4, 1), np.zeros((30, 30), bool))
    assert not object_mask(model, nowhere, (8, 8))[0].any()


def test_the_model_is_a_value_and_says_what_it_does() -> None:
    model = stitched(Told(halo=4), OVERLAP)
    assert isinstance(model, ObjectSegmenter)
    assert pickle.loads(pickle.dumps(model)) == model
    assert model.provenance()["stitch"] == {
        "cell": {"by": "overlap", "iou": 0.5},
        "vessel": {"by": "overlap", "iou": 0.5},
    }
    assert model.exactness is Exactness.EXACT_IF_SMALLER_THAN_HALO
    assert (
        stitched(Told(halo=4, exactness=Exactness.APPROXIMATE), OVERLAP).exactness
        is Exactness.APPROXIMATE
    )


def test_what_cannot_be_stitched_is_refused() -> None:
    with pytest.raises(ValueError, match="tiles that overlap"):
        stitched(Told(halo=0), OVERLAP)
    with pytest.raises(ValueError, match="3 classes need a rule each; got 1"):
        Stitched(Told(halo=4), (OVERLAP,))
    with pytest.raises(ValueError, match=r"no class 'nerve'.*cell, vessel"):
        rules_of({"nerve": OVERLAP}, Told(halo=4).classes)


def test_rules_are_read_from_a_recipe() -> None:
    reader: TypeAdapter[Any] = TypeAdapter(SeamRule | Mapping[str, SeamRule])
    assert reader.validate_python({"by": "overlap", "iou": 0.3}) == SeamRule("overlap", 0.3)
    chosen = reader.validate_python({"vessel": {"by": "overlap"}})
    assert rules_of(chosen, ("background", "cell", "vessel")) == (OWNERSHIP, OWNERSHIP, OVERLAP)
    for wrong in (
        {"by": "touching"},
        {"by": "overlap", "iou": 0},
        {"by": "overlap", "iou": 1.5},
        {"by": "overlap", "least": 0.5},
    ):
        with pytest.raises(ValidationError):
            reader.validate_python(wrong)
