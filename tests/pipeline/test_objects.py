"""Objects from the command line: masks and tables are the same for any tiling, and agree with
scikit-image on the whole image.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rasterio.transform import from_origin
from skimage.measure import label, regionprops_table
from tests_support import SCENE, assert_same_results, photograph, read_masks, read_table, write_tiff

from maskloom.segcore.errors import RunError
from maskloom.tasks import batching, segment

PARTS = {
    "kind": "connected_parts",
    "of": {"kind": "threshold", "classes": ["background", "bright"]},
    "min_size": 4,
    "fill_holes": True,
}
AT_NIGHT = [
    pytest.param(segmenter, marks=pytest.mark.nightly)
    for segmenter in (
        {
            "kind": "mean_shift",
            "space": "joint",
            "spatial_radius": 3,
            "max_iterations": 6,
            "min_size": 20,
        },
        {"kind": "quickshift", "kernel_size": 2, "max_dist": 6},
    )
]
"""Whole runs of what the contract of segmenters checks in memory."""
QUIET = ("--no-prefect", "--quiet")


def kind_of(segmenter):
    return segmenter["kind"]


@pytest.mark.parametrize("segmenter", [PARTS, *AT_NIGHT], ids=kind_of)
def test_the_tiling_changes_no_object(collection, maskloom, segmenter, monkeypatch):
    recipe = collection.recipe(segmenter=segmenter)
    for tile, part_pixels in ((4096, batching.RANGE_PIXELS), (64, 2**16)):
        # Small parts make the scenes take the way of large images: staged, joined, relabelled.
        monkeypatch.setattr(batching, "RANGE_PIXELS", part_pixels)
        result = maskloom(
            "run", recipe, *QUIET, "--set", f"tiling.tile={tile}", "--set", f"output=out{tile}"
        )
        assert result.exit_code == 0, result.output

    assert_same_results(collection.folder / "out64", collection.folder / "out4096")
    assert not list((collection.folder / "out64" / "staging").rglob("*.*"))
    assert maskloom("verify", collection.folder / "out64").exit_code == 0


def test_objects_of_a_semantic_mask_are_its_connected_parts(collection, maskloom):
    recipe = collection.recipe(
        statistics=["area", {"kind": "objects", "connectivity": 4, "min_size": 9}]
    )
    assert maskloom("run", recipe, *QUIET, "--set", "tiling.tile=128").exit_code == 0

    masks = {row["image_id"]: row["mask_uri"] for row in read_table(collection.output, "images")}
    found = read_table(collection.output, "objects")
    for image_id, uri in masks.items():
        mask = read_masks(collection.output)[uri]
        expected = []
        for class_id in range(4):
            parts = label(mask == class_id, connectivity=1)
            sizes = np.bincount(parts.ravel())[1:]
            expected += [(class_id, int(size)) for size in sizes if size >= 9]
        rows = [
            (row["class_id"], row["pixel_count"]) for row in found if row["image_id"] == image_id
        ]
        assert sorted(rows) == sorted(expected), image_id


def test_the_table_describes_the_mask(collection, maskloom):
    recipe = collection.recipe(segmenter=PARTS)
    assert maskloom("run", recipe, *QUIET, "--set", "tiling.tile=64").exit_code == 0

    masks, images = read_masks(collection.output), read_table(collection.output, "images")
    uri = next(row["mask_uri"] for row in images if row["image_id"] == "scenes/utm")
    measured = regionprops_table(
        masks[uri].astype(np.int32),
        photograph(*SCENE),
        properties=("label", "area", "centroid", "perimeter", "bbox", "mean_intensity"),
    )
    rows = [
        row for row in read_table(collection.output, "objects") if row["image_id"] == "scenes/utm"
    ]
    assert [row["object_id"] for row in rows] == measured["label"].tolist()
    assert [row["pixel_count"] for row in rows] == measured["area"].astype(int).tolist()
    for ours, theirs in (
        ("centroid_y", "centroid-0"),
        ("centroid_x", "centroid-1"),
        ("perimeter", "perimeter"),
        ("bbox_x1", "bbox-3"),
        ("mean_1", "mean_intensity-0"),
        ("mean_3", "mean_intensity-2"),
    ):
        np.testing.assert_allclose([row[ours] for row in rows], measured[theirs], err_msg=ours)
    areas = read_table(collection.output, "areas")
    for image in images:
        objects = sum(
            row["pixel_count"]
            for row in read_table(collection.output, "objects")
            if row["image_id"] == image["image_id"]
        )
        assert objects == sum(
            row["pixel_count"]
            for row in areas
            if row["image_id"] == image["image_id"] and row["class_id"] > 0
        )


def test_rows_name_the_recipe_that_made_them(collection, maskloom, monkeypatch):
    """Of images done in one job, and of large ones, whose rows are staged tile by tile."""
    recipe = collection.recipe(segmenter=PARTS)
    for part_pixels in (batching.RANGE_PIXELS, 2**16):
        monkeypatch.setattr(batching, "RANGE_PIXELS", part_pixels)
        output = f"out{part_pixels}"
        tiled = ("--set", "tiling.tile=160", "--set", f"output={output}")
        assert maskloom("run", recipe, *QUIET, *tiled).exit_code == 0

        of_areas, of_objects = (
            {(row["image_id"], row["fingerprint"]) for row in rows}
            for rows in (
                read_table(collection.folder / output, name) for name in ("areas", "objects")
            )
        )
        assert len(of_objects) > 1
        assert of_objects <= of_areas
        assert None not in {fingerprint for _, fingerprint in of_objects}


def test_tables_of_objects_are_geoparquet(collection, maskloom):
    recipe = collection.recipe(segmenter=PARTS)
    assert maskloom("run", recipe, *QUIET).exit_code == 0

    seen = set()
    for path in (collection.output / "tables" / "objects").iterdir():
        geo = json.loads(pq.read_schema(path).metadata[b"geo"])
        located = "crs" not in geo["columns"]["geometry"]
        table = pq.read_table(path)
        assert geo["version"] == "1.1.0"
        assert table["longitude"].null_count == (0 if located else len(table))
        seen |= {(image_id, located) for image_id in table["image_id"].to_pylist()}
    assert {image_id for image_id, located in seen if located} == {"scenes/utm", "scenes/lonlat"}
    assert ("photo", False) in seen


def test_another_recipe_without_objects_takes_their_rows_away(collection, maskloom):
    assert maskloom("run", collection.recipe(segmenter=PARTS), *QUIET).exit_code == 0
    assert read_table(collection.output, "objects")

    assert maskloom("run", collection.recipe(), *QUIET).exit_code == 0

    assert read_table(collection.output, "objects") == []
    assert maskloom("verify", collection.output).exit_code == 0


def test_changed_images_alone_get_new_objects(collection, maskloom):
    recipe = collection.recipe(segmenter=PARTS)
    maskloom("run", recipe, *QUIET)
    before = ds.dataset(collection.output / "tables/objects").to_table().to_pylist()
    Image.fromarray(photograph(90, 80)[::-1]).save(collection.folder / "images" / "pixel.png")

    assert maskloom("run", recipe, *QUIET).exit_code == 0

    after = ds.dataset(collection.output / "tables/objects").to_table().to_pylist()
    others = [[row for row in rows if row["image_id"] != "pixel"] for rows in (before, after)]
    assert sorted(map(repr, others[0])) == sorted(map(repr, others[1]))
    assert sum(row["pixel_count"] for row in after if row["image_id"] == "pixel") > 1


def test_a_picture_with_more_objects_than_png_can_number_gets_a_tiff_mask(tmp_path, maskloom):
    checks = (np.indices((400, 400)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "checks.png")
    segmenter = {
        **PARTS,
        "of": {"kind": "threshold", "value": 100},
        "connectivity": 4,
        "min_size": 1,
        "fill_holes": False,
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {"inputs": "checks.png", "output": "out", "segmenter": segmenter, "cluster": "serial"}
        )
    )

    assert maskloom("run", recipe, *QUIET, "--set", "tiling.tile=128").exit_code == 0

    (mask,) = read_masks(tmp_path / "out").items()
    assert mask[0] == "masks/checks.tif"
    assert mask[1].dtype == np.uint32
    np.testing.assert_array_equal(mask[1], label(checks, connectivity=1))


def test_a_halo_beyond_memory_is_refused_before_any_work(collection, maskloom):
    segmenter = {
        "kind": "mean_shift",
        "space": "joint",
        "spatial_radius": 100,
        "max_iterations": 50,
    }

    recipe = collection.recipe(
        segmenter=segmenter, cluster={"kind": "local", "workers": 1, "memory": "352 MB"}
    )
    result = maskloom("run", recipe, *QUIET)

    assert result.exit_code == 2
    assert "halo" in result.output
    assert not (collection.output / "masks").exists()


@pytest.mark.parametrize("segmenter", [PARTS, *AT_NIGHT], ids=kind_of)
def test_audit_finds_no_difference(collection, maskloom, segmenter):
    recipe = collection.recipe(segmenter=segmenter)

    result = maskloom("audit", recipe, "--tile", 64, "--pixels", 40_000)

    assert result.exit_code == 0, result.output
    assert "differing pixels: 0 of" in result.output


def test_rows_come_in_the_order_of_ids(collection, maskloom, monkeypatch):
    monkeypatch.setattr(batching, "RANGE_PIXELS", 2**16)

    assert (
        maskloom(
            "run", collection.recipe(segmenter=PARTS), *QUIET, "--set", "tiling.tile=64"
        ).exit_code
        == 0
    )

    for path in (collection.output / "tables" / "objects").iterdir():
        table = pq.read_table(path, columns=["image_id", "object_id"]).to_pylist()
        for image_id in {row["image_id"] for row in table}:
            ids = [row["object_id"] for row in table if row["image_id"] == image_id]
            assert ids == sorted(ids)


def test_classes_that_the_mask_has_not_are_refused_before_any_work(collection, maskloom):
    recipe = collection.recipe(
        segmenter="threshold", statistics=[{"kind": "objects", "classes": ["crop"]}]
    )

    result = maskloom("run", recipe, *QUIET)

    assert result.exit_code == 2
    assert "background, foreground" in result.output


@pytest.mark.parametrize("gains", [True, False], ids=["gained", "lost"])
def test_images_that_gain_or_lose_their_crs(tmp_path, maskloom, gains):
    (tmp_path / "images").mkdir()
    crs = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_300_000, 10, 10)}
    before, after = ({}, crs) if gains else (crs, {})
    for name in ("a", "b"):
        write_tiff(tmp_path / "images" / f"{name}.tif", photograph(60, 90), **before)
    document = {"inputs": "images", "output": "out", "segmenter": PARTS, "cluster": "serial"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(document))
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    write_tiff(tmp_path / "images" / "a.tif", photograph(61, 90), **after)

    assert maskloom("run", recipe, *QUIET).exit_code == 0

    rows = read_table(tmp_path / "out", "objects")
    assert {row["image_id"]: row["longitude"] is not None for row in rows} == {
        "a": gains,
        "b": not gains,
    }
    assert all((row["geometry"] is not None) == (row["longitude"] is not None) for row in rows)
    assert maskloom("verify", tmp_path / "out").exit_code == 0


def test_stitching_can_have_a_rule_for_each_class(collection, maskloom):
    segmenter = {
        "kind": "watershed",
        "of": "threshold",
        "distance": 8,
        "stitch": {"foreground": {"by": "overlap", "iou": 0.3}},
    }
    recipe = collection.recipe(segmenter=segmenter, inputs=["images/photo.png"])

    assert maskloom("run", recipe, *QUIET, "--set", "tiling.tile=128").exit_code == 0

    assert read_table(collection.output, "objects")


def test_lost_sketches_are_made_again(collection, maskloom, monkeypatch):
    monkeypatch.setattr(batching, "RANGE_PIXELS", 2**16)
    recipe = collection.recipe(segmenter=PARTS, inputs=["images/scenes/utm.tif"])
    arguments = ("run", recipe, *QUIET, "--set", "tiling.tile=256")
    with monkeypatch.context() as patch:
        patch.setattr(segment, "_join", stop)
        assert maskloom(*arguments).exit_code == 1
    lost = sorted((collection.output / "staging").rglob("*.labels"))
    lost[0].unlink()

    assert maskloom(*arguments).exit_code == 0

    assert not [path for path in (collection.output / "staging").rglob("*") if path.is_file()]


def stop(*_: object) -> None:
    raise RunError("stopped by the test")
