"""`maskloom.segment` gives what a run gives, and needs neither Prefect nor Dask."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image
from skimage import data

import maskloom as ml
from maskloom.door.outputs import open as open_output

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["run_id", "image_id", "fingerprint"]


def ran(path: Path, folder: Path, segmenter: dict, **sections) -> ml.Output:
    document = {"inputs": str(path), "output": str(folder / "out"), "segmenter": segmenter}
    return ml.run({**document, "cluster": "serial", **sections}, quiet=True)


def tables(output: ml.Output, name: str) -> pd.DataFrame:
    """As another program reads them."""
    found = pq.read_table(f"{output.location}/tables/{name}").to_pandas()
    return found.drop(columns=KEYS, errors="ignore")


def same(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    shared = [name for name in theirs if name in ours and name not in ("geometry", "bbox")]
    assert len(shared) >= 7
    pd.testing.assert_frame_equal(
        pd.DataFrame(ours[shared]), theirs[shared], check_dtype=False, rtol=0, atol=0
    )


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(data.astronaut()[:90, 120:260]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(1, 3000, (3, 8, 9), np.uint16)
    pixels = pixels.repeat(8, axis=1).repeat(8, axis=2)
    pixels[:, :10, :12] = 0
    with rasterio.open(
        tmp_path / "scene.tif",
        "w",
        driver="GTiff",
        width=72,
        height=64,
        count=3,
        dtype="uint16",
        crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 500000, 0, -10, 5300000),
        nodata=0,
        photometric="MINISBLACK",
    ) as file:
        file.write(pixels)
    return tmp_path / "scene.tif"


def test_a_path_and_an_array_give_the_numbers_of_a_run(photo, tmp_path):
    run = ran(photo, tmp_path, {"kind": "kmeans", "clusters": 4}, pixel_size="0.5 um")
    of_path = ml.segment(photo, "kmeans", clusters=4, pixel_size=(0.5, "um"))
    of_array = ml.segment(np.array(Image.open(photo)), "kmeans", clusters=4, pixel_size="0.5 um")
    for seg in (of_path, of_array):
        same(seg.areas, tables(run, "areas"))
        np.testing.assert_array_equal(
            seg.labels, np.array(Image.open(next(Path(run.location, "masks").glob("*.png"))))
        )
        assert seg.objects is None


def test_objects_on_the_ground_are_those_of_a_run(scene, tmp_path):
    segmenter = {"kind": "threshold", "band": 2}
    run = ran(scene, tmp_path, segmenter, statistics=["objects"])
    with rasterio.open(scene) as file:
        bands, crs, transform = file.read(), file.crs, file.transform
    of_path = ml.segment(scene, "threshold", band=2, statistics="objects")
    of_array = ml.segment(
        bands, segmenter, axes="byx", crs=crs, transform=transform, nodata=0, statistics="objects"
    )
    for seg in (of_path, of_array):
        same(seg.areas, tables(run, "areas"))
        same(seg.objects, tables(run, "objects"))
        assert seg.objects.crs == "OGC:CRS84"
    with rasterio.open(next(Path(run.location, "masks").glob("*.tif"))) as mask:
        np.testing.assert_array_equal(of_array.labels, mask.read(1))


def test_an_xarray_says_where_it_is(scene):
    xarray = pytest.importorskip("xarray")
    with rasterio.open(scene) as file:
        bands, crs = file.read(), file.crs.to_wkt()
    image = xarray.DataArray(
        bands,
        {
            "y": 5300000 - 10 * (np.arange(64) + 0.5),
            "x": 500000 + 10 * (np.arange(72) + 0.5),
            "spatial_ref": ((), 0, {"crs_wkt": crs}),
        },
        ("band", "y", "x"),
        attrs={"_FillValue": 0},
    )
    seg = ml.segment(image, "threshold", band=2)
    same(seg.areas, ml.segment(scene, "threshold", band=2).areas)
    back = seg.to_xarray()
    np.testing.assert_array_equal(back.x, image.x)
    np.testing.assert_array_equal(back, seg.labels)


def test_a_fitted_model_is_used_again(photo):
    first = ml.segment(photo, "kmeans", clusters=3)
    pixels = np.array(Image.open(photo))
    again = ml.segment(pixels[20:70], first.model)
    np.testing.assert_array_equal(again.labels, first.labels[20:70])
    assert again.parameters == first.parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"segmenter": "kmean"}, "Did you mean 'kmeans'"),
        ({"cluster": 3}, "Did you mean `clusters`"),
        ({"clusters": "five"}, "clusters: expected a whole number"),
        ({"pixel_size": 3}, "pixel_size: expected numbers and a unit"),
        ({"axes": "xy"}, "axes: expected one of"),
        ({"image": np.zeros((4, 60, 70))}, "axes='byx'"),
        ({"image": "no/such.tif"}, "does not exist"),
        ({"image": object()}, "got object"),
        ({"crs": "EPSG:32633"}, "needs `transform`"),
        ({"valid": np.ones((3, 3), bool)}, "valid: expected booleans of the shape"),
    ],
)
def test_wrong_arguments_say_what_is_possible(arguments, message):
    given = {"image": np.zeros((40, 50, 3), np.uint8), "segmenter": "kmeans", **arguments}
    with pytest.raises(ml.RecipeError, match=message):
        ml.segment(**given)


def test_an_output_is_read_by_windows(photo, tmp_path):
    run = ran(photo, tmp_path, {"kind": "kmeans", "clusters": 4})
    output = open_output(run.location)
    [name] = output
    image, whole = output[name], np.array(Image.open(next(Path(run.location).glob("masks/*.png"))))
    np.testing.assert_array_equal(image.mask(), whole)
    np.testing.assert_array_equal(image.mask(np.s_[11:61, 30:97], level=2), whole[11:61:4, 30:97:4])
    np.testing.assert_array_equal(image.source(), np.array(Image.open(photo)))
    assert len(output.failed) == 0
    same(output.areas, tables(run, "areas"))
    with pytest.raises(ml.RecipeError, match="slice for each of 2 axes"):
        image.mask(np.s_[3])
    with pytest.raises(KeyError, match="Did you mean"):
        output[name + "s"]
    for shown in (output, image, ml.segment(photo, "kmeans", clusters=4)):
        html = shown._repr_html_()
        assert html.count("<img") == 2
        assert "cluster_3" in html


def test_failed_images_are_listed_and_raise_nothing(photo, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="1 of 2 images failed"):
        run = ran(tmp_path / "*.png", tmp_path, {"kind": "threshold"})
    assert list(run.failed["image_id"]) == ["broken"]
    with pytest.raises(KeyError, match="It failed"):
        run["broken"]


def test_truth_is_compared_as_by_the_command(photo, tmp_path):
    run = ran(photo, tmp_path, {"kind": "threshold"})
    truth = run["photo"].mask().copy()
    truth[:9] = 1 - truth[:9]
    (tmp_path / "truth").mkdir()
    Image.fromarray(truth).save(tmp_path / "truth/photo.png")
    found = run.evaluate(tmp_path / "truth")
    whole = found.images[found.images["image_id"].isna()].iloc[0]
    assert whole["accuracy"] == pytest.approx((run["photo"].mask() == truth).mean())


def test_the_import_is_light_and_needs_no_scheduler(tmp_path):
    code = """
import sys
import maskloom
assert not {"numpy", "pandas", "pyarrow", "pydantic"} & set(sys.modules)
import numpy
maskloom.segment(numpy.arange(2500).reshape(50, 50), "threshold").areas
assert not {"prefect", "distributed", "tensorflow"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path)


def test_the_stub_names_what_there_is():
    stub = ast.parse((ROOT / "maskloom/__init__.pyi").read_text(encoding="utf-8"))
    named = {
        alias.asname: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert named == ml._DOOR
    assert all(callable(getattr(ml, name)) for name in named)


@pytest.mark.nightly
def test_a_script_without_a_main_guard_runs_on_workers(photo, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import maskloom
print("begun")
out = maskloom.run(
    {{"inputs": {str(photo)!r}, "output": {str(tmp_path / "out")!r}, "segmenter": "threshold"}},
    workers=2,
)
print(len(out), __file__)
""",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-P", str(script)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["begun", "1", str(script)]
