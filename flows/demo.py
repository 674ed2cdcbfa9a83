"""The demo: coins that are counted, and land cover of a satellite scene and of a mosaic of 268
megapixels, whose mask is searched for seams.

Nothing is downloaded: the scene comes with this package (`samples/README.md`), the coins with
scikit-image. The mosaic repeats the scene and its mirror images, so its true mask is known: that of
the scene, mirrored likewise. Every pixel is compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.flows.progress import ItemProgress, display
from maskloom.flows.recipes import run as recipes
from maskloom.flows.run import RunOptions, run
from maskloom.flows.terminal import count
from maskloom.segcore.errors import RunError, StoreError
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.amounts import amount
from maskloom.tasks.output import Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.flows.stages import Orchestrator

SIDE = 16_384
"""Side of the mosaic in pixels."""
CLUSTER = "{kind: local, workers: 2}"
"""Where the mosaic is segmented."""
LAND_COVER, COINS = "landcover", "coins"
_SCENE, _MOSAIC = "scene", "mosaic"
_BLOCK = 240
"""Side of the mosaic's blocks: a multiple of 16 that divides two mirrored scenes."""
_ROWS = 1024

RECIPES = {
    COINS: """\
# Coins: brighter than what is around them, holes filled, specks left out. One row each in
# tables/objects.
name: coins
inputs: images/coins.png
output: coins
segmenter:
  kind: connected_parts
  of:
    kind: threshold
    method: local               # the light fades from left to right: no single threshold suits
    window: 151                 # pixels: wider than a coin
    offset: -8                  # grey levels above the surroundings
    classes: [background, coin]
  fill_holes: true
  min_size: 200
cluster: serial                 # in this process: one small image needs no workers
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
  # reading of the picture, by the vegetation index of each cluster: nobody has been there.
  classes: [shrub, forest, forest, soil, grass, soil, soil]
tiling: {tile: 2048}
cluster: {cluster}
""",
}
"""The recipes, in the order in which they run."""
_STEPS = {
    COINS: "Coins: brighter than their surroundings, one row each",
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
    for name, source in (("scene.tif", _own_scene()), ("coins.png", _coins())):
        if not (images / name).exists():
            shutil.copyfile(source, images / name)
    if not (images / "mosaic.tif").exists():
        _write_mosaic(images / "scene.tif", images / "mosaic.tif", SIDE)
    paths = {part: folder / f"{part}.yaml" for part in RECIPES}
    for part, path in paths.items():
        if not path.exists():
            path.write_text(RECIPES[part].replace("{cluster}", CLUSTER), encoding="utf-8")
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
    compared, differing = _compare(Output.open(recipe.output), options.quiet)
    return Demo(tuple(rows), compared, differing, folder)


def _own_scene() -> Path:
    return Path(__file__).with_name("samples") / "sentinel2.tif"


def _coins() -> Path:
    # The package is not imported, since that takes a second.
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise RunError("The demo needs a picture of scikit-image. Install scikit-image.")
    return Path(spec.origin).parent / "data" / "coins.png"


def _write_mosaic(scene: Path, target: Path, side: int) -> None:
    """Write a square TIFF of the scene and its mirror images.

    Its blocks repeat after two mirrored scenes, so only those are stored: all others share their
    bytes, as TIFF allows, and a mosaic of 2.1 GB takes 12 MB of the disk and no time.
    """
    import rasterio
    import tifffile

    with rasterio.open(scene) as file:
        pixels, crs, transform = file.read(), file.crs, file.transform
    pixels = np.concatenate([pixels, pixels[:, ::-1]], axis=1)
    pixels = np.concatenate([pixels, pixels[:, :, ::-1]], axis=2)
    period = np.tile(pixels, (1, 2, 2)).transpose(1, 2, 0).astype("<u2")
    part = target.with_suffix(".part")
    with rasterio.open(
        part,
        "w",
        driver="GTiff",
        width=side,
        height=side,
        count=period.shape[2],
        dtype="uint16",
        tiled=True,
        blockxsize=_BLOCK,
        blockysize=_BLOCK,
        interleave="pixel",
        SPARSE_OK=True,  # the blocks follow
        ENDIANNESS="LITTLE",
        crs=crs,
        transform=transform,
    ):
        pass
    with tifffile.TiffFile(part) as tiff:
        tags = tiff.pages.first.tags
        offsets, sizes = tags["TileOffsets"], tags["TileByteCounts"]
    stored, across = len(period) // _BLOCK, -(-side // _BLOCK)
    size = _BLOCK * _BLOCK * period.shape[2] * period.itemsize
    row, column = np.divmod(np.arange(across * across), across)
    with part.open("r+b") as file:
        end = file.seek(0, 2)
        for block in _blocks_of(period):
            file.write(block.tobytes())
        number = row % stored * stored + column % stored
        for tag, values in ((offsets, end + size * number), (sizes, np.full_like(number, size))):
            file.seek(tag.valueoffset)
            file.write(values.astype(f"<u{tag.valuebytecount // tag.count}").tobytes())
    part.replace(target)


def _blocks_of(period: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for y in range(0, len(period), _BLOCK):
        for x in range(0, len(period), _BLOCK):
            yield period[y : y + _BLOCK, x : x + _BLOCK]


def _rows(output: Output) -> Iterator[Row]:
    """A row for each image of an output."""
    images = output.images(("image_id", "width", "height", "seconds")).to_pylist()
    for image in sorted(images, key=lambda image: -int(image["image_id"] == _SCENE)):
        of = (image["image_id"],)
        size = f"{image['width']:,} x {image['height']:,} px"
        areas = output.areas(("class_name", "fraction", "area", "area_unit"), of).to_pylist()
        objects = output.objects(("object_id",), of)
        found = (
            count(objects.num_rows, "coin")
            if objects.num_columns
            else " · ".join(
                f"{row['class_name']} {row['fraction']:.0%} {amount(row['area'], row['area_unit'])}"
                for row in sorted(areas, key=lambda row: -row["area"])
            )
        )
        yield Row(image["image_id"], size, found)


def _compare(output: Output, quiet: bool) -> tuple[int, int]:
    """Number of pixels of the mosaic's mask, and of those that are not the mirror image of one in
    the scene's mask, which was made in one piece.
    """
    with output.mask(_SCENE) as scene:
        height, width = scene.spec.shape
        true, _ = scene.read(Box((0, 0), (height, width)))
    with output.mask(_MOSAIC) as mask, display(quiet) as shown:
        rows, columns = mask.spec.shape
        across = _mirrored(np.arange(columns), width)
        strips = range(0, rows, _ROWS)
        progress, differing = ItemProgress(shown, "compare", "strips", len(strips)), 0
        for number, top in enumerate(strips, 1):
            bottom = min(top + _ROWS, rows)
            found, _ = mask.read(Box((top, 0), (bottom, columns)))
            down = _mirrored(np.arange(top, bottom), height)
            differing += int(np.count_nonzero(found != true[np.ix_(down, across)]))
            progress(number)
    return rows * columns, differing


def _mirrored(place: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """The row, or column, in the scene of each row of the mosaic."""
    inside = place % (2 * side)
    return np.minimum(inside, 2 * side - 1 - inside)
