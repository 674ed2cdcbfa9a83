"""Peak memory of a worker on volumes of 256³ and of 1,024³ voxels.

    python tests/benchmarks/bench_volume_memory.py [FOLDER] [FORMAT ...]

The large volume has the content of the small one in two of its corners, and zeros elsewhere: as a
Zarr whose empty chunks are not stored, and as a sparse `.npy`. One worker, started anew for each
run, after a run on a small volume of its own.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
from bench_overhead import timed_run, worker_peaks
from scipy import ndimage

SIDES = (256, 1024)
CHUNK = 64
SEGMENTERS: dict[str, dict[str, object]] = {
    "threshold": {"kind": "threshold"},
    "k-means": {"kind": "kmeans", "clusters": 4},
    "mixture, smoothed": {"kind": "mixture", "components": 3, "smoothness": 1},
    "connected parts": {"kind": "connected_parts", "of": "threshold"},
    "watershed": {"kind": "watershed", "of": "threshold", "distance": 12},
}


def blobs(side: int) -> np.ndarray:
    """Smooth noise of 8 bits, a third of it bright blobs."""
    noise = np.random.default_rng(0).standard_normal((side,) * 3, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, 4)
    grey = 110 + 35 * smooth / smooth.std() + 6 * noise
    return np.clip(grey, 1, 255).astype(np.uint8)


def volume(folder: Path, side: int, kind: str) -> Path:
    """A volume with the blobs in its first and its last corner."""
    path = folder / f"volume-{side}.{kind}"
    if path.exists():
        return path
    content = blobs(min(side, SIDES[0]))
    if kind == "npy":
        array = np.lib.format.open_memmap(path, "w+", np.uint8, (side,) * 3)
    else:
        import zarr

        array = zarr.create_array(
            path, shape=(side,) * 3, chunks=(CHUNK,) * 3, dtype="uint8", fill_value=0
        )
    for corner in {0, side - len(content)}:
        array[(slice(corner, corner + len(content)),) * 3] = content
    return path


def main(folder: Path, kinds: list[str]) -> None:
    """Print all figures."""
    from maskloom.segcore.pipeline.worker import prepare_process
    from maskloom.tasks.clusters.local import LocalCluster

    for kind in kinds:
        for name, segmenter in SEGMENTERS.items():
            found = []
            for side in SIDES:
                inputs = volume(folder, side, kind)
                prepare = partial(prepare_process, {})
                with LocalCluster(workers=1).open(prepare, threading.Event()) as fanout:
                    seconds = timed_run(fanout, inputs, folder / "out", segmenter=segmenter)
                    (peak,) = worker_peaks()
                found.append(peak)
                print(f"  {kind}, {name}, {side}: {peak:.0f} MB, {seconds:.1f} s", flush=True)
            print(f"{kind}, {name}: {found[1] / found[0]:.2f} times the memory", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        chosen = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        chosen.mkdir(parents=True, exist_ok=True)
        main(chosen, sys.argv[2:] or ["zarr", "npy"])
