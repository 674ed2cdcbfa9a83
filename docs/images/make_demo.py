"""Draws the README's picture, `demo.webp` beside this file, from the output of `maskloom demo`.

Run it as `python docs/images/make_demo.py maskloom-demo`. Photographs above; below their masks,
each class in its mean colour as the tables give it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
from PIL import Image

FILE = Path(__file__).with_name("demo.webp")
NAMES = ("coffee", "ihc", "rocket", "retina")
"""Photographs without copyright restrictions (see `skimage.data`)."""
SIDE = 240
"""Side of each picture in pixels."""
GAP = 8


def picture(output: Path) -> Image.Image:
    """The picture of a demo's output."""
    rows = ds.dataset(output / "tables/images").to_table(["image_id", "segmenter"]).to_pylist()
    centres = {row["image_id"]: json.loads(row["segmenter"])["centres"] for row in rows}
    canvas = Image.new("RGB", (len(NAMES) * (SIDE + GAP) - GAP, 2 * SIDE + GAP), "white")
    for column, name in enumerate(NAMES):
        (photograph,) = (output / "demo/photographs").glob(f"{name}.*")
        classes = np.asarray(Image.open(output / f"masks/{name}.png"))
        colours = np.round(centres[name]).astype(np.uint8)[classes]
        left = column * (SIDE + GAP)
        canvas.paste(middle(Image.open(photograph).convert("RGB")), (left, 0))
        canvas.paste(middle(Image.fromarray(colours)), (left, SIDE + GAP))
    return canvas


def middle(image: Image.Image) -> Image.Image:
    """The largest square in the middle of an image, as a picture of `SIDE` pixels."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    picture(Path(sys.argv[1])).save(FILE, quality=80, method=6)
