"""Truth finds its image by its path, or by name and folders; ties are refused."""

from __future__ import annotations

import posixpath

import pytest

from maskloom.segcore.annotations.pairing import MaskPairs, NameSuffixes, _best, names_for_series
from maskloom.segcore.annotations.pairing import pair as pair_by_ids
from maskloom.segcore.errors import RecipeError

NONE = NameSuffixes()


def pair(images: list[str], truths: list[str], suffixes: NameSuffixes) -> MaskPairs:
    """Pair files that are found below their common folders."""
    return pair_by_ids(below(images), below(truths), suffixes)


def below(uris: list[str]) -> dict[str, str]:
    """The path of each file below the common folder, without suffix."""
    paths = [uri.partition("://")[2] or uri for uri in uris]
    root = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return {
        uri: posixpath.splitext(posixpath.relpath(path, root))[0]
        for uri, path in zip(uris, paths, strict=True)
    }


def test_by_name_whatever_the_folder_and_the_suffix() -> None:
    found = pair(
        ["s3://a/images/x.jpg", "s3://a/images/y.jpg"],
        ["/labels/y.png", "/labels/x.png", "/labels/z.png"],
        NONE,
    )
    assert found.truth_of == {
        "s3://a/images/x.jpg": "/labels/x.png",
        "s3://a/images/y.jpg": "/labels/y.png",
    }
    assert found.without_truth == ()
    assert found.without_image == ("/labels/z.png",)


def test_ends_of_names_can_be_left_out() -> None:
    found = pair(["/d/7_sat.jpg", "/d/8_sat.jpg"], ["/d/7_mask.png"], NameSuffixes("_mask", "_sat"))
    assert found.truth_of == {"/d/7_sat.jpg": "/d/7_mask.png"}
    assert found.without_truth == ("/d/8_sat.jpg",)


@pytest.mark.parametrize(
    "layout",
    ["/data/{0}/{1}/part_{2}.png", "/data/{1}/{0}/part_{2}.png", "/data/{1}/deep/{0}/part_{2}.png"],
)
def test_folders_decide_between_files_of_one_name(layout: str) -> None:
    places = [(tile, part) for tile in ("Tile 1", "Tile 2", "Tile 3") for part in (1, 2)]
    images = [f"/data/{tile}/images/part_{part}.jpg" for tile, part in places]
    truths = [layout.format("masks", tile, part) for tile, part in places]
    found = pair(images, truths[::-1], NONE)
    assert [found.truth_of[image] for image in images] == truths


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (("t3/rgb/p1.jpg", "t4/rgb/p1.jpg"), ("t3/gt/p1.png", "t4/gt/p1.png")),
        (("a/x.jpg", "x.jpg"), ("a/x.png", "x.png")),
        (("a/images/x.jpg", "b/images/x.jpg"), ("a/masks/x.png", "b/masks/x.png")),
        (("q/x.jpg", "images/q/x.jpg"), ("q/x.png", "images/q/x.png")),
    ],
)
def test_layouts_that_training_and_evaluation_share(
    images: tuple[str, ...], masks: tuple[str, ...]
) -> None:
    uris = [f"/data/photos/{name}" for name in images], [f"/truth/{name}" for name in masks]
    found = pair(*uris, NONE)
    assert found.truth_of == dict(zip(*uris, strict=True))
    assert len(set(found.name_of.values())) == len(images)
    assert found.without_image == found.without_truth == ()


def test_equal_paths_come_before_common_folders() -> None:
    """The other mask shares one folder more, whose name is that of the images' folder by chance."""
    images = ["/set1/q/x.jpg", "/set1/set1/q/x.jpg"]
    masks = ["/gt/q/x.png", "/gt/set1/q/x.png"]
    assert pair(images, masks, NONE).truth_of == dict(zip(images, masks, strict=True))


def test_short_names_are_unique() -> None:
    one = pair(["/i/a/x.jpg", "/i/a/y.jpg"], ["/m/b/x.png", "/m/c/y.png"], NONE)
    assert sorted(one.name_of.values()) == ["x", "y"]
    two = pair(["/d/a/i/x.jpg", "/d/b/i/x.jpg"], ["/d/a/m/x.png", "/d/b/m/x.png"], NONE)
    assert sorted(two.name_of.values()) == ["a/i/x", "b/i/x"]


def test_an_image_does_not_take_the_truth_of_another() -> None:
    found = pair(["/images/a/x.png", "/images/b/x.png"], ["/labels/a/x.png"], NONE)
    assert found.truth_of == {"/images/a/x.png": "/labels/a/x.png"}
    assert found.without_truth == ("/images/b/x.png",)


@pytest.mark.parametrize(
    ("images", "truths"),
    [
        (["/i/x.jpg"], ["/l/x.png", "/l/x.tif"]),
        (["/i/a/x.jpg", "/i/b/x.jpg"], ["/l/x.png"]),
        (["/i/x.jpg", "/i/x.png"], ["/l/x.png", "/m/x.png"]),
    ],
)
def test_nobody_guesses(images: list[str], truths: list[str]) -> None:
    with pytest.raises(RecipeError, match="Several masks fit one image") as caught:
        pair([*images, "/i/y.jpg"], [*truths, "/l/y.png"], NONE)
    assert "x.png" in str(caught.value)


def test_each_of_many_files_of_one_name_is_compared_once_with_the_best() -> None:
    """Else the work for a thousand folders of one layout would grow with the cube of their
    number.
    """
    compared = 0

    class Counted(int):
        def __gt__(self, other: int) -> bool:
            nonlocal compared
            compared += 1
            return int(self) > int(other)

    names = [str(i) for i in range(50)]
    assert _best(names, lambda name: Counted(int(name) // 40)) == names[40:]
    assert compared < len(names)


def test_nothing_matches() -> None:
    with pytest.raises(RecipeError, match=r"slice_1.*slice_1_mask.*--truth-suffix"):
        pair(["/i/slice_1.jpg"], ["/l/slice_1_mask.png"], NONE)


SERIES = ("series-0123456789ab-0a1b", "series-fedcba987654-ffff")


@pytest.mark.parametrize(
    "truth",
    [
        "/labels/CT 7.1.nii.gz",
        "/labels/CT 7.1/liver.nii.gz",
        "/scans/CT 7.1/liver.nii.gz",
        f"/labels/CT 7.1/{SERIES[0]}.nii.gz",
        f"/labels/{SERIES[0]}.nii.gz",
    ],
)
def test_a_series_alone_in_its_folder_has_the_name_of_the_folder(truth: str) -> None:
    image, other = f"/scans/CT 7.1/{SERIES[0]}", f"/scans/CT 8/{SERIES[1]}"
    truths = [truth, "/labels/CT 9.nii.gz", "/labels/CT 9/a.nii.gz", "/labels/CT 9/b.nii.gz"]
    found = pair_by_ids(below([image, other]), below(truths), NONE)
    assert found.truth_of == {image: truth}
    assert found.without_truth == (other,)
    # The ends that the user names are left out of the names of folders as well.
    ended = "/labels/CT 7.1_liver.nii.gz"
    assert pair([f"/scans/CT 7.1_ct/{SERIES[0]}"], [ended], NameSuffixes("_liver", "_ct")).truth_of


def test_volumes_of_a_series_over_time_and_series_in_an_archive() -> None:
    times = [f"#part=t000{i}/2" for i in range(2)]
    images = [f"/scans/perfusion/{SERIES[0]}{time}" for time in times]
    truths = [f"/labels/perfusion.nii.gz{time}" for time in times]
    assert pair(images, truths, NONE).truth_of == dict(zip(images, truths, strict=True))
    packed = f"/scans/head.zip/{SERIES[0]}"
    assert pair([packed], ["/a/head.nrrd"], NONE).truth_of == {packed: "/a/head.nrrd"}
    named = "/scans/ct/1.2.840.113619.2-0a1b"
    assert pair([named], ["/a/1.2.840.113619.2-0a1b.nii"], NONE).truth_of


def test_folders_above_decide_between_series_in_folders_of_one_name() -> None:
    images = [f"/scans/{who}/CT/{name}" for who, name in zip("ab", SERIES, strict=True)]
    truths = ["/labels/b/CT.nii.gz", "/labels/a/CT/organs.nii.gz"]
    assert pair(images, truths[:1], NONE).truth_of == {images[1]: truths[0]}
    assert pair(images, truths, NONE).truth_of == dict(zip(images, truths[::-1], strict=True))
    with pytest.raises(RecipeError, match="Several masks fit one image"):
        pair(images, ["/labels/CT.nii.gz"], NONE)


@pytest.mark.parametrize("truth", ["/labels/CT 7.nii.gz", "/labels/CT 7/liver.nii.gz"])
def test_of_several_series_in_a_folder_none_has_its_name(truth: str) -> None:
    """The message lists the names that their masks may have."""
    images = [f"/scans/CT 7/{name}" for name in SERIES]
    listed = rf"{SERIES[0]}\.nii\.gz \(in CT 7\), {SERIES[1]}\.nii\.gz \(in CT 7\)\.$"
    with pytest.raises(RecipeError, match=listed):
        pair(images, [truth], NONE)
    with pytest.raises(RecipeError, match=rf"of the folder: for example CT 8\.nii\.gz, {listed}"):
        pair([f"/scans/CT 8/{SERIES[0].replace('a', 'c')}", *images], [truth], NONE)
    assert names_for_series(["/scans/a.png"], ["/scans/a.png"]) == ""


def test_two_masks_in_a_folder_do_not_have_its_name() -> None:
    truths = ["/labels/CT 7/liver.nii.gz", "/labels/CT 7/spleen.nii.gz"]
    with pytest.raises(
        RecipeError, match=r"only one in its folder, of the folder: .* CT 7\.nii\.gz"
    ):
        pair([f"/scans/CT 7/{SERIES[0]}"], truths, NONE)
