"""Import once what all test processes import, so that only one of them compiles its sources:
`python tests/warm_up.py`, in a new environment.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from pathlib import Path

import pytest

LATE = (
    "distributed",
    "keras",
    "moto.server",
    "openvino",
    "prefect.flow_engine",
    "prefect.server.api.server",
    "rasterio",
    "skimage.filters",
    "skimage.measure",
    "skimage.segmentation",
    "sklearn.cluster",
    "sklearn.mixture",
    "tensorflow",
    "zarr",
)
"""Large packages that tests import when they run, not when they are collected."""

if __name__ == "__main__":
    # First: pytest rewrites the assertions of some of these packages while they are imported.
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["--collect-only", "-q", str(Path(__file__).parent)])
    for name in LATE:
        importlib.import_module(name)
