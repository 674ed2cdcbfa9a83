"""Sections: paths of files, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from maskloom.flows.recipes import run as recipes
from maskloom.flows.recipes.sections import build
from maskloom.segcore.models.protocols import SEGMENTERS, SegmenterRecipe
from maskloom.segcore.statistics.protocol import STATISTICS
from maskloom.segcore.storage.addresses import RelativeToRecipe
from maskloom.tasks.clusters.protocol import CLUSTERS
from maskloom.tasks.clusters.serial import SerialCluster

DATA = Path("/data")


@dataclass(frozen=True)
class Zones:
    """A part with a file."""

    file: Annotated[str, RelativeToRecipe()]
    mask: Annotated[str, RelativeToRecipe(unless=lambda name: name == "land")] | None = None
    field: str = "name"
    """Text, not a path."""
    inside: SegmenterRecipe | None = None


@dataclass(frozen=True)
class ClusterOfFile(SerialCluster):
    """A cluster with a file."""

    file: Annotated[str, RelativeToRecipe()] = ""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("zones.gpkg", "/data/zones.gpkg"),
        ("../zones.gpkg", "/zones.gpkg"),
        ("/abs/zones.gpkg", "/abs/zones.gpkg"),
        ("s3://bucket/zones.gpkg", "s3://bucket/zones.gpkg"),
    ],
)
def test_a_path_is_relative_to_the_recipe_whatever_its_key_is_called(
    given: str, expected: str
) -> None:
    section = {"kind": "zones", "file": given, "mask": given, "field": "zones.gpkg"}
    zones = build({"zones": Zones}, section, "statistics.0", DATA)
    assert (zones.file, zones.mask, zones.field) == (expected, expected, "zones.gpkg")


def test_a_name_is_no_path_and_neither_is_a_default() -> None:
    zones = build({"zones": Zones}, {"kind": "zones", "file": "a", "mask": "land"}, "", DATA)
    assert zones.mask == "land"
    assert build({"zones": Zones}, {"kind": "zones", "file": "a"}, "", DATA).mask is None
    assert build({"zones": Zones}, {"kind": "zones", "file": "a"}, "").file == "a"


def test_paths_in_all_sections_of_a_recipe_are_relative_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "serial" in CLUSTERS  # which fills the registry
    assert "area" in STATISTICS
    monkeypatch.setitem(STATISTICS._registered, "zones", Zones)
    monkeypatch.setitem(CLUSTERS._registered, "file", ClusterOfFile)
    document = {
        "inputs": "in",
        "output": "out",
        "segmenter": "threshold",
        "cluster": {"kind": "file", "file": "scheduler.json"},
        "statistics": [{"kind": "zones", "file": "zones.gpkg"}],
    }
    recipe = recipes.make(document, DATA)
    assert recipe.cluster == ClusterOfFile("/data/scheduler.json")
    assert recipe.statistics["zones"].file == "/data/zones.gpkg"


@pytest.mark.parametrize("holder", ["ensemble", "watershed"])
def test_a_path_inside_other_segmenters_is_relative_too(holder: str) -> None:
    inner = {"kind": "unet", "weights": "models/delta.keras"}
    packaged = {"kind": "network", "weights": "nuclei"}
    section = (
        {"kind": "ensemble", "members": [inner, packaged]}
        if holder == "ensemble"
        else {"kind": "watershed", "of": inner}
    )
    built = build(SEGMENTERS, section, "segmenter", DATA)
    if holder == "ensemble":
        assert [member.weights for member in built.members] == [
            "/data/models/delta.keras",
            "nuclei",
        ]
    else:
        assert built.of.weights == "/data/models/delta.keras"
