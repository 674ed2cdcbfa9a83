"""Arrange the images of BBBC038 for deploy/training/nuclei.yaml.

    python deploy/training/nuclei_images.py IMAGES LABELS FOLDER

Images and labels (one number a nucleus, the same names) are linked below FOLDER under names that
tell their kind and group, such as `stained-017-0a1b2c.webp`. Kinds are fluorescence, brightfield,
and stained. A group holds images of one size and kind that look nearly alike, as neighbouring
fields of one slide do: brightness, colour and noise differ little from one to the next. Groups stay
together when images are left out (`group` of `split`), so that a network is measured on images
unlike those that it has seen.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.cluster.hierarchy import fcluster, linkage

ALIKE = 0.06
"""Largest distance of `look` between an image and its nearest neighbour of one group."""
QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)


def look(pixels: np.ndarray) -> np.ndarray:
    """Numbers that tell how an RGB image (y, x, 3) from 0 to 1 looks, whatever is where in it."""
    grey = pixels.mean(axis=2)
    around = sum(np.roll(grey, step, axis) for step in (-1, 1) for axis in (0, 1)) / 4
    return np.append(np.quantile(pixels, QUANTILES, axis=(0, 1)), 10 * np.abs(grey - around).mean())


def kind(pixels: np.ndarray, labels: np.ndarray) -> str:
    """Whether nuclei (`labels` above 0) are bright, dark on grey, or stained."""
    if np.ptp(pixels, axis=2).mean() > 1 / 255:
        return "stained"
    grey = pixels.mean(axis=2)
    bright = grey[labels > 0].mean() > grey[labels == 0].mean()
    return "fluorescence" if bright else "brightfield"


def groups(looks: list[np.ndarray]) -> list[int]:
    """Number of each image's group, from 1."""
    if len(looks) == 1:
        return [1]
    return fcluster(linkage(np.array(looks), "single"), ALIKE, "distance").tolist()


def arrange(images: Path, labels: Path, folder: Path) -> dict[str, int]:
    """Link all images and labels; the number of images by kind."""
    alike = defaultdict(list)
    truths = {path.stem: path for path in labels.iterdir()}
    for path in sorted(images.iterdir()):
        pixels = np.asarray(Image.open(path).convert("RGB")) / 255
        truth = truths[path.stem]
        of = kind(pixels, np.asarray(Image.open(truth)))
        alike[of, pixels.shape].append((path, truth, look(pixels)))
    counts: dict[str, int] = defaultdict(int)
    first: dict[str, int] = defaultdict(int)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for (of, _), members in sorted(alike.items()):
        numbers = groups([each for *_, each in members])
        for (path, truth, _), number in zip(members, numbers, strict=True):
            name = f"{of}-{first[of] + number:03}-{path.stem}"
            for source, below in ((path, "images"), (truth, "labels")):
                link = folder / below / f"{name}{source.suffix}"
                link.unlink(missing_ok=True)
                link.symlink_to(source.resolve())
        first[of] += max(numbers)
        counts[of] += len(members)
    return {of: counts[of] for of in sorted(counts)} | {
        f"groups of {of}": first[of] for of in sorted(first)
    }


if __name__ == "__main__":
    for name, count in arrange(*map(Path, sys.argv[1:4])).items():
        sys.stdout.write(f"{count:5} {name}\n")
