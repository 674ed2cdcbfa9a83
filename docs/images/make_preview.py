"""Draws `preview_landcover.webp` beside this file: the preview of a Sentinel-2 scene.

Run it as `python docs/images/make_preview.py`. It takes the scene of `maskloom demo`, runs
`maskloom segment` on its red, green and blue, and packs the preview that the run writes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent
SCENE = FOLDER.parents[1] / "flows" / "samples" / "sentinel2.tif"
CLASSES = "[forest, shrub, grass, soil, soil]"
"""By ascending luminance; a reading of the vegetation index of each cluster, for nobody has been
there.
"""


def main() -> None:
    """Draw the picture."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(SCENE, f"{folder}/landcover.tif")
        command = [str(Path(sys.executable).with_name("maskloom")), "segment"]
        command += [f"{folder}/landcover.tif", "-o", f"{folder}/out"]
        command += ["-s", "kmeans", "-p", "bands=[1, 2, 3]", "-p", f"classes={CLASSES}"]
        command += ["--no-prefect", "--set", "cluster=serial", "--quiet"]
        subprocess.run(command, check=True)
        with Image.open(f"{folder}/out/previews/landcover.png") as preview:
            preview.save(FOLDER / "preview_landcover.webp", quality=88, method=6)


if __name__ == "__main__":
    main()
