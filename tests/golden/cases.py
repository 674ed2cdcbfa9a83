"""The golden runs: every segmenter, on made images, with parameters that keep it quick."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import Result
from golden.pictures import BANDS, CELLS, HEIGHTS, MANY, PICTURE, SCENE, SQUARES
from typer.testing import CliRunner

from maskloom.flows.cli import app

TILES = (256, 1024)


@dataclass(frozen=True)
class Case:
    """A recipe whose masks and tables are known, whatever the tile and the number of workers."""

    name: str
    segmenter: Any
    images: tuple[str, ...] = (SCENE, PICTURE)
    keys: dict[str, Any] = field(default_factory=dict)
    """More keys of the recipe."""
    network: str | None = None
    """The network of `networks.write_networks` whose file the segmenter takes as `weights`."""

    def document(self, images: Path, weights: dict[str, str] | None) -> dict[str, Any]:
        """The recipe, on the images in this folder."""
        section = self.segmenter
        if self.network is not None and weights is not None:
            section = {**section, "weights": weights[self.network]}
        inputs = [str(images / name) for name in self.images]
        return {"name": "golden", "inputs": inputs, "segmenter": section, **self.keys}


_EACH = {"fit": "image"}
_COLOURS = {"dark": "#283c50", "green": [90, 160, 60], "bright": "#f0c8a0"}
_NETWORK = {"engine": "tensorflow", "precision": "float32", "patch": 128}
_CLUSTERS = {"kind": "kmeans", "clusters": 4}

CASES = (
    Case("threshold", {"kind": "threshold", "value": 130, "band": 2}),
    Case("threshold_below", {"kind": "threshold", "value": 5, "above": False}, (HEIGHTS,)),
    Case("threshold_otsu", {"kind": "threshold", "classes": ["dark", "bright"]}),
    Case("threshold_otsu_float", {"kind": "threshold", "method": "otsu"}, (HEIGHTS,)),
    Case(
        "threshold_multi_otsu",
        {"kind": "threshold", "method": "multi-otsu", "bands": [1, 2, 3]},
        (SCENE, BANDS),
        _EACH,
    ),
    Case("threshold_li", {"kind": "threshold", "method": "li", "band": 1}, (SCENE, BANDS), _EACH),
    Case("threshold_li_float", {"kind": "threshold", "method": "li", "band": 1}, (HEIGHTS,)),
    Case("threshold_triangle", {"kind": "threshold", "method": "triangle"}),
    *(
        Case(
            f"threshold_local_{statistic}",
            {
                "kind": "threshold",
                "method": "local",
                "window": 31,
                "window_statistic": statistic,
                "offset": 2,
            },
            (PICTURE, HEIGHTS),
        )
        for statistic in ("gaussian", "mean", "median")
    ),
    Case("kmeans", _CLUSTERS),
    Case("kmeans_objects", _CLUSTERS, (SCENE, BANDS), {**_EACH, "statistics": "objects"}),
    Case("kmeans_auto", {"kind": "kmeans", "clusters": "auto", "max_clusters": 4}, (PICTURE,)),
    Case("kmeans_classes", {"kind": "kmeans", "classes": _COLOURS}),
    Case(
        "kmeans_standardise",
        {"kind": "kmeans", "clusters": 3, "standardise": True},
        (BANDS, HEIGHTS),
        _EACH,
    ),
    Case("kmeans_sampled", {"kind": "kmeans", "clusters": 4, "seed": 7}, (MANY,)),
    Case("mixture_sampled", {"kind": "mixture", "components": 3}, (MANY,)),
    Case("mixture", {"kind": "mixture", "components": 3}),
    *(
        Case(
            f"mixture_{covariance}",
            {"kind": "mixture", "components": 3, "covariance": covariance},
            (BANDS,),
        )
        for covariance in ("full", "tied", "diag", "spherical")
    ),
    Case("mean_shift_feature", {"kind": "mean_shift"}),
    Case("mean_shift_feature_sampled", {"kind": "mean_shift", "bandwidth": 1500}, (MANY,)),
    Case(
        "mean_shift_feature_bands",
        {"kind": "mean_shift", "standardise": True, "kernel": "epanechnikov", "bandwidth": 1.5},
        (BANDS,),
    ),
    Case(
        "mean_shift_feature_flat",
        {"kind": "mean_shift", "kernel": "flat", "bandwidth": 4},
        (HEIGHTS,),
    ),
    Case(
        "mean_shift_joint",
        {
            "kind": "mean_shift",
            "space": "joint",
            "spatial_radius": 3,
            "range_radius": 14,
            "max_iterations": 4,
        },
        (PICTURE,),
    ),
    Case(
        "mean_shift_joint_bands",
        {
            "kind": "mean_shift",
            "space": "joint",
            "spatial_radius": 2,
            "range_radius": 500,
            "max_iterations": 3,
        },
        (BANDS,),
    ),
    Case("quickshift", {"kind": "quickshift", "kernel_size": 2, "max_dist": 6}, (PICTURE,)),
    Case(
        "quickshift_float",
        {"kind": "quickshift", "kernel_size": 2, "max_dist": 6, "sigma": 1},
        (HEIGHTS,),
    ),
    Case(
        "connected_parts",
        {"kind": "connected_parts", "of": _CLUSTERS, "connectivity": 8, "min_size": 9},
    ),
    Case(
        "connected_parts_holes",
        {
            "kind": "connected_parts",
            "of": {"kind": "threshold", "value": 5},
            "connectivity": 4,
            "fill_holes": True,
        },
        (HEIGHTS,),
    ),
    Case(
        "watershed",
        {
            "kind": "watershed",
            "of": {"kind": "threshold"},
            "distance": 24,
            "prominence": 1.5,
            "min_size": 5,
        },
    ),
    Case(
        "watershed_overlap",
        {
            "kind": "watershed",
            "of": _CLUSTERS,
            "distance": 16,
            "stitch": {"by": "overlap", "iou": 0.5},
        },
        (PICTURE,),
    ),
    Case("ensemble", [_CLUSTERS, {"kind": "mixture", "components": 4}], (PICTURE,)),
    Case(
        "ensemble_vote",
        {
            "kind": "ensemble",
            "by": "vote",
            "members": [
                {"kind": "threshold"},
                {"kind": "threshold", "method": "li"},
                {"kind": "kmeans", "clusters": 2},
            ],
        },
    ),
    Case("network", {"kind": "network", **_NETWORK}, (PICTURE,), network="network"),
    Case("unet", {"kind": "unet", **_NETWORK}, (PICTURE,), network="unet"),
    Case("fcn", {"kind": "fcn", **_NETWORK}, (PICTURE,), network="fcn"),
    Case("deeplab", {"kind": "deeplab", **_NETWORK}, (PICTURE,), network="deeplab"),
    Case("instances", {"kind": "instances", **_NETWORK}, (CELLS,), network="instances"),
    Case(
        "mask_rcnn",
        {"kind": "mask_rcnn", "core": 128, "halo": 32},
        (SQUARES,),
        network="mask_rcnn",
    ),
)

ROOT = Path(__file__).parents[2]
DEPLOYED = {
    "brightness": (SCENE, HEIGHTS),
    "fields": (PICTURE,),
    "landcover": (SCENE, PICTURE),
    "nuclei": (CELLS, PICTURE),
    "tissue": (SCENE, PICTURE),
}
"""Images for the recipes in `deploy/recipes` that need no weights."""
ESTIMATED = {"cells": (CELLS,)}
"""Images for those whose weights may give another last bit on another processor."""
STORES = {"SCENES_BUCKET": "scenes", "MASKS_BUCKET": "masks"}
"""What recipes in `deploy` take from the environment."""
ONE_ENGINE = ("segmenter.engine=tensorflow", "segmenter.precision=float32")


def run(recipe: Path, document: dict[str, Any], *changes: str) -> Path:
    """Run a recipe in this process, with `key.sub=value` changes; its output, beside it. The recipe
    has one folder for each run.
    """
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(json.dumps({**document, "output": "out"}))
    command("run", recipe, *(part for change in changes for part in ("--set", change)))
    return recipe.parent / "out"


def run_deployed(name: str, folder: Path, images: Path, *changes: str) -> Path:
    """Run a recipe of `deploy/recipes` on its made images; its output, below the folder."""
    names = {**DEPLOYED, **ESTIMATED}[name]
    inputs = f"inputs={json.dumps([str(images / each) for each in names])}"
    settings = (inputs, f"output={folder / name}", "cluster=serial", *changes)
    path = ROOT / "deploy" / "recipes" / f"{name}.yaml"
    command("run", path, *(part for change in settings for part in ("--set", change)))
    return folder / name


def command(name: str, *arguments: object) -> Result:
    """Run a command of maskloom in this process; it must succeed."""
    words = [name, *map(str, arguments), "--no-prefect", "--quiet"]
    result = CliRunner().invoke(app, words)
    if result.exit_code:
        raise AssertionError(f"{' '.join(words)}: exit {result.exit_code}\n{result.output}")
    return result
