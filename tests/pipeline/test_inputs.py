"""Inputs as people give them, in whole runs: what is passed over, missing, oddly named, signed."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from PIL import Image
from tests_support import photograph, write_tiff

from maskloom.segcore.storage import addresses
from maskloom.segcore.storage.store import Store
from maskloom.tasks.publish import Tables

SECRET = "c0ffeeC0FFEE"
RUN = ("-s", "threshold", "--no-prefect", "--quiet", "--set", "cluster.kind=serial")


def image_rows(output: Path) -> dict[str, dict[str, object]]:
    rows = ds.dataset(output / "tables" / "images", format="parquet").to_table().to_pylist()
    return {str(row["image_id"]): row for row in rows}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(photograph(40, 60)).save(path)
    return path


def test_what_a_folder_holds_besides_is_counted_in_run_plan_and_record(tmp_path, photo, maskloom):
    for name in ("a.lsm", "b.lsm", "v.mnc.gz"):
        (photo.parent / name).write_bytes(b"x")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        json.dumps({"inputs": "in", "output": "out", "segmenter": "threshold", "cluster": "serial"})
    )
    said = "Passed over in folders, since no format claims such files: 2 .lsm, 1 .mnc.gz."

    assert said in maskloom("plan", recipe).stdout
    for expected in ("1 image done, 0 failed", "Nothing to do: 1 image is unchanged"):
        result = maskloom("run", recipe, "--no-prefect", "--quiet")
        assert (result.exit_code, expected in result.stdout, said in result.stderr) == (
            0,
            True,
            True,
        )
    assert said in maskloom("plan", recipe).stdout
    (manifest,) = (tmp_path / "out" / "runs").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["settings"]["passed_over"] == {".lsm": 2, ".mnc.gz": 1}


def test_a_file_of_a_microscope_that_is_tiff_inside_is_read_when_it_is_named(tmp_path, maskloom):
    write_tiff(tmp_path / "cells.tif", photograph(64, 64))
    (tmp_path / "cells.tif").rename(tmp_path / "cells.lsm")
    assert maskloom("segment", tmp_path / "*.lsm", "-o", tmp_path / "out", *RUN).exit_code == 0
    assert image_rows(tmp_path / "out")["cells"]["mask_uri"] == "masks/cells.tif"


def test_a_misspelt_input_ends_before_anything_starts(tmp_path, photo, maskloom):
    result = maskloom("segment", photo.parent / "foto.png", "-o", tmp_path / "out", *RUN)
    assert result.exit_code == 2
    assert "does not exist. Did you mean 'photo.png'?" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_settled_until_it_is_there(tmp_path, photo, maskloom):
    late = photo.parent / "late.png"
    command = ("segment", photo, late, "-o", tmp_path / "out", *RUN)

    assert [maskloom(*command).exit_code for _ in range(3)] == [3, 3, 3]
    assert len(list((tmp_path / "out" / "runs").glob("*/plan.json"))) == 1
    assert image_rows(tmp_path / "out")["late"]["error_type"] == "Missing"
    late.write_bytes(photo.read_bytes())
    assert maskloom(*command).exit_code == 0
    assert image_rows(tmp_path / "out")["late"]["status"] == "ok"
    assert maskloom("verify", tmp_path / "out").exit_code == 0


def test_names_that_are_not_utf8_are_done_and_those_with_escapes_are_shown_harmless(
    tmp_path, photo, maskloom
):
    for name in (b"latin\xe9.png", b"\x1b]0;pwned\x07.png"):
        (photo.parent / os.fsdecode(name)).write_bytes(photo.read_bytes())
    (photo.parent / "fake\nfailed: other.png").write_bytes(b"broken")

    results = [maskloom("segment", photo.parent, "-o", tmp_path / "out", *RUN) for _ in range(2)]
    results += [
        maskloom("status", tmp_path / "out"),
        maskloom("evaluate", tmp_path / "out", "-t", photo.parent),
    ]

    assert [result.exit_code for result in results[:3]] == [3, 3, 0]
    rows = image_rows(tmp_path / "out")
    assert sorted(row["status"] for row in rows.values()) == ["failed", "ok", "ok", "ok"]
    assert rows["latin_udce9"]["uri"] == f"{photo.parent}/latin\\udce9.png"
    for result in results:
        assert "\x1b" not in result.output
        assert not any(line.startswith("failed: other") for line in result.output.splitlines())


@pytest.fixture
def server(photo: Path) -> Iterator[str]:
    """A web server that gives the photograph to those who sign. As signed URLs of stores do, it
    answers no HEAD.
    """
    content = photo.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start, _, stop = (
                (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
            )
            part = content[int(start) : int(stop) + 1 if stop else None]
            self.send_response(206 if SECRET in self.path else 403)
            self.send_header("Content-Length", str(len(part) if SECRET in self.path else 0))
            self.send_header(
                "Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}"
            )
            self.send_header("ETag", '"one"')
            self.end_headers()
            if SECRET in self.path:
                self.wfile.write(part)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_signed_addresses_are_read_and_their_signatures_written_nowhere(tmp_path, server, maskloom):
    def segment(*inputs: str):
        return maskloom("segment", *inputs, "-o", tmp_path / "out", *RUN)

    results = [
        segment(f"{server}/a.png?sig={SECRET}&se=1", f"{server}/b.png?token=wrong-{SECRET[:3]}"),
        maskloom("status", tmp_path / "out"),
    ]
    # Signed anew, it is the same image.
    results.append(segment(f"{server}/a.png?sig=1{SECRET}&se=2"))

    assert [result.exit_code for result in results] == [3, 0, 0]
    assert "Nothing to do" in results[2].stdout or "0 failed" in results[2].stdout
    rows = {row["uri"]: row for row in image_rows(tmp_path / "out").values()}
    assert rows[f"{server}/a.png"]["status"] == "ok"
    assert (
        rows[f"{server}/b.png"]["error_type"],
        "403" in str(rows[f"{server}/b.png"]["error"]),
    ) == ("Unavailable", True)
    for result in results:
        assert SECRET[:6] not in result.output
    for path in (tmp_path / "out").rglob("*"):
        assert "c0ffee" not in path.name
        assert path.is_dir() or b"c0ffee" not in path.read_bytes()


def test_a_signed_image_is_resumed_with_the_signature_of_now(
    tmp_path, server, maskloom, monkeypatch
):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    command = ("segment", f"{server}/a.png?sig={SECRET}", "-o", tmp_path / "out", *RUN)
    with monkeypatch.context() as patch:
        patch.setattr(Tables, "publish", stopped)
        assert maskloom(*command).exit_code == 1
    assert Store(str(tmp_path / "out")).names("runs", "plan.json")
    monkeypatch.setattr(addresses, "_addresses", {})

    assert maskloom("segment", f"{server}/a.png?sig={SECRET}2", *command[2:]).exit_code == 0
    assert len(list((tmp_path / "out" / "runs").glob("*/plan.json"))) == 1


def test_one_dead_host_is_one_failed_row(tmp_path, photo, maskloom):
    result = maskloom("segment", photo, "http://127.0.0.1:1/a.png", "-o", tmp_path / "out", *RUN)
    assert result.exit_code == 3
    assert (
        "127.0.0.1:1/a.png: Unavailable: could not be read: its store did not give it (Cannot "
        "connect" in result.stderr
    )
