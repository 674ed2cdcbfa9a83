"""`maskloom view` as a process, a large scene for it, and Chromium to look at it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.windows import Window

BLOCK = 512
COMMAND = [sys.executable, "-P", "-m", "maskloom.flows.cli"]
AXE = Path(__file__).parent / "flows/report/axe/axe.min.js"
SERIOUS = ("serious", "critical")
ENDS_WITHIN = 30
"""Seconds after which a server that does not end is killed, on a busy machine."""


def make_scene(path: Path, shape: tuple[int, int], *, overviews: bool = True) -> None:
    """A georeferenced RGB scene (y, x) of 0.5 m pixels in UTM: fields in eight patterns, as a tiled
    JPEG TIFF with overviews, or without them in uncompressed strips.
    """
    height, width = shape
    draw = np.random.default_rng(0)
    patterns = []
    for _ in range(8):
        fields = draw.integers(0, 255, (3, 32, 32)).repeat(16, 1).repeat(16, 2)
        noise = draw.integers(-20, 20, (3, BLOCK, BLOCK))
        patterns.append(np.clip(fields + noise, 0, 255).astype(np.uint8))
    layout = {
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "JPEG",
        "photometric": "YCBCR",
    }
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=3,
        dtype="uint8",
        crs="EPSG:32633",
        transform=rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000),
        **(layout if overviews else {"interleave": "pixel"}),
    ) as file:
        for top in range(0, height, BLOCK):
            rows = min(BLOCK, height - top)
            for left in range(0, width, BLOCK):
                columns = min(BLOCK, width - left)
                chosen = patterns[(left // BLOCK * 7 + top // BLOCK * 3) % 8]
                window = Window(left, top, columns, rows)
                file.write(chosen[:, :rows, :columns], window=window)
    if overviews:
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2, 4, 8, 16, 32, 64], Resampling.average)


def segment(source: Path | str, output: Path | str, *more: str) -> None:
    """Segment into two classes by a threshold."""
    options = ["-s", "threshold", "-p", "value=128", "--no-prefect", "--quiet"]
    command = [*COMMAND, "segment", str(source), "-o", str(output), *options, *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def served(output: Path | str, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of the page of an output, and its process."""
    command = [*COMMAND, "view", str(output), "--no-browser", *more]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The installed Chromium. Raises `LookupError` without it."""
    program = shutil.which("chromium")
    if program is None:
        raise LookupError("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def settled(page: Any) -> None:
    """Wait until the page shows what it was asked for."""
    # A loop in the page: `wait_for_function` needs `eval`, which the page's policy forbids.
    page.evaluate(
        """async () => {
            const pause = (time) => new Promise((done) => setTimeout(done, time));
            const opened = () => window.maskloom?.state.facts && !window.maskloom.opening;
            do { await pause(10); } while (!opened());
            const { state: { view }, images } = window.maskloom;
            if (view !== images) { await pause(700); return; }
            await new Promise((done) => {
                images.map.once("rendercomplete", done);
                images.map.render();
            });
        }"""
    )


def findings(page: Any) -> list[str]:
    """What axe-core finds serious."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("() => axe.run()")["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}"
        for each in found
        if each["impact"] in SERIOUS
    ]
