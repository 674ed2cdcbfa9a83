"""Masks and tables of today are those of yesterday, bit for bit: digests of every segmenter's runs,
and of the recipes in `deploy`, compared with `digests.json`.

Every segmenter has one digest for tiles of 256 and of 1,024 pixels and for one and two workers, so
that a tiling or a number of workers that changes a result fails here too; only the bytes of the
mask's file have one for each tile, for the size of its blocks. The images are made of whole
numbers, and networks have whole numbers for weights, so digests should not depend on the processor.
The recipe with the weights in the box is the exception: of it, pixels of each class are counted.

A digest that differs is a defect, unless masks or tables were meant to change. Only then may
`python tests/golden/record.py` make the file anew; what changed, and why, goes into the change log.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden.cases import (
    CASES,
    DEPLOYED,
    ESTIMATED,
    ONE_ENGINE,
    STORES,
    TILES,
    Case,
    run,
    run_deployed,
)
from golden.digests import counts_of, digests_of
from golden.pictures import write_pictures

RECORDED = json.loads(Path(__file__).with_name("digests.json").read_text())
_TOLERANCE = 0.001


def kind_of(case: Case) -> str:
    return case.segmenter["kind"] if isinstance(case.segmenter, dict) else "ensemble"


def runs() -> list[Any]:
    """Every case with both tiles, with one and with two workers. Large tiles are for the night, and
    two workers but for a model of all images, an object mask and a threshold:
    tests/pipeline/test_run.py and its neighbours compare workers and tiles too.
    """
    kinds = ("kmeans", "watershed", "threshold")
    first = [next(case for case in CASES if kind_of(case) == kind) for kind in kinds]
    return [
        pytest.param(
            case,
            tile,
            workers,
            id=f"{case.name}-{tile}-{workers}",
            marks=[pytest.mark.nightly] * (tile > 256 or (workers == 2 and case not in first)),
        )
        for case in CASES
        for tile in TILES
        for workers in (1, 2)
    ]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "images"
    write_pictures(folder)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    from golden.networks import write_networks

    return write_networks(tmp_path_factory.mktemp("golden") / "networks")


def test_every_segmenter_has_a_golden_run() -> None:
    assert {case.name for case in CASES} <= RECORDED.keys()
    from maskloom.flows.recipes.run import SEGMENTERS

    kinds = {kind_of(case) for case in CASES}
    assert kinds == set(SEGMENTERS)


@pytest.mark.parametrize(("case", "tile", "workers"), runs())
def test_runs_give_what_they_gave(
    case: Case,
    tile: int,
    workers: int,
    images: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    networks = request.getfixturevalue("weights") if case.network else None
    cluster = request.getfixturevalue("two_workers") if workers == 2 else "serial"
    document = case.document(images, networks)
    output = run(tmp_path / "golden.json", document, f"tiling.tile={tile}", f"cluster={cluster}")
    assert digests_of(output, tile) == recorded(case.name, tile)


@pytest.mark.parametrize("name", DEPLOYED)
def test_recipes_of_deploy_give_what_they_gave(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in STORES.items():
        monkeypatch.setenv(variable, value)
    output = run_deployed(name, tmp_path, images)
    assert digests_of(output, "own") == recorded(f"deploy_{name}", "own")


@pytest.mark.parametrize("name", ESTIMATED)
def test_recipes_with_weights_give_almost_what_they_gave(
    name: str, images: Path, tmp_path: Path
) -> None:
    found = counts_of(run_deployed(name, tmp_path, images, *ONE_ENGINE))
    known = RECORDED[f"deploy_{name}"]
    assert found.keys() == known.keys()
    for image, counts in known.items():
        assert found[image] == pytest.approx(counts, rel=_TOLERANCE), image


def recorded(name: str, tile: int | str) -> dict[str, Any]:
    """What is known of a run with this tile, by image."""
    return {
        image: {
            thing: digest
            for thing, digest in digests.items()
            if not thing.startswith("file_") or thing == f"file_{tile}"
        }
        for image, digests in RECORDED[name].items()
    }
