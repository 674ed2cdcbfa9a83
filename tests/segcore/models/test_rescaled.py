"""Images shown to a model at its pixel size: against Pillow, and equal under any tiling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.geometry import Box, Grid
from maskloom.segcore.ground.space import Metric, Space
from maskloom.segcore.models.files import dump_model, load_model
from maskloom.segcore.models.protocols import MODELS, Exactness, Requirements, requirements_of
from maskloom.segcore.models.rescaled import Rescaled
from maskloom.segcore.pipeline.in_memory import segment_source
from maskloom.segcore.raster.spec import Block, Labels, RasterSpec
from maskloom.segcore.testing import segmenters as check

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELLS = data.coins()[:211, :307, np.newaxis]
"""Prime sides."""


@dataclass(frozen=True, slots=True)
class Bright:
    """Class 1 where the sum of a square around the pixel, zeros beyond the border, exceeds a
    number: it sees as many pixels as its halo, and where the border is.
    """

    threshold: float = 25 * 100.0
    halo: int = 2

    exactness: ClassVar[Exactness] = Exactness.EXACT
    classes: ClassVar[tuple[str, ...]] = ("dark", "bright")

    @property
    def requirements(self) -> Requirements:
        return Requirements(self.halo, planar=True)

    def select(self, spec: RasterSpec) -> RasterSpec:
        return spec

    def _sums(self, block: Block) -> NDArray[np.float32]:
        values = np.pad(block.pixels[..., 0].astype(np.float32), self.halo)
        height, width = block.valid.shape
        side = range(2 * self.halo + 1)
        return sum(values[y : y + height, x : x + width] for y in side for x in side)  # type: ignore[return-value]

    def segment(self, block: Block) -> Labels:
        return Labels((self._sums(block) > self.threshold).astype(np.uint8))

    def scores(self, block: Block) -> NDArray[np.float32]:
        bright = 1 / (1 + np.exp(-(self._sums(block) - self.threshold) / 100))
        return np.stack([1 - bright, bright], axis=-1).astype(np.float32)

    def provenance(self) -> dict[str, Any]:
        return {"threshold": self.threshold}


@dataclass(frozen=True, slots=True, eq=False)
class Measured(check.Picture):
    """A picture whose pixels have a size."""

    spacing: tuple[float, ...] = (0.5, 0.5)

    @property
    def spec(self) -> RasterSpec:
        plain = check.Picture.spec.fget(self)  # type: ignore[attr-defined]
        return replace(plain, space=Space(metric=Metric(self.spacing, "um"), axes=plain.space.axes))


def picture(spacing: tuple[float, ...], holes: bool = True) -> Measured:
    valid = np.ones(CELLS.shape[:2], bool)
    if holes:
        valid[50:90, 100:130] = valid[-1] = False
    return Measured(CELLS, valid, spacing=spacing)


class Shown:
    """A model that keeps what it is shown."""

    exactness, classes, requirements = Exactness.EXACT, ("all",), Requirements(0, planar=True)

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def select(self, spec: RasterSpec) -> RasterSpec:
        return spec

    def segment(self, block: Block) -> Labels:
        self.blocks.append(block)
        return Labels(np.zeros(block.valid.shape, np.uint8))

    def scores(self, block: Block) -> Any:
        raise NotImplementedError

    def provenance(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    "spacing", [(0.25, 0.25), (0.2, 0.31), (1.3, 1.3), (0.5, 1.9), (0.13, 0.5)]
)
def test_the_model_sees_what_pillow_resamples(
    monkeypatch: pytest.MonkeyPatch, spacing: tuple[float, float]
) -> None:
    monkeypatch.setattr("maskloom.segcore.models.rescaled._SIDE", 4096)
    shown = Shown()
    segment_source(Rescaled(shown, 0.5), picture(spacing, holes=False))
    (block,) = shown.blocks
    shape = tuple(round(n * each / 0.5) for n, each in zip(CELLS.shape, spacing, strict=False))
    assert block.spec.shape == shape
    expected = np.asarray(
        Image.fromarray(CELLS[..., 0].astype(np.float32)).resize(
            shape[::-1], Image.Resampling.BILINEAR
        )
    )
    # At the border Pillow leaves out what is beyond, where here the last pixel is repeated.
    margin = tuple(-(-2 * n // side) for n, side in zip(shape, CELLS.shape, strict=False))
    inside = Box.whole(shape).grow(tuple(-n for n in margin)) & block.tile.read
    np.testing.assert_allclose(
        block.pixels[inside.relative_to(block.tile.read).slices][..., 0],
        expected[inside.slices],
        atol=0.01,
    )


@given(
    spacing=st.tuples(st.floats(0.126, 1.99), st.floats(0.126, 1.99)),
    tile=st.tuples(st.integers(1, 120), st.integers(20, 300)),
)
def test_labels_do_not_depend_on_the_tiling(
    spacing: tuple[float, float], tile: tuple[int, int]
) -> None:
    model, image = Rescaled(Bright(), 0.5), picture(spacing)
    one, many = check.labelled(model, image), check.labelled(model, image, tile)
    assert np.count_nonzero((one != many) & image.valid) == 0


def test_large_images_are_worked_on_in_squares_of_one_grid(monkeypatch: Any) -> None:
    image = picture((0.3, 0.8))
    whole = check.labelled(Rescaled(Bright(), 0.5), image)
    monkeypatch.setattr("maskloom.segcore.models.rescaled._SIDE", 32)
    for tile in (None, (64, 64), (50, 71)):
        np.testing.assert_array_equal(check.labelled(Rescaled(Bright(), 0.5), image, tile), whole)


@pytest.mark.parametrize("spacing", [(0.3, 1.1), (0.14, 0.2)])
def test_a_core_as_large_as_the_block_is_right_a_halo_away_from_its_sides(
    spacing: tuple[float, float],
) -> None:
    model, image = Rescaled(Bright(), 0.5), picture(spacing)
    whole, halo = check.labelled(model, image), model.halo_of(image.spec)
    for block in image.blocks(model, (90, 90)):
        read = block.tile.read
        labels = model.segment(replace(block, tile=replace(block.tile, core=read))).values
        inside = read.grow((-halo, -halo)) if min(read.shape) > 2 * halo else block.tile.core
        part = inside.relative_to(read).slices
        np.testing.assert_array_equal(
            labels[part][block.valid[part]], whole[inside.slices][image.valid[inside.slices]]
        )


@pytest.mark.parametrize("side", [0.126, 0.52, 0.8])
def test_the_halo_is_hardly_larger_than_what_a_pixel_depends_on(side: float) -> None:
    model, image = Rescaled(Bright(), 0.5), picture((side, side))
    whole, halo = check.labelled(model, image), requirements_of(model, image.spec).halo
    assert halo <= model.requirements.halo

    def differs(halo: int) -> bool:
        labels = np.zeros_like(whole)
        for tile in Grid(image.valid.shape, (64, 64), halo):
            labels[tile.core.slices] = tile.trim(
                model.segment(image.block(tile, image.spec)).values
            )
        return not np.array_equal(labels[image.valid], whole[image.valid])

    assert not differs(halo)
    assert differs(halo - 2 - int(0.5 / side))


def test_scores_and_labels_agree() -> None:
    model, image = Rescaled(Bright(), 0.5), picture((0.3, 1.1))
    for block in image.blocks(model, (64, 100)):
        core = block.tile.core.relative_to(block.tile.read).slices
        labels, scores = model.segment(block).values[core], model.scores(block)[core]
        np.testing.assert_array_equal(labels, scores.argmax(axis=-1))
        np.testing.assert_allclose(scores.sum(axis=-1), 1, atol=1e-6)
        together = model.segment_and_score(block)
        np.testing.assert_array_equal(together[0].values[core], labels)
        np.testing.assert_array_equal(together[1][core], scores)


def test_objects_keep_their_place_and_size() -> None:
    """Twice as many pixels along each side give the labels of the image itself, but for borders."""
    fine = Measured(
        np.kron(CELLS, np.ones((2, 2, 1), np.uint8)),
        np.ones((422, 614), bool),
        spacing=(0.25, 0.25),
    )
    own = check.labelled(Bright(), picture((0.5, 0.5), holes=False))
    found = check.labelled(Rescaled(Bright(), 0.5), fine)
    assert (found[::2, ::2] == own).mean() > 0.99
    assert (found == np.kron(own, np.ones((2, 2), np.uint8))).mean() > 0.99


def test_pixels_of_about_the_size_or_of_no_stated_size_are_shown_as_they_are() -> None:
    plain = check.Picture(CELLS, np.ones(CELLS.shape[:2], bool))
    own = check.labelled(Bright(), plain)
    for image in (plain, picture((0.499, 0.47), holes=False)):
        model = Rescaled(Bright(), 0.5)
        np.testing.assert_array_equal(check.labelled(model, image, (64, 64)), own)
        assert model.caution(image.spec, {}) is None


def test_what_was_resampled_is_recorded() -> None:
    model = Rescaled(Bright(), 0.5)
    assert model.provenance()["pixel_size"] == "0.5 um"
    assert model.caution(picture((0.25, 0.25)).spec, {}) == (
        "shown to the network with pixels of 0.5 um, those of its training; the image has 0.25 um"
    )


def test_pixels_of_quite_another_size_are_refused() -> None:
    model = Rescaled(Bright(), 0.5)
    for spacing in ((2.0, 2.0), (0.125, 0.125)):
        assert model.select(picture(spacing).spec)
    for spacing in ((2.1, 0.5), (0.5, 0.12)):
        with pytest.raises(ModelMismatch, match=r"trained on 0\.5 um.*Choose another `level`"):
            model.select(picture(spacing).spec)


def test_volumes_are_resampled_plane_by_plane() -> None:
    volume = np.stack([CELLS, CELLS[::-1], 255 - CELLS])
    valid = np.ones(volume.shape[:3], bool)
    image = Measured(volume, valid, spacing=(5.0, 0.3, 0.8))
    model = Rescaled(Bright(), 0.5)
    found = check.labelled(model, image, (1, 64, 100))
    for plane, labels in zip(volume, found, strict=True):
        expected = check.labelled(model, Measured(plane, valid[0], spacing=(0.3, 0.8)))
        np.testing.assert_array_equal(labels, expected)


def test_the_model_survives_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS._registered, "bright", Bright)
    model = Rescaled(Bright(), 0.5)
    assert load_model(dump_model(model)) == model
