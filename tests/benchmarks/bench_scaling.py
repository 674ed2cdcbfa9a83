"""Scaling by the image in training: python tests/benchmarks/bench_scaling.py T1 LABELS [SEED].

T1 is a brain without its skull, LABELS has 0 around it and 1 to 3 for fluid, grey and white matter
(`mri_mni152` of the test data). Scanners give such values in any unit: every second slice from the
base to the top, with a gain drawn from 1/4 to 4 and an offset, is an image of 16 bits. A U-Net of
two dimensions learns from blocks of ten slices, the third of which are held out, with the same
numbers for all images, with gains drawn by augmentation, and with each image scaled by its own
values. Printed are the seconds of the processor, mean IoU and Dice of the tissues on whole held-out
slices.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

CLASSES = ["outside", "fluid", "grey", "white"]
FIXED = {"offset": 0, "factor": 1 / 4000}
"""Values of the mean gain become 0 to about 1."""
WAYS: dict[str, dict[str, Any]] = {
    "the same numbers for all": {"scaling": FIXED},
    "the same, augmented by gain 0.9": {
        "scaling": FIXED,
        "augmentation": ["flip", "rotate90", {"kind": "gain", "by": 0.9}],
    },
    "by: deviation": {"scaling": {"by": "deviation"}},
    "by: range, 1 to 99": {"scaling": {"by": "range", "percentiles": [1, 99]}},
}


def write_slices(scan: str, labels: str, folder: Path, seed: int) -> None:
    """Slices with gains and offsets of their own, and their labels."""
    random = np.random.default_rng(seed)
    voxels, tissue = (np.asarray(nibabel.load(path).dataobj) for path in (scan, labels))
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for number, z in enumerate(range(30, 150, 2)):
        gain, offset = 4 ** random.uniform(-1, 1), random.uniform(0, 300)
        shown = gain * 4000 / 255 * voxels[:, :, z] + offset
        name = f"{'held' if number // 10 % 3 == 2 else 'learned'}-{z:03}.png"
        Image.fromarray(shown.astype(np.uint16)).save(folder / "images" / name)
        Image.fromarray(tissue[:, :, z].astype(np.uint8)).save(folder / "labels" / name)


def main() -> None:
    """Measure and print."""
    from maskloom.flows import train as flow
    from maskloom.flows.recipes import training as recipes

    scan, labels, *seed = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MASKLOOM_CACHE"] = f"{folder}/cache"
        write_slices(scan, labels, folder, int(seed[0]) if seed else 0)
        for number, (way, options) in enumerate(WAYS.items()):
            training = {"patch": 96, "epochs": 6, "steps": 30, "rate": 0.003, "loss": "sum"}
            if "augmentation" in options:
                training["augmentation"] = options["augmentation"]
            busy = time.process_time()
            run = recipes.make(
                {
                    "name": "brain",
                    "images": "images",
                    "masks": "labels",
                    "output": f"out-{number}",
                    "network": {"kind": "unet", "width": 8, "depth": 3},
                    "classes": CLASSES,
                    "scaling": options["scaling"],
                    "split": {"validation": ["held-*"]},
                    "training": training,
                },
                folder,
            )
            flow.run(run, quiet=True)
            card = json.loads((folder / f"out-{number}" / "brain.json").read_text())
            whole = card["about"]["metrics"]["whole_images"]
            dice = [f"{each} {whole['classes'][each]['dice']:.3f}" for each in CLASSES[1:]]
            print(
                f"{way}: {time.process_time() - busy:.0f} s, mean IoU {whole['mean_iou']:.3f}, "
                f"Dice {', '.join(dice)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
