"""The reader of Zarr: axes, OME-Zarr, and what is refused. What any format promises is tested by
the contract.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.segcore import formats
from maskloom.segcore.errors import FormatError, ReadError, Unavailable
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.space import PixelSize
from maskloom.segcore.pipeline.jobs import DescribeJob
from maskloom.segcore.pipeline.reading import describe_source
from maskloom.segcore.raster.source import Source, combined_version, list_folder
from maskloom.segcore.raster.spec import FORMATS, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage

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
    def made(name, units, scale=(1, 2.5, 0.5, 25)):
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
    np.testing.assert_allclose(space.metric.spacing, (5e-3, 1e-3, 5e-5), rtol=1e-12)
    for units in ([{}] * 4, [{}, {}, micro, micro], [{}, micro, micro, {"unit": "parsec"}]):
        assert made("px.zarr", units).unit == "px"
    for number, scale in enumerate([(1, 1, 0, 1), (1, 1, -1, 1), (1, 1, 1, 1e7), (1, 1, 1e-4, 1)]):
        assert made(f"{number}.zarr", [{}, micro, micro, micro], scale).unit == "px"


def test_chunks_that_are_not_stored_have_the_fill_value(tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(8, 8), chunks=(4, 4), dtype="uint8", fill_value=7
    )
    array[:4, :4] = 1
    expected = np.full((8, 8), 7)
    expected[:4, :4] = 1
    np.testing.assert_array_equal(read(tmp_path / "a.zarr")[..., 0], expected)


def named(path: Path, shape: tuple[int, ...], names: tuple[str, ...]) -> None:
    zarr.create_array(
        path, shape=shape, chunks=(1,) * len(shape), dtype="uint8", dimension_names=names
    )


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: named(p, (3, 4, 5), ("q", "y", "x")), "q of length 3"),
        (lambda p: named(p, (3, 4, 5), ("t", "y", "x")), "holds 3 images, the times"),
        (lambda p: named(p, (2**40, 2**40), ("y", "x")), "claims 1208925819614629174706176 pixels"),
        (lambda p: named(p, (9999, 4, 4), ("c", "y", "x")), "in 9999 channels"),
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


# ---- OME-Zarr
# --------------------------------------------------------------------------------------------------

MICRO = {"type": "space", "unit": "micrometer"}
SPATIAL = [{"name": name, **MICRO} for name in "zyx"]


def multiscale(
    path: Path, levels: list[np.ndarray], axes: list[Any], scales: list[Any], version: int = 3
) -> Path:
    """An OME-Zarr image of 0.4 or 0.5."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    datasets = []
    for number, (values, scale) in enumerate(zip(levels, scales, strict=True)):
        group.create_array(str(number), data=values, chunks=tuple(min(n, 8) for n in values.shape))
        steps = [{"type": "scale", "scale": scale}]
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    image = {"axes": axes, "datasets": datasets}
    group.attrs.update(
        {"multiscales": [image]} if version == 2 else {"ome": {"multiscales": [image]}}
    )
    return path


def images(path: Path, **options: Any) -> dict[str, RasterSpec]:
    """The images that a run makes of a folder, by the names of their parts."""
    source = Source(str(path), "a", combined_version(list_folder(str(path))), 1, is_folder=True)
    planned = describe_source(source, DescribeJob((source,), None, ReadOptions(**options)))
    for each in planned:
        assert each.failure is None, each.failure
    return {each.source.part: each.spec for each in planned}


def pixels_of(spec: RasterSpec) -> np.ndarray:
    with FORMAT.open(spec) as reader:
        pixels, valid = reader.read(Box.whole(spec.shape))
    assert valid.all()
    return pixels


@pytest.mark.parametrize("version", [2, 3])
def test_each_time_is_an_image_with_its_channels_as_bands(tmp_path, version):
    values = DRAW.integers(0, 99, (3, 2, 4, 8, 9), np.uint16)
    axes = [{"name": "t", "type": "time", "unit": "second"}, {"name": "dye", "type": "channel"}]
    path = multiscale(tmp_path / "a.zarr", [values], axes + SPATIAL, [[5, 1, 2, 0.5, 0.5]], version)
    found = images(path)
    assert list(found) == ["t0001", "t0002", "t0003"]
    for time, spec in enumerate(found.values()):
        np.testing.assert_array_equal(pixels_of(spec), np.moveaxis(values[time], 0, -1))
        assert spec.space.metric.spacing == pytest.approx((2e-3, 5e-4, 5e-4))
        assert spec.mask == {2: "ome_zarr_2", 3: "ome_zarr"}[version]


def test_levels_are_chosen_by_number_or_size(tmp_path):
    levels = [DRAW.integers(0, 99, (6, 32 >> n, 40 >> n), np.uint8) for n in range(3)]
    scales = [[2, 0.25 * 2**n, 0.25 * 2**n] for n in range(3)]
    path = multiscale(tmp_path / "a.zarr", levels, SPATIAL, scales)
    cases = {
        0: 0,
        2: 2,
        PixelSize((1.0,), "um"): 2,
        PixelSize((0.9,), "um"): 1,
        PixelSize((600.0,), "nm"): 1,
        PixelSize((0.1,), "um"): 0,
        PixelSize((1.0, 1.0, 1.0), "um"): 0,
    }
    for wanted, level in cases.items():
        [spec] = images(path, level=wanted).values()
        assert spec.level == level, wanted
        np.testing.assert_array_equal(pixels_of(spec)[..., 0], levels[level])
        assert spec.space.metric.spacing == pytest.approx(np.array(scales[level]) * 1e-3)
    # The size that the user states is that of full resolution.
    [spec] = images(path, level=1, pixel_size=PixelSize((3.0, 1.0, 1.0), "mm")).values()
    assert spec.space.metric.spacing == (3, 2, 2)
    for wanted, message in ((3, "has 3 levels"), (PixelSize((1.0, 1.0), "um"), None)):
        if message:
            with pytest.raises(FormatError, match=message):
                FORMAT.describe_image(StoredImage(str(path)), ReadOptions(level=wanted))


def test_a_level_by_size_needs_sizes_and_a_plain_array_has_no_levels(tmp_path):
    values = DRAW.integers(0, 99, (8, 9), np.uint8)
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    multiscale(tmp_path / "a.zarr", [values, values[::2, ::2]], axes, [[1, 1], [2, 2]])
    zarr.create_array(tmp_path / "b.zarr", data=values)
    for name, message in (("a.zarr", "`level` must be a number, from 0 to 1"), ("b.zarr", "plain")):
        image = StoredImage(str(tmp_path / name))
        with pytest.raises(FormatError, match=message):
            FORMAT.describe_image(image, ReadOptions(level=PixelSize((1.0,), "um")))
    [spec] = images(tmp_path / "a.zarr", level=1, pixel_size=PixelSize((0.5,), "um")).values()
    assert spec.space.metric.spacing == (1, 1)


def plate(path: Path, values: np.ndarray) -> Path:
    """Two wells of two fields, with a group of labels in one, OME-Zarr 0.4."""
    root = zarr.open_group(path, mode="w", zarr_format=2)
    names = ["A/1", "B/2"]
    root.attrs["plate"] = {"wells": [{"path": name, "rowIndex": 0} for name in names]}
    for number, name in enumerate(names):
        well = root.create_group(name)
        well.attrs["well"] = {"images": [{"path": "0"}, {"path": "1"}]}
        for field in range(2):
            multiscale(
                path / name / str(field), [values + number * 2 + field], SPATIAL, [[1, 1, 1]], 2
            )
    labels = multiscale(path / "A/1/0/labels/cells", [values], SPATIAL, [[1, 1, 1]], 2)
    zarr.open_group(labels.parent, mode="a", zarr_format=2).attrs["labels"] = ["cells"]
    return path


def test_each_field_of_a_plate_is_an_image_and_labels_are_none(tmp_path):
    values = DRAW.integers(0, 99, (2, 8, 9), np.uint8)
    path = plate(tmp_path / "a.zarr", values)
    found = images(path)
    assert list(found) == ["A_1_0", "A_1_1", "B_2_0", "B_2_1"]
    for number, spec in enumerate(found.values()):
        np.testing.assert_array_equal(pixels_of(spec)[..., 0], values + number)
    well = images(path / "B" / "2")
    assert list(well) == ["0", "1"]
    np.testing.assert_array_equal(pixels_of(well["1"])[..., 0], values + 3)
    with pytest.raises(FormatError, match=r"holds 4 images \(A/1/0, A/1/1 \.\.\.\)"):
        FORMAT.describe(str(path), "")


def test_each_series_of_a_converted_file_is_an_image(tmp_path):
    values = DRAW.integers(0, 99, (2, 8, 9), np.uint8)
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    root.create_group("OME")
    multiscale(tmp_path / "a.zarr" / "0", [values], SPATIAL, [[1, 1, 1]], 2)
    assert list(images(tmp_path / "a.zarr")) == [""]
    multiscale(tmp_path / "a.zarr" / "1", [values + 1], SPATIAL, [[1, 1, 1]], 2)
    found = images(tmp_path / "a.zarr")
    assert list(found) == ["0", "1"]
    np.testing.assert_array_equal(pixels_of(found["1"])[..., 0], values + 1)


def test_the_axes_of_early_versions_are_t_c_z_y_x(tmp_path):
    values = DRAW.integers(0, 99, (2, 3, 4, 8, 9), np.uint8)
    for version, axes in (("0.1", {}), ("0.3", {"axes": ["t", "c", "z", "y", "x"]})):
        path = tmp_path / f"{version}.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=2)
        group.create_array("0", data=values)
        group.attrs["multiscales"] = [{"version": version, "datasets": [{"path": "0"}], **axes}]
        found = images(path)
        assert list(found) == ["t0001", "t0002"]
        np.testing.assert_array_equal(pixels_of(found["t0002"]), np.moveaxis(values[1], 0, -1))


def test_the_recipe_names_axes_without_names(tmp_path):
    values = DRAW.integers(0, 99, (3, 8, 9), np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=values, zarr_format=2)
    assert [spec.shape for spec in images(tmp_path / "a.zarr").values()] == [(3, 8, 9)]
    found = images(tmp_path / "a.zarr", axes="tyx")
    assert list(found) == ["t0001", "t0002", "t0003"]
    np.testing.assert_array_equal(pixels_of(found["t0003"])[..., 0], values[2])


@pytest.mark.parametrize("version", [2, 3])
def test_half_floats_and_booleans(tmp_path, version):
    values = DRAW.random((8, 9)).astype(np.float16)
    values[2, 3] = np.nan
    path = tmp_path / "half.zarr"
    zarr.create_array(path, data=values, zarr_format=version)
    spec = FORMAT.describe(str(path), "")
    assert spec.dtype == "float32"
    with FORMAT.open(spec) as reader:
        pixels, valid = reader.read(Box.whole(spec.shape))
    np.testing.assert_array_equal(valid, np.isfinite(values))
    np.testing.assert_array_equal(pixels[valid][:, 0], values[valid].astype(np.float32))
    zarr.create_array(tmp_path / "truth.zarr", data=values > 0.5, zarr_format=version)
    np.testing.assert_array_equal(read(tmp_path / "truth.zarr")[..., 0], values > 0.5)


def test_what_no_chunk_holds_is_no_data_if_nothing_fills_it(tmp_path):
    values = DRAW.integers(1, 99, (3, 20, 30), np.uint8)
    path = tmp_path / "a.zarr"
    array = zarr.create_array(
        path, shape=values.shape, dtype="uint8", chunks=(1, 8, 8), zarr_format=2, fill_value=None
    )
    array.attrs["_ARRAY_DIMENSIONS"] = ["c", "y", "x"]
    array[...] = values
    (path / "1.0.2").unlink()
    (path / "2.2.3").unlink()
    expected = np.ones((20, 30), bool)
    expected[:8, 16:24] = expected[16:, 24:] = False
    spec = FORMAT.describe(str(path), "")
    with FORMAT.open(spec) as reader:
        for box in (Box.whole((20, 30)), Box((5, 3), (19, 29))):
            pixels, valid = reader.read(box)
            np.testing.assert_array_equal(valid, expected[box.slices])
            np.testing.assert_array_equal(
                pixels[valid], np.moveaxis(values, 0, -1)[box.slices][valid]
            )
            assert (pixels[~valid] == 0).any(axis=-1).all()
    with FORMAT.open(spec.select((1,))) as reader:
        assert reader.read(Box.whole((20, 30)))[1].all()


def spoil(path: Path, change: Any) -> None:
    """Change the metadata of an OME-Zarr 0.5."""
    about = json.loads((path / "zarr.json").read_text())
    change(about["attributes"]["ome"]["multiscales"][0])
    (path / "zarr.json").write_text(json.dumps(about))


def wrong_scale(image: dict[str, Any]) -> None:
    image["datasets"][0]["coordinateTransformations"][0]["scale"] = [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.update(axes=SPATIAL[1:]), "transformation .* of 2 numbers"),
        (lambda image: image.update(axes=SPATIAL + SPATIAL[:1]), "of 4 numbers"),
        (lambda image: image.update(axes=[*SPATIAL[:2], SPATIAL[1]]), "no image with the axes"),
        (lambda image: image.update(axes="zyx"), "`axes` is zyx, not a list"),
        (wrong_scale, r"scale or a translation of 3 numbers"),
        (lambda image: image.update(datasets=[]), "no `datasets`"),
        (lambda image: image["datasets"][0].update(path="../b.zarr"), "none in its folder"),
        (lambda image: image["datasets"][0].update(path="7"), "'7', which is not in it"),
        (lambda image: image["datasets"][0].update(path=7), "has the path 7"),
        (
            lambda image: image.update(coordinateTransformations=[{"type": "affine"}]),
            "expected a scale or a translation",
        ),
    ],
)
def test_metadata_that_lie_are_refused(tmp_path, change, message):
    values = DRAW.integers(0, 99, (4, 8, 9), np.uint8)
    path = multiscale(tmp_path / "a.zarr", [values], SPATIAL, [[1, 1, 1]])
    spoil(path, change)
    with pytest.raises(FormatError, match=message):
        FORMAT.describe(str(path), "")


@pytest.mark.parametrize("version", [2, 3])
def test_a_codec_that_is_absent_is_named(tmp_path, version):
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=np.ones((4, 4)), zarr_format=version)
    name = {2: ".zarray", 3: "zarr.json"}[version]
    about = json.loads((path / name).read_text())
    if version == 2:
        about["compressor"] = {"id": "own_codec"}
    else:
        about["codecs"].append({"name": "own_codec"})
    (path / name).write_text(json.dumps(about))
    with pytest.raises(FormatError, match=r"own_codec.*install the package of the codec"):
        FORMAT.describe(str(path), "")


def test_a_truncated_shard_is_a_read_error(tmp_path):
    values = DRAW.integers(0, 99, (64, 64), np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(16, 16), shards=(64, 64))
    shard = tmp_path / "a.zarr" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ReadError, match=r"a\.zarr: the chunks from"):
        read(tmp_path / "a.zarr")


def test_a_store_is_asked_for_the_metadata_once_and_for_the_chunks_of_a_box_only(
    tmp_path, s3_bucket, monkeypatch
):
    import fsspec

    values = DRAW.integers(0, 99, (2, 32, 32), np.uint16)
    axes = [{"name": "c", "type": "channel"}, *SPATIAL[1:]]
    multiscale(tmp_path / "a.zarr", [values], axes, [[1, 1, 1]])
    location = f"{s3_bucket}/{tmp_path.name}/a.zarr"
    fs, path = fsspec.core.url_to_fs(location)
    fs.put(str(tmp_path / "a.zarr"), path, recursive=True)
    spec = FORMAT.describe(location, "v1")
    asked: list[str] = []
    get = zarr.storage.FsspecStore.get

    async def noted(self, key, *rest, **named):
        asked.append(key)
        return await get(self, key, *rest, **named)

    monkeypatch.setattr(zarr.storage.FsspecStore, "get", noted)
    for start in (0, 8, 16):
        box = Box((start, 8), (start + 8, 16))
        with FORMAT.open(spec.select((2,))) as reader:
            np.testing.assert_array_equal(reader.read(box)[0][..., 0], values[1][box.slices])
    chunks = [key for key in asked if "/c/" in key]
    assert len(chunks) == len(set(chunks)) == 3
    first = asked.index(chunks[0])
    assert asked[first:] == chunks, "the metadata are asked for once"
