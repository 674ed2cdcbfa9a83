"""Collections to run on, and runs in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from rasterio.transform import from_origin
from tests_support import SCENE, photograph, write_tiff
from typer.testing import CliRunner

from maskloom.flows.cli import app


@dataclass(frozen=True)
class Collection:
    """A folder of images and the recipe beside it."""

    folder: Path

    @property
    def output(self) -> Path:
        """Where results go."""
        return self.folder / "out"

    def recipe(self, **keys: object) -> Path:
        """Write a recipe (JSON is YAML)."""
        document = {
            "inputs": ["images/**/*.*"],
            "output": "out",
            "segmenter": {"kind": "kmeans", "clusters": 4},
            "cluster": {"kind": "serial"},
            **keys,
        }
        path = self.folder / "recipe.yaml"
        path.write_text(json.dumps(document))
        return path


@pytest.fixture(scope="session")
def six_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of five kinds: projected, geographic with nodata, plain TIFF, PNG, JPEG."""
    images = tmp_path_factory.mktemp("six") / "images"
    (images / "scenes").mkdir(parents=True)
    scene = photograph(*SCENE)
    write_tiff(
        images / "scenes" / "utm.tif",
        scene,
        crs="EPSG:32633",
        transform=from_origin(500_000, 5_300_000, 10, 10),
    )
    hole = scene.copy()
    hole[100:300, 200:420] = 0
    write_tiff(
        images / "scenes" / "lonlat.tif",
        hole,
        crs="EPSG:4326",
        transform=from_origin(11.0, 48.5, 0.001, 0.001),
        nodata=0,
    )
    write_tiff(images / "plain.tiff", scene[:333, :257])
    Image.fromarray(scene[:300, :500]).save(images / "photo.png")
    Image.fromarray(scene[200:520, 100:600]).save(images / "photo.jpg", quality=92)
    Image.fromarray(scene[:1, :1]).save(images / "pixel.png")
    return images


@pytest.fixture
def collection(six_images: Path, tmp_path: Path) -> Collection:
    """A copy of the six images, to be changed at will."""
    shutil.copytree(six_images, tmp_path / "images", copy_function=shutil.copyfile)
    return Collection(tmp_path)


@pytest.fixture
def maskloom() -> Callable[..., Result]:
    """Run the command in this process."""

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke
