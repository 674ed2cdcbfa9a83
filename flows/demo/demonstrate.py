"""The demo: nuclei that are counted, and land cover of a satellite scene and of a mosaic of 268
megapixels, whose mask is searched for seams.

Nothing is downloaded: the scene comes with this package (`samples/README.md`), and the picture of
nuclei is simulated, so that their true number is known. The mosaic repeats the scene and its mirror
images, so its true mask is known too, and every pixel is compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from maskloom.flows.demo import cells, mosaic
from maskloom.flows.recipes import run as recipes
from maskloom.flows.run import RunOptions, run
from maskloom.segcore.errors import RunError, StoreError
from maskloom.segcore.ground.amounts import amount
from maskloom.tasks.output import Output

if TYPE_CHECKING:
    import pyarrow as pa

    from maskloom.flows.stages import Orchestrator

SIDE = 16_384
"""Side of the mosaic in pixels."""
CLUSTER = "{kind: local, workers: 2}"
"""Where the mosaic is segmented."""
LAND_COVER, CELLS = "landcover", "cells"
_SCENE, _MOSAIC = "scene", "mosaic"

RECIPES = {
    CELLS: """\
# Nuclei in fluorescence: brighter than the ground, split where they touch. One row each in
# tables/objects.
name: cells
inputs: images/cells.tif
output: cells
segmenter:
  kind: watershed
  of:
    kind: threshold
    method: li                    # dim nuclei count too: Otsu's threshold would lose them
    classes: [background, nucleus]
  distance: 20                    # pixels: more than the radius of the largest nucleus
  prominence: 1.0                 # pixels by which a neck is narrower than both sides
  min_size: 100                   # pixels: smaller spots are specks
pixel_size: {pixel_size}            # the file does not say it
cluster: serial                   # in this process: one small image needs no workers
""",
    LAND_COVER: """\
# Land cover of a Sentinel-2 scene (red, green, blue, near infrared; pixels of 10 m) and of a mosaic
# of it: one model for both, so that a class means the same in both.
name: landcover
inputs: [images/scene.tif, images/mosaic.tif]
output: landcover
segmenter:
  kind: kmeans
  clusters: 7
  # Clusters in the order of their brightness; those of one name become one class. The names are a
  # reading of the picture, by the vegetation index of each cluster; no ground survey checks them.
  classes: [shrub, forest, forest, soil, grass, soil, soil]
tiling: {tile: 2048}
cluster: {cluster}
""",
}
"""The recipes, in the order in which they run."""
_STEPS = {
    CELLS: "Nuclei in a simulated fluorescence picture, counted and measured",
    LAND_COVER: "Land cover of a satellite scene and of a large mosaic, on two workers",
}
_SEAMS = "Seams: each pixel of the mosaic's mask against its mirror image in the scene's"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the demo's table."""

    image_id: str
    size: str
    found: str


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo has shown."""

    rows: tuple[Row, ...]
    compared: int
    """Pixels of the mosaic's mask that were compared with the scene's mask, mirrored."""
    differing: int
    """Those that differ."""
    folder: Path

    @property
    def first_to_open(self) -> Path:
        """The report on the land cover, or a preview where the recipe wants no report."""
        output = self.folder / LAND_COVER
        report = output / "report.html"
        return report if report.exists() else output / "previews" / "scene.png"

    def table(self) -> list[str]:
        """Lines on the parts, and on the seams."""
        cells = [("image", "size", "found")]
        cells += [(row.image_id, row.size, row.found) for row in self.rows]
        seams = "no seam" if not self.differing else "SEAMS: please report this"
        told = f"{seams}: {self.differing:,} of {self.compared:,} pixels differ from the scene's"
        name, size = (max(len(row[i]) for row in cells) for i in range(2))
        cells.append(("", "", told))
        return [f"{row[0]:{name}}  {row[1]:>{size}}  {row[2]}" for row in cells]

    def next_commands(self) -> list[str]:
        """What to type next."""
        scene = self.folder / "images" / "scene.tif"
        return [
            f"maskloom view {self.folder / LAND_COVER}",
            f"maskloom try {self.folder / LAND_COVER}.yaml --vary clusters=3,5,7 --image {scene}",
            "maskloom init YOUR_IMAGES -o recipe.yaml",
        ]


def prepare(folder: Path) -> dict[str, Path]:
    """Write the images and recipes that are missing below the folder; the recipes by part.

    Existing files stay untouched, so that a second demo finds nothing to do.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    if not (images / "scene.tif").exists():
        shutil.copyfile(_own_scene(), images / "scene.tif")
    if not (images / "cells.tif").exists():
        cells.write(images / "cells.tif")
    if not (images / "mosaic.tif").exists():
        mosaic.write(images / "scene.tif", images / "mosaic.tif", SIDE)
    paths = {part: folder / f"{part}.yaml" for part in RECIPES}
    for part, path in paths.items():
        if not path.exists():
            text = RECIPES[part].replace("{cluster}", CLUSTER)
            path.write_text(text.replace("{pixel_size}", cells.PIXEL_SIZE), encoding="utf-8")
    return paths


def demo(
    folder: Path,
    recorded_by: Orchestrator,
    say: Callable[[str], None],
    options: RunOptions,
) -> Demo:
    """Run all parts; the run of the land cover is recorded. `say` is called with a line at each
    step.

    Raises `StoreError` if nothing can be written there, and `RunError` if a part cannot be run.
    """
    steps = len(RECIPES) + 1
    step = say if not options.quiet else lambda _: None
    step("Making the images")
    try:
        paths = prepare(folder)
    except OSError as error:
        raise StoreError(
            f"Cannot write the demo in {folder}: {error.strerror}. Name another folder: maskloom "
            "demo FOLDER."
        ) from error
    rows: list[Row] = []
    for number, part in enumerate(RECIPES, 1):
        step(f"{number}/{steps} {_STEPS[part]}")
        recipe = recipes.load(paths[part])
        done = run(recipe, options, recorded_by if part == LAND_COVER else None, say)
        if done.some_failed:
            raise RunError(f"An image of the demo failed. See `maskloom status {recipe.output}`.")
        rows += _rows(Output.open(recipe.output))
    step(f"{steps}/{steps} {_SEAMS}")
    compared, differing = mosaic.compare(Output.open(recipe.output), _SCENE, _MOSAIC, options.quiet)
    return Demo(tuple(rows), compared, differing, folder)


def _own_scene() -> Path:
    return Path(__file__).parent.with_name("samples") / "sentinel2.tif"


def _rows(output: Output) -> Iterator[Row]:
    """A row for each image of an output."""
    images = output.images(("image_id", "width", "height", "seconds")).to_pylist()
    for image in sorted(images, key=lambda image: -int(image["image_id"] == _SCENE)):
        of = (image["image_id"],)
        size = f"{image['width']:,} x {image['height']:,} px"
        objects = output.objects(("area", "area_unit"), of)
        found = _nuclei(objects) if objects.num_columns else _classes(output, of)
        yield Row(image["image_id"], size, found)


def _nuclei(objects: pa.Table) -> str:
    """How many were found and put in, and their size."""
    typical = amount(median(objects["area"].to_pylist()), objects["area_unit"][0].as_py())
    return f"{objects.num_rows} nuclei of {typical} (median); {cells.COUNT} were simulated"


def _classes(output: Output, of: tuple[str, ...]) -> str:
    """Share and area of every class, the largest first."""
    areas = output.areas(("class_name", "fraction", "area", "area_unit"), of).to_pylist()
    return " · ".join(
        f"{row['class_name']} {row['fraction']:.0%} {amount(row['area'], row['area_unit'])}"
        for row in sorted(areas, key=lambda row: -row["area"])
    )
