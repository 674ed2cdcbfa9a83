"""Lists as people and spreadsheets write them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskloom.segcore.errors import RecipeError
from maskloom.tasks.discovery.discover import discover
from maskloom.tasks.discovery.lists import absolute, read_dated

NAMES = ["a/été.tif", "b/2.tif"]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252"]
)
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_encodings_and_separators_of_spreadsheets_are_read(
    tmp_path: Path, encoding: str, separator: str
) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    rows = [
        ["site", "URI", "note"],
        ["1", NAMES[0], "x y"],
        ["2", f'"{NAMES[1]}"', ""],
        ["3", "", ""],
    ]
    path = tmp_path / "list.csv"
    path.write_bytes("\r\n".join(separator.join(row) for row in rows).encode(encoding))

    found = discover([str(path)], "/out", {}).sources

    assert [source.uri for source in found] == [str(tmp_path / name) for name in NAMES]
    assert all(source.size == 1 for source in found)


def test_a_line_that_names_the_separator_is_no_header() -> None:
    assert read_dated("l.csv", b"sep=;\r\nsite;uri\r\n1;a.tif\r\n")[0] == ["a.tif"]


def test_a_name_in_raw_bytes_is_the_file_of_these_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = b"caf\xe9.tif"
    (tmp_path / os.fsdecode(raw)).write_bytes(b"raw")
    (tmp_path / "l.txt").write_bytes(raw + b"\n")

    with caplog.at_level(logging.WARNING):
        (found,) = discover([str(tmp_path / "l.txt")], "/out", {}).sources

    assert (found.size, os.fsencode(found.address or "")) == (3, os.fsencode(tmp_path) + b"/" + raw)
    assert "not UTF-8" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "l.csv",
            b"path;label\na.tif;1\n",
            "needs a column `uri`; it has path, label \\(separated by a semicolon\\)",
        ),
        ("l.csv", b"path\na.tif\n", "needs a column `uri`; it has path\\. Rename"),
        ("l.csv", b"", "needs a column `uri`; it has none"),
        ("l.csv", b"uri\n" + b'"' + b"x" * 200_000 + b'"\n', "cannot be read as CSV"),
        (
            "l.csv",
            b'uri,n\na.tif,1\n"b.tif,2\nc.tif,3\n',
            "a quote is not closed, in the row that begins in line 3",
        ),
        ("l.csv", b"uri,n,URI\na.tif,1,b.tif\n", "has 2 columns `uri`\\. Keep"),
        ("l.txt", b"\xff\xfe\0\0a\0\0", "begins like UTF-32 text but is not"),
        ("l.txt", b"a\0b", "zero bytes"),
        ("l.txt", b"\xff\xfea\0\0", "begins like UTF-16 text but is not"),
        ("l.txt", b"# nothing\n\n", "names no image"),
        (
            "l.parquet",
            b"PAR1 and no more",
            r"cannot be read as Parquet: [^\n]*[^.]\. Write it again\.$",
        ),
    ],
)
def test_what_is_no_list_is_refused_with_what_it_is(
    name: str, content: bytes, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        read_dated(name, content)


def test_a_column_of_numbers_and_gaps_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "l.parquet"
    pq.write_table(pa.table({"site": [1, 2, 3], "uri": ["a.tif", None, "a.tif"]}), path)
    assert read_dated(str(path), path.read_bytes())[0] == ["a.tif"]
    pq.write_table(pa.table({"site": [1]}), path)
    with pytest.raises(RecipeError, match="it has site"):
        read_dated(str(path), path.read_bytes())


def test_rows_without_a_uri_are_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_dated("l.csv", b"uri;site\na.tif;1\n;2\n;\n\n ;3\n")[0] == ["a.tif"]
    path = tmp_path / "l.parquet"
    pq.write_table(pa.table({"uri": ["a.tif", None, "a.tif", ""]}), path)
    assert read_dated("l.parquet", path.read_bytes())[0] == ["a.tif"]
    assert caplog.messages == [
        f"The list '{name}' has 2 rows without a `uri`, left out."
        for name in ("l.csv", "l.parquet")
    ]


def test_names_are_below_the_list_wherever_it_lies() -> None:
    assert absolute("a.tif", "/data/lists/l.csv") == "/data/lists/a.tif"
    assert absolute("../in/./a.tif", "s3://bucket/lists/l.csv") == "s3://bucket/in/a.tif"
    assert absolute("../../in/a.tif", "https://host/l.csv") == "https://host/in/a.tif"
    assert absolute("a.tif", "https://host/x/l.csv?sig=1/2") == "https://host/x/a.tif"
    assert absolute("s3://other/a..b/../c.tif", "s3://bucket/l.csv") == "s3://other/a..b/../c.tif"


def test_a_list_that_names_itself_is_refused_and_one_named_often_is_read_once(
    tmp_path: Path,
) -> None:
    (tmp_path / "self.txt").write_text("self.txt\n")
    (tmp_path / "one.txt").write_text("two.txt\n")
    (tmp_path / "two.txt").write_text("./one.txt\n")
    for name in ("self.txt", "one.txt"):
        with pytest.raises(RecipeError, match="names itself"):
            discover([str(tmp_path / name)], "/out", {})
    for i in range(8):
        (tmp_path / f"l{i}.txt").write_text(f"l{i + 1}.txt\n" * 2000)
    (tmp_path / "l8.txt").write_text("a.tif\n../a.tif\n" * 2000)
    (tmp_path / "a.tif").write_bytes(b"x")
    found = discover([str(tmp_path / "l0.txt")], "/out", {}).sources
    assert [source.uri for source in found] == [
        str(tmp_path.parent / "a.tif"),
        str(tmp_path / "a.tif"),
    ]


def test_lists_that_go_ever_deeper_are_refused(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"l{i}.txt").write_text(f"l{i + 1}.txt\n")
    (tmp_path / "l12.txt").write_text("a.tif\n")
    with pytest.raises(RecipeError, match="more than 10 deep"):
        discover([str(tmp_path / "l0.txt")], "/out", {})


def test_the_lists_of_the_reports(caplog: pytest.LogCaptureFixture) -> None:
    folder = os.environ.get("MASKLOOM_TEST_DATA")
    if folder is None:
        pytest.skip("MASKLOOM_TEST_DATA is not set")
    names = {
        name: read_dated(name, Path(folder, "reports", name).read_bytes())[0]
        for name in ("list_latin1.csv", "list_semicolon.csv")
    }
    assert all(names.values())
    assert "list_latin1.csv" in caplog.text
