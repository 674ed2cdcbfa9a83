"""Truth finds its image by name, then by folders; nobody guesses."""

from __future__ import annotations

import pytest

from maskloom.segcore.annotations.pairing import NameSuffixes, _best, pair
from maskloom.segcore.errors import RecipeError

NONE = NameSuffixes()


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
    with pytest.raises(RecipeError, match="several truth masks") as caught:
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
