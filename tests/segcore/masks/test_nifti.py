"""Masks as NIfTI: nibabel reads what was written, in the place of the source."""

from __future__ import annotations

import gzip
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from maskloom.segcore.errors import RunError
from maskloom.segcore.geometry import Grid, Shape
from maskloom.segcore.ground.space import AXES, Frame, Metric, Space
from maskloom.segcore.masks import EncodedBlock, PublishedMask
from maskloom.segcore.masks.nifti import NiftiMasks
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.spec import FORMATS, RasterSpec
from maskloom.segcore.storage.store import Store

nibabel = pytest.importorskip("nibabel")
CLASSES = ClassTable.of(("background", 'the "liver"', "tumour"))
MANY = ClassTable.of(tuple(f"class {i}" for i in range(300)))
TURNS = [
    np.eye(3)[list(order)] * np.array(signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
"""The 48 ways to lay the axes of a volume along those of the body."""


def spec_of(shape: Shape, space: Space | None = None) -> RasterSpec:
    space = space or Space(axes=AXES[-len(shape) :])
    return RasterSpec("a.nii.gz", "nifti", shape, (1,), "uint8", shape, "1", 1, space=space)


def framed(shape: Shape, affine: np.ndarray, **codes: object) -> RasterSpec:
    frame = Frame(tuple(np.asarray(affine, float)[:3].ravel().tolist()), **codes)
    return spec_of(shape, Space(frame=frame, axes=AXES[-len(shape) :]))


def blocks_of(labels: np.ndarray, tile: Shape) -> list[EncodedBlock]:
    spec = spec_of(labels.shape)
    return [
        block
        for each in Grid(labels.shape, tile)
        for block in NiftiMasks().encode(labels[each.core.slices], each, spec, tile)
    ]


def publish(
    folder: Path,
    blocks: list[EncodedBlock],
    spec: RasterSpec,
    tile: Shape,
    classes: ClassTable = CLASSES,
) -> PublishedMask:
    return NiftiMasks().publish(Store(str(folder)), "m.nii.gz", blocks, spec, classes, tile)


def written(folder: Path, labels: np.ndarray, spec: RasterSpec) -> object:
    """The mask of a volume in one tile, as nibabel opens it."""
    publish(folder, blocks_of(labels, labels.shape), spec, labels.shape)
    return nibabel.load(folder / "m.nii.gz")


@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    sides=st.tuples(*[st.integers(1, 5)] * 3),
    dtype=st.sampled_from(["uint8", "uint16", "uint32"]),
    seed=st.integers(0, 9),
)
def test_nibabel_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    shape: list[int],
    sides: tuple[int, ...],
    dtype: str,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("masks")
    classes = MANY if dtype == "uint16" else CLASSES
    labels = np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)
    tile = sides[: len(shape)]
    blocks = blocks_of(labels, tile)
    random.Random(seed).shuffle(blocks)
    publish(folder, blocks, spec_of(tuple(shape)), tile, classes)

    found = nibabel.load(folder / "m.nii.gz")
    assert found.get_data_dtype() == dtype
    # One slice for an image: (x, y, 1) of NIfTI is (1, y, x).
    expected = labels.reshape(-1, *labels.shape[-2:])
    np.testing.assert_array_equal(np.asanyarray(found.dataobj).transpose(2, 1, 0), expected)


@pytest.mark.parametrize("turn", TURNS, ids=range(48))
@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (4, 2)], ids=str)
def test_every_orientation_is_that_of_the_source(
    tmp_path: Path, turn: np.ndarray, codes: tuple[int, int]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = turn * [0.75, 1.5, 3.25]
    affine[:3, 3] = [-90.5, 125.25, -71.0]
    spec = framed((2, 3, 4), affine, sform_code=codes[0], qform_code=codes[1])
    found = written(tmp_path, np.zeros((2, 3, 4), np.uint8), spec)
    assert (found.header["sform_code"], found.header["qform_code"]) == codes
    if codes[0]:
        np.testing.assert_array_equal(found.affine, affine)
    if codes[1]:
        np.testing.assert_allclose(found.header.get_qform(), affine, atol=1e-5)
    np.testing.assert_array_equal(found.header.get_zooms(), [0.75, 1.5, 3.25])


@given(
    numbers=st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3),
    places=st.lists(st.floats(-300, 300, width=32), min_size=3, max_size=3),
    zooms=st.lists(st.floats(0.0625, 8, width=32), min_size=3, max_size=3),
    factor=st.sampled_from([1.0, -1.0]),
)
def test_a_quaternion_of_the_source_is_repeated_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    numbers: list[float],
    places: list[float],
    zooms: list[float],
    factor: float,
) -> None:
    length = max(1.0, float(np.linalg.norm(numbers)))
    numbers = np.float32([each / (length + 1e-6) for each in numbers]).tolist()
    source = nibabel.Nifti1Header()
    source.set_data_shape((4, 3, 2))
    source["quatern_b"], source["quatern_c"], source["quatern_d"] = numbers
    source["qoffset_x"], source["qoffset_y"], source["qoffset_z"] = places
    source["pixdim"][:4] = [factor, *zooms]
    source["qform_code"] = 1
    spec = framed(
        (2, 3, 4),
        source.get_qform(),
        sform_code=0,
        qform_code=1,
        qform=(*numbers, *places, *zooms, factor),
    )
    found = written(tmp_path_factory.mktemp("q"), np.zeros((2, 3, 4), np.uint8), spec)
    np.testing.assert_array_equal(found.affine, source.get_best_affine())
    # Without the numbers, the rotation is found again to the precision of the file.
    alone = framed((2, 3, 4), source.get_qform(), sform_code=0, qform_code=1)
    found = written(tmp_path_factory.mktemp("a"), np.zeros((2, 3, 4), np.uint8), alone)
    np.testing.assert_allclose(found.affine, source.get_best_affine(), atol=5e-3)


def test_a_sheared_affine_is_kept_and_not_said_as_a_rotation(tmp_path: Path) -> None:
    affine = np.array([[0.7, 0, 0, 1], [0, 0.7, 1.25, 2], [0, 0, 4.75, 3], [0, 0, 0, 1]])
    spec = framed((2, 3, 4), np.float32(affine), sform_code=1, qform_code=1)
    found = written(tmp_path, np.zeros((2, 3, 4), np.uint8), spec)
    np.testing.assert_array_equal(found.affine, np.float32(affine).astype(float))
    assert found.header["qform_code"] == 0
    assert spec.space.frame is not None
    determinant = abs(np.linalg.det(np.float32(affine).astype(float)))
    assert np.prod(spec.space.frame.spacing) == pytest.approx(determinant, rel=1e-12)


def test_numbers_of_double_precision_and_long_axes_need_the_second_version(tmp_path: Path) -> None:
    affine = np.diag([1 / 3, 2 / 3, 0.1, 1])
    found = written(tmp_path, np.ones((2, 3, 4), np.uint8), framed((2, 3, 4), affine, double=True))
    assert isinstance(found, nibabel.Nifti2Image)
    np.testing.assert_array_equal(found.affine, affine)
    assert (found.header["intent_code"], found.header["cal_max"]) == (1002, 2)
    long = np.arange(40_000, dtype=np.uint32).reshape(1, 1, -1)
    found = written(tmp_path, long, spec_of(long.shape))
    assert isinstance(found, nibabel.Nifti2Image)
    np.testing.assert_array_equal(np.asanyarray(found.dataobj).ravel(), long.ravel())


def test_without_a_position_the_spacing_is_stated(tmp_path: Path) -> None:
    spaces = {
        "volume": Space(metric=Metric((3.0, 0.5, 0.25), "mm"), axes=AXES),
        "image": Space(metric=Metric((500.0, 250.0), "um")),
        "unknown": Space(axes=AXES),
    }
    headers = {
        name: written(
            tmp_path / name,
            np.zeros((2, 3, 4)[-len(space.axes) :], np.uint8),
            spec_of((2, 3, 4)[-len(space.axes) :], space),
        ).header
        for name, space in spaces.items()
    }
    assert headers["volume"].get_zooms() == (0.25, 0.5, 3.0)
    assert headers["image"].get_zooms() == (0.25, 0.5, 1.0)
    assert headers["volume"].get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(headers["volume"].get_sform(), np.diag([0.25, 0.5, 3, 1]))
    unknown = headers["unknown"]
    assert unknown.get_xyzt_units()[0] == "unknown"
    assert (unknown["sform_code"], unknown["qform_code"]) == (0, 0)


def test_labels_are_said_to_be_labels(tmp_path: Path) -> None:
    found = written(tmp_path, np.zeros((2, 3, 4), np.uint8), spec_of((2, 3, 4)))
    header = found.header
    assert (found.dataobj.slope, found.dataobj.inter) == (1, 0)
    assert header.get_intent()[0] == "label"
    assert (header["cal_min"], header["cal_max"]) == (0, 2)
    assert header["magic"] == b"n+1"
    assert not header.extensions
    assert bytes(header["descrip"]).rstrip(b"\0") == b"maskloom"


def test_names_and_colours_are_a_label_description(tmp_path: Path) -> None:
    labels = np.zeros((2, 3, 4), np.uint8)
    mask = publish(tmp_path, blocks_of(labels, (2, 2, 2)), spec_of((2, 3, 4)), (2, 2, 2))
    assert mask.files.keys() == {"", ".txt"}
    lines = (tmp_path / "m.nii.gz.txt").read_text().splitlines()[1:]
    fields = [line.split(maxsplit=7) for line in lines]
    assert [(int(number), name) for number, *_, name in fields] == [
        (0, '"background"'),
        (1, "\"the 'liver'\""),
        (2, '"tumour"'),
        (255, '"no data"'),
    ]
    assert [tuple(map(int, each[1:4])) for each in fields[:3]] == list(CLASSES.colours)
    assert [each[4] for each in fields] == ["0", "1", "1", "0"]
    objects = publish(
        tmp_path, blocks_of(labels.astype(np.uint32), (2, 2, 2)), spec_of((2, 3, 4)), (2, 2, 2)
    )
    assert objects.files.keys() == {""}


def test_the_bytes_depend_on_labels_alone(tmp_path: Path) -> None:
    labels = np.random.default_rng(1).integers(0, 3, (7, 9, 11), np.uint8)
    spec = spec_of(labels.shape)
    digests = set()
    for i, tile in enumerate(((7, 9, 11), (3, 4, 5), (1, 2, 11))):
        blocks = blocks_of(labels, tile)
        digests.add(publish(tmp_path / str(i), blocks + blocks[:3], spec, tile).sha256)
    assert digests == {Store(str(tmp_path / "0")).sha256("m.nii.gz")}
    head = (tmp_path / "0" / "m.nii.gz").read_bytes()[:10]
    assert head[3:8] == bytes(5), "neither a name nor a time"
    assert len(gzip.decompress((tmp_path / "0" / "m.nii.gz").read_bytes())) == 352 + labels.size


def test_a_plane_that_is_missing_foreign_or_double_is_an_error_and_no_file(tmp_path: Path) -> None:
    shape, tile = (2, 4, 4), (2, 2, 2)
    good = blocks_of(np.ones(shape, np.uint8), tile)
    other = blocks_of(np.zeros(shape, np.uint8), tile)
    wide = blocks_of(np.ones(shape, np.uint16), tile)
    empty = EncodedBlock(0, (0, 0, 0), b"")
    for blocks, message in (
        (good[1:], r"lacks 1 of 8 planes of tiles, the first at \(0, 0, 0\)"),
        ([*good, EncodedBlock(0, (9, 9, 9), b"")], "does not belong"),
        ([*good, EncodedBlock(0, (0, -1, 0), b"")], "does not belong"),
        ([*good, other[0]], "came with two contents"),
        ([*good[:7], wide[7]], "is not of uint8"),
        (wide, "ask for uint8"),
        ([empty, *good[1:]], "lacks 1 of 8"),
    ):
        with pytest.raises(RunError, match=message):
            publish(tmp_path, blocks, spec_of(shape), tile)
    assert not (tmp_path / "m.nii.gz").exists()
    with pytest.raises(ValueError, match="int64"):
        blocks_of(np.ones(shape, np.int64), tile)


def test_a_large_mask_goes_through_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskloom.segcore.masks.planes._IN_MEMORY", 100)
    labels = np.random.default_rng(3).integers(0, 255, (5, 40, 40), np.uint8)
    blocks = blocks_of(labels, (2, 16, 16))[::-1]
    publish(tmp_path, blocks, spec_of(labels.shape), (2, 16, 16))
    found = nibabel.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(found.dataobj).transpose(2, 1, 0), labels)


@given(
    kind=st.sampled_from(["Nifti1Image", "Nifti2Image"]),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    numbers=st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3),
    rows=st.lists(st.floats(-4, 4, width=32), min_size=12, max_size=12),
    zooms=st.lists(st.floats(0.0625, 8, width=32), min_size=3, max_size=3),
    factor=st.sampled_from([1.0, -1.0]),
    unit=st.sampled_from([0, 2, 3]),
)
def test_both_transforms_of_a_file_are_in_its_mask(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    codes: tuple[int, int],
    numbers: list[float],
    rows: list[float],
    zooms: list[float],
    factor: float,
    unit: int,
) -> None:
    """A file is read, and its mask written: nibabel finds the same transforms in both."""
    folder = tmp_path_factory.mktemp("both")
    source = getattr(nibabel, kind)(np.zeros((4, 3, 2), np.uint8), np.eye(4))
    length = max(1.0, float(np.linalg.norm(numbers)))
    header = source.header
    for name, number in zip("bcd", numbers, strict=True):
        header[f"quatern_{name}"] = number / (length + 1e-6)
    for i, name in enumerate("xyz"):
        header[f"srow_{name}"] = rows[4 * i : 4 * i + 4]
        header[f"qoffset_{name}"] = rows[4 * i]
    header["pixdim"][:4] = [factor, *zooms]
    header["sform_code"], header["qform_code"] = codes
    header["xyzt_units"] = unit
    determinant = abs(np.linalg.det(header.get_sform()[:3, :3]))
    assume(codes[0] == 0 or determinant > 1e-2)
    path = folder / "a.nii"
    path.write_bytes(header.binaryblock + bytes(4) + bytes(24))

    spec = FORMATS["nifti"].describe(str(path), "1")
    found = written(folder, np.zeros((2, 3, 4), np.uint8), spec)
    oracle = nibabel.load(path)
    # Micrometres become millimetres and micrometres again: the last digit of a double may change.
    most = 1e-15 if unit == 3 else 0
    np.testing.assert_allclose(found.affine, oracle.affine, rtol=most)
    for name in ("sform", "qform"):
        theirs, code = getattr(oracle.header, f"get_{name}")(coded=True)
        ours, own_code = getattr(found.header, f"get_{name}")(coded=True)
        assert own_code == code
        if code:
            np.testing.assert_allclose(ours, theirs, rtol=2 * most, atol=most)
    assert found.header.get_xyzt_units()[0] == oracle.header.get_xyzt_units()[0]
    assert isinstance(found, getattr(nibabel, kind))
