"""Images without a valid pixel: nothing is there to be classified, so nothing fails."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from tests_support import photograph, read_masks, read_table, write_tiff

from maskloom.tasks import batching

SEGMENTERS = {
    "threshold": (
        {"kind": "threshold", "method": "multi-otsu", "levels": 3},
        ["class_0", "class_1", "class_2"],
    ),
    "given threshold": ({"kind": "threshold", "value": 9}, ["background", "foreground"]),
    "kmeans": ({"kind": "kmeans", "classes": ["dark", "bright"]}, ["dark", "bright"]),
    "kmeans auto": ({"kind": "kmeans", "clusters": "auto"}, ["cluster_0"]),
    "mixture auto": ({"kind": "mixture", "components": "auto"}, ["cluster_0"]),
    "mean shift": ({"kind": "mean_shift"}, ["cluster_0"]),
    "ensemble": (
        [{"kind": "kmeans", "clusters": "auto"}, {"kind": "threshold"}],
        ["background", "foreground"],
    ),
    "regions": ({"kind": "mean_shift", "space": "joint"}, ["background", "region"]),
    "quickshift": ({"kind": "quickshift"}, ["background", "region"]),
    "parts": (
        {"kind": "connected_parts", "of": {"kind": "kmeans", "clusters": 2}},
        ["background", "cluster_0", "cluster_1"],
    ),
    "watershed": (
        {"kind": "watershed", "of": {"kind": "kmeans", "clusters": "auto"}, "parts": ["cluster_4"]},
        ["background", "cluster_4"],
    ),
}
EACH_FITTED = ("threshold", "kmeans auto", "ensemble", "watershed")
"""One that knows its classes, one that does not, and two that are made of others."""
REST = [case for case in SEGMENTERS if case not in EACH_FITTED]


def blanks(folder: Path) -> None:
    """A scene of nodata, one of NaN, and a picture that is all transparent: three bands, as the
    model of a collection wants.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grid = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_300_000, 10, 10)}
    write_tiff(folder / "nodata.tif", np.full((400, 420, 3), 7, np.uint8), nodata=7, **grid)
    write_tiff(folder / "nan.tif", np.full((70, 80, 3), np.nan, np.float32), **grid)
    Image.fromarray(np.dstack([photograph(50, 60), np.zeros((50, 60), np.uint8)])).save(
        folder / "clear.png"
    )


@pytest.mark.parametrize(
    ("case", "fit"),
    [
        *((case, "collection") for case in SEGMENTERS),
        *((case, "image") for case in EACH_FITTED),
        *(pytest.param(case, "image", marks=pytest.mark.nightly) for case in REST),
    ],
)
def test_blank_scenes_alone_are_done_and_all_nodata(collection, maskloom, monkeypatch, case, fit):
    # The first scene is spread over parts, the others are done whole.
    monkeypatch.setattr(batching, "RANGE_PIXELS", 2**16)
    segmenter, classes = SEGMENTERS[case]
    shutil.rmtree(collection.folder / "images")
    blanks(collection.folder / "images")
    recipe = collection.recipe(
        segmenter=segmenter, fit=fit, tiling={"tile": 128}, statistics=["area", "objects"]
    )

    result = maskloom("run", recipe, "--no-prefect", "--quiet")

    assert result.exit_code == 0, result.output
    images = read_table(collection.output, "images")
    told = ("image_id", "status", "valid_pixels", "nodata_pixels", "unprocessed_pixels")
    assert [tuple(row[name] for name in told) for row in images] == [
        ("clear", "ok", 0, 50 * 60, 0),
        ("nan", "ok", 0, 70 * 80, 0),
        ("nodata", "ok", 0, 400 * 420, 0),
    ]
    areas = read_table(collection.output, "areas")
    for image in images:
        rows = [row for row in areas if row["image_id"] == image["image_id"]]
        assert [row["class_name"] for row in rows] == classes
        assert {
            (row["pixel_count"], row["area"], row["fraction"], row["nodata_pixels"]) for row in rows
        } == {(0, 0.0, None, image["total_pixels"])}
    assert read_table(collection.output, "objects") == []
    for name, mask in read_masks(collection.output).items():
        # 0 is the background of a mask of objects.
        assert np.unique(mask).tolist() == [255 if mask.dtype == np.uint8 else 0], name
    assert maskloom("verify", collection.output).exit_code == 0
    assert "Nothing to do" in maskloom("run", recipe, "--no-prefect").output


def test_a_blank_collection_does_not_decide_the_model_of_what_comes_later(collection, maskloom):
    """Blank scenes first and photographs later give what all of them give at once."""
    keep = collection.folder / "images" / "photo.png"
    others = [
        path
        for path in (collection.folder / "images").rglob("*")
        if path.is_file() and path != keep
    ]
    for path in others:
        path.unlink()
    photo = keep.read_bytes()
    keep.unlink()
    blanks(collection.folder / "images")
    recipe = collection.recipe()
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    keep.write_bytes(photo)

    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    assert (
        maskloom("run", recipe, "--no-prefect", "--quiet", "--set", "output=at_once").exit_code == 0
    )

    # What is said of the segmenter differs, and so do colours of clusters, since blank scenes were
    # done without one.
    masks, at_once = read_masks(collection.output), read_masks(collection.folder / "at_once")
    assert masks.keys() == at_once.keys()
    assert all(np.array_equal(mask, at_once[name]) for name, mask in masks.items())
    first, second = (
        [{**row, "colour": None} for row in read_table(output, "areas")]
        for output in (collection.output, collection.folder / "at_once")
    )
    assert first == second
    assert sum(row["pixel_count"] for row in read_table(collection.output, "areas")) == 300 * 500


@pytest.mark.parametrize(
    ("segmenter", "says"),
    [
        (
            {"kind": "kmeans", "clusters": 3},
            "3 clusters need as many different values; the 4900 valid pixels have 2",
        ),
        (
            {"kind": "mixture", "components": 3},
            "3 clusters need as many different values; the 4900 valid pixels have 2",
        ),
        (
            {"kind": "threshold", "method": "multi-otsu", "levels": 3},
            "3 classes of 2 different value(s)",
        ),
    ],
)
def test_fewer_values_than_classes_fail_one_image_as_in_scikit_learn_and_scikit_image(
    collection, maskloom, segmenter, says
):
    shutil.rmtree(collection.folder / "images")
    two = np.zeros((70, 70, 1), np.uint8)
    two[20:] = 9
    write_tiff(collection.folder / "images.tif", two)
    write_tiff(collection.folder / "other.tif", photograph(70, 70)[..., :1])

    result = maskloom(
        "run",
        collection.recipe(
            inputs=["*.tif"], segmenter=segmenter, fit="image", max_failed_fraction=0.5
        ),
        "--no-prefect",
    )

    assert result.exit_code == 3
    assert says in result.output
    rows = read_table(collection.output, "images")
    assert [(row["status"], row["unprocessed_pixels"]) for row in rows] == [
        ("failed", 4900),
        ("ok", 0),
    ]


def test_one_valid_pixel_is_a_threshold_by_itself(collection, maskloom):
    """As scikit-image: the threshold of one value is the value, which is not greater than
    itself.
    """
    shutil.rmtree(collection.folder / "images")
    one = np.zeros((30, 40, 1), np.uint8)
    one[3, 4] = 200
    write_tiff(collection.folder / "one.tif", one, nodata=0)

    recipe = collection.recipe(
        inputs=["one.tif"], segmenter={"kind": "threshold", "method": "otsu"}, fit="image"
    )
    assert maskloom("run", recipe, "--no-prefect").exit_code == 0

    assert [row["pixel_count"] for row in read_table(collection.output, "areas")] == [1, 0]


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize(
    "segmenter",
    [
        {"kind": "kmeans", "clusters": "auto"},
        {"kind": "mixture", "components": "auto"},
        {"kind": "mean_shift"},
    ],
)
def test_pixels_of_one_value_are_one_class_where_the_number_is_found(
    collection, maskloom, segmenter, kind
):
    shutil.rmtree(collection.folder / "images")
    write_tiff(collection.folder / "one.tif", np.full((40, 50, 2), 77, kind))

    assert (
        maskloom(
            "run",
            collection.recipe(inputs=["one.tif"], segmenter=segmenter, fit="image"),
            "--no-prefect",
        ).exit_code
        == 0
    )

    assert [
        (row["class_name"], row["pixel_count"]) for row in read_table(collection.output, "areas")
    ] == [("cluster_0", 2000)]


@pytest.mark.skipif(
    "MASKLOOM_TEST_DATA" not in os.environ, reason="needs the folder of test images"
)
def test_the_reported_scene_is_done(collection, maskloom):
    path = Path(os.environ["MASKLOOM_TEST_DATA"], "reports", "all_nodata.tif")
    recipe = collection.recipe(
        inputs=[str(path)], fit="image", segmenter={"kind": "threshold", "method": "otsu"}
    )
    assert maskloom("run", recipe, "--no-prefect").exit_code == 0
    with (
        rasterio.open(path) as source,
        rasterio.open(collection.output / "masks" / "all_nodata.tif") as mask,
    ):
        assert not mask.read_masks(1).any()
        assert (mask.shape, mask.transform, mask.crs) == (
            source.shape,
            source.transform,
            source.crs,
        )
