"""Draws the pictures of the segmenters, `segmenter_*.webp` beside this file.

Run it as `python docs/images/make_segmenters.py [NAME...]`. It takes images that come with
scikit-image, free of copyright restrictions (see `skimage.data`), or draws some; runs
`maskloom segment` on them; and puts image and masks side by side. The Sentinel-2 scene is in the
wheel of spyndex (MIT; contains modified Copernicus Sentinel data): `pip install spyndex`.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskloom.segcore.raster.colours import colours_of_objects

FOLDER = Path(__file__).parent
GAP = 8
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An image, and the masks of some segmenters on it."""

    image: Callable[[], NDArray[np.generic]]
    """(y, x) or (y, x, band)."""
    runs: Sequence[str]
    """The options of `maskloom segment` for each mask."""
    width: int = 400
    """Of each panel in pixels."""
    colours: Sequence[tuple[int, int, int]] | None = None
    """Of the classes. None: their mean colours in the image."""


def sample(name: str, box: tuple[slice, slice] = np.s_[:, :]) -> Callable[[], Pixels]:
    """A part of an image of scikit-image."""

    def read() -> Pixels:
        import skimage.data

        (file,) = Path(skimage.data.__file__).parent.glob(f"{name}.*")
        return np.asarray(Image.open(file))[box]

    return read


def scene() -> NDArray[np.uint16]:
    """A Sentinel-2 scene: blue, green, red and near infrared of 300 x 300 pixels of 10 m."""
    from importlib import resources

    text = (resources.files("spyndex") / "data/S2_10m.json").read_text(encoding="utf-8")
    return np.moveaxis(np.array(json.loads(text)), 0, 2).astype(np.uint16)


def phantom() -> Pixels:
    """The phantom of Shepp and Logan in noise."""
    clean = sample("phantom")()[40:360, 60:340].astype(float)
    noise = np.random.default_rng(0).normal(0, 22, clean.shape)
    return (clean * 0.75 + 25 + noise).clip(0, 255).astype(np.uint8)


def blobs() -> Pixels:
    """Discs that touch, as grains do."""
    return _discs(70, (13, 24), overlap=0.8)


def nuclei() -> Pixels:
    """Bright discs with blurred rims and noise, as fluorescence shows nuclei."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(1)
    bright = gaussian_filter(_discs(42, (8, 15), overlap=0.98) * 0.5, 1.5)
    return random.poisson(bright + 6).clip(0, 255).astype(np.uint8)


def _discs(count: int, radii: tuple[int, int], overlap: float) -> Pixels:
    random = np.random.default_rng(4)
    y, x = np.mgrid[:300, :400]
    image, placed = np.full((300, 400), 30, np.uint8), []
    while len(placed) < count:
        disc = random.uniform(0, 300), random.uniform(0, 400), random.uniform(*radii)
        if all(
            np.hypot(disc[0] - other[0], disc[1] - other[1]) > overlap * (disc[2] + other[2])
            for other in placed
        ):
            placed.append(disc)
            image[(y - disc[0]) ** 2 + (x - disc[1]) ** 2 < disc[2] ** 2] = 170
    return image


INK, PAPER = (38, 50, 66), (235, 232, 224)
PICTURES = {
    "threshold": Picture(
        sample("page"), ["threshold", "threshold -p method=local -p offset=8"], colours=(INK, PAPER)
    ),
    "kmeans": Picture(scene, ["kmeans -p clusters=4"]),
    "mixture": Picture(
        phantom,
        ["mixture -p components=4", "mixture -p components=4 -p smoothness=1"],
        width=280,
    ),
    "mean_shift": Picture(
        sample("coffee"),
        [
            "mean_shift -p bandwidth=14",
            "mean_shift -p space=joint -p spatial_radius=7 -p range_radius=20 -p min_size=200",
        ],
    ),
    "quickshift": Picture(
        sample("rocket"), ["quickshift -p kernel_size=4 -p max_dist=12 -p ratio=0.7"]
    ),
    "connected_parts": Picture(
        sample("coins"),
        [
            (
                "connected_parts -p 'of={kind: threshold, method: local, window: 151}'"
                " -p fill_holes=true -p min_size=400"
            )
        ],
    ),
    "watershed": Picture(
        blobs, ["connected_parts -p of=threshold", "watershed -p of=threshold -p min_size=20"]
    ),
    "ensemble": Picture(
        sample("microaneurysms"),
        [
            "threshold -p method=li -p above=false -p 'classes=[tissue, vessel]'",
            (
                "threshold -p method=local -p window=31 -p offset=6 -p above=false"
                " -p 'classes=[tissue, vessel]'"
            ),
            (
                "ensemble -p 'members=[{kind: threshold, method: li, above: false},"
                " {kind: threshold, method: otsu, above: false},"
                " {kind: threshold, method: local, window: 31, offset: 6, above: false}]'"
            ),
        ],
        width=220,
        colours=(PAPER, (176, 58, 46)),
    ),
    "instances": Picture(
        nuclei,
        [f"{kind} -p weights=nuclei -p pixel_size=any" for kind in ("unet", "instances")],
        colours=(INK, PAPER),
    ),
    "unet": Picture(nuclei, ["unet -p weights=nuclei -p pixel_size=any"], colours=(INK, PAPER)),
}


def draw(name: str) -> None:
    """Draw one picture."""
    picture = PICTURES[name]
    image = picture.image()
    with tempfile.TemporaryDirectory() as folder:
        panels = [shown(image)]
        for number, options in enumerate(picture.runs):
            mask, of_objects = run(image, Path(folder) / str(number), options)
            if of_objects:
                panels.append(objects(mask, panels[0], regions="shift" in options))
            else:
                panels.append(classes(mask, panels[0], picture.colours))
    height = round(image.shape[0] * picture.width / image.shape[1])
    canvas = Image.new("RGB", (len(panels) * (picture.width + GAP) - GAP, height), "white")
    for number, panel in enumerate(panels):
        small = Image.fromarray(panel).resize((picture.width, height), Image.Resampling.LANCZOS)
        canvas.paste(small, (number * (picture.width + GAP), 0))
    canvas.save(FOLDER / f"segmenter_{name}.webp", quality=80, method=6)


def run(image: NDArray[np.generic], folder: Path, options: str) -> tuple[NDArray[np.int64], bool]:
    """Segment an image: its mask, and whether it is one of objects."""
    import tifffile

    folder.mkdir()
    tifffile.imwrite(folder / "image.tif", image, photometric="rgb" if image.ndim == 3 else None)
    command = [str(Path(sys.executable).with_name("maskloom")), "segment", f"{folder}/image.tif"]
    command += ["-o", f"{folder}/out", "-s", *shlex.split(options)]
    command += ["--no-prefect", "--set", "cluster=serial", "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    mask = tifffile.imread(folder / "out/masks/image.tif")
    return mask.astype(np.int64), mask.dtype == np.uint32


def shown(image: NDArray[np.generic]) -> Pixels:
    """Red, green and blue of 8 bits; a scene is stretched."""
    if image.ndim == 2:
        image = np.stack([image] * 3, axis=2)
    if image.dtype == np.uint8:
        return image[..., :3]
    colours = image[..., 2::-1].astype(float)
    low, high = np.percentile(colours, (1, 99), axis=(0, 1))
    return (255 * ((colours - low) / (high - low)).clip(0, 1) ** 0.8).astype(np.uint8)


def means(ids: NDArray[np.int64], image: Pixels) -> Pixels:
    """Every pixel in the mean colour of its class or region."""
    counts = np.bincount(ids.ravel()).clip(1)
    bands = [np.bincount(ids.ravel(), image[..., band].ravel()) / counts for band in range(3)]
    return np.stack(bands, axis=1).round().astype(np.uint8)[ids]


def classes(
    mask: NDArray[np.int64], image: Pixels, colours: Sequence[tuple[int, int, int]] | None
) -> Pixels:
    """A mask of classes."""
    return means(mask, image) if colours is None else np.array(colours, np.uint8)[mask]


def objects(mask: NDArray[np.int64], image: Pixels, *, regions: bool) -> Pixels:
    """A mask of objects: regions in their mean colours, others by number over the darkened image;
    light lines between them.
    """
    if regions:
        drawn = means(mask, image)
    else:
        drawn = np.where(mask[..., None] > 0, colours_of_objects(mask), image * 0.45)
        drawn = drawn.astype(np.uint8)
    edge = np.zeros(mask.shape, bool)
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[1:] |= mask[1:] != mask[:-1]
    drawn[edge] = drawn[edge] // 2 + 127
    return drawn


if __name__ == "__main__":
    for each in sys.argv[1:] or PICTURES:
        draw(each)
