"""The reader of Zarr: axes, OME-Zarr, and what is refused. What any format promises is tested by
the contract.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskloom.segcore import formats
from maskloom.segcore.errors import FormatError, ReadError, Unavailable
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS

zarr = pytest.importorskip("zarr")
FORMAT = FORMATS["zarr"]
DRAW = np.random.default_rng(1)


def read(path: Path, bands: tuple[int, ...] | None = None) -> np.ndarray:
    spec = formats.describe(str(path)).select(bands)
    with formats.open_image(spec) as reader:
        return reader.read(Box.whole(spec.shape))[0]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("y", "x", "c"), "yxc"),
        (("c", "y", "x"), "yxc"),
        (("x", "c", "y"), "yxc"),
        (("c", "z", "y", "x"), "zyxc"),
        (("z", "y", "x", "channel"), "zyxc"),
    ],
)
def test_axes_are_taken_by_their_names(tmp_path, names, expected):
    sizes = {"z": 3, "y": 11, "x": 13, "c": 4, "channel": 4}
    values = DRAW.integers(0, 99, [sizes[name] for name in names]).astype(np.uint8)
    zarr.create_array(
        tmp_path / "a.zarr", data=values, chunks=(2,) * len(names), dimension_names=names
    )

    pixels = read(tmp_path / "a.zarr")

    letters = "".join(name[0] for name in names)
    np.testing.assert_array_equal(pixels, np.einsum(f"{letters}->{expected}", values))
    np.testing.assert_array_equal(read(tmp_path / "a.zarr", (4, 2)), pixels[..., [3, 1]])


def test_a_volume_without_names_is_z_y_x(tmp_path):
    values = DRAW.integers(0, 99, (3, 4, 5), np.int16)
    zarr.create_array(tmp_path / "a.zarr", data=values, zarr_format=2)
    np.testing.assert_array_equal(read(tmp_path / "a.zarr")[..., 0], values)


def test_xarray_names_the_axes_in_version_2(tmp_path):
    values = DRAW.integers(0, 99, (3, 4, 5), np.int16)
    array = zarr.create_array(tmp_path / "a.zarr", data=values, zarr_format=2)
    array.attrs["_ARRAY_DIMENSIONS"] = ["band", "y", "x"]
    np.testing.assert_array_equal(read(tmp_path / "a.zarr"), np.moveaxis(values, 0, -1))


def test_the_full_resolution_of_ome_zarr_is_read_in_both_versions(tmp_path):
    values = DRAW.integers(0, 99, (1, 2, 8, 9), np.uint16)
    for version, attributes in ((2, lambda each: each), (3, lambda each: {"ome": each})):
        path = tmp_path / f"{version}.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=version)
        group.create_array("full", data=values)
        group.create_array("half", data=values[..., ::2, ::2])
        axes = [{"name": name} for name in ("t", "c", "y", "x")]
        scales = [{"axes": axes, "datasets": [{"path": "full"}, {"path": "half"}]}]
        group.attrs.update(attributes({"multiscales": scales}))
        np.testing.assert_array_equal(read(path), np.moveaxis(values[0], 0, -1))


@pytest.mark.parametrize("version", [2, 3])
def test_the_size_of_a_pixel_is_that_of_the_scales_where_all_axes_have_a_unit(tmp_path, version):
    def made(name, units, scale=(1, 2.5, 0.5, 0.25)):
        group = zarr.open_group(tmp_path / name, mode="w", zarr_format=version)
        group.create_array("0", data=np.zeros((2, 3, 4, 5), np.uint8))
        axes = [{"name": each, **unit} for each, unit in zip("czyx", units, strict=True)]
        dataset = {
            "path": "0",
            "coordinateTransformations": [
                {"type": "scale", "scale": scale},
                {"type": "translation", "translation": [0, 1, 1, 1]},
            ],
        }
        image = {
            "axes": axes,
            "datasets": [dataset],
            "coordinateTransformations": [{"type": "scale", "scale": [1, 2, 2, 2]}],
        }
        group.attrs.update(
            {"multiscales": [image]} if version == 2 else {"ome": {"multiscales": [image]}}
        )
        return FORMAT.describe(str(tmp_path / name), "").space

    micro = {"unit": "micrometer"}
    space = made("units.zarr", [{}, micro, micro, {"unit": "nanometer"}])
    assert (space.axes, space.unit) == (("z", "y", "x"), "mm3")
    assert space.metric is not None
    np.testing.assert_allclose(space.metric.spacing, (5e-3, 1e-3, 5e-7), rtol=1e-12)
    for units in ([{}] * 4, [{}, {}, micro, micro], [{}, micro, micro, {"unit": "parsec"}]):
        assert made("px.zarr", units).unit == "px"
    assert made("zero.zarr", [{}, micro, micro, micro], (1, 1, 0, 1)).unit == "px"


def test_chunks_that_are_not_stored_have_the_fill_value(tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(8, 8), chunks=(4, 4), dtype="uint8", fill_value=7
    )
    array[:4, :4] = 1
    expected = np.full((8, 8), 7)
    expected[:4, :4] = 1
    np.testing.assert_array_equal(read(tmp_path / "a.zarr")[..., 0], expected)


def named(path: Path, shape: tuple[int, ...], names: tuple[str, ...]) -> None:
    zarr.create_array(path, shape=shape, dtype="uint8", dimension_names=names)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: named(p, (3, 4, 5), ("t", "y", "x")), "t of length 3"),
        (lambda p: named(p, (3, 4, 5), ("z", "x", "c")), "no image with the axes y and x"),
        (lambda p: named(p, (3, 3, 4, 5), ("c", "band", "y", "x")), "no image with the axes"),
        (lambda p: zarr.create_array(p, shape=(9,), dtype="uint8"), "no image with the axes"),
        (lambda p: zarr.create_array(p, shape=(0, 9), dtype="uint8"), "is empty"),
        (lambda p: zarr.create_array(p, shape=(4, 9), dtype="complex64"), "holds complex64"),
        (
            lambda p: zarr.create_array(
                p, shape=(2**15, 2**15), chunks=(2**15, 2**15), dtype="uint8"
            ),
            "smaller chunks",
        ),
        (lambda p: zarr.open_group(p, mode="w").create_group("a"), r"without `multiscales`"),
        (lambda p: (p.mkdir(), (p / "zarr.json").write_text("{")), "cannot be read as Zarr"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, write, message):
    write(tmp_path / "a.zarr")
    with pytest.raises(FormatError, match=message):
        FORMAT.describe(str(tmp_path / "a.zarr"), "")


def test_a_damaged_chunk_is_a_read_error(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=DRAW.integers(0, 99, (9, 9)))
    (tmp_path / "a.zarr" / "c" / "0" / "0").write_bytes(b"damage")
    with pytest.raises(ReadError, match=r"a\.zarr: the chunks from \(0, 0\)"):
        read(tmp_path / "a.zarr")


def test_a_store_that_fails_is_tried_again_by_the_next_run(tmp_path, monkeypatch):
    zarr.create_array(tmp_path / "a.zarr", data=DRAW.integers(0, 99, (9, 9)))
    spec = FORMAT.describe(str(tmp_path / "a.zarr"), "")

    async def failing(*_, **__):
        raise ConnectionError("no route to host")

    with FORMAT.open(spec) as reader:
        monkeypatch.setattr(zarr.storage.FsspecStore, "get", failing)
        with pytest.raises(Unavailable, match="no route to host"):
            reader.read(Box.whole(spec.shape))
    with pytest.raises(Unavailable, match="no route to host"):
        FORMAT.describe(str(tmp_path / "a.zarr"), "")


def test_a_zipped_array_is_told_from_a_folder(tmp_path):
    (tmp_path / "a.zarr").write_bytes(b"PK\3\4" + bytes(60))
    with pytest.raises(
        FormatError, match=r"Zarr by its suffix \.zarr, but its content is ZIP\. Unpack"
    ):
        formats.format_of(str(tmp_path / "a.zarr"), (tmp_path / "a.zarr").read_bytes())


def test_without_the_package_the_message_names_the_extra(tmp_path, monkeypatch):
    zarr.create_array(tmp_path / "a.zarr", data=np.zeros((4, 4)))
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(FormatError, match=r"pip install 'maskloom\[zarr\]'"):
        FORMAT.describe(str(tmp_path / "a.zarr"), "")


def test_an_array_in_s3_is_read_like_that_on_a_disk(tmp_path, s3_bucket):
    import fsspec

    values = DRAW.integers(0, 99, (40, 50), np.uint16)
    zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(16, 16))
    location = f"{s3_bucket}/{tmp_path.name}/a.zarr"
    fs, path = fsspec.core.url_to_fs(location)
    fs.put(str(tmp_path / "a.zarr"), path, recursive=True)
    spec = FORMAT.describe(location, "")
    with FORMAT.open(spec) as reader:
        pixels, _ = reader.read(Box((3, 5), (33, 48)))
    np.testing.assert_array_equal(pixels[..., 0], values[3:33, 5:48])
