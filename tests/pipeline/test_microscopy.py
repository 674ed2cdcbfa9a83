"""Microscopy through whole runs: OME-Zarr and TIFF stacks, whose masks lie on their sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from skimage.filters import threshold_otsu
from tests_support import assert_same_results, read_table

from maskloom.tasks import batching

zarr = pytest.importorskip("zarr")
SERIAL = ("--no-prefect", "--quiet", "--set", "cluster.kind=serial")
SHAPE = (20, 70, 90)
SCALE = (1.0, 0.5, 0.5)
TRANSLATION = (100.0, -3.0, 7.5)


def volume(seed: int = 5) -> np.ndarray:
    """Blobs in noise."""
    draw = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(draw.normal(size=SHAPE), (2, 4, 4))
    return np.clip(90 + 900 * field + draw.normal(0, 4, SHAPE), 0, 255).astype(np.uint8)


def save_ome_zarr(path: Path, values: np.ndarray, axes: str, version: int) -> None:
    """Channels and times have scale 1; levels by striding."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    kinds = {"t": "time", "c": "channel"}
    named = [
        {"name": name, "type": kinds.get(name, "space")}
        | ({} if name in kinds else {"unit": "micrometer"})
        for name in axes
    ]
    datasets = []
    for level in range(2):
        step = 2**level
        index = tuple(slice(None, None, step if name in "yx" else 1) for name in axes)
        group.create_array(str(level), data=values[index], chunks=(1,) * (len(axes) - 2) + (32, 32))
        scale = [dict(zip("zyx", SCALE, strict=True)).get(name, 1.0) for name in axes]
        begin = [dict(zip("zyx", TRANSLATION, strict=True)).get(name, 0.0) for name in axes]
        scale = [a * (step if name in "yx" else 1) for a, name in zip(scale, axes, strict=True)]
        steps = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": begin},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    image: dict[str, Any] = {"axes": named, "datasets": datasets}
    if version == 2:
        group.attrs["multiscales"] = [{"version": "0.4", **image}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}


def multiscale(path: Path) -> dict[str, Any]:
    found = dict(zarr.open_group(path, mode="r").attrs)
    return found.get("ome", found)["multiscales"][0]


def world(image: dict[str, Any], level: int, axes: str, index: np.ndarray) -> np.ndarray:
    """The coordinates of voxels (n, axis) at a level, along z, y and x, by another reading of the
    metadata than that of maskloom.
    """
    scale, begin = (
        np.array(step[step["type"]])
        for step in image["datasets"][level]["coordinateTransformations"]
    )
    spatial = [axes.index(name) for name in "zyx"]
    return index * scale[spatial] + begin[spatial]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("level", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_masks_of_ome_zarr_lie_on_their_source_and_have_its_version(
    tmp_path, maskloom, version, level
):
    pixels = np.stack([volume(i) for i in range(4)]).reshape(2, 2, *SHAPE)
    save_ome_zarr(tmp_path / "in" / "cells.zarr", pixels, "tczyx", version)
    command = ("segment", tmp_path / "in", "-o", tmp_path / "out", "-s", "threshold", *SERIAL)
    result = maskloom(*command, "-p", "band=2", "-p", "value=120", "--set", f"level={level}")
    assert result.exit_code == 0, result.output

    source = multiscale(tmp_path / "in" / "cells.zarr")
    for time in (0, 1):
        path = tmp_path / "out" / "masks" / f"cells_t000{time + 1}.zarr"
        mask, group = multiscale(path), zarr.open_group(path, mode="r")
        assert group.metadata.zarr_format == version
        read = pixels[time, 1][:, :: 2**level, :: 2**level]
        np.testing.assert_array_equal(group["0"][...], read > 120)
        voxels = np.random.default_rng(1).integers(0, read.shape, (50, 3))
        np.testing.assert_allclose(
            world(mask, 0, "zyx", voxels), world(source, level, "tczyx", voxels), rtol=1e-12
        )
    side = 0.5e-3 * 2**level
    rows = read_table(tmp_path / "out", "areas")
    for row in rows:
        assert row["area_unit"] == "mm3"
        np.testing.assert_allclose(row["area"], row["pixel_count"] * 1e-3 * side**2)
    assert maskloom("verify", tmp_path / "out").exit_code == 0
    assert (
        "Nothing to do"
        in maskloom(*command, "-p", "band=2", "-p", "value=120", "--set", f"level={level}").output
    )


@pytest.mark.parametrize("writer", ["ome", "imagej"])
def test_masks_of_tiff_stacks_have_their_axes_and_pixel_size(tmp_path, maskloom, writer):
    pixels = np.stack([volume(i) for i in range(4)]).reshape(2, *SHAPE, 2, order="F")
    pixels = np.moveaxis(pixels, -1, 2)
    if writer == "ome":
        sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", SCALE, strict=True)}
        options: dict[str, Any] = {"ome": True, "metadata": {"axes": "TZCYX", **sizes}}
    else:
        options = {"imagej": True, "resolution": (2, 2)}
        options["metadata"] = {"axes": "TZCYX", "unit": "um", "spacing": 1.0}
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "cells.tif", pixels, **options)
    command = ("segment", tmp_path / "in", "-o", tmp_path / "out", "-s", "threshold", *SERIAL)
    result = maskloom(*command, "--fit", "image")
    assert result.exit_code == 0, result.output

    for time in (0, 1):
        with tifffile.TiffFile(tmp_path / "out" / "masks" / f"cells_t000{time + 1}.tif") as file:
            [series] = file.series
            assert (series.kind, series.axes) == ("ome", "ZYX")
            first = pixels[time, :, 0]
            np.testing.assert_array_equal(series.asarray(), first > threshold_otsu(first))
            for axis, size in zip("ZYX", SCALE, strict=True):
                assert f'PhysicalSize{axis}="{size:g}"' in file.ome_metadata
    for row in read_table(tmp_path / "out", "areas"):
        np.testing.assert_allclose(row["area"], row["pixel_count"] * 0.25e-9)
    assert maskloom("verify", tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("kind", [pytest.param("zarr", marks=pytest.mark.nightly), "tif"])
def test_neither_tiles_nor_workers_change_a_result(
    tmp_path, maskloom, monkeypatch, two_workers, kind
):
    """Whole volumes in this process, and parts of them on two workers, with tables of objects."""
    (tmp_path / "in").mkdir()
    if kind == "zarr":
        save_ome_zarr(tmp_path / "in" / "cells.zarr", volume(), "zyx", 3)
    else:
        tifffile.imwrite(
            tmp_path / "in" / "cells.tif", volume(), ome=True, metadata={"axes": "ZYX"}
        )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "inputs: in\noutput: whole\nsegmenter: {kind: kmeans, clusters: 3}\n"
        "statistics: [area, objects]\n"
    )
    monkeypatch.setattr(batching, "RANGE_PIXELS", 2**13)
    monkeypatch.setattr(batching, "range_pixels", lambda _: 2**13)
    assert maskloom("run", recipe, *SERIAL).exit_code == 0
    tiled = ("--set", "output=tiled", "--set", "tiling.tile=[6, 32, 16]")
    workers = ("--set", f"cluster={two_workers}")
    assert maskloom("run", recipe, "--no-prefect", "--quiet", *tiled, *workers).exit_code == 0
    if kind == "tif":
        assert_same_results(tmp_path / "whole", tmp_path / "tiled")
        return
    masks = [
        zarr.open(tmp_path / name / "masks" / "cells.zarr")["0"] for name in ("whole", "tiled")
    ]
    np.testing.assert_array_equal(masks[0][...], masks[1][...])
    rows = [read_table(tmp_path / name, "objects") for name in ("whole", "tiled")]
    for one, other in zip(*rows, strict=True):
        assert {k: v for k, v in one.items() if k != "run_id" and k != "fingerprint"} == {
            k: v for k, v in other.items() if k != "run_id" and k != "fingerprint"
        }


def test_the_fields_of_a_plate_are_images(tmp_path, maskloom):
    root = zarr.open_group(tmp_path / "plate.zarr", mode="w", zarr_format=3)
    root.attrs["ome"] = {"version": "0.5", "plate": {"wells": [{"path": "A/1"}, {"path": "B/1"}]}}
    for number, well in enumerate(("A/1", "B/1")):
        group = root.create_group(well)
        group.attrs["ome"] = {"version": "0.5", "well": {"images": [{"path": "0"}]}}
        save_ome_zarr(tmp_path / "plate.zarr" / well / "0", volume(number), "zyx", 3)
    command = ("segment", tmp_path / "plate.zarr", "-o", tmp_path / "out", "-s", "threshold")
    result = maskloom(*command, "-p", "value=120", *SERIAL)
    assert result.exit_code == 0, result.output
    images = {row["image_id"]: row["uri"] for row in read_table(tmp_path / "out", "images")}
    assert set(images) == {"plate_A_1_0", "plate_B_1_0"}
    assert images["plate_A_1_0"].endswith("plate.zarr#part=A_1_0/2")
    for number, name in enumerate(images):
        mask = zarr.open(tmp_path / "out" / "masks" / f"{name}.zarr", mode="r")["0"]
        np.testing.assert_array_equal(mask[...], volume(number) > 120)


def test_a_volume_in_an_object_store_is_read_there_and_masked_there(s3_bucket, tmp_path, maskloom):
    import fsspec

    save_ome_zarr(tmp_path / "cells.zarr", volume(), "zyx", 3)
    tifffile.imwrite(tmp_path / "cells.tif", volume(), ome=True, metadata={"axes": "ZYX"})
    place = f"{s3_bucket}/{tmp_path.name}"
    fs, path = fsspec.core.url_to_fs(f"{place}/in")
    fs.put(str(tmp_path / "cells.zarr"), f"{path}/a.zarr", recursive=True)
    fs.put(str(tmp_path / "cells.tif"), f"{path}/b.tif")
    command = ("segment", f"{place}/in", "-o", f"{place}/out", "-s", "threshold")
    result = maskloom(*command, "-p", "value=120", *SERIAL)
    assert result.exit_code == 0, result.output
    fs.get(fsspec.core.url_to_fs(f"{place}/out/masks")[1], str(tmp_path / "masks"), recursive=True)
    np.testing.assert_array_equal(zarr.open(tmp_path / "masks/a.zarr")["0"][...], volume() > 120)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "masks/b.tif"), volume() > 120)


def test_the_recipe_for_ome_zarr_finds_touching_nuclei_in_micrometres(tmp_path, maskloom):
    """Balls of known volume, of which pairs touch; slices are twice as far apart as pixels."""
    recipe = Path(__file__).parents[2] / "deploy" / "recipes" / "ome-zarr.yaml"
    centres = [(10, 20, 20), (10, 20, 37), (10, 50, 30), (10, 25, 70), (10, 42, 70)]
    z, y, x = np.indices(SHAPE)
    nuclei = np.zeros(SHAPE, bool)
    for centre in centres:
        a, b, c = centre
        nuclei |= (2 * (z - a)) ** 2 + (y - b) ** 2 + (x - c) ** 2 <= 9**2
    noise = np.random.default_rng(2).normal(0, 3, SHAPE)
    pixels = (40 + 120 * nuclei + noise).clip(0, 255).astype(np.uint8)
    save_ome_zarr(tmp_path / "cells.zarr", pixels, "zyx", 3)
    settings = [f"inputs={tmp_path}/*.zarr", f"output={tmp_path}/out"]
    changes = [word for each in settings for word in ("--set", each)]
    assert maskloom("run", recipe, *changes, *SERIAL).exit_code == 0

    rows = read_table(tmp_path / "out", "objects")
    assert len(rows) == len(centres)
    found = {
        (round(row["centroid_z"]), round(row["centroid_y"]), round(row["centroid_x"]))
        for row in rows
    }
    for centre in centres:
        assert min(np.abs(np.subtract(centre, each)).max() for each in found) <= 1
    assert sum(row["pixel_count"] for row in rows) == nuclei.sum()
    for row in rows:
        assert row["class_name"] == "nucleus"
        # Half a micrometre along y and x, one along z.
        np.testing.assert_allclose(row["area"], row["pixel_count"] * 0.25e-9)
    mask = zarr.open(tmp_path / "out" / "masks" / "cells.zarr")["0"]
    assert mask.dtype == "uint32"
    np.testing.assert_array_equal(mask[...] > 0, nuclei)


@pytest.mark.parametrize(("side", "said"), [(64, False), (200_000, True)])
def test_an_array_of_which_next_to_nothing_is_stored_is_named(
    tmp_path, maskloom, caplog, side, said
):
    """Metadata alone can claim any size."""
    array = zarr.create_array(tmp_path / "a.zarr", shape=(side, side), chunks=(64, 64), dtype="u1")
    array[:64, :64] = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("inputs: a.zarr\noutput: out\nsegmenter: {kind: threshold, value: 9}\n")
    assert maskloom("plan", recipe).exit_code == 0
    assert ("next to nothing of its array is stored" in caplog.text) == said
