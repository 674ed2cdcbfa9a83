"""Inputs to sources: which files, which ids."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.errors import RecipeError
from tasks.discover import discover, safe_name


@pytest.fixture
def folder(tmp_path):
    for name in ("a/1.tif", "b/1.tif", "b/2.PNG", "b/note.md", ".hidden/3.tif", "c/deep/4.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def ids(found):
    return [source.image_id for source in found.sources]


def test_a_folder_gives_all_files_below_it_that_a_format_claims(folder):
    assert ids(discover([str(folder)], "/out", {})) == ["a/1", "b/1", "b/2", "c/deep/4"]


def test_a_glob_gives_its_matches_with_ids_below_its_fixed_part(folder):
    assert ids(discover([f"{folder}/**/1.tif"], "/out", {})) == ["a/1", "b/1"]
    assert ids(discover([f"{folder}/b/*"], "/out", {})) == ["1", "2", "note"]


def test_ids_do_not_change_when_other_images_arrive(folder):
    before = {source.uri: source.image_id for source in discover([str(folder / "a")], "/out", {}).sources}
    (folder / "a" / "more").mkdir()
    (folder / "a" / "more" / "0.tif").write_bytes(b"x")
    after = {source.uri: source.image_id for source in discover([str(folder / "a")], "/out", before).sources}
    assert before.items() <= after.items()


def test_two_inputs_that_collide_get_distinct_ids_and_the_first_keeps_its_own(folder):
    (folder / "b" / "1.png").write_bytes(b"x")
    known = {str(folder / "b" / "1.tif"): "1"}
    found = {source.uri: source.image_id for source in discover([str(folder / "b")], "/out", known).sources}
    assert found[str(folder / "b" / "1.tif")] == "1"
    assert len(set(found.values())) == 3


def test_an_input_named_twice_counts_once(folder):
    assert len(discover([str(folder), f"{folder}/a/*.tif", str(folder / "a" / "1.tif")], "/out", {}).sources) == 4


@pytest.mark.parametrize("suffix", ["csv", "txt", "parquet"])
def test_lists_name_files_relative_to_themselves(folder, suffix):
    path = folder / f"list.{suffix}"
    uris = ["a/1.tif", str(folder / "b" / "2.PNG")]
    if suffix == "parquet":
        pq.write_table(pa.table({"uri": uris}), path)
    else:
        path.write_text("uri\n" + "\n".join(uris) + "\n")
    assert ids(discover([str(path)], "/out", {})) == ["a/1", "b/2"]


def test_a_list_without_the_column_is_refused(folder):
    path = folder / "list.csv"
    path.write_text("file\na/1.tif\n")
    with pytest.raises(RecipeError, match="column `uri`; it has file"):
        discover([str(path)], "/out", {})


def test_nothing_found_is_an_error_and_a_named_absent_file_is_a_source(folder):
    with pytest.raises(RecipeError, match="matches no image"):
        discover([f"{folder}/nothing/*.tif"], "/out", {})
    assert ids(discover([f"{folder}/absent.tif", f"{folder}/a/1.tif"], "/out", {})) == ["a/1", "absent"]


def test_what_a_run_writes_is_no_input_and_what_lies_beside_it_is(folder):
    (folder / "b" / "masks").mkdir()
    (folder / "b" / "masks" / "1.tif").write_bytes(b"x")
    assert ids(discover([str(folder)], str(folder / "b"), {})) == ["a/1", "b/1", "b/2", "c/deep/4"]


def test_a_folder_named_like_an_image_does_not_take_its_name(folder):
    (folder / "a" / "1.tif").rename(folder / "x.tif")
    (folder / "y.tif").mkdir()
    (folder / "y.tif" / "z.png").write_bytes(b"x")
    assert "y_tif/z" in ids(discover([str(folder)], "/out", {}))


def test_a_name_that_is_not_utf8_is_spelled_out(folder):
    (folder / os.fsdecode(b"bad\xff.tif")).write_bytes(b"x")
    (found,) = [source for source in discover([str(folder)], "/out", {}).sources if "bad" in source.uri]
    assert found.uri.encode().endswith(b"bad\\udcff.tif")


def test_brackets_in_a_real_name_are_no_glob(folder):
    (folder / "tile[3].tif").write_bytes(b"x")
    assert ids(discover([f"{folder}/tile[3].tif"], "/out", {})) == ["tile_3_"]


@given(st.text(min_size=1).filter(lambda name: "\x00" not in name))
def test_safe_names_are_relative_and_stay_below(path):
    parts = safe_name(path).split("/")
    assert all(part and not part.startswith(".") and len(part.encode()) <= 255 for part in parts)
    assert safe_name(safe_name(path)) == safe_name(path)
