"""Reading a compressed scan by slabs, against nibabel.

    python tests/benchmarks/bench_scans.py [SLICES]

A CT of 512 x 512 int16 with noise, made here. Both read it slab by slab, ours with the time to
unpack it. The peak is that of a process of its own, which reads only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np

from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS

SIDE, SLAB = 512, 10


def make(path: Path, slices: int) -> None:
    """A ball with noise."""
    z, y, x = np.meshgrid(*(np.linspace(-3, 3, n) for n in (slices, SIDE, SIDE)), indexing="ij")
    noise = np.random.default_rng(0).normal(0, 12, z.shape)
    values = (1000 * np.exp(-(x * x + y * y + z * z) / 4) - 500 + noise).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values.T, np.diag([0.7, 0.7, 1.25, 1])), path)  # type: ignore[attr-defined]


def ours(path: Path, slices: int) -> None:
    """All slabs."""
    image_format = FORMATS["nifti"]
    spec = image_format.describe(str(path), "1")
    with image_format.open(spec) as reader:
        for z in range(0, slices, SLAB):
            reader.read(Box((z, 0, 0), (min(z + SLAB, slices), SIDE, SIDE)))


def theirs(path: Path, slices: int) -> None:
    """The whole at once, then each tenth slab: each starts from the beginning of the file."""
    started = time.perf_counter()
    np.asanyarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    print(f"nibabel, whole: {time.perf_counter() - started:.2f} s")
    started = time.perf_counter()
    for z in range(0, slices, 10 * SLAB):
        nibabel.load(path).dataobj[..., z : z + SLAB]  # type: ignore[attr-defined]
    print(f"nibabel, each tenth slab: {time.perf_counter() - started:.2f} s")


def main() -> None:
    """Print seconds, MB a second of the numbers, and MB of memory."""
    if sys.argv[1:2] == ["read"]:
        started = time.perf_counter()
        ours(Path(sys.argv[2]), int(sys.argv[3]))
        seconds = time.perf_counter() - started
        size = int(sys.argv[3]) * SIDE * SIDE * 2 / 1e6
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        print(
            f"maskloom, all slabs: {seconds:.2f} s, {size / seconds:.0f} MB/s, {peak:.0f} MB peak"
        )
        return
    slices = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ct.nii.gz"
        make(path, slices)
        subprocess.run([sys.executable, __file__, "read", str(path), str(slices)], check=True)
        theirs(path, slices)


if __name__ == "__main__":
    main()
