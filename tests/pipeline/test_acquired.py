"""When images were acquired: where the column comes from, and outputs that lack it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from dicom_support import save, stack_of
from PIL import Image

from maskloom.tasks import publish
from maskloom.tasks.image_rows import IMAGES_SCHEMA

RUN = ("--no-prefect", "--quiet", "--set", "cluster=serial", "-s", "threshold", "-p", "value=5")


def acquired(output: Path) -> dict[str, str | None]:
    rows = pq.read_table(output / "tables" / "images").to_pylist()
    return {row["image_id"]: row["acquired"] and row["acquired"].isoformat() for row in rows}


def write(path: Path, taken: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if taken:
        exif.get_ifd(0x8769)[36867] = taken
    Image.new("RGB", (8, 8), (9, 9, 9)).save(path, exif=exif)
    return path


def test_a_list_goes_before_a_pattern_and_a_pattern_before_the_file(tmp_path, maskloom):
    taken = "2026:05:13 10:00:31"
    for name in ("a_20200101", "b_20200102", "c"):
        write(tmp_path / f"{name}.jpg", taken)
    write(tmp_path / "d.jpg")
    (tmp_path / "list.csv").write_text(
        "uri,acquired\na_20200101.jpg,2019-07-01T12:00:00+02:00\nb_20200102.jpg,\nc.jpg,\nd.jpg,\n"
    )
    run = (tmp_path / "list.csv", "-o", tmp_path / "out", *RUN)
    assert maskloom("segment", *run, "--set", "acquired='%Y%m%d'").exit_code == 0
    assert acquired(tmp_path / "out") == {
        "a_20200101": "2019-07-01T10:00:00+00:00",
        "b_20200102": "2020-01-02T00:00:00+00:00",
        "c": "2026-05-13T10:00:31+00:00",
        "d": None,
    }


def test_wrong_patterns_and_dates_end_before_work(tmp_path, maskloom):
    write(tmp_path / "a.jpg")
    run = ("-o", tmp_path / "out", *RUN)
    result = maskloom("segment", tmp_path / "a.jpg", *run, "--set", "acquired='%m%d'")
    assert result.exit_code == 2
    assert "acquired: expected a date with a year, e.g. '%Y%m%d'" in result.stderr
    (tmp_path / "list.csv").write_text("uri,acquired\na.jpg,13.5.2026\n")
    result = maskloom("segment", tmp_path / "list.csv", *run)
    assert result.exit_code == 2
    assert "has '13.5.2026' as `acquired` of 'a.jpg'; expected a date like" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_date_of_a_scan_needs_identifiers(tmp_path, maskloom):
    pixels = np.random.default_rng(0).integers(0, 99, (3, 8, 8), np.int16)
    dated = {"AcquisitionDate": "20260513", "AcquisitionTime": "120031.5"}
    zone = {"TimezoneOffsetFromUTC": "+0200"}
    save(tmp_path / "scan", stack_of(pixels, **dated, **zone))
    found = {}
    for identifiers in (False, True):
        output = tmp_path / f"out-{identifiers}"
        run = ("-o", output, *RUN, "--set", f"identifiers={str(identifiers).lower()}")
        assert maskloom("segment", tmp_path / "scan", *run).exit_code == 0
        found[identifiers] = list(acquired(output).values())
        (plan,) = (output / "runs").rglob("plan.parquet")
        assert ("2026-05-13" in str(pq.read_table(plan).to_pylist())) == identifiers
    assert found == {False: [None], True: ["2026-05-13T10:00:31+00:00"]}


def test_an_output_of_an_earlier_version_goes_on(tmp_path, maskloom, monkeypatch):
    command = ("segment", tmp_path / "in", "-o", tmp_path / "out", *RUN)
    write(tmp_path / "in" / "old.jpg", "2026:05:13 10:00:31")
    with monkeypatch.context() as patch:
        before = IMAGES_SCHEMA.remove(IMAGES_SCHEMA.get_field_index("acquired"))
        patch.setattr(publish, "IMAGES_SCHEMA", before)
        assert maskloom(*command).exit_code == 0
    write(tmp_path / "in" / "new.jpg", "2026:05:14 10:00:31")
    assert maskloom(*command).exit_code == 0
    assert acquired(tmp_path / "out") == {"old": None, "new": "2026-05-14T10:00:31+00:00"}
    for command in ("verify", "status"):
        assert maskloom(command, tmp_path / "out").exit_code == 0
