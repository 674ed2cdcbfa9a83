"""Feeding: the arguments of steps are the same, whoever draws them."""

from __future__ import annotations

from contextlib import closing
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from maskloom.segcore.deep.inference.scaling import ImageScaling
from maskloom.segcore.errors import ImageError
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.training.augmentations.protocols import AUGMENTATIONS
from maskloom.segcore.training.class_counts import count_classes
from maskloom.segcore.training.dataset import Dataset
from maskloom.segcore.training.feeding import Drawing, ProcessFeed, ThreadFeed
from maskloom.segcore.training.labels import Index, Instances
from maskloom.segcore.training.pairs import Pair
from maskloom.segcore.training.sampling import PatchShape, Sampler, SamplingOptions
from maskloom.segcore.training.scalings import find_scalings

STEPS = 5


def of_pixels(batch):
    """A dictionary in a tuple, as networks of objects take it; ids are not contiguous."""
    return ({"pixels": batch.pixels, "ids": batch.ids.T, "none": np.empty(0)}, batch.classes)


@pytest.fixture
def pairs(tmp_path):
    random = np.random.default_rng(0)
    for number in range(3):
        for kind in ("image", "mask"):
            path = tmp_path / f"{kind}{number}.png"
            Image.fromarray(random.integers(0, 5, (70, 90), np.uint8)).save(path)
    return [
        Pair(
            str(number),
            *(
                FORMATS["picture"].describe(str(tmp_path / f"{kind}{number}.png"), "1")
                for kind in ("image", "mask")
            ),
        )
        for number in range(3)
    ]


def drawing(pairs, memory=64):
    decoder = Instances().decoder(("background", "cell"))
    dataset = Dataset(pairs, decoder, memory)
    counts = count_classes(Dataset(pairs, decoder, 64), ("background", "cell"), lambda *_: None)
    options = SamplingOptions(
        PatchShape.square(32), 2, 0.5, 7, tuple(AUGMENTATIONS[name]() for name in AUGMENTATIONS)
    )
    scalings = find_scalings(dataset, ImageScaling("deviation"), lambda *_: None, {})
    return Drawing(Sampler(dataset, counts, [0, 1, 2], scalings, options), of_pixels)


def flat(arguments):
    values, classes = arguments
    return [*(values[name].copy() for name in sorted(values)), classes.copy()]


def test_processes_draw_what_a_thread_draws_over_epochs_and_deaths(pairs):
    """Also after a jump, as by a training that continues, and from images that no memory keeps."""
    kept = drawing(pairs)
    with closing(ProcessFeed(drawing(pairs, memory=0), STEPS, 2)) as feed:
        for epoch, first, most in ((0, 2, 9), (1, 0, 2), (1, 2, 9), (2, 0, 9), (0, 3, 9)):
            expected = ThreadFeed(kept, STEPS).batches(epoch, first)
            with closing(feed.batches(epoch, first)) as batches, closing(expected):
                together = islice(zip(batches, expected, strict=True), most)
                both = [(flat(ours), flat(theirs)) for ours, theirs in together]
            assert len(both) == min(STEPS - first, most)
            for ours, theirs in both:
                for a, b in zip(ours, theirs, strict=True):
                    assert a.dtype == b.dtype
                    np.testing.assert_array_equal(a, b)
            if first == 2:
                feed._helpers._helpers[epoch].child.kill()


@pytest.mark.nightly
def test_an_image_that_becomes_unreadable_is_named(pairs, tmp_path):
    draws = drawing(pairs)
    for number in range(3):
        (tmp_path / f"image{number}.png").write_bytes(b"broken")
    with (
        closing(ProcessFeed(draws, STEPS, 1)) as feed,
        pytest.raises(ImageError, match=r"image\d\.png"),
    ):
        next(feed.batches(0, 0))


@pytest.mark.nightly
def test_images_are_counted_alike_by_any_number_of_processes(pairs, monkeypatch):
    monkeypatch.setattr("maskloom.segcore.processes.helpers._WORTH_SECONDS", 0)
    decoder = Index(void="rest").decoder(("zero", "one"))
    found = []
    for processes in (1, 2):
        dataset = Dataset(pairs, decoder, 64)
        found.append(
            count_classes(dataset, ("zero", "one"), lambda *_: None, processes=processes).cells
        )
        # What a process has decoded is there for all.
        assert all(map(dataset.memory.flag, range(3)))
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
