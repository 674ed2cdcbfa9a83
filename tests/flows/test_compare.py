"""The picture of a comparison shows what the segmenters found, where they found it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from dicom_support import save, stack_of
from PIL import Image
from scipy import ndimage
from skimage import data, segmentation

from maskloom.flows import compare as module
from maskloom.flows.compare import CLASSICAL, compare
from maskloom.segcore.errors import MaskloomError, ModelMismatch, RecipeError, StoreError
from maskloom.segcore.figures import comparison as figure
from maskloom.segcore.figures.comparison import Cell
from maskloom.segcore.figures.drawing import GAP, MARGIN, NO_DATA
from maskloom.segcore.models.protocols import SEGMENTERS
from maskloom.segcore.pipeline.in_memory import Region, segment_source
from maskloom.segcore.segmenters.kmeans import KMeans
from maskloom.segcore.segmenters.quickshift import Quickshift
from maskloom.segcore.testing.segmenters import Picture, fitted, labelled
from maskloom.tasks.clusters.address import ExistingCluster


def written(pixels: np.ndarray, folder: Path, name: str = "photo.png") -> str:
    path = folder / name
    Image.fromarray(pixels).save(path)
    return str(path)


def cells(path: Path, shape: tuple[int, int], number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The upper and the lower picture of each cell, as large as the image."""
    picture = np.array(Image.open(path).convert("RGB"))
    factor = max(1, figure._LEAST // max(shape))
    height, width = (n * factor for n in shape)
    column, row = max(width, 240) + GAP, figure._WORDS + 2 * height + 3 * GAP
    found = []
    for i in range(number):
        y = MARGIN + i // min(4, number) * row + figure._WORDS
        x = MARGIN + i % min(4, number) * column
        upper, lower = (
            # The last of the drawn pixels of each, where boundaries are.
            picture[top + factor - 1 : top + height : factor, x + factor - 1 : x + width : factor]
            for top in (y, y + height + GAP // 2)
        )
        found.append((upper, lower))
    return found


def test_shows_boundaries_and_mean_colours(tmp_path: Path) -> None:
    photo = data.astronaut()[:120, 100:260].copy()
    kinds = [{"kind": "kmeans", "clusters": 4}, "threshold"]
    compare(written(photo, tmp_path), kinds, tmp_path / "out.png")
    (first, nothing), (outlined, colours), _ = cells(tmp_path / "out.png", (120, 160), 3)
    assert np.array_equal(first, photo)
    assert (nothing[80:] == 255).all()
    picture = Picture(photo, np.ones(photo.shape[:2], bool), "rgb")
    model = fitted(KMeans(clusters=4), [picture])
    labels = labelled(model, picture).astype(int)
    marked = (outlined == (255, 220, 0)).all(axis=2)
    # Lines lie on one side of each boundary, and nowhere else.
    both_sides = segmentation.find_boundaries(labels, mode="thick", connectivity=1)
    assert not (marked & ~both_sides).any()
    assert ((labels[:, :-1] == labels[:, 1:]) | marked[:, :-1]).all()
    assert ((labels[:-1] == labels[1:]) | marked[:-1]).all()
    assert np.array_equal(outlined[~marked], photo[~marked])
    # The mean colour of a cluster is its centre.
    centres = np.array([photo[labels == label].mean(axis=0) for label in range(4)])
    assert np.abs(colours - centres[labels]).max() <= 0.5


def test_all_classical_segmenters_by_default(tmp_path: Path) -> None:
    kinds = {kind["kind"] for kind in CLASSICAL if not isinstance(kind, str)}
    assert kinds == {"threshold", "kmeans", "mixture", "mean_shift", "quickshift"}
    assert kinds <= set(SEGMENTERS)
    photo = data.coffee()[100:180, 150:260].copy()
    compare(written(photo, tmp_path), None, tmp_path / "out.png")
    found = cells(tmp_path / "out.png", (80, 110), len(CLASSICAL) + 1)
    for outlined, colours in found[1:]:
        assert (outlined == (255, 220, 0)).all(axis=2).any()
        assert not (colours == 255).all()
    # Objects: many more colours than classes.
    assert (
        len(np.unique(found[-1][1].reshape(-1, 3), axis=0))
        > len(np.unique(found[3][1].reshape(-1, 3), axis=0))
        == 5
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells of the picture, once it is drawn."""
    seen: list[Cell] = []
    draw = module.draw

    def spy(cells: list[Cell]) -> bytes:
        seen.extend(cells)
        return draw(cells)

    monkeypatch.setattr(module, "draw", spy)
    return seen


def test_titles_say_what_was_run_and_found(tmp_path: Path, drawn: list[Cell]) -> None:
    blocks = np.kron(np.array([[10, 200], [200, 10]], "uint8"), np.ones((20, 30), "uint8"))
    kinds = [
        {"kind": "threshold", "method": "multi-otsu", "levels": 2},
        {"kind": "mean_shift", "space": "joint", "min_size": 9},
    ]
    compare(written(blocks, tmp_path, "two by two.png"), kinds, tmp_path / "out.png")
    assert [cell.title for cell in drawn] == ["two by two.png", "threshold", "mean_shift"]
    assert drawn[0].text == "60 x 40 pixels"
    assert drawn[1].text == "method multi-otsu · levels 2 · 2 classes"
    assert drawn[2].text == "space joint · min_size 9 · 4 objects"


def test_a_shrunk_picture_shows_what_the_whole_image_gives(
    tmp_path: Path, drawn: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figure, "_MANY", 1.0)  # boundaries are opaque, however many they are
    photo = data.coffee()
    quickshift = {"kind": "quickshift", "kernel_size": 3, "max_dist": 6, "ratio": 0.5}
    compare(
        written(photo, tmp_path),
        [quickshift, {"kind": "kmeans", "clusters": 5}],
        tmp_path / "out.png",
    )
    picture = Picture(photo, np.ones(photo.shape[:2], bool), "rgb")
    recipes = (Quickshift(kernel_size=3, max_dist=6, ratio=0.5), KMeans(clusters=5))
    masks = [
        segment_source(fitted(recipe, [picture]), picture).values.astype(int) for recipe in recipes
    ]
    assert drawn[0].text == "600 x 400 pixels"
    assert drawn[1].text.endswith(f" · {len(np.unique(masks[0]))} objects")
    assert drawn[2].text.endswith(f" · {len(np.unique(masks[1]))} classes")
    # 600 x 400 is drawn as 480 x 320: five pixels of the image on four of the picture, whose
    # middles lie in pixels 0, 1, 3, 4.
    kept = [np.flatnonzero(np.isin(np.arange(size) % 5, (0, 1, 3, 4))) for size in (400, 600)]
    for mask, (outlined, colours) in zip(
        masks, cells(tmp_path / "out.png", (320, 480), 3)[1:], strict=True
    ):
        number, labels = np.unique(mask, return_inverse=True)
        means = np.stack(
            [ndimage.mean(photo[..., band], mask, number) for band in range(3)], axis=1
        )
        assert np.abs(colours - means[labels.reshape(mask.shape)[np.ix_(*kept)]]).max() <= 0.5
        shown = mask[np.ix_(*kept)]
        edge = np.zeros(shown.shape, bool)
        edge[:, :-1] |= shown[:, :-1] != shown[:, 1:]
        edge[:-1] |= shown[:-1] != shown[1:]
        assert np.array_equal((outlined == (255, 220, 0)).all(axis=2), edge)


def test_of_large_images_the_middle_is_segmented(tmp_path: Path, drawn: list[Cell]) -> None:
    # Twelve megapixels of which only the middle one is bright: its own threshold divides it.
    pixels = np.zeros((3000, 4000, 3), "uint8")
    pixels[1067:1933, 1423:2577] = np.where(np.arange(1154) < 500, 150, 250)[:, None]
    compare(written(pixels, tmp_path), ["threshold"], tmp_path / "out.png")
    assert drawn[0].text == "middle 1154 x 866 of 4000 x 3000 pixels"
    (photo, _), (outlined, colours) = cells(tmp_path / "out.png", (360, 480), 2)
    assert set(np.unique(colours)) == {150, 250}
    (columns,) = np.nonzero((outlined == (255, 220, 0)).all(axis=2).all(axis=0))
    assert columns.tolist() == [round(500 / 1154 * 480) - 1]
    assert photo.min() == 150


def test_the_image_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = Region.block
    monkeypatch.setattr(
        Region,
        "block",
        lambda region, tile, spec: (reads.append(spec.bands), read(region, tile, spec))[1],
    )
    kinds = [{"kind": "kmeans", "clusters": 3}, "quickshift", {"kind": "threshold", "band": 2}]
    compare(written(data.astronaut()[:60, :80].copy(), tmp_path), kinds, tmp_path / "out.png")
    assert reads == [(1, 2, 3), (2,)]


def test_two_workers_draw_what_this_process_draws(tmp_path: Path, two_workers: str) -> None:
    workers = ExistingCluster(json.loads(two_workers)["address"])
    path = written(data.coffee()[100:180, 150:260].copy(), tmp_path)
    kinds = [{"kind": "kmeans", "clusters": 3}, "threshold", {"kind": "threshold", "band": 2}]
    compare(path, kinds, tmp_path / "one.png")
    compare(path, kinds, tmp_path / "two.png", workers)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    # What a segmenter raises on a worker is raised here.
    with pytest.raises(ModelMismatch, match="band"):
        compare(path, [{"kind": "threshold", "band": 9}], tmp_path / "no.png", workers)


def test_a_list_is_an_ensemble(tmp_path: Path, drawn: list[Cell]) -> None:
    path = written(data.astronaut()[:60, :250].copy(), tmp_path)
    members = [{"kind": "kmeans", "clusters": 3}, {"kind": "mixture", "components": 3}]
    compare(path, [members, {"kind": "ensemble", "members": members}], tmp_path / "out.png")
    assert drawn[1].title == "ensemble"
    assert drawn[1].text == drawn[2].text == "members kmeans, mixture · 3 classes"
    _, (_, listed), (_, named) = cells(tmp_path / "out.png", (60, 250), 3)
    assert np.array_equal(listed, named)
    with pytest.raises(RecipeError, match=r"segmenter 2: members: .* has 2 classes"):
        compare(
            path,
            ["threshold", [{"kind": "kmeans", "clusters": 3}, {"kind": "kmeans", "clusters": 2}]],
            tmp_path / "no.png",
        )


def test_the_photo_is_shrunk_by_means(tmp_path: Path) -> None:
    small = data.astronaut()[:200, :480] // 2 * 2
    large = np.kron(small, np.ones((3, 3, 1), "uint8"))
    compare(written(large, tmp_path), ["threshold"], tmp_path / "out.png")
    assert np.abs(cells(tmp_path / "out.png", (200, 480), 2)[0][0].astype(int) - small).max() <= 1


def test_pixels_without_data_are_grey_and_have_no_class(tmp_path: Path) -> None:
    photo = np.dstack([data.astronaut()[:60, :250], np.full((60, 250), 255, "uint8")])
    photo[:, 100:150, 3] = 0
    compare(written(photo, tmp_path), ["threshold"], tmp_path / "out.png")
    for outlined, colours in cells(tmp_path / "out.png", (60, 250), 2)[1:]:
        assert (outlined[:, 101:148] == NO_DATA).all()
        assert (colours[:, 100:150] == NO_DATA).all()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 1), "uint8"),
        np.full((40, 500), 7, "uint16"),
        np.arange(900, dtype="uint16").reshape(30, 30) * 70,
    ],
)
def test_odd_images_are_drawn(pixels: np.ndarray, tmp_path: Path) -> None:
    compare(
        written(pixels, tmp_path),
        ["threshold", {"kind": "threshold", "method": "local"}],
        tmp_path / "out.png",
    )
    assert (tmp_path / "out.png").stat().st_size > 0


@pytest.mark.parametrize("shape", [(30, 40), (5, 30, 40)], ids=["image", "volume"])
def test_a_folder_that_is_one_image(shape: tuple[int, ...], tmp_path: Path) -> None:
    """A Zarr array looks like the same pixels in a file."""
    zarr = pytest.importorskip("zarr")
    pixels = np.random.default_rng(2).integers(0, 255, shape, np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    for name in ("a.zarr", "renamed"):
        zarr.create_array(tmp_path / name, data=pixels, chunks=(3, 16, 16)[-len(shape) :])
    pictures = []
    for name in ("a.npy", "a.zarr", "renamed"):
        compare(str(tmp_path / name), ["threshold"], tmp_path / "out.png")
        found = cells(tmp_path / "out.png", shape[-2:], 2)
        pictures.append(np.stack([half for cell in found for half in cell]))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], pictures[2])


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    path = written(data.coins(), tmp_path)
    with pytest.raises(RecipeError, match=r"segmenter 2\.kind: There is no segmenter 'otsu'"):
        compare(path, ["threshold", "otsu"], tmp_path / "out.png")
    with pytest.raises(RecipeError, match=r"segmenter 1.*clusters"):
        compare(path, [{"kind": "kmeans", "clusters": 1}], tmp_path / "out.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    for name in ("broken.png", "absent.png", "notes.txt"):
        with pytest.raises(MaskloomError, match=name):
            compare(str(tmp_path / name), ["threshold"], tmp_path / "out.png")
    with pytest.raises(RecipeError, match="does not exist"):
        compare(str(tmp_path / "absent.png"), ["threshold"], tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
    with pytest.raises(StoreError, match="Check that its folder exists"):
        compare(path, ["threshold"], tmp_path / "nowhere" / "out.png")


@pytest.mark.skipif(
    "MASKLOOM_TEST_DATA" not in os.environ, reason="needs the folder of test images"
)
def test_a_real_scene_of_16_bits_with_nodata(tmp_path: Path) -> None:
    (path,) = Path(os.environ["MASKLOOM_TEST_DATA"], "satseg_spacenet", "images").glob("*.tif")
    compare(str(path), ["threshold", {"kind": "kmeans", "clusters": 3}], tmp_path / "out.png")
    photo = cells(tmp_path / "out.png", (480, 480), 3)[0][0]
    assert photo.std() > 20


def test_the_middle_plane_of_a_volume_is_drawn(tmp_path: Path) -> None:
    """Segmenters see the whole volume: of its values, none above the threshold is in the middle."""
    planes = np.zeros((5, 40, 50), np.uint8)
    planes[:, 10:30, 10:40] = 60
    planes[0, 5, 5] = 255
    np.save(tmp_path / "volume.npy", planes)
    kinds = [{"kind": "threshold", "value": 50}, {"kind": "threshold", "value": 100}]
    compare(str(tmp_path / "volume.npy"), kinds, tmp_path / "a.png")
    np.save(tmp_path / "image.npy", planes[2])
    compare(str(tmp_path / "image.npy"), kinds, tmp_path / "b.png")

    volume, image = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert volume.shape == image.shape
    below_the_titles = MARGIN + figure._WORDS
    # The photo's contrast and the classes of the middle plane are those of the plane alone.
    assert np.array_equal(volume[below_the_titles:], image[below_the_titles:])


def test_a_folder_with_one_series_is_that_series(tmp_path: Path, drawn: list[Cell]) -> None:
    voxels = np.random.default_rng(6).integers(0, 2000, (5, 24, 32), np.uint16)
    save(tmp_path / "ct", stack_of(voxels)[::-1])
    compare(f"{tmp_path / 'ct'}/", ["threshold"], tmp_path / "series.png")
    assert drawn[0].title == "ct"
    np.save(tmp_path / "ct.npy", voxels)
    compare(str(tmp_path / "ct.npy"), ["threshold"], tmp_path / "array.png")
    assert drawn[0].text == drawn[2].text
    for series, array in zip(drawn[:2], drawn[2:], strict=True):
        np.testing.assert_array_equal(series.over_photo, array.over_photo)


def test_of_several_images_in_a_folder_one_is_named(tmp_path: Path, drawn: list[Cell]) -> None:
    voxels = np.arange(2 * 24 * 32, dtype=np.uint16).reshape(2, 24, 32)
    save(tmp_path / "ct", stack_of(voxels))
    save(tmp_path / "ct", stack_of(voxels[:, :12], series="B"), names="b{}.dcm")
    picture = tmp_path / "out.png"
    with pytest.raises(RecipeError, match=r"holds 2 images\. Name one of them:") as raised:
        compare(str(tmp_path / "ct"), ["threshold"], picture)
    for each in str(raised.value).splitlines()[1:]:
        name, files = each.split(" (")
        assert files == "2 files)"
        compare(name.strip(), ["threshold"], picture)
    assert sorted(cell.text for cell in drawn[::2]) == [
        "middle plane of 32 x 12 x 2 pixels",
        "middle plane of 32 x 24 x 2 pixels",
    ]
    with pytest.raises(RecipeError, match="does not exist"):
        compare(str(tmp_path / "ct" / "series-0123456789ab-0123"), ["threshold"], picture)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="empty' matches no image"):
        compare(str(tmp_path / "empty"), ["threshold"], picture)
