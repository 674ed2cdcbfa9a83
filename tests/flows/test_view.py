"""The server of `maskloom view`: who may ask, and whether tiles are windows of the files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from maskloom.flows.cli import app
from maskloom.flows.viewer.answers import TILE
from maskloom.flows.viewer.gallery import Gallery
from maskloom.flows.viewer.server import application
from maskloom.tasks.output import Output

TOKEN, IMAGE = "token", "a"
SHAPE = (700, 1100)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One photo with two classes, and a broken one."""
    folder = tmp_path_factory.mktemp("view")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 110, 3), np.uint8)
    Image.fromarray(pixels.repeat(10, 0).repeat(10, 1)).save(folder / "a.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    options = ["-s", "threshold", "-p", "value=128", "--no-prefect", "--quiet"]
    more = ["--set", "cluster.kind=serial", "--set", "max_failed_fraction=0.9"]
    inputs = [str(folder / name) for name in ("a.png", "broken.png")]
    objects = ["--set", "statistics=[area, objects]"]
    command = ["segment", *inputs, "-o", str(folder / "out"), *options, *more, *objects]
    assert CliRunner().invoke(app, command).exit_code == 3
    return folder


@pytest.fixture(scope="module")
def client(output: Path):
    gallery = Gallery(Output.open(str(output / "out")))
    with TestClient(application(gallery, TOKEN), base_url="http://127.0.0.1:1") as found:
        yield found


def opened(client: TestClient, address: str) -> Image.Image:
    answer = client.get(f"/{TOKEN}/{address}")
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


@pytest.mark.parametrize(
    ("address", "host", "status"),
    [
        (f"/{TOKEN}/", "127.0.0.1:1", 200),
        (f"/{TOKEN}/", "localhost:1", 200),
        (f"/{TOKEN}/", "evil.example", 400),
        ("/", "127.0.0.1:1", 404),
        ("/other/", "127.0.0.1:1", 404),
        ("/other/api/images", "127.0.0.1:1", 404),
        (f"/{TOKEN}/api/image?image=../../a.png", "127.0.0.1:1", 404),
        (f"/{TOKEN}/api/image?image=%2Fetc%2Fpasswd", "127.0.0.1:1", 404),
        (f"/{TOKEN}/tile/source/0/0/0?image=..%2Fa", "127.0.0.1:1", 404),
        (f"/{TOKEN}/static/..%2fserver.py", "127.0.0.1:1", 404),
        (f"/{TOKEN}/tile/source/0/9/0?image=a", "127.0.0.1:1", 404),
        (f"/{TOKEN}/tile/source/99/0/0?image=a", "127.0.0.1:1", 404),
        (f"/{TOKEN}/tile/tables/0/0/0?image=a", "127.0.0.1:1", 404),
        (f"/{TOKEN}/plane/source/0/0?image=a", "127.0.0.1:1", 404),
    ],
)
def test_answers_those_alone_who_know_the_token_and_name_an_image(
    client: TestClient, address: str, host: str, status: int
) -> None:
    assert client.get(address, headers={"Host": host}).status_code == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("address", ["", "api/images", "static/viewer.js"])
def test_the_page_only_reads(client: TestClient, method: str, address: str) -> None:
    assert client.request(method, f"/{TOKEN}/{address}").status_code == 405


def test_tiles_are_the_windows_of_source_and_mask(client: TestClient, output: Path) -> None:
    source = np.array(Image.open(output / "a.png"))
    mask = np.array(Image.open(output / "out/masks/a.png"))
    for row, column in np.ndindex(-(-SHAPE[0] // TILE), -(-SHAPE[1] // TILE)):
        place = np.s_[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        height, width = mask[place].shape
        address = f"0/{column}/{row}?image={IMAGE}"
        tile = np.array(opened(client, f"tile/source/{address}").convert("RGBA"))
        assert np.array_equal(tile[:height, :width, :3], source[place])
        assert (tile[:height, :width, 3] == 255).all()
        assert (tile[height:, :, 3] == 0).all()
        labels = np.array(opened(client, f"tile/mask/{address}"))
        assert np.array_equal(labels[:height, :width], mask[place])


def test_a_coarser_tile_is_the_mean_of_pixels(client: TestClient, output: Path) -> None:
    source = np.array(Image.open(output / "a.png")).astype(float)
    means = source.reshape(350, 2, 550, 2, 3).mean(axis=(1, 3))
    tile = np.array(opened(client, f"tile/source/1/0/0?image={IMAGE}").convert("RGB"))
    # JPEG is not exact.
    assert np.abs(tile[:350] - means[:, :TILE]).mean() < 8


def test_hidden_classes_are_transparent_and_others_opaque(client: TestClient, output: Path) -> None:
    mask = np.array(Image.open(output / "out/masks/a.png"))[:TILE, :TILE]
    for hidden in (set(), {1}, {0, 1}):
        named = ",".join(map(str, sorted(hidden)))
        tile = opened(client, f"tile/mask/0/0/0?image={IMAGE}&hidden={named}")
        alpha = np.array(tile.convert("RGBA"))[..., 3]
        assert np.array_equal(alpha == 0, np.isin(mask, list(hidden)))


def test_a_click_finds_the_row_and_outline_of_the_object(client: TestClient, output: Path) -> None:
    import shapely

    mask = np.array(Image.open(output / "out/masks/a.png"))
    row, column = (int(each[0]) for each in np.nonzero(mask == 1))
    found = client.get(f"/{TOKEN}/api/at?image={IMAGE}&x={column}&y={row}").json()
    objects = Output.open(str(output / "out")).objects().to_pylist()
    (entry,) = [each for each in objects if each["object_id"] == found["object"]["object_id"]]
    outline = shapely.build_area(shapely.MultiLineString(found["outline"]))
    assert outline.contains(shapely.Point(column + 0.5, row + 0.5))
    assert outline.area == entry["pixel_count"] == found["object"]["pixel_count"]
    assert found["class"] == entry["class_name"]


def test_outlines_are_the_pixels_at_the_border_of_a_region(
    client: TestClient, output: Path
) -> None:
    from skimage.segmentation import find_boundaries

    mask = np.array(Image.open(output / "out/masks/a.png"))
    expected = find_boundaries(mask, connectivity=1, mode="thick")
    for row, column in np.ndindex(-(-SHAPE[0] // TILE), -(-SHAPE[1] // TILE)):
        place = np.s_[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        height, width = mask[place].shape
        tile = opened(client, f"tile/mask/0/{column}/{row}?image={IMAGE}&outline=1")
        alpha = np.array(tile.convert("RGBA"))[:height, :width, 3]
        assert np.array_equal(alpha == 255, expected[place])


def test_search_and_order_decide_what_comes_next(client: TestClient) -> None:
    def listed(query: str) -> list[str]:
        found = client.get(f"/{TOKEN}/api/images?{query}").json()
        return [each["image_id"] for each in found["images"]]

    def after(query: str) -> str | None:
        return client.get(f"/{TOKEN}/api/image?image={IMAGE}&{query}").json()["after"]

    assert listed("order=problems") == ["broken", IMAGE]
    assert listed("search=ROK") == ["broken"]
    assert (after("order=name"), after("order=problems")) == ("broken", None)
    assert client.get(f"/{TOKEN}/api/images?order=size").status_code == 404


def test_what_is_missing_or_changed_is_said_and_the_rest_is_shown(
    output: Path, tmp_path: Path
) -> None:
    import shutil

    def notes(gallery: Gallery) -> str:
        found = gallery.facts(IMAGE)
        gallery.close()
        return " ".join((found["status"], *found.get("layers", ()), *found.get("notes", ())))

    copy = tmp_path / "out"
    shutil.copytree(output / "out", copy)
    fresh = notes(Gallery(Output.open(str(copy))))
    (copy / "masks/a.png").write_bytes((copy / "masks/a.png").read_bytes()[:300])
    broken = notes(Gallery(Output.open(str(copy))))
    (copy / "masks/a.png").unlink()
    missing = notes(Gallery(Output.open(str(copy))))
    source = output / "a.png"
    try:
        kept = source.rename(output / "kept.png")
        nothing = Gallery(Output.open(str(copy))).facts(IMAGE)
        without = notes(Gallery(Output.open(str(output / "out"))))
        shutil.copy(output / "kept.png", source)
        with source.open("ab") as file:
            file.write(b" ")
        changed = notes(Gallery(Output.open(str(output / "out"))))
    finally:
        kept.replace(source)
    assert fresh == "ok source mask"
    for each in (broken, missing):
        assert each.startswith("ok source The mask cannot be shown")
        assert "a.png" in each
    assert without.startswith("ok mask The source cannot be shown")
    assert changed.startswith("ok source mask The source has changed")
    assert nothing["status"] == "unreadable"
    assert nothing["after"] == "broken"


def test_images_that_a_run_has_not_come_to_are_listed(output: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "out"
    shutil.copytree(output / "out", copy)
    (manifest,) = copy.glob("runs/*/manifest.json")
    manifest.unlink()
    done = Gallery(Output.open(str(copy))).listing.page(0, 9)
    shutil.rmtree(copy / "tables")
    with TestClient(application(Gallery(Output.open(str(copy))), TOKEN)) as client:
        client.headers["Host"] = "localhost"
        listed = client.get(f"/{TOKEN}/api/images").json()
        facts = client.get(f"/{TOKEN}/api/image?image={IMAGE}").json()
        tile = client.get(f"/{TOKEN}/tile/mask/0/0/0?image={IMAGE}")
    assert (done["total"], done["unprocessed"]) == (2, 0)
    assert (listed["total"], listed["unprocessed"]) == (2, 2)
    assert facts["status"] == "unprocessed"
    assert manifest.parent.name in facts["reason"]
    assert (facts["after"], tile.status_code) == ("broken", 500)


def test_failed_images_are_listed_with_their_reason(client: TestClient) -> None:
    listed = client.get(f"/{TOKEN}/api/images").json()
    assert [each["status"] for each in listed["images"]] == ["ok", "failed"]
    assert (listed["total"], listed["failed"]) == (2, 1)
    facts = client.get(f"/{TOKEN}/api/image?image=broken").json()
    assert (facts["status"], facts["before"]) == ("failed", IMAGE)
    assert "broken.png" in facts["reason"]


def test_an_image_stays_open_between_requests(output: Path) -> None:
    gallery = Gallery(Output.open(str(output / "out")))
    assert gallery.opened(IMAGE) is gallery.opened(IMAGE)
    gallery.close()


def test_nothing_is_kept_by_shared_caches(client: TestClient) -> None:
    for address in ("", "api/images", f"tile/mask/0/0/0?image={IMAGE}"):
        answer = client.get(f"/{TOKEN}/{address}")
        assert answer.headers["Cache-Control"].startswith("private")
        assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_the_page_asks_for_nothing_from_a_network(client: TestClient) -> None:
    page = client.get(f"/{TOKEN}/").text
    assert "://" not in page
    for name in ("static/ol.js", "static/ol.css", "static/viewer.js", "static/viewer.css"):
        assert name in page
        assert client.get(f"/{TOKEN}/{name}").status_code == 200


def test_an_unknown_image_and_a_taken_port_are_wrong_usage(output: Path) -> None:
    import socket

    runner, folder = CliRunner(), str(output / "out")
    unknown = runner.invoke(app, ["view", folder, "b", "--no-browser"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        busy = runner.invoke(app, ["view", folder, "--no-browser", "--port", port])
    assert (unknown.exit_code, busy.exit_code) == (2, 2)
    assert "has no image 'b'" in unknown.output
    assert f"port: {port}" in busy.output


def test_ctrl_c_ends_the_page_with_a_line(output: Path) -> None:
    import signal
    import urllib.request
    from urllib.parse import urlsplit

    from view_support import served

    with served(str(output / "out"), IMAGE) as (address, process):
        assert address.endswith(f"/#{IMAGE}")
        assert urlsplit(address).hostname == "127.0.0.1"
        with urllib.request.urlopen(address) as answer:
            assert b"maskloom" in answer.read()
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=30)
        assert process.returncode == 0
        assert (printed, said.splitlines()[-1]) == ("", "The page is closed.")
