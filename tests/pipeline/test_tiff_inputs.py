"""TIFFs of all kinds through whole runs: what is counted, what is refused, what is said, what the
mask keeps.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from rasterio.control import GroundControlPoint
from skimage.data import camera
from tests_support import read_table

from maskloom.flows.recipes.run import make

SHAPE = (40, 60)
BRIGHT = 900
"""Of 12 bits, the picture is above this in some pixels."""


def picture() -> np.ndarray:
    """12 bits in 16."""
    return (camera()[200:240, 200:260].astype(np.uint16) << 4) + 7


def recipe(folder: Path, **keys: object) -> Path:
    document = {
        "inputs": "images",
        "output": "out",
        "segmenter": {"kind": "threshold", "value": BRIGHT, "band": 1},
        "cluster": "serial",
        "tiling": {"tile": 16},
        **keys,
    }
    (folder / "recipe.yaml").write_text(json.dumps(document))
    return folder / "recipe.yaml"


def test_files_are_counted_refused_and_spoken_of_as_they_should(tmp_path, maskloom, caplog):
    (tmp_path / "images").mkdir()
    bright = int((picture() > BRIGHT).sum())
    assert 0 < bright < picture().size
    for name, pixels, options in [
        ("black", picture(), {}),
        ("white", 65535 - picture(), {"photometric": "miniswhite"}),
        (
            "white_tiles",
            65535 - picture(),
            {"photometric": "miniswhite", "tile": (16, 16), "compression": "zlib"},
        ),
        ("signed", picture().astype(np.int16), {"photometric": "miniswhite"}),
        ("signed_too", picture().astype(np.int16), {"photometric": "miniswhite"}),
        (
            "channels",
            np.stack([picture(), picture()[::-1]]),
            {"imagej": True, "metadata": {"axes": "CYX"}},
        ),
        (
            "slices",
            np.stack([picture(), picture()[::-1]]),
            {"imagej": True, "metadata": {"axes": "ZYX"}},
        ),
        ("pages", np.stack([picture(), picture()[::-1]]), {"photometric": "minisblack"}),
    ]:
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", pixels, **options)

    result = maskloom("run", recipe(tmp_path), "--no-prefect", "--quiet")

    assert result.exit_code == 3, result.output
    images = {row["image_id"]: row for row in read_table(tmp_path / "out", "images")}
    failed = {name: row["error"] for name, row in images.items() if row["status"] == "failed"}
    assert failed.keys() == {"pages"}
    assert "holds 2 pages" in failed["pages"]
    counted = {
        row["image_id"]: row["pixel_count"]
        for row in read_table(tmp_path / "out", "areas")
        if row["class_id"] == 1
    }
    assert counted.pop("slices") == 2 * bright
    assert images["slices"]["depth"] == 2
    assert {name: count for name, count in counted.items() if name not in failed} == dict.fromkeys(
        images.keys() - failed - {"slices"}, bright
    )
    assert {
        name: (row["bands"], row["dtype"])
        for name, row in images.items()
        if name in ("white", "channels")
    } == {
        "white": (1, "uint16"),
        "channels": (2, "uint16"),
    }
    said = [record.getMessage() for record in caplog.records if "MinIsWhite" in record.getMessage()]
    assert len(said) == 1, "one line for all files of a kind"
    assert "signed.tif and 1 more: " in said[0]


def gcp_scene(path: Path) -> list[GroundControlPoint]:
    points = [
        GroundControlPoint(row=r, col=c, x=12 + c / 1000, y=60 - r / 1000)
        for r in (0, 40)
        for c in (0, 60)
    ]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=60,
        height=40,
        count=1,
        dtype="uint16",
        gcps=points,
        crs="EPSG:4326",
    ) as file:
        file.write(picture(), 1)
    return points


@pytest.mark.parametrize("choice", ["keep", "affine"])
def test_ground_control_points_are_kept_or_fitted(tmp_path, maskloom, caplog, choice):
    (tmp_path / "images").mkdir()
    points = gcp_scene(tmp_path / "images" / "a.tif")

    path = recipe(
        tmp_path,
        statistics=["area", "objects"],
        **({} if choice == "keep" else {"ground_control": choice}),
    )
    assert maskloom("run", path, "--no-prefect", "--quiet").exit_code == 0

    areas, objects = read_table(tmp_path / "out", "areas"), read_table(tmp_path / "out", "objects")
    with rasterio.open(tmp_path / "out" / "masks" / "a.tif") as mask:
        kept, crs = mask.gcps
        transform = mask.transform
    if choice == "keep":
        assert [(p.col, p.row, p.x, p.y) for p in kept] == [
            (p.col, p.row, p.x, p.y) for p in points
        ]
        assert crs.to_epsg() == 4326
        assert [(row["area"], row["area_unit"]) for row in areas] == [
            (row["pixel_count"], "px") for row in areas
        ]
        assert "4 ground control points" in caplog.text
    else:
        assert kept == []
        np.testing.assert_allclose(tuple(transform)[:6], (0.001, 0, 12, 0, -0.001, 60), atol=1e-9)
        from pyproj import Geod

        whole, _ = Geod(ellps="WGS84").polygon_area_perimeter(
            [12, 12.06, 12.06, 12], [59.96, 59.96, 60, 60]
        )
        # Sides along a parallel are geodesics to the oracle.
        assert sum(row["area"] for row in areas) == pytest.approx(whole, rel=1e-5)
        assert all(
            12 <= row["longitude"] <= 12.06 and 59.96 <= row["latitude"] <= 60 for row in objects
        )
        assert "misses them by at most 0.01 px" in caplog.text


def test_the_choice_decides_results_and_so_the_fingerprint(tmp_path):
    document = {"inputs": "images", "output": "out", "segmenter": "threshold"}
    kept, fitted, said = (
        make({**document, **keys}, tmp_path)
        for keys in ({}, {"ground_control": "affine"}, {"ground_control": "keep"})
    )
    assert kept.work.fingerprint == said.work.fingerprint != fitted.work.fingerprint


def test_a_mask_beside_an_image_that_leads_elsewhere_is_a_failed_row(tmp_path, maskloom):
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "other"):
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", picture())
    source = (
        f"<SimpleSource><SourceFilename>{tmp_path}/images/other.tif</SourceFilename>"
        "<SourceBand>1</SourceBand></SimpleSource>"
    )
    (tmp_path / "images" / "a.tif.msk").write_text(
        '<VRTDataset rasterXSize="60" rasterYSize="40">'
        '<Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>'
        f'<VRTRasterBand dataType="Byte" band="1">{source}</VRTRasterBand></VRTDataset>'
    )

    assert maskloom("run", recipe(tmp_path), "--no-prefect", "--quiet").exit_code == 3

    rows = {row["image_id"]: row for row in read_table(tmp_path / "out", "images")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a": "failed",
        "b": "ok",
        "other": "ok",
    }
    assert "a.tif.msk" in rows["a"]["error"]
