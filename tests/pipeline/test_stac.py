"""STAC items and collections as inputs, and the collection of an output, as users have them."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pystac
import pytest
import rasterio
import rasterio.warp
from stac_support import BANDS, TIFF, write_band, write_catalog, write_search

RUN = ("--no-prefect", "--quiet", "--set", "cluster=serial", "-s", "kmeans", "-p", "clusters=3")
NAMED = ("--set", "assets=[B02, green, B04]", "--set", "fit=image")
SECRET = "c0ffee"


def image_rows(output: Path) -> dict[str, dict[str, object]]:
    rows = pq.read_table(output / "tables" / "images").to_pylist()
    return {row["image_id"]: row for row in rows}


def mask_of(output: Path, image_id: str) -> np.ndarray:
    with rasterio.open(output / "masks" / f"{image_id}.tif") as file:
        return file.read(1)


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    write_catalog(tmp_path / "catalog")
    return tmp_path / "catalog"


@pytest.mark.parametrize(
    ("entry", "image_id"),
    [
        pytest.param("", "tiles/T{}/T{}", marks=pytest.mark.nightly),
        ("collection.json", "tiles/T{}/T{}"),
        pytest.param("tiles/*/*.json", "T{}/T{}", marks=pytest.mark.nightly),
        ("search.json", "search/T{}"),
    ],
)
def test_items_are_segmented_as_their_bands_in_one_file(tmp_path, maskloom, entry, image_id):
    pixels = write_catalog(tmp_path / "catalog")
    write_search(tmp_path / "catalog")
    for number, bands in enumerate(pixels):
        write_band(tmp_path / "stacked" / f"T{number}.tif", bands, nodata=0)
    output = tmp_path / "out"

    def segment(inputs: Path, to: Path) -> None:
        found = maskloom("segment", inputs, "-o", to, *RUN, *NAMED)
        assert found.exit_code == 0, found.output

    segment(tmp_path / "stacked", tmp_path / "expected")
    segment(tmp_path / "catalog" / entry, output)
    rows, runs = image_rows(output), sorted((output / "runs").iterdir())
    assert len(rows) == len(pixels)
    for number in range(len(pixels)):
        row = rows[image_id.format(number, number)]
        assert row["acquired"].isoformat() == f"2026-05-{13 + number}T10:20:00+00:00"
        expected = mask_of(tmp_path / "expected", f"T{number}")
        assert np.array_equal(mask_of(output, row["image_id"]), expected)
    segment(tmp_path / "catalog" / entry, output)
    assert sorted((output / "runs").iterdir()) == runs


@pytest.mark.nightly
def test_assets_on_two_grids_and_unknown_ones_are_refused(catalog, tmp_path, maskloom):
    result = maskloom("segment", catalog, "-o", tmp_path / "out", *RUN)
    assert result.exit_code == 3
    errors = [row["error"] for row in image_rows(tmp_path / "out").values()]
    assert all("B05 20 x 24 pixels" in each for each in errors)
    assert all("`assets: [B02, B03, B04]`" in each for each in errors)
    result = maskloom("segment", catalog, "-o", tmp_path / "b", *RUN, "--set", "assets=nir")
    assert result.exit_code == 3
    assert "has no asset 'nir'; it has B02, B03, B04, B05, look." in result.stderr


@pytest.mark.nightly
def test_a_changed_asset_makes_its_image_anew(catalog, tmp_path, maskloom):
    def segment() -> dict[str, str]:
        assert maskloom("segment", catalog, "-o", tmp_path / "out", *RUN, *NAMED).exit_code == 0
        return {key: row["mask_sha256"] for key, row in image_rows(tmp_path / "out").items()}

    before = segment()
    pixels = np.random.default_rng(5).integers(1, 3000, (48, 40), np.uint16)
    write_band(catalog / "tiles" / "T1" / "B03.tif", pixels)
    after = segment()
    assert [key for key in before if before[key] != after[key]] == ["tiles/T1/T1"]


def test_hostile_documents_end_with_a_message(tmp_path, maskloom):
    def write(name: str, document: object) -> Path:
        path = tmp_path / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    def catalog(*links: tuple[str, str]) -> dict[str, object]:
        listed = [{"rel": relation, "href": href} for relation, href in links]
        return {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "links": listed}

    for number in range(40):
        write(f"deep{number}.json", catalog(("child", f"./deep{number + 1}.json")))
    stopped = {
        write("self.json", catalog(("child", "./self.json"))): "leads to no item",
        tmp_path / "deep0.json": "go more than 32 levels deep",
        write("gone.json", catalog(("child", "./nowhere.json"))): "does not exist",
        write("chained.json", catalog(("item", "simplecache::file:///a"))): "chains stores",
    }
    for path, said in stopped.items():
        result = maskloom("segment", path, "-o", tmp_path / "out", *RUN)
        assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
        assert not (tmp_path / "out").exists()
    item = {"type": "Feature", "id": "i", "properties": {}, "assets": {}}
    failed = {
        write("nested.json", '{"a":' * 100_000): "nested too deeply",
        write("cut.json", '{"type": "Feature", "assets"'): "is no JSON",
        write("other.json", {"type": "Feature", "geometry": None}): "is no Feature with assets",
        write("empty.json", item): "has no asset that can be read",
        write("loop.json", {**item, "assets": {"a": {"href": "loop.json", "roles": ["data"]}}}): (
            "has no asset that can be read"
        ),
    }
    for path, said in failed.items():
        result = maskloom("segment", path, "-o", tmp_path / path.stem, *RUN)
        assert (result.exit_code, said in result.stderr) == (3, True), result.stderr


def test_json_beside_images_is_no_input(tmp_path, maskloom):
    write_band(tmp_path / "in" / "a.tif", np.arange(100, dtype=np.uint8).reshape(10, 10))
    (tmp_path / "in" / "a.json").write_text("{}")
    (tmp_path / "in" / "catalog.json").write_text('{"about": "something else"}')
    assert maskloom("segment", tmp_path / "in", "-o", tmp_path / "out", *RUN).exit_code == 0
    assert list(image_rows(tmp_path / "out")) == ["a"]


@pytest.mark.nightly
def test_signatures_of_assets_are_written_nowhere(catalog, tmp_path, maskloom, monkeypatch):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def send_head(self):
            if self.path.split("?")[0].endswith(".tif") and SECRET not in self.path:
                self.send_error(403)
                return None
            return super().send_head()

        def log_message(self, *arguments: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(catalog))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        for path in catalog.rglob("T*.json"):
            item = json.loads(path.read_text())
            for band in BANDS:
                asset = item["assets"][band]
                asset["href"] = f"{address}/tiles/{path.stem}/{band}.tif?sig={SECRET}&se=1"
            path.write_text(json.dumps(item))
        result = maskloom(
            "segment", f"{address}/collection.json", "-o", tmp_path / "out", *RUN, *NAMED
        )
        server.shutdown()
        thread.join()
    assert result.exit_code == 0, result.output
    assert len(image_rows(tmp_path / "out")) == 2
    assert SECRET not in result.output
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


def test_the_collection_of_an_output_follows_the_rules_of_stac(catalog, tmp_path, maskloom):
    for name, west in (("west", -179.999), ("fiji", 179.9995)):
        write_band(
            tmp_path / "in" / f"{name}.tif",
            np.arange(900, dtype=np.uint16).reshape(30, 30),
            crs="EPSG:4326",
            transform=rasterio.transform.from_origin(west, -17, 1e-4, 1e-4),
        )
    write_band(
        tmp_path / "in" / "nowhere.tif",
        np.arange(900, dtype=np.uint8).reshape(30, 30),
        crs=None,
        transform=rasterio.Affine.identity(),
    )
    (tmp_path / "in" / "broken.tif").write_bytes(b"II*\0broken")
    output = tmp_path / "out"
    names = ("-p", "classes=[open water, forest, rock]")
    inputs = (tmp_path / "in", catalog / "tiles/T0/T0.json")
    # One band of each, so that they share a model.
    run = (*RUN, "--set", "assets=B02", "--set", "fit=image", *names)
    assert maskloom("segment", *inputs, "-o", output, *run).exit_code == 3
    result = maskloom("export", output, "--to", "stac")
    assert result.exit_code == 0, result.output
    assert "1 image without a mask left out" in result.stderr
    assert "1 item without a geometry" in result.stderr

    collection = pystac.Collection.from_file(str(output / "stac" / "collection.json"))
    items = {item.id.rpartition("/")[2]: item for item in collection.get_items()}
    assert items.keys() == {"west", "fiji", "nowhere", "T0"}
    areas = pq.read_table(output / "tables" / "areas").to_pylist()
    for each in (collection, *items.values()):
        plain = each.clone()
        # The schemas of extensions are on the network, that of the core comes with pystac.
        plain.stac_extensions = []
        plain.validate()
    for item in items.values():
        for asset in item.assets.values():
            assert Path(asset.get_absolute_href()).is_file()
        mask = item.assets["mask"]
        classes = mask.ext.classification.classes if item.ext.has("classification") else []
        own = sorted((r for r in areas if r["image_id"] == item.id), key=lambda r: r["class_id"])
        assert [(c.value, c.title, f"#{c.color_hint.lower()}") for c in classes] == [
            (r["class_id"], r["class_name"], r["colour"]) for r in own
        ]
        assert item.properties["maskloom:area"] == {r["class_name"]: r["area"] for r in own}
    assert items["nowhere"].geometry is None
    west, _, east, _ = items["fiji"].bbox
    assert west > 179
    assert east < -179
    assert items["fiji"].geometry["type"] == "MultiPolygon"
    assert collection.extent.spatial.bboxes[0][0] > 0, "the shortest box holds Fiji and Europe"

    placed = items["T0"]
    with rasterio.open(placed.assets["mask"].get_absolute_href()) as file:
        expected = rasterio.warp.transform_bounds(file.crs, "OGC:CRS84", *file.bounds)
        assert placed.ext.proj.code == "EPSG:32633"
        assert placed.ext.proj.transform == list(file.transform)[:6]
        assert placed.assets["mask"].media_type == TIFF
    assert np.allclose(placed.bbox, expected, rtol=0, atol=1e-6)
    assert placed.datetime.isoformat() == "2026-05-13T10:20:00+00:00"
    assert items["fiji"].datetime is None
    assert items["fiji"].common_metadata.end_datetime is not None

    # What has left the tables leaves the collection, and it can be read as an input.
    stale = output / "stac" / "items" / "gone.json"
    stale.write_text("{}")
    assert maskloom("export", output, "--to", "stac").exit_code == 0
    assert not stale.exists()
    assert maskloom("verify", output).exit_code == 0
    read = maskloom(
        "segment", output / "stac", "-o", tmp_path / "again", *RUN, "--set", "fit=image"
    )
    assert len(image_rows(tmp_path / "again")) == len(items), read.output
