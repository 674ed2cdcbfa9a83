"""`maskloom init`, `try` and `list`: the recipe for any kind of images runs, and is drawn."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from dicom_support import save, stack_of
from PIL import Image
from rasterio.transform import from_origin
from slides_support import write_aperio
from tests_support import photograph, read_table, write_tiff

from maskloom.flows.recipes import run as recipes


def photo(folder: Path) -> None:
    Image.fromarray(photograph(90, 120)).save(folder / "photo.jpg")


def scene(folder: Path) -> None:
    bands = np.dstack([photograph(70, 80), photograph(70, 80)[..., :1]]).astype(np.uint16) * 9
    place = from_origin(500_000, 5_300_000, 10, 10)
    write_tiff(folder / "scene.tif", bands, crs="EPSG:32633", transform=place)


def cells(folder: Path) -> None:
    y, x = np.mgrid[:120, :120]
    pixels = np.random.default_rng(0).normal(20, 3, (120, 120))
    for top, left in ((30, 30), (80, 40), (60, 90)):
        pixels[(y - top) ** 2 + (x - left) ** 2 < 81] += 180
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "cells.png")


def slide(folder: Path) -> None:
    pixels = np.full((256, 320, 3), 240, np.uint8)
    pixels[60:200, 80:220] = (170, 90, 150)
    write_aperio(folder / "slide.svs", pixels)


def brain(folder: Path) -> None:
    voxels = np.zeros((24, 24, 12), np.float32)
    inside = voxels[4:20, 4:20, 2:10]
    inside[:] = 100 + 100 * (np.indices(inside.shape).sum(axis=0) // 12 % 3)
    inside += np.random.default_rng(0).normal(0, 5, inside.shape)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1, 2, 1])), folder / "brain.nii.gz")


def ct(folder: Path) -> None:
    voxels = np.full((5, 24, 24), -1000, np.int16)
    voxels[:, 6:18, 6:18] = 40
    voxels[:, 10:14, 10:14] = 700
    save(folder, stack_of(voxels))


KINDS = {
    photo: ("colour photographs", "kmeans", "px"),
    scene: ("scenes of several bands", "kmeans", "m2"),
    cells: ("fluorescence micrographs", "watershed", "px"),
    slide: ("whole slides", "threshold", "mm2"),
    brain: ("volumes", "mixture", "mm3"),
    ct: ("CT volumes", "threshold", "mm3"),
}


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_the_recipe_for_any_images_runs(write, tmp_path, maskloom):
    looks_like, kind, unit = KINDS[write]
    images = tmp_path / "my images"
    images.mkdir()
    write(images)
    path = tmp_path / "new.yaml"

    made = maskloom("init", images, "-o", path, "--quiet", "--set", "tiling.tile=256")
    assert made.exit_code == 0, made.output
    assert looks_like in made.output
    assert all(len(line) <= 100 for line in path.read_text().splitlines())
    recipe = recipes.load(path)
    assert (recipe.kind, recipe.tiling.side) == (kind, 256)

    picture = tmp_path / "try.png"
    tried = maskloom("try", path, "-o", picture, "--quiet")
    assert tried.exit_code == 0, tried.output
    with Image.open(picture) as drawn:
        assert drawn.width > 400

    run = maskloom("run", path, "--no-prefect", "--quiet")
    assert run.exit_code == 0, run.output
    areas = read_table(tmp_path / "new-masks", "areas")
    assert {row["area_unit"] for row in areas} == {unit}
    assert sum(row["pixel_count"] > 0 for row in areas) >= 2
    if write is cells:
        assert len(read_table(tmp_path / "new-masks", "objects")) == 3


def test_keys_of_which_init_says_nothing_are_written_as_set(tmp_path, maskloom):
    photo(tmp_path)
    path = tmp_path / "new.yaml"
    changes = {"statistics": ["area", "objects"], "fit": "image", "max_failed_fraction": 0.5}
    told = [each for key, value in changes.items() for each in ("--set", f"{key}={value}")]
    made = maskloom("init", tmp_path, "-o", path, "--quiet", *told)
    assert made.exit_code == 0, made.output
    assert {key: yaml.safe_load(path.read_text())[key] for key in changes} == changes


def test_what_was_not_chosen_is_a_recipe_too(tmp_path, maskloom):
    """Every alternative of the comments can take the place of what was chosen."""
    for write in KINDS:
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder)
        path = tmp_path / f"{write.__name__}.yaml"
        assert maskloom("init", folder, "-o", path, "--quiet").exit_code == 0
        lines = path.read_text().splitlines()
        found = alternatives(lines)
        assert found, write
        for text in found:
            for key, value in yaml.safe_load(text).items():
                document = yaml.safe_load(path.read_text()) | {key: value}
                if isinstance(value, dict) and value.get("kind") == "slurm":
                    continue  # needs a SLURM
                recipes.make(document, tmp_path)


def alternatives(lines: list[str]) -> list[str]:
    """Commented keys, each with the lines below it that are indented further."""
    found: list[str] = []
    inside = False
    for line in lines:
        text = line.removeprefix("# ")
        key = text.strip().partition(":")[0]
        if inside and text != line and text.startswith("  "):
            found[-1] += f"\n{text}"
            continue
        inside = text != line and key in ("segmenter", "fit", "cluster", "pixel_size", "nodata")
        if inside:
            found.append(text)
    return found


def test_init_never_overwrites_and_says_what_is_wrong(tmp_path, maskloom):
    photo(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    for arguments, told in (
        ((tmp_path / "photo.jpg", "-o", path), "exists and stays as it is"),
        ((tmp_path / "nothing.jpg", "-o", tmp_path / "a.yaml"), "does not exist"),
        ((tmp_path / "photo.jpg", "-o", tmp_path / "no" / "a.yaml"), "does not exist"),
        (
            (tmp_path / "photo.jpg", "-o", tmp_path / "b.yaml", "--set", "segmenter.clusers=3"),
            "clusters",
        ),
    ):
        refused = maskloom("init", *arguments, "--quiet")
        assert refused.exit_code == 2, refused.output
        assert told in " ".join(refused.output.split())
    assert path.read_text() == "mine"
    assert {each.name for each in tmp_path.iterdir()} == {"mine.yaml", "photo.jpg"}


def test_try_draws_a_panel_for_each_value(tmp_path, maskloom):
    scene(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "inputs: scene.tif\noutput: out\n"
        "segmenter: {kind: kmeans, classes: [a, b, c]}\ncluster: serial\n"
    )
    picture = tmp_path / "try.png"
    shown = maskloom("try", recipe, "--vary", "clusters=2,4", "-o", picture, "--quiet")
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert [line.count("cluster_") for line in lines if line.startswith("clusters ")] == [2, 4]
    assert "were left out" in shown.output
    assert "Fitted to this part alone" in shown.output
    assert not (tmp_path / "out").exists()
    for arguments, told in (
        (("--vary", "clusters=2,3,4,5,6,7,8"), "at most 6 panels"),
        (("--vary", "tiling.tile=256"), "changes none of them"),
        (("--vary", "clusters"), "expected KEY=A,B,C"),
        (("--crop", "0,0,999,9"), "80 x 70 pixels"),
        (("--crop", "left"), "expected auto, middle"),
        (("--image", tmp_path / "other.tif"), "does not exist"),
    ):
        refused = maskloom("try", recipe, *arguments, "-o", picture, "--quiet")
        assert refused.exit_code == 2, refused.output
        assert told in " ".join(refused.output.split())


def test_try_sees_what_a_run_sees(tmp_path, maskloom):
    """No data and features of the recipe: the shares are those of a run."""
    pixels = np.zeros((40, 50, 2), np.uint16)
    pixels[10:, :, 0] = np.arange(50)
    pixels[:, :, 1] = 100
    write_tiff(tmp_path / "two.tif", pixels)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "inputs: two.tif\noutput: out\nsegmenter: {kind: threshold, value: 0.6}\n"
        "features: [b1 / b2 * 2]\ncluster: serial\n"
    )
    tried = maskloom(
        "try", recipe, "--vary", "nodata=0,9999", "-o", tmp_path / "try.png", "--quiet"
    ).output
    shares = []
    for nodata in (0, 9999):
        change = ("--set", f"nodata={nodata}", "--set", f"output=out{nodata}")
        assert not maskloom("run", recipe, "--no-prefect", "--quiet", *change).exit_code
        above = read_table(tmp_path / f"out{nodata}", "areas")[1]["fraction"]
        shares.append(f"foreground {above:.0%}")
    assert shares[0] != shares[1]
    assert [tried.index(share) for share in shares] == sorted(map(tried.index, shares))


def test_init_leaves_labels_out(tmp_path, maskloom):
    for name in ("images", "Labels_index", "masks", "more/images", "more/labels"):
        (tmp_path / "set" / name).mkdir(parents=True)
        photo(tmp_path / "set" / name)
    made = maskloom("init", tmp_path / "set", "-o", tmp_path / "a.yaml", "--quiet")
    assert "Labels_index, masks, labels" in made.output
    inputs = yaml.safe_load((tmp_path / "a.yaml").read_text())["inputs"]
    assert inputs == ["set/images", "set/more/images"]
    # A folder with images of its own stays whole, and one of labels alone is taken at its word.
    photo(tmp_path / "set")
    for folder, inputs in (("set", "set"), ("set/masks", "set/masks")):
        recipe = tmp_path / f"{folder.replace('/', '-')}.yaml"
        made = maskloom("init", tmp_path / folder, "-o", recipe, "--quiet")
        assert "Left out" not in made.output
        assert yaml.safe_load(recipe.read_text())["inputs"] == inputs


def test_the_liveliest_part_is_tried(tmp_path, maskloom):
    pixels = np.full((1100, 4200), 90, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024))
    pixels[:1024, 3176:] = noise
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("inputs: wide.png\noutput: out\nsegmenter: threshold\n")
    shown = maskloom("try", recipe, "-o", tmp_path / "try.png", "--quiet")
    assert shown.exit_code == 0, shown.output
    assert "1024 x 1024 at 3176, 0, 4200 x 1100 pixels" in shown.output


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("kmeans", "Use it when: "),
        ("tiff_stack", "writer of masks"),
        ("objects", "one row per object"),
        ("segmenters", "watershed: "),
    ],
)
def test_list_explains_what_it_names(name, told, maskloom):
    shown = maskloom("list", name)
    assert shown.exit_code == 0, shown.output
    assert told in " ".join(shown.output.split())


@pytest.mark.parametrize(("typed", "meant"), [("k-mean", "kmeans"), ("U-Net", "unet")])
def test_list_knows_what_was_meant(typed, meant, maskloom):
    refused = maskloom("list", typed)
    assert refused.exit_code == 2
    assert f"maskloom list {meant}" in refused.output


def test_every_segmenter_is_explained(maskloom):
    from maskloom.segcore.models.protocols import SEGMENTERS

    for name, kind in SEGMENTERS.items():
        shown = maskloom("list", name).output
        for heading in ("Use it when: ", "Not when: ", "Tiles: ", "Volumes: ", "Parameters"):
            if heading != "Tiles: " or hasattr(kind, "exactness"):
                assert heading in shown, (name, heading)
