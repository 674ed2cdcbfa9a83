"""A class has one colour: in the mask, in the files beside it, in tables and in all pictures."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from starlette.testclient import TestClient
from tests_support import write_tiff

import maskloom as ml
from maskloom.flows.viewer.gallery import Gallery
from maskloom.flows.viewer.server import application
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.colours import hexadecimal
from maskloom.tasks.output import Output

pytestmark = pytest.mark.reports

CLASSES = ("water", "crop", "snow")
STATED = {"water": "#12c0fe", "crop": "#dc143c", "snow": "#0b0b70"}
"""Each is unlike the conventional colour of its name."""
COLOURS = {tuple(bytes.fromhex(colour[1:])) for colour in STATED.values()}
KMEANS = {"kind": "kmeans", "clusters": 3, "classes": list(CLASSES)}


@pytest.fixture
def scene(collection):
    """One georeferenced image of three even fields, in place of the collection's own images."""
    images = collection.folder / "images"
    for path in [path for path in images.rglob("*") if path.is_file()]:
        path.unlink()
    add(images / "a.tif")
    return collection


def add(path: Path) -> None:
    fields = np.repeat([20, 120, 230], (60, 80, 120)).astype(np.uint8)
    pixels = np.broadcast_to(fields[None, :, None], (240, 260, 3))
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5.3e6, 10, 10)}
    write_tiff(path, pixels.copy(), **place)


def colours_in(picture: Image.Image, least: int) -> set[tuple[int, ...]]:
    """Colours of at least so many pixels."""
    found = picture.convert("RGB").getcolors(picture.width * picture.height)
    return {colour for count, colour in found if count >= least}


def test_a_class_has_the_colour_of_the_recipe_everywhere(scene, maskloom):
    recipe = scene.recipe(segmenter=KMEANS, colours=STATED)
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    out = scene.output
    truth = scene.folder / "truth" / "a.tif"
    truth.parent.mkdir()
    truth.write_bytes((out / "masks/a.tif").read_bytes())
    told = maskloom("evaluate", out, "--truth", truth, "--quiet")
    assert told.exit_code == 0, told.output
    assert maskloom("export", out, "--to", "qupath").exit_code == 0

    with rasterio.open(out / "masks/a.tif") as mask:
        labels = mask.read(1)
        assert {mask.colormap(1)[i][:3] for i in range(3)} == COLOURS
        assert [mask.colormap(1)[i][:3] for i in np.unique(labels)] == [
            tuple(bytes.fromhex(STATED[name][1:])) for name in CLASSES
        ]
    style = ET.parse(out / "masks/a.qml").iter("paletteEntry")
    assert [(each.get("label"), each.get("color")) for each in style] == list(STATED.items())
    tables = [out / "tables/areas", out / "evaluation/classes.parquet"]
    for rows in (pq.read_table(table).to_pylist() for table in tables):
        assert {row["class_name"]: row["colour"] for row in rows} == STATED
    for name in ("report.html", "evaluation/report.html"):
        page = (out / name).read_text()
        assert all(colour in page for colour in STATED.values()), name
    for name in ("previews/a.png", "evaluation/evaluation.png"):
        with Image.open(out / name) as picture:
            assert colours_in(picture, 60) >= COLOURS, name
    (row,) = pq.read_table(out / "tables/pictures").to_pylist()
    assert colours_in(Image.open(io.BytesIO(row["mask"])), 60) == COLOURS
    with TestClient(
        application(Gallery(Output.open(str(out))), "t"), base_url="http://127.0.0.1:1"
    ) as client:
        tile = client.get("/t/tile/mask/0/0/0?image=a").content
    assert colours_in(Image.open(io.BytesIO(tile)), 60) - {(0, 0, 0)} == COLOURS
    opened = ml.open(str(out))["a"]
    assert dict(opened.legend[["class_name", "colour"]].to_numpy()) == STATED
    assert colours_in(Image.fromarray(opened.pair.mask), 60) == COLOURS
    exported = (out / "export/qupath/a.geojson").read_text()
    assert all(str(list(colour)) in exported for colour in COLOURS)


def test_files_beside_a_mask_come_and_go_with_it(scene, maskloom):
    """A mask of objects has no classes; the names of a former mask are not left beside it."""
    beside = {"a.tif.aux.xml", "a.qml"}
    objects = {"kind": "connected_parts", "of": {"kind": "threshold", "value": 90}}
    for segmenter, files in ((KMEANS, beside), (objects, set()), (KMEANS, beside)):
        recipe = scene.recipe(segmenter=segmenter)
        assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
        assert {path.name for path in (scene.output / "masks").iterdir()} == {"a.tif"} | files
    (scene.folder / "images/a.tif").write_bytes(b"II*\0 broken")
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code != 0
    assert not list((scene.output / "masks").iterdir())


def test_an_output_of_an_earlier_version_without_colours(scene, maskloom):
    """Runs go on, and all commands read the output, while some rows have colours and some none."""
    recipe = scene.recipe(segmenter=KMEANS, colours=STATED)
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    (areas,) = (scene.output / "tables/areas").iterdir()
    pq.write_table(pq.read_table(areas).drop_columns(["colour"]), areas)
    usual = dict(zip(CLASSES, map(hexadecimal, ClassTable.of(CLASSES).colours), strict=True))

    def seen() -> dict[str, dict[str, str]]:
        opened = ml.open(str(scene.output))
        return {
            each: dict(opened[each].legend[["class_name", "colour"]].to_numpy()) for each in opened
        }

    assert seen() == {"a": usual}
    assert maskloom("report", scene.output).exit_code == 0
    add(scene.folder / "images" / "b.tif")
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    assert seen() == {"a": usual, "b": STATED}
    found = pa.concat_tables(
        [pq.read_table(path) for path in (scene.output / "tables/areas").iterdir()],
        promote_options="permissive",
    )
    assert found.num_rows == 2 * len(CLASSES)
    truth = shutil.copytree(scene.output / "masks", scene.folder / "truth")
    for command in (
        ("status", scene.output),
        ("verify", scene.output),
        ("report", scene.output),
        ("export", scene.output, "--to", "qupath"),
        ("evaluate", scene.output, "--truth", truth, "--quiet"),
        ("clean", scene.output),
    ):
        told = maskloom(*command)
        assert told.exit_code == 0, told.output
    gallery = Gallery(Output.open(str(scene.output)))
    assert [gallery.opened(each).classes.colours for each in "ab"] == [
        tuple(tuple(bytes.fromhex(colour[1:])) for colour in each.values())
        for each in (usual, STATED)
    ]
