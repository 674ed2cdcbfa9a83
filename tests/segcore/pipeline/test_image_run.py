"""One image under one order: what its model sees, and what it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.masks import MASKS
from maskloom.segcore.pipeline.image_run import ImageRun, components_of
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.segmenters.connected_parts import ConnectedParts
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.statistics.objects.options import Objects


@dataclass(frozen=True)
class Memory:
    """A reader of pixels (y, x, band) that are all valid unless told otherwise."""

    pixels: np.ndarray
    valid: np.ndarray

    def read(self, box):
        return self.pixels[box.slices], self.valid[box.slices]


@pytest.fixture
def everywhere(pixels):
    return np.ones(pixels.shape[:2], bool)


def test_a_model_must_be_fitted_first(bench, pixels, brighter_than_mean):
    image = bench.plan("photo", pixels)
    with pytest.raises(TypeError, match="BrighterThanMean must be fitted first"):
        ImageRun.of(bench.settings(brighter_than_mean()), image.spec)


def test_an_image_that_does_not_suit_the_model_is_refused(bench, pixels, brighter):
    grey, settings = bench.plan("grey", pixels[..., :1]), bench.settings(brighter(band=2))
    with pytest.raises(ModelMismatch, match=r"has 1 band\(s\); the segmenter asks for band 2"):
        ImageRun.of(settings, grey.spec)


@pytest.mark.parametrize("objects", [None, Objects()], ids=["bands of the model", "all bands"])
def test_the_model_sees_its_bands_whichever_are_read(bench, pixels, everywhere, brighter, objects):
    """Band means of objects are of all bands."""
    settings = bench.settings(brighter(90, band=3), objects=objects)
    run = ImageRun.of(settings, bench.plan("photo", pixels).spec)
    read = pixels[..., [band - 1 for band in run.source.bands]]

    seen = [run.segment_tile(Memory(read, everywhere), tile)[0].states["area"] for tile in run.grid]

    assert run.spec.bands == (3,)
    assert run.source.bands == ((3,) if objects is None else (1, 2, 3))
    counts = np.sum([state["counts"] for state in seen], axis=0)
    assert counts[1] == (pixels[..., 2] > 90).sum()


@dataclass(frozen=True)
class Unwilling:
    """A segmenter that must not be asked."""

    classes = ("any",)

    def segment(self, block):
        raise AssertionError("a tile without data was segmented")


def test_a_tile_without_data_is_not_segmented(bench, pixels, everywhere, brighter):
    from dataclasses import replace

    settings = bench.settings(brighter())
    run = ImageRun.of(settings, bench.plan("photo", pixels).spec)
    run = replace(run, model=Unwilling())

    part, labels = run.segment_tile(Memory(pixels[..., :1], ~everywhere), run.grid[0])

    assert part.states["area"]["nodata"] == 16 * 16
    assert part.states["area"]["counts"] == [0]
    assert labels is None


def test_the_second_pass_encodes_the_objects_that_the_first_has_found(bench, pixels, everywhere):
    """In one tile, where nothing has to be joined, ids are those of scikit-image."""
    from skimage.measure import label

    settings = bench.settings(ConnectedParts(Threshold(value=140, band=1)).start(), tile=256)
    run = ImageRun.of(settings, bench.plan("photo", pixels).spec)
    (tile,) = run.grid
    first, labels = run.segment_tile(Memory(pixels[..., :1], everywhere), tile)
    assert not first.blocks, "ids are not known yet"
    (relabelling,) = run.join([labels])
    count = relabelling.numbers.greatest

    second = run.relabel_tile(tile, labels.labels, relabelling, count)

    expected = label(pixels[..., 0] > 140, connectivity=2)
    assert count == expected.max()
    assert len(second.blocks) == 1
    assert second.states["area"]["counts"][1] == (expected > 0).sum()


def test_a_mask_of_more_objects_than_its_format_can_number_is_a_tiff(bench, pixels):
    settings = bench.settings(ConnectedParts(Threshold(value=140)).start())
    run = ImageRun.of(settings, bench.plan("photo", pixels).spec)
    most = MASKS[FORMATS["picture"].mask].most_objects

    assert run.mask_writer(most) is MASKS[FORMATS["picture"].mask]
    assert run.mask_writer(most + 1) is MASKS[FORMATS["tiff"].mask]


def test_classes_of_a_mask_are_never_too_many_objects(bench, pixels, brighter):
    settings = bench.settings(brighter())
    run = ImageRun.of(settings, bench.plan("photo", pixels).spec)
    assert run.mask_writer(10**9) is MASKS[FORMATS["picture"].mask]


def test_objects_are_of_the_classes_that_are_asked_for_and_never_of_the_background():
    names = ("Background", "road", "field")

    assert components_of(Objects(), names).classes == (1, 2)
    assert components_of(Objects(classes=("field", "Background")), names).classes == (2, 0)
    with pytest.raises(ModelMismatch, match=r"no class 'lake'\. Its classes are Background, road"):
        components_of(Objects(classes=("road", "lake")), names)
