"""A mask is put in the order of its image's voxels where both lie at one place; nibabel, which
re-orients by itself, is the oracle.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from maskloom.segcore import formats
from maskloom.segcore.annotations.masks import open_mask
from maskloom.segcore.annotations.places import Turn, fit
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.space import Frame, Space
from maskloom.segcore.raster.spec import RasterSpec

nib = pytest.importorskip("nibabel")

OBLIQUE = np.array(
    [[1.2, -0.3, 0.4, 12.5], [0.32, 0.9, 0.2, -7], [-0.5, 0.1, 2.6, 40], [0, 0, 0, 1]]
)
"""Tilted against the axes of the scanner, with three different distances."""
ORIENTATIONS = [
    np.array(list(zip(axes, signs, strict=True)))
    for axes in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 250, (7, 6, 5)).astype(np.uint8)


def nifti(
    path: Path, voxels: np.ndarray, affine: np.ndarray = OBLIQUE, code: int = 1
) -> RasterSpec:
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine if code else None, code)
    image.set_qform(affine if code else None, code)
    nib.save(image, path)
    return formats.describe(str(path))


def test_all_orders_of_the_axes_are_read_in_that_of_the_image(tmp_path: Path) -> None:
    voxels = labels()
    image = nifti(tmp_path / "image.nii", voxels)
    turns = set()
    for number, orientation in enumerate(ORIENTATIONS):
        turned = nib.Nifti1Image(voxels, OBLIQUE).as_reoriented(orientation)
        mask = nifti(tmp_path / f"{number}.nii", np.asarray(turned.dataobj), turned.affine)
        found = fit(mask, image)
        assert (found.placing, found.same_shape, found.elsewhere) == ("by position", True, "")
        turns.add(found.turn)
        with open_mask(mask, "index", found.turn) as reader:
            whole, known = reader.read(Box.whole(image.shape))
            np.testing.assert_array_equal(whole, voxels.T)
            assert known.all()
            for box in (Box((1, 0, 2), (3, 4, 7)), Box((4, 5, 0), (5, 6, 1))):
                np.testing.assert_array_equal(reader.read(box)[0], voxels.T[box.slices])
    assert len(turns) == len(ORIENTATIONS) == 48


MOVED = OBLIQUE + np.array([[0, 0, 0, 0.5]] * 3 + [[0, 0, 0, 0]])
TURNED = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ OBLIQUE


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        pytest.param(MOVED, "with the same index are up to 0.866 mm apart", id="shifted"),
        pytest.param(TURNED, "up to .* mm apart", id="turned"),
        pytest.param(
            OBLIQUE @ np.diag([1, 1.1, 1, 1]),
            "its voxels are 1.339 x 1.049 x 2.638 mm apart, not 1.339 x 0.9539 x 2.638 mm",
            id="another distance",
        ),
    ],
)
def test_other_places_are_no_fit(tmp_path: Path, affine: np.ndarray, words: str) -> None:
    image, mask = (
        nifti(tmp_path / f"{name}.nii", labels(), of)
        for name, of in (("image", OBLIQUE), ("mask", affine))
    )
    assert re.search(words, fit(mask, image).elsewhere)


def test_rounding_is_no_other_place(tmp_path: Path) -> None:
    image = nifti(tmp_path / "image.nii", labels())
    mask = nifti(tmp_path / "mask.nii", labels(), OBLIQUE.round(2))
    assert fit(mask, image).elsewhere == ""


def test_other_sizes_are_told_from_other_orders(tmp_path: Path) -> None:
    image = nifti(tmp_path / "image.nii", labels())
    assert not fit(nifti(tmp_path / "mask.nii", labels()[:6]), image).same_shape
    swapped = nib.Nifti1Image(labels(), OBLIQUE).as_reoriented(ORIENTATIONS[20])
    one = nifti(tmp_path / "swapped.nii", np.asarray(swapped.dataobj)[:-1], swapped.affine)
    assert not fit(one, image).same_shape
    # The header of one exchanges two axes of different length.
    turned = nifti(tmp_path / "turned.nii", labels(), OBLIQUE[:, [1, 0, 2, 3]])
    assert fit(turned, image).same_shape
    assert fit(turned, image).elsewhere == "its axes point in other directions"


def test_without_both_places_the_order_of_the_files_counts(tmp_path: Path) -> None:
    image = nifti(tmp_path / "image.nii", labels())
    mirrored = OBLIQUE @ np.diag([1, -1, 1, 1])
    unplaced = nifti(tmp_path / "mask.nii", labels(), mirrored, code=0)
    bare = replace(unplaced, space=Space(axes=unplaced.space.axes))
    for mask in (unplaced, bare):
        for pair, placing in (
            ((mask, image), "by index of one"),
            ((image, mask), "by index of one"),
            ((mask, unplaced), "by index"),
        ):
            found = fit(*pair)
            assert (found.turn, found.placing, found.elsewhere) == (Turn.none(3), placing, "")
            assert found.same_shape


def test_the_thickness_of_a_single_slice_does_not_matter(tmp_path: Path) -> None:
    slice_ = labels()[:, :, :1]
    image = nifti(tmp_path / "image.nii", slice_)
    thick = nifti(tmp_path / "mask.nii", slice_, OBLIQUE @ np.diag([1, 1, 4, 1]))
    assert fit(thick, image) == fit(image, image)
    flat = [
        replace(
            spec,
            shape=spec.shape[1:],
            chunks=spec.chunks[1:],
            space=Space(frame=Frame(tuple(affine[:3].ravel()))),
        )
        for spec, affine in ((thick, OBLIQUE @ np.diag([-1, 1, 4, 1])), (image, OBLIQUE))
    ]
    assert fit(*flat).elsewhere
    shift = np.array([[1, 0, 0, 6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    ends = tuple((OBLIQUE @ shift @ np.diag([-1, 1, 4, 1]))[:3].ravel())
    turned = fit(replace(flat[0], space=Space(frame=Frame(ends))), flat[1])
    assert (turned.turn, turned.elsewhere) == (Turn((0, 1), (False, True)), "")
