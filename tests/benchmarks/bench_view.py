"""`maskloom view` on a large georeferenced image, in Chromium.

    python tests/benchmarks/bench_view.py [--shape 18000 36000] [--output OUTPUT] [--strips]

Makes a scene of 36,000 x 18,000 RGB pixels with overviews (`--strips`: in strips and without
overviews), segments it, and prints: seconds from the start of the command to its address, to the
first complete picture, from one place to another, and milliseconds of a tile of 512 pixels over
HTTP, for tiles at random places, half of the source and half of the mask. `--output`: looks at a
finished output instead.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).parents[1]))
from view_support import chromium, make_scene, segment, served, settled

TILE, TILES, JUMPS = 512, 300, 20


def measure(output: str, browser: Any) -> None:
    """Print the figures of the first image of an output."""
    started = time.perf_counter()
    with served(output) as (address, process):
        print(f"address after {time.perf_counter() - started:.1f} s")
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        started = time.perf_counter()
        page.goto(address, wait_until="commit")
        settled(page)
        print(f"first picture after {time.perf_counter() - started:.2f} s")
        facts = page.evaluate("() => window.maskloom.state.facts")
        print(f"from place to place: {_in_words(_jumps(page, facts['shape']), 's', 2)}")
        page.close()
        for layer in ("source", "mask"):
            found = _tiles(address, facts["image_id"], layer, facts["shape"], facts["levels"])
            print(f"tile of the {layer}: {_in_words(found, 'ms', 1)}")
        print(f"peak memory of the server: {_peak(process.pid):.0f} MiB")
    print(f"load of the machine: {' '.join(f'{each:.1f}' for each in os.getloadavg())}")


def _jumps(page: Any, shape: Sequence[int]) -> list[float]:
    draw, times = random.Random(1), []
    for _ in range(JUMPS):
        place = (draw.randrange(shape[1]), draw.randrange(shape[0]), draw.choice([-5, -3, -1, 0]))
        started = time.perf_counter()
        page.evaluate("(place) => window.maskloom.images.go(...place)", place)
        settled(page)
        times.append(time.perf_counter() - started)
    return times


def _tiles(
    address: str, image_id: str, layer: str, shape: Sequence[int], levels: int
) -> list[float]:
    draw, times = random.Random(2), []
    for _ in range(TILES):
        level = draw.randrange(levels)
        row, column = (draw.randrange(math.ceil(n / (TILE * 2**level))) for n in shape)
        tile = f"{address}tile/{layer}/{level}/{column}/{row}?image={quote(image_id, safe='')}"
        started = time.perf_counter()
        with urllib.request.urlopen(tile) as answer:
            answer.read()
        times.append(1000 * (time.perf_counter() - started))
    return times


def _in_words(times: list[float], unit: str, digits: int) -> str:
    p95 = statistics.quantiles(times, n=20)[-1]
    numbers = (statistics.median(times), p95, max(times))
    median, p95, most = (f"{each:.{digits}f}" for each in numbers)
    return f"median {median} {unit}, p95 {p95} {unit}, max {most} {unit} ({len(times)})"


def _peak(pid: int) -> float:
    """MiB that a process has held at most; nan where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Make what is needed, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=2, default=(18_000, 36_000))
    parser.add_argument("--output")
    parser.add_argument("--strips", action="store_true")
    given = parser.parse_args()
    with chromium() as browser, tempfile.TemporaryDirectory(prefix="bench-view-") as folder:
        if given.output:
            measure(given.output, browser)
            return
        source, output = Path(folder) / "scene.tif", Path(folder) / "out"
        make_scene(source, tuple(given.shape), overviews=not given.strips)
        print(f"{source.name}: {source.stat().st_size / 1e6:.0f} MB")
        segment(source, output)
        measure(str(output), browser)


if __name__ == "__main__":
    main()
