"""Batches change no result, have shapes that follow from the image, keep the device busy, and
shrink where memory does not suffice.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.engines.batches import Batched, Gives, lacks_memory
from maskloom.segcore.deep.inference.engines.gpus import Hardware
from maskloom.segcore.deep.inference.engines.protocol import BatchEngine, PatchesOfImage
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.errors import WeightsError

CARD = Hardware("test card", is_gpu=True)


class OutOfMemory(RuntimeError):
    """As a library says it."""


@dataclass
class Counting:
    """A device on which the label of a pixel is the pixel plus the height of its patch."""

    fills: bool = True
    room: int = 1 << 30
    """Pixels of a batch that fit into its memory."""
    fails_late: bool = False
    hardware: Hardware = CARD
    problems: tuple[type[Exception], ...] = (RuntimeError,)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: set[str] = field(default_factory=set)
    events: list[str] = field(default_factory=list)

    def start(self, gives: Gives, pixels: np.ndarray, extents: np.ndarray) -> Any:
        self.events.append("start")
        self.shapes.append(pixels.shape)
        self.dtypes.add(pixels.dtype.name)
        if pixels[..., 0].size > self.room and not self.fails_late:
            raise OutOfMemory("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        return pixels, extents

    def fetch(self, running: Any) -> np.ndarray:
        self.events.append("fetch")
        pixels, extents = running
        if pixels[..., 0].size > self.room:
            raise OutOfMemory("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        return pixels[..., 0] + extents[:, :1, None]


def engine(device: Counting, most_pixels: int = 1 << 14) -> Batched:
    card = Card("unet", "", 1, ("a", "b"), Scaling(), ReceptiveField(8, 4))
    return Batched(device, card, "it.keras", most_pixels)


def patches(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    random = np.random.default_rng(len(sizes))
    return [random.integers(0, 200, (*size, 1), np.uint8) for size in sizes]


def of(sizes: list[tuple[int, int]]) -> PatchesOfImage:
    return PatchesOfImage((max(y for y, _ in sizes), max(x for _, x in sizes)), len(sizes))


SIDES = st.integers(1, 16).map(lambda side: 4 * side)


@given(
    st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=20),
    st.booleans(),
    st.sampled_from([0, 1 << 12, 1 << 16]),
    st.sampled_from([1 << 12, 1 << 20]),
    st.booleans(),
)
def test_each_patch_gets_its_own_result(sizes, fills, most, room, late):
    run = engine(Counting(fills, room, late), most)
    assert isinstance(run, BatchEngine)
    given = patches(sizes)
    # 64 x 64 pixels, the largest patch, fit into the memory of the smallest device.
    found = list(run.labels(enumerate(given), of(sizes)))
    assert sorted(key for key, _ in found) == list(range(len(given)))
    for key, labels in found:
        np.testing.assert_array_equal(labels, given[key][..., 0] + np.int32(len(given[key])))


def test_shapes_follow_from_the_image_and_not_from_the_tile():
    sizes = [(64, 64)] * 12 + [(64, 36)] * 4 + [(36, 36)]
    whole, tile = Counting(), Counting()
    list(engine(whole, 8 * 64 * 64).labels(enumerate(patches(sizes)), of(sizes)))
    list(engine(tile, 8 * 64 * 64).labels(enumerate(patches(sizes[10:13])), of(sizes)))
    assert set(whole.shapes) == set(tile.shapes) == {(8, 64, 64, 1)}


def test_images_of_many_sizes_share_few_shapes():
    seen = Counting()
    for height in range(260, 520, 4):
        sizes = [(height, 300)]
        list(engine(seen).labels(enumerate(patches(sizes)), of(sizes)))
    assert len(set(seen.shapes)) <= 9
    assert all(shape[1] <= 1.15 * 520 for shape in seen.shapes)


def test_pixels_are_sent_as_they_are_stored():
    for dtype, sent in (("uint8", "uint8"), ("uint16", "uint16"), ("float64", "float32")):
        seen = Counting()
        pixels = np.zeros((8, 8, 1), dtype)
        list(engine(seen).labels([(0, pixels)], PatchesOfImage((8, 8), 1)))
        assert seen.dtypes == {sent}


def test_the_next_batch_is_sent_while_one_is_computed():
    seen = Counting()
    sizes = [(64, 64)] * 8
    list(engine(seen, 2 * 64 * 64).labels(enumerate(patches(sizes)), of(sizes)))
    waiting = np.cumsum([1 if event == "start" else -1 for event in seen.events])
    assert waiting.max() == 2
    assert (waiting[1:-1] >= 1).all(), "the device had nothing to do"


@pytest.mark.parametrize("late", [False, True])
def test_batches_halve_where_memory_does_not_suffice_and_it_is_said_once(late, caplog):
    # Two of the patches fit into the card, and eight are tried first.
    device = Counting(room=2 * 64 * 64, fails_late=late)
    run = engine(device, 8 * 64 * 64)
    sizes = [(64, 64)] * 40
    with caplog.at_level(logging.WARNING):
        list(run.labels(enumerate(patches(sizes)), of(sizes)))
        first = len(device.shapes)
        list(run.labels(enumerate(patches(sizes)), of(sizes)))
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "test card: 8 patches at once need more memory than there is. 4 from now on.",
        "test card: 4 patches at once need more memory than there is. 2 from now on.",
    ]
    assert {shape[0] for shape in device.shapes[first:]} == {2}


def test_a_patch_that_is_too_large_alone_is_told():
    sizes = [(64, 64)] * 3
    with pytest.raises(WeightsError, match=r"64 x 64 pixels than test card has.*smaller `patch`"):
        list(engine(Counting(room=100)).labels(enumerate(patches(sizes)), of(sizes)))


def test_other_errors_of_the_library_name_network_and_patch():
    class Broken(Counting):
        def fetch(self, running: Any) -> np.ndarray:
            raise RuntimeError("INTERNAL: no such operation\nat line 3")

    with pytest.raises(WeightsError, match=r"it.keras .* 8 x 8: INTERNAL: no such operation$"):
        list(engine(Broken()).labels(enumerate(patches([(8, 8)])), of([(8, 8)])))


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "OOM when allocating tensor with shape[64,832,832,16]",
        "[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 4294967",
    ],
)
def test_each_library_says_it_in_its_own_way(message):
    assert lacks_memory(RuntimeError(message))
    assert not lacks_memory(RuntimeError("INVALID_ARGUMENT: shapes do not fit"))
