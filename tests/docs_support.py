"""Runs the examples of a page of the documentation: `python tests/docs_support.py docs/start.md`.

The page's fenced blocks are run in their order, in the current folder, which gets some small images
first. What a block is run as follows from its language:

    sh        a script of bash, which stops at the first command that fails
    python    in one namespace for the page; if its first line is a comment with a file name, it is
              written to that file and imported
    yaml      a recipe of `maskloom run` or `maskloom train`, or some sections of one; it is checked
              as these commands check it and by the JSON Schema, and written to the file that its
              first line names
    sql       a query of DuckDB that gives at least one row
    toml      entry points of a distribution, which is then installed for the blocks that follow

A block that cannot be run has `<!-- not run: REASON -->` in the line above it.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from sybil.document import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.example import Example
from sybil.parsers.markdown import CodeBlockParser

_EXCUSED = re.compile(r"^<!-- not run: \S.* -->\n(?=```)", re.MULTILINE)
_FENCE = re.compile(r"^\s*(?:```+|~~~+)", re.MULTILINE)
_FILE = re.compile(r"# ([\w-]+\.(?:py|yaml))\n")
_RECIPE = {"inputs": "photos", "output": "out", "segmenter": "threshold"}
"""Sections that an example may leave out."""


def examples(path: Path) -> list[Example]:
    """The blocks of a page that are run, in its order."""
    document = Document.parse(
        str(path),
        CodeBlockParser("sh", shell),
        CodeBlockParser("python", python),
        CodeBlockParser("yaml", recipe),
        CodeBlockParser("sql", query),
        CodeBlockParser("toml", distribution),
    )
    excused = {match.end() for match in _EXCUSED.finditer(document.text)}
    return [example for example in document if example.start not in excused]


def forgotten(path: Path) -> int:
    """How many fenced blocks of a page are neither run nor excused."""
    text = path.read_text(encoding="utf-8")
    fences = len(_FENCE.findall(text)) / 2
    return int(fences - len(examples(path)) - len(_EXCUSED.findall(text)))


def shell(example: Example) -> None:
    """Run a script. `maskloom` and `python` are those of this environment, and find the modules of
    the current folder as installed ones.
    """
    places = {"PATH": Path(sys.executable).parent, "PYTHONPATH": Path.cwd()}
    environment = {
        name: os.pathsep.join(filter(None, [str(place), os.environ.get(name)]))
        for name, place in places.items()
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example.parsed],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"


def python(example: Example) -> None:
    """Run code, or import it as the module that its first line names."""
    name = _written(example)
    if name is None:
        PythonEvaluator()(example)
    else:
        importlib.import_module(name.removesuffix(".py"))


def recipe(example: Example) -> None:
    """Check a recipe as the command does that takes it."""
    import jsonschema
    import yaml

    from maskloom.flows.recipes import run, run_file, training

    document: dict[str, Any] = yaml.safe_load(example.parsed)
    if "images" in document:
        jsonschema.validate(document, training.schema())
        training.make({"name": "example", **document}, Path.cwd())
    else:
        document = _RECIPE | document
        jsonschema.validate(document, run_file.schema())
        run.make({"name": "example", **document}, Path.cwd())
    _written(example)


def query(example: Example) -> None:
    """Run a query."""
    import duckdb

    assert duckdb.sql(example.parsed).fetchall(), "no rows"


def distribution(example: Example) -> None:
    """Leave entry points in this folder as pip would leave them in `site-packages`."""
    groups = tomllib.loads(example.parsed)["project"]["entry-points"]
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    meta = Path("example-1.0.dist-info")
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text("\n".join(lines))


def _written(example: Example) -> str | None:
    """The file that a block names in its first line, with the block in it."""
    named = _FILE.match(example.parsed)
    if named is None:
        return None
    Path(named[1]).write_text(example.parsed, encoding="utf-8")
    return named[1]


def make_images(folder: Path) -> None:
    """The images of the examples: photographs, scenes of four bands, cells and their labels."""
    import rasterio
    from PIL import Image

    random = np.random.default_rng(0)
    for name in ("photos", "scenes", "cells", "labels"):
        (folder / name).mkdir(parents=True)
    for name in ("a", "b"):
        patches = random.integers(0, 256, (6, 8, 3)).repeat(12, axis=0).repeat(12, axis=1)
        Image.fromarray(patches.astype(np.uint8)).save(folder / f"photos/{name}.jpg")
    for number, name in enumerate(("east", "west")):
        bands = random.integers(0, 3000, (4, 8, 8)).repeat(8, axis=1).repeat(8, axis=2)
        transform = rasterio.Affine(10, 0, 500000 + 640 * number, 0, -10, 5300000)
        with rasterio.open(
            folder / f"scenes/{name}.tif",
            "w",
            driver="GTiff",
            width=64,
            height=64,
            count=4,
            dtype="uint16",
            crs="EPSG:32633",
            transform=transform,
        ) as file:
            file.write(bands.astype(np.uint16))
    y, x = np.mgrid[:96, :96]
    for number in range(4):
        pixels, inside = random.normal(30, 4, (96, 96)), np.zeros((96, 96), np.uint8)
        for top, left in ((20, 20), (24, 64), (62, 30), (70, 72)):
            inside[(y - top - number) ** 2 + (x - left) ** 2 < 110] = 1
        pixels[inside == 1] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"cells/{number}.png")
        Image.fromarray(inside).save(folder / f"labels/{number}.png")


def main() -> None:
    """Run one page."""
    page = Path(sys.argv[1]).resolve()
    make_images(Path.cwd())
    sys.path.insert(0, str(Path.cwd()))
    for example in examples(page):
        print(f"{page.name}, line {example.line}", flush=True)
        example.evaluate()


if __name__ == "__main__":
    main()
