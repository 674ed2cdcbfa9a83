"""Whole runs as users start them, in this process: outputs, exit codes, increments."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
import rasterio
from PIL import Image
from tests_support import SCENE, assert_same_results, photograph, read_masks, read_table, write_tiff

ALL = 6


@pytest.fixture
def recipe(collection):
    return collection.recipe()


def test_a_run_gives_masks_previews_and_tables_that_add_up(collection, recipe, maskloom):
    result = maskloom("run", recipe, "--no-prefect", "--quiet")

    assert result.exit_code == 0, result.output
    images = {row["image_id"]: row for row in read_table(collection.output, "images")}
    (told,) = images.keys() & {"photo_jpg", "photo_png"}
    assert sorted(images) == ["photo", told, "pixel", "plain", "scenes/lonlat", "scenes/utm"]
    assert {row["status"] for row in images.values()} == {"ok"}
    areas = read_table(collection.output, "areas")
    masks = read_masks(collection.output)
    for image_id, image in images.items():
        rows = [row for row in areas if row["image_id"] == image_id]
        assert [row["class_name"] for row in rows] == [
            "cluster_0",
            "cluster_1",
            "cluster_2",
            "cluster_3",
        ]
        assert (
            sum(row["pixel_count"] for row in rows)
            + image["nodata_pixels"]
            + image["unprocessed_pixels"]
            == image["total_pixels"]
        )
        mask = masks[image["mask_uri"]]
        assert mask.shape == (image["height"], image["width"])
        assert [int((mask == row["class_id"]).sum()) for row in rows] == [
            row["pixel_count"] for row in rows
        ]
        assert int((mask == 255).sum()) == image["nodata_pixels"]
        assert (collection.output / "previews" / f"{image_id}.png").exists()
    assert images["scenes/lonlat"]["nodata_pixels"] >= 200 * 220
    assert {row["area_unit"] for row in areas if row["image_id"] == "photo"} == {"px"}
    assert {row["area_unit"] for row in areas if row["image_id"] == "scenes/utm"} == {"m2"}
    utm = sum(row["area"] for row in areas if row["image_id"] == "scenes/utm")
    assert utm == pytest.approx(SCENE[0] * SCENE[1] * 100 / 0.9996**2, rel=1e-4)
    assert maskloom("verify", collection.output).exit_code == 0


def test_the_query_of_the_contract_is_right_without_maskloom(collection, recipe, maskloom):
    maskloom("run", recipe, "--no-prefect", "--quiet")

    query = (
        f"SELECT class_name, sum(pixel_count) FROM '{collection.output}/tables/areas/*.parquet' "
        "GROUP BY 1"
    )
    found = dict(duckdb.sql(query).fetchall())

    counted = np.sum(
        [
            np.bincount(mask.ravel(), minlength=256)
            for mask in read_masks(collection.output).values()
        ],
        axis=0,
    )
    assert found == {f"cluster_{i}": int(counted[i]) for i in range(4)}


def test_a_band_without_a_say_is_told_in_the_log_and_the_table(tmp_path, maskloom, caplog):
    heights = 3000 + 300 * np.random.default_rng(0).standard_normal((40, 60))
    indices = np.where(np.arange(60) < 20, 0.2, 0.8) + 0.001 * heights / 3000
    for name in ("a", "b"):
        write_tiff(
            tmp_path / f"{name}.tif",
            np.stack([heights, np.broadcast_to(indices, (40, 60))], -1).astype("float32"),
        )
    for parameters, warned in (((), True), (("-p", "standardise=true"), False)):
        output = tmp_path / f"out{warned}"
        command = (
            "segment",
            tmp_path / "*.tif",
            "-o",
            output,
            "-s",
            "kmeans",
            "-p",
            "clusters=2",
            *parameters,
        )
        result = maskloom(*command, "--no-prefect", "--quiet", "--set", "cluster=serial")
        assert result.exit_code == 0, result.output
        assert ("a and 1 more: by standard deviation, band 2 (0.2" in caplog.text) == warned
        caplog.clear()
        warnings = [row["warning"] for row in read_table(output, "images")]
        assert [
            str(warning).startswith("by standard deviation, band 2") for warning in warnings
        ] == [warned, warned]
        counted = [row["pixel_count"] for row in read_table(output, "areas")]
        assert (counted == [800, 1600, 800, 1600]) == (not warned)


@pytest.mark.parametrize("segmenter", ["mixture", "mean_shift"])
def test_extreme_values_fail_their_image_alone_and_likely_nodata_is_told(
    tmp_path, maskloom, caplog, recwarn, segmenter
):
    steps = np.random.default_rng(1).integers(0, 3, (40, 60, 1)) + 0.05 * np.random.default_rng(
        0
    ).standard_normal((40, 60, 2))
    for name, value in (
        ("good", 0),
        ("huge", 1e160),
        ("largest", -np.finfo(float).max),
        ("odd", -3.4e38),
    ):
        pixels = steps.astype("float32" if name in ("good", "odd") else "float64")
        pixels[:, :8, 0] = value
        write_tiff(tmp_path / f"{name}.tif", pixels)
    parameters = (
        ("-p", "components=3")
        if segmenter == "mixture"
        else ("-p", "bandwidth=1e15", "-p", "standardise=true")
    )
    command = (
        "segment",
        tmp_path / "*.tif",
        "-o",
        tmp_path / "out",
        "-s",
        segmenter,
        *parameters,
        "--fit",
        "image",
    )

    result = maskloom(*command, "--no-prefect", "--quiet", "--set", "cluster=serial")

    assert result.exit_code == 3, result.output
    rows = {row["image_id"]: row for row in read_table(tmp_path / "out", "images")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "good": "ok",
        "huge": "failed",
        "largest": "failed",
        "odd": "ok",
    }
    assert all(
        "Clusters cannot be found in values" in rows[name]["error"] for name in ("huge", "largest")
    )
    assert (
        "band 1 has values down to -3.4e+38, which look like undeclared nodata"
        in rows["odd"]["warning"]
    )
    assert "nodata" not in (rows["good"]["warning"] or "")
    assert "band 1 has values down to -3.4e+38" in caplog.text
    assert not [each for each in recwarn if issubclass(each.category, RuntimeWarning)]


def test_mask_of_a_scene_opens_on_the_same_grid(collection, recipe, maskloom):
    maskloom("run", recipe, "--no-prefect", "--quiet")

    with (
        rasterio.open(collection.folder / "images/scenes/utm.tif") as source,
        rasterio.open(collection.output / "masks/scenes/utm.tif") as mask,
    ):
        assert (mask.crs, mask.transform, mask.shape) == (
            source.crs,
            source.transform,
            source.shape,
        )
        assert mask.nodata == 255
        assert mask.colormap(1)[0][:3] != mask.colormap(1)[1][:3]
    with Image.open(collection.output / "masks/pixel.png") as mask:
        assert mask.mode == "P"


@pytest.mark.parametrize(
    ("segmenter", "fit", "features"),
    [
        ("threshold", "image", []),
        ("kmeans", "collection", ["b1", "b1 / (b1 + 9)", "gaussian(1.5)", "texture(b1, 9)"]),
    ],
)
def test_the_tiling_changes_nothing(collection, maskloom, segmenter, fit, features):
    recipe = collection.recipe(segmenter={"kind": segmenter}, fit=fit, features=features)
    for tile in (64, 4096):
        arguments = (
            "--no-prefect",
            "--quiet",
            "--set",
            f"tiling.tile={tile}",
            "--set",
            f"output=out{tile}",
        )
        assert maskloom("run", recipe, *arguments).exit_code in {0, 3}

    assert_same_results(collection.folder / "out64", collection.folder / "out4096")


def test_a_second_run_does_nothing(collection, recipe, maskloom):
    maskloom("run", recipe, "--no-prefect", "--quiet")
    before = {path: path.stat().st_mtime_ns for path in collection.output.rglob("*")}

    result = maskloom("run", recipe, "--no-prefect", "--quiet")

    assert result.exit_code == 0
    assert "Nothing to do" in result.output
    assert {path: path.stat().st_mtime_ns for path in collection.output.rglob("*")} == before


def test_only_new_and_changed_images_are_processed_and_tables_hold_the_newest(
    collection, recipe, maskloom
):
    maskloom("run", recipe, "--no-prefect", "--quiet")
    first = {
        row["image_id"]: row["run_id"]
        for row in read_table(collection.output, "images", volatile=())
    }
    images = collection.folder / "images"
    Image.fromarray(photograph(90, 80)[::-1]).save(images / "pixel.png")
    Image.fromarray(photograph(60, 70)).save(images / "new.png")
    (images / "plain.tiff").unlink()

    result = maskloom("run", recipe, "--no-prefect", "--quiet")

    assert result.exit_code == 0, result.output
    assert "2 images done" in result.output
    assert "no longer among the inputs" in result.output
    rows = {row["image_id"]: row for row in read_table(collection.output, "images", volatile=())}
    assert len(rows) == ALL + 1
    assert {name for name, row in rows.items() if row["run_id"] != first.get(name)} == {
        "pixel",
        "new",
    }
    assert rows["pixel"]["total_pixels"] == 90 * 80
    areas = read_table(collection.output, "areas")
    assert len(areas) == 4 * (ALL + 1)
    assert sum(row["pixel_count"] for row in areas if row["image_id"] == "pixel") == 90 * 80
    assert maskloom("verify", collection.output).exit_code == 0


def test_another_recipe_in_the_same_output_replaces_every_row(collection, recipe, maskloom):
    maskloom("run", recipe, "--no-prefect", "--quiet")

    assert (
        maskloom(
            "run", recipe, "--no-prefect", "--quiet", "--set", "segmenter.clusters=3"
        ).exit_code
        == 0
    )

    assert len(read_table(collection.output, "areas")) == 3 * ALL
    assert maskloom("verify", collection.output).exit_code == 0


def test_broken_images_become_failed_rows_and_nothing_else_suffers(collection, recipe, maskloom):
    undisturbed = collection.folder / "undisturbed"
    maskloom("run", recipe, "--no-prefect", "--quiet", "--set", f"output={undisturbed}")
    images = collection.folder / "images"
    (images / "empty.tif").write_bytes(b"")
    (images / "text.png").write_text("not a picture")
    content = (images / "scenes" / "utm.tif").read_bytes()
    (images / "cut.tif").write_bytes(content[: len(content) * 2 // 3])
    shutil.copy(images / "photo.png", images / "wrong.jpg")

    result = maskloom("run", recipe, "--no-prefect", "--quiet")

    assert result.exit_code == 3, result.output
    rows = {row["image_id"]: row for row in read_table(collection.output, "images")}
    failed = {name: row for name, row in rows.items() if row["status"] == "failed"}
    assert sorted(failed) == ["cut", "empty", "text", "wrong"]
    assert all(
        row["error"] and row["error_type"] and row["mask_uri"] is None for row in failed.values()
    )
    areas = read_table(collection.output, "areas")
    cut = [row for row in areas if row["image_id"] == "cut"]
    assert {row["unprocessed_pixels"] for row in cut} == {SCENE[0] * SCENE[1]}
    masks = read_masks(collection.output)
    for name, mask in read_masks(undisturbed).items():
        np.testing.assert_array_equal(masks[name], mask)
    assert maskloom("verify", collection.output).exit_code == 0
    again = maskloom("run", recipe, "--no-prefect", "--quiet")
    assert again.exit_code == 3
    assert "Nothing to do" in again.output


def test_an_image_that_fails_has_its_rows_also_where_each_image_has_its_own_fit(
    collection, recipe, maskloom
):
    content = (collection.folder / "images/scenes/utm.tif").read_bytes()
    (collection.folder / "images/cut.tif").write_bytes(content[: len(content) * 2 // 3])

    assert maskloom("run", recipe, "--no-prefect", "--quiet", "--set", "fit=image").exit_code == 3

    rows = [row for row in read_table(collection.output, "areas") if row["image_id"] == "cut"]
    assert [row["unprocessed_pixels"] for row in rows] == [SCENE[0] * SCENE[1]] * 4


def test_a_passing_fault_stops_the_fit_and_leaves_no_trace_in_the_model(
    collection, recipe, maskloom, monkeypatch
):
    maskloom("run", recipe, "--no-prefect", "--quiet", "--set", "output=undisturbed")
    hidden, images = collection.folder / "hidden.png", collection.folder / "images"
    from maskloom.tasks import fit

    def lose_an_image(function, *arguments):
        (images / "photo.png").rename(hidden)
        return real(function, *arguments)

    real = fit._round
    monkeypatch.setattr(fit, "_round", lose_an_image)
    result = maskloom("run", recipe, "--no-prefect", "--quiet")
    assert result.exit_code == 1
    assert "photo.png" in result.output
    monkeypatch.setattr(fit, "_round", real)
    hidden.rename(images / "photo.png")

    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    assert_same_results(collection.output, collection.folder / "undisturbed")


def test_a_second_run_does_not_take_its_own_masks_for_images(collection, maskloom):
    recipe = collection.recipe(inputs="images", output="images/out")
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0

    assert "Nothing to do" in maskloom("run", recipe, "--no-prefect", "--quiet").output


def test_too_many_failures_end_the_run_and_raising_the_limit_goes_on(collection, recipe, maskloom):
    (collection.folder / "images" / "empty.tif").write_bytes(b"")

    result = maskloom("run", recipe, "--no-prefect", "--quiet", "--set", "max_failed_fraction=0.05")

    assert result.exit_code == 1
    assert "max_failed_fraction" in result.output
    assert (
        maskloom(
            "run", recipe, "--no-prefect", "--quiet", "--set", "max_failed_fraction=0.05"
        ).exit_code
        == 1
    )
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("segmenter.kind=kmean", "Did you mean 'kmeans'"),
        ("segmenter.cluster=3", "Did you mean `clusters`"),
        ("segmenter.clusters=none", "segmenter.clusters"),
        ("segmenter.clusters=0", "clusters"),
        ("tiling.tile=3", "tiling.tile"),
        ("inputs=nowhere/*.tif", "nowhere"),
        ("fit=both", "fit"),
        ("name=Ü", "name"),
        ("output=${NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
        ("storage.s3.secret=x", "secrets are not allowed in recipes"),
        ("cluster.kind=cloud", "cluster"),
        ("tilling.tile=512", "Did you mean `tiling`"),
        ("tiling.tlie=512", "Did you mean `tile`"),
        ("output=recipe.yaml", "is a file"),
        ("inputs=nosuch://bucket/a.tif", "nosuch"),
    ],
)
def test_a_wrong_recipe_is_refused_before_any_work(collection, recipe, maskloom, change, said):
    result = maskloom("run", recipe, "--no-prefect", "--quiet", "--set", change)

    assert result.exit_code == 2
    assert said in result.output
    assert not collection.output.exists()


def test_segment_makes_the_recipe_from_flags(collection, maskloom, monkeypatch):
    monkeypatch.chdir(collection.folder)

    result = maskloom(
        "segment",
        "images/photo.png",
        "images/photo.jpg",
        "-o",
        "out",
        "-s",
        "threshold",
        "-p",
        "value=100",
        "--set",
        "cluster.kind=serial",
        "--no-prefect",
        "--quiet",
    )

    assert result.exit_code == 0, result.output
    assert {row["class_name"] for row in read_table(collection.output, "areas")} == {
        "background",
        "foreground",
    }


def test_plan_counts_without_work(collection, recipe, maskloom):
    result = maskloom("plan", recipe, "--set", "tiling.tile=256")

    assert result.exit_code == 0, result.output
    assert f"images {ALL} of {ALL}" in result.output
    assert "tiles 31 of 256 x 256" in result.output
    assert not collection.output.exists()


def test_status_and_verify_tell_what_happened(collection, recipe, maskloom):
    assert maskloom("status", collection.output).exit_code == 2
    maskloom("run", recipe, "--no-prefect", "--quiet")

    assert maskloom("status", collection.output).output.startswith(f"done {ALL}\nfailed 0\nleft 0")
    mask = collection.output / "masks/scenes/utm.tif"
    mask.write_bytes(mask.read_bytes()[:-1] + b"\x00\x01")
    broken = maskloom("verify", collection.output)
    assert broken.exit_code == 1
    assert "masks/scenes/utm.tif" in broken.output
    mask.unlink()
    assert "1 image done" in maskloom("run", recipe, "--no-prefect", "--quiet").output
    assert maskloom("verify", collection.output).exit_code == 0
    assert len(read_table(collection.output, "areas")) == 4 * ALL


def test_memory_store_runs_in_this_process(collection, recipe, maskloom):
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(str(collection.folder / "images") + "/", "/memory-images", recursive=True)

    result = maskloom(
        "run",
        recipe,
        "--no-prefect",
        "--quiet",
        "--set",
        "inputs=memory://memory-images",
        "--set",
        "output=memory://memory-out",
    )

    assert result.exit_code == 0, result.output
    fs.get("/memory-out", str(collection.folder / "copy"), recursive=True)
    maskloom("run", recipe, "--no-prefect", "--quiet")
    masks = read_masks(collection.folder / "copy")
    assert masks.keys() == read_masks(collection.output).keys()
    for name, mask in read_masks(collection.output).items():
        np.testing.assert_array_equal(mask, masks[name])


def test_a_list_file_names_the_inputs(collection, recipe, maskloom):
    listing = collection.folder / "list.csv"
    listing.write_text("uri,note\nimages/photo.png,a\nimages/plain.tiff,b\n")

    assert (
        maskloom("run", recipe, "--no-prefect", "--quiet", "--set", "inputs=list.csv").exit_code
        == 0
    )

    assert [row["image_id"] for row in read_table(collection.output, "images")] == [
        "photo",
        "plain",
    ]


def test_hostile_names_stay_below_the_output(collection, recipe, maskloom):
    hostile = collection.folder / "images" / "..hidden -rf; $(x) ü 🦄.png"
    Image.fromarray(photograph(20, 30)).save(hostile)

    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0

    outside = [
        path
        for path in collection.folder.rglob("*.png")
        if not path.is_relative_to(collection.output)
    ]
    assert Path(hostile) in outside
    assert len(outside) == 3
    assert len(read_masks(collection.output)) == ALL + 1


def test_a_model_that_is_gone_is_not_fitted_again_to_new_images_alone(collection, recipe, maskloom):
    """Their classes would mean something else than those of the images before."""
    last = collection.folder / "images" / "photo.png"
    late = last.read_bytes()
    last.unlink()
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    (model,) = collection.output.glob("runs/recipe-*/model.json")
    (shared,) = collection.output.glob("runs/recipes/*/model.json")
    content = model.read_bytes()
    assert shared.read_bytes() == content
    model.unlink()
    shared.unlink()
    last.write_bytes(late)

    refused = maskloom("run", recipe, "--no-prefect", "--quiet")
    assert refused.exit_code == 1
    assert str(model) in refused.output
    assert "new output" in refused.output
    model.write_bytes(content)
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    assert len({path.read_bytes() for path in collection.output.glob("runs/**/model.json")}) == 1
