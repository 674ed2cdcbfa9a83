"""Inputs to sources: which files, which ids."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.source import ABSENT
from maskloom.segcore.raster.spec import FORMATS, FileKind
from maskloom.segcore.storage.filesystems import current_version, filesystem
from maskloom.tasks.discovery.discover import discover, passed_over_advice, passed_over_note
from maskloom.tasks.discovery.image_ids import image_ids, safe_name


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


@pytest.mark.parametrize("named", ["links", "links/*.tif", "links/1.tif"])
def test_a_link_has_the_version_of_its_file(folder, named):
    """Which is the one that workers compare."""
    (folder / "links").mkdir()
    (folder / "links" / "1.tif").symlink_to(folder / "a" / "1.tif")
    (folder / "links" / "nowhere.tif").symlink_to(folder / "gone.tif")
    os.utime(folder / "a" / "1.tif", (1e9, 1e9))
    versions = {
        each.image_id: each.version for each in discover([f"{folder}/{named}"], "/out", {}).sources
    }
    assert versions["1"] == current_version(str(folder / "a" / "1.tif"))


def test_ids_do_not_change_when_other_images_arrive(folder):
    before = {
        source.uri: source.image_id for source in discover([str(folder / "a")], "/out", {}).sources
    }
    (folder / "a" / "more").mkdir()
    (folder / "a" / "more" / "0.tif").write_bytes(b"x")
    after = {
        source.uri: source.image_id
        for source in discover([str(folder / "a")], "/out", before).sources
    }
    assert before.items() <= after.items()


def test_two_inputs_that_collide_get_distinct_ids_and_the_first_keeps_its_own(folder):
    (folder / "b" / "1.png").write_bytes(b"x")
    known = {str(folder / "b" / "1.tif"): "1"}
    found = {
        source.uri: source.image_id
        for source in discover([str(folder / "b")], "/out", known).sources
    }
    assert found[str(folder / "b" / "1.tif")] == "1"
    assert len(set(found.values())) == 3


def test_an_input_named_twice_counts_once(folder):
    assert (
        len(
            discover(
                [str(folder), f"{folder}/a/*.tif", str(folder / "a" / "1.tif")], "/out", {}
            ).sources
        )
        == 4
    )


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
    assert ids(discover([f"{folder}/absent.tif", f"{folder}/a/1.tif"], "/out", {})) == [
        "a/1",
        "absent",
    ]


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
    (found,) = [
        source for source in discover([str(folder)], "/out", {}).sources if "bad" in source.uri
    ]
    assert found.uri.encode().endswith(b"bad\\udcff.tif")


def test_brackets_in_a_real_name_are_no_glob(folder):
    (folder / "tile[3].tif").write_bytes(b"x")
    assert ids(discover([f"{folder}/tile[3].tif"], "/out", {})) == ["tile_3_"]


@given(st.text(min_size=1).filter(lambda name: "\x00" not in name))
def test_safe_names_are_relative_and_stay_below(path):
    parts = safe_name(path).split("/")
    assert all(part and not part.startswith(".") and len(part.encode()) <= 255 for part in parts)
    assert safe_name(safe_name(path)) == safe_name(path)


def test_files_that_no_format_claims_are_counted_by_suffix(folder):
    for name in (
        "b/x.lsm",
        "b/y.LSM",
        "c/v.mnc.gz",
        "c/IM0001",
        "b/1.tif.aux.xml",
        "b/1.qml",
        "b/1.tfw",
        "z.n5/attributes.json",
        "z.n5/0/0/0",
        "z.n5/0/0/1",
        ".DS_Store",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")

    found = discover([str(folder), str(folder / "a")], "/out", {})

    assert ids(found) == ["a/1", "b/1", "b/2", "c/deep/4"]
    assert found.passed_over == {
        ".lsm": 2,
        ".mnc.gz": 1,
        "without a suffix": 1,
        ".n5": 1,
        ".md": 1,
    }
    assert passed_over_note(found.passed_over).startswith(
        "Passed over in folders, since no format claims such files: 2 .lsm, 1 .md,"
    )
    assert passed_over_note({}) == ""
    assert passed_over_note({f".k{i:02}": 1 for i in range(20)}).endswith("1 .k18, 1 .k19. ")
    assert passed_over_note({f".k{i:02}": 2 for i in range(23)}).endswith(
        "2 .k19, 6 of 3 more kinds. "
    )
    assert "'*.lsm'" in passed_over_advice(found.passed_over)
    assert passed_over_advice({".dcm": 3, ".nii.gz": 1}) == ""


def test_what_a_run_writes_is_not_counted_either(folder):
    (folder / "tables" / "images").mkdir(parents=True)
    (folder / "tables" / "images" / "x.parquet").write_bytes(b"x")
    assert discover([str(folder)], str(folder), {}).passed_over == {".md": 1}


def test_a_folder_of_other_files_tells_what_they_are(folder):
    (folder / "v.n5").mkdir()
    (folder / "v.n5" / "attributes.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"no format claims such files: 1 \.n5\. Give a file"):
        discover([str(folder / "v.n5")], "/out", {})


def test_inputs_that_are_all_absent_are_refused_with_what_may_be_meant(folder):
    with pytest.raises(RecipeError, match=r"a/l\.tif' does not exist\. Did you mean '1\.tif'\?"):
        discover([str(folder / "a" / "l.tif")], "/out", {})
    (folder / "l.txt").write_text("x/1.tif\nx/2.tif\n")
    with pytest.raises(
        RecipeError, match=r"none of the 2 files '.*1\.tif', '.*2\.tif' exists\. Check"
    ):
        discover([str(folder / "l.txt")], "/out", {})
    with pytest.raises(
        RecipeError,
        match=r"none of the 2 files '.*/nix', '.*/nix2' exists, "
        r"and 'no/\*\.png' matches no image\.",
    ):
        discover(["nix", "nix2", "no/*.png"], "/out", {})
    with pytest.raises(RecipeError, match=r"the list '.*none\.csv' does not exist"):
        discover([str(folder), str(folder / "none.csv")], "/out", {})


def test_an_absent_file_has_a_version_of_its_own_until_it_is_there(folder):
    inputs = [str(folder / "a"), str(folder / "new.tif"), f"{folder}/{'n' * 300}.tif"]
    before = {source.uri: source.version for source in discover(inputs, "/out", {}).sources}
    assert [before[str(folder / "new.tif")], before[inputs[2]]] == [ABSENT, ABSENT]
    (folder / "new.tif").write_bytes(b"x")
    after = {source.uri: source.version for source in discover(inputs, "/out", {}).sources}
    assert after[str(folder / "new.tif")] != ABSENT


def test_one_file_is_one_image_however_it_is_named(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = [
        str(folder / "a" / "1.tif"),
        f"{folder}/b/../a/1.tif",
        f"file://{folder}/a/1.tif",
        f"{folder}//a/./1.tif",
        "a/1.tif",
    ]
    (folder / "l.txt").write_text("a/1.tif\n./a/1.tif\nb/../a/1.tif\n")
    assert ids(discover([*names, str(folder / "l.txt")], "/out", {})) == ["1"]


def test_a_name_that_is_not_utf8_is_read_by_its_bytes(folder):
    (folder / os.fsdecode(b"bad\xff.tif")).write_bytes(b"four")
    (found,) = [
        source for source in discover([str(folder)], "/out", {}).sources if "bad" in source.uri
    ]
    fs, path = filesystem(found.uri)
    assert (fs.cat_file(path), found.size) == (b"four", 4)


def test_passwords_in_lists_are_refused_without_being_told(folder):
    for address in ("https://me:c0ffee@host/a.tif", "simplecache::https://host/a.tif?sig=c0ffee"):
        (folder / "l.txt").write_text(f"{address}\n")
        with pytest.raises(RecipeError, match=r"in the list '.*l\.txt'") as refusal:
            discover([str(folder / "l.txt")], "/out", {})
        assert "c0ffee" not in str(refusal.value)


def test_suffixes_of_two_dots_are_those_of_formats(tmp_path, monkeypatch):
    kinds = (
        FileKind("NIfTI", (".nii",), ((344, b"n+1\0"),)),
        FileKind("NIfTI in gzip", (".nii.gz",)),
    )
    monkeypatch.setitem(FORMATS._loaded, "nifti", SimpleNamespace(kinds=kinds, mask="cog"))
    for name in ("a.nii.gz", "a.NII.GZ", "b.x.nii", "c.tar.gz", "d.2024.tif"):
        (tmp_path / name).write_bytes(b"x")

    found = discover([str(tmp_path)], "/out", {})

    assert {Path(each.uri).name: each.image_id for each in found.sources} == {
        "a.NII.GZ": "a",
        "a.nii.gz": "a_nii.gz",
        "b.x.nii": "b.x",
        "d.2024.tif": "d.2024",
    }
    assert found.passed_over == {".tar.gz": 1}


def test_the_uid_of_a_series_is_not_cut() -> None:
    uris = ["/d/ct/1.2.840.4-ab12", "/d/ct/1.2.840.5-cd34"]
    assert image_ids(uris, ["file:///d"], {}) == dict(
        zip(uris, ["ct/1.2.840.4-ab12", "ct/1.2.840.5-cd34"], strict=True)
    )
