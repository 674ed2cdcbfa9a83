"""What several tests need: pictures to segment, and tables and masks to compare."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.dataset as ds
import rasterio

if TYPE_CHECKING:
    from maskloom.segcore.segmenters.kmeans import KMeansModel

VOLATILE = ("run_id", "seconds", "mask_sha256", "scores_sha256", "tiles")
"""Columns that may differ between runs that must agree: times, ids, and what the tiling decides
about files.
"""
SCENE = (520, 640)
"""Height and width of the two scenes of a collection: just large enough to be spread over workers
where parts are small.
"""


@lru_cache(maxsize=8)
def photograph(height: int, width: int) -> np.ndarray:
    """A real photograph of this size, RGB uint8, mirrored where it is too small."""
    from skimage import data

    source = data.astronaut()
    return np.pad(
        source, ((0, max(0, height - 512)), (0, max(0, width - 512)), (0, 0)), mode="symmetric"
    )[:height, :width]


def read_table(
    output: Path, name: str, volatile: tuple[str, ...] = VOLATILE
) -> list[dict[str, object]]:
    """The rows of a table in a fixed order, without the columns that may differ."""
    table = ds.dataset(output / "tables" / name, format="parquet").to_table()
    kept = table.select([column for column in table.column_names if column not in volatile])
    return sorted(
        kept.to_pylist(),
        key=lambda row: (row["image_id"], row.get("object_id", row.get("class_id", 0))),
    )


def read_masks(output: Path) -> dict[str, np.ndarray]:
    """The pixels of all masks by name."""
    masks = {}
    for path in sorted((output / "masks").rglob("*")):
        if path.suffix in {".tif", ".png"}:
            with rasterio.open(path) as file:
                masks[str(path.relative_to(output))] = file.read(1)
        elif path.suffix == ".npy":
            masks[str(path.relative_to(output))] = np.load(path)
    return masks


def read_scores(output: Path) -> dict[str, np.ndarray]:
    """The scores of all images by name, as they are stored; none if they are not kept."""
    scores = {}
    for path in sorted((output / "scores").rglob("*")):
        if path.suffix == ".tif":
            with rasterio.open(path) as file:
                scores[str(path.relative_to(output))] = file.read()
        elif path.suffix == ".zarr":
            import zarr

            scores[str(path.relative_to(output))] = zarr.open_array(path / "0")[:]
    return scores


def assert_same_results(a: Path, b: Path) -> None:
    """Two outputs agree in the pixels of all masks and scores, and in all values but times and
    ids.
    """
    masks, others = read_masks(a), read_masks(b)
    assert masks.keys() == others.keys()
    assert masks, "no masks to compare"
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, others[name], err_msg=name)
    assert _files_beside(a) == _files_beside(b)
    scores, others = read_scores(a), read_scores(b)
    assert scores.keys() == others.keys()
    for name, values in scores.items():
        np.testing.assert_array_equal(values, others[name], err_msg=name)
    tables = sorted(path.name for path in (a / "tables").iterdir())
    assert tables == sorted(path.name for path in (b / "tables").iterdir())
    for table in tables:
        assert read_table(a, table) == read_table(b, table), f"the table {table} differs"


def _files_beside(output: Path) -> dict[str, str]:
    """The content of the files beside masks by name."""
    return {
        str(path.relative_to(output)): path.read_text()
        for path in (output / "masks").rglob("*")
        if path.suffix in {".xml", ".qml", ".txt"}
    }


def write_tiff(path: Path, pixels: np.ndarray, block: int = 256, **profile: object) -> None:
    """Write (height, width, bands) as a compressed TIFF in blocks of this side."""
    height, width, bands = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=bands,
        dtype=pixels.dtype,
        tiled=True,
        blockxsize=block,
        blockysize=block,
        compress="deflate",
        **profile,
    ) as file:
        file.write(np.moveaxis(pixels, -1, 0))


def assert_at_rest_in_scikit_learn(
    model: KMeansModel, centres: np.ndarray, rows: np.ndarray, labels: np.ndarray
) -> None:
    """scikit-learn does not move the centres (5, bands), finds none that are much better, and gives
    the rows (n, bands) the same labels.
    """
    from sklearn.cluster import KMeans

    again = KMeans(5, init=centres, n_init=1).fit(rows)
    assert again.n_iter_ <= 2
    assert np.allclose(again.cluster_centers_, centres, rtol=1e-4, atol=1e-4)
    assert np.isclose(model.inertia, again.inertia_, rtol=1e-6)
    best = KMeans(5, n_init=10, random_state=0).fit(rows[:: max(1, len(rows) // 6_000)])
    assert (
        model.inertia <= 1.01 * KMeans(5, init=best.cluster_centers_, n_init=1).fit(rows).inertia_
    )
    assert np.mean(labels == again.predict(rows)) > 0.9999
    assert np.allclose(
        model.fractions, np.bincount(labels, minlength=5) / labels.size, rtol=0, atol=1e-9
    )
