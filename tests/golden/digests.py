"""Digests of what a run has written: short hashes of every image's mask, rows and preview."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import rasterio
from PIL import Image

VOLATILE = {
    "run_id",  # hashes the inputs' places
    "fingerprint",  # hashes the recipe
    "seconds",  # time
    "source_version",  # holds the time of the file
    "uri",  # a path of this machine
    "tiles",  # a matter of tiling
    "mask_sha256",  # of the file, whose blocks are a matter of tiling too
}
"""Columns that are left out of rows."""
ADDED = {
    *("equivalent_diameter", "feret_diameter_max"),
    *("pixel_size_z", "pixel_size_y", "pixel_size_x", "pixel_size_from"),
    *("mean_entropy", "mean_margin", "scores_uri", "scores_sha256"),
}
"""Columns that are newer than the digests."""
_LENGTH = 16


def digests_of(output: Path, tile: int | str) -> dict[str, dict[str, str]]:
    """By image and by thing: `mask` (pixels as another library decodes them, type, nodata, palette,
    tags), `beside` (side-cars of the mask), `preview` (pixels), the rows in `areas`, `images` and
    `objects`, and `file_TILE` (the bytes of a mask in TIFF: the only thing that the tile decides,
    by the size of the file's blocks; those of a PNG are a matter of Pillow's version).
    """
    tables = {
        path.name: _rows(path)
        for path in sorted((output / "tables").iterdir())
        # For the report alone; its bytes are a matter of Pillow's version.
        if path.name != "pictures"
    }
    found = {}
    for row in tables["images"]:
        image = row["image_id"]
        found[image] = {
            name: _hashed([each for each in rows if each["image_id"] == image])
            for name, rows in tables.items()
        }
        if row["mask_uri"] is not None:
            mask = output / row["mask_uri"]
            (preview,) = (output / "previews").glob(f"{image}.*")
            if mask.suffix != ".png":
                content = hashlib.sha256(mask.read_bytes()).hexdigest()
                found[image][f"file_{tile}"] = content[:_LENGTH]
            found[image] |= {
                "mask": _hashed(_mask(mask)),
                "beside": _hashed(_texts(mask.parent.glob(f"{mask.name}.*"))),
                "preview": _hashed(_picture(preview)),
            }
    return dict(sorted(found.items()))


def counts_of(output: Path) -> dict[str, dict[str, int]]:
    """By image the pixels of each class, and the number of objects, for what processors may decide
    by a last bit.
    """
    found: dict[str, dict[str, int]] = {}
    for row in _rows(output / "tables" / "areas"):
        found.setdefault(row["image_id"], {})[row["class_name"]] = row["pixel_count"]
    folder = output / "tables" / "objects"
    objects = Counter(row["image_id"] for row in _rows(folder)) if folder.exists() else Counter()
    return {image: {**counts, "objects": objects[image]} for image, counts in found.items()}


def text_of(records: dict[str, dict[str, Any]]) -> str:
    """Records by run and image as JSON with one line for each run and image, in order."""
    runs = []
    for name, images in sorted(records.items()):
        lines = [
            f"  {json.dumps(image)}: {json.dumps(found, sort_keys=True)}"
            for image, found in sorted(images.items())
        ]
        runs.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(runs) + "\n}\n"


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a table without what is volatile, by image and id, with the names and types of
    the columns and what the table says of its geometries.
    """
    table = ds.dataset(folder, format="parquet").to_table()
    columns = [field for field in table.schema if field.name not in VOLATILE | ADDED]
    types = {field.name: f"{field.type}, {field.nullable}" for field in columns}
    rows = table.select(list(types)).to_pylist()
    for row in rows:
        # Files of weights hold the time of their making, so their digests are volatile.
        if row.get("segmenter"):
            row["segmenter"] = re.sub(r"[0-9a-f]{64}", "sha256", row["segmenter"])
        row["types"] = types
    return sorted(
        rows, key=lambda row: (row["image_id"], row.get("object_id", row.get("class_id", 0)))
    )


def _mask(path: Path) -> dict[str, Any]:
    if path.suffix == ".png":
        return _picture(path)
    with rasterio.open(path) as file:
        palette = file.colormap(1) if file.colorinterp[0].name == "palette" else None
        return {
            "pixels": _array(file.read()),
            "valid": _array(file.dataset_mask()),
            "nodata": file.nodata,
            "palette": palette and {str(value): colour for value, colour in palette.items()},
            "tags": [file.tags(), file.tags(1)],
            "transform": list(file.transform),
            "crs": file.crs.to_wkt() if file.crs else None,
        }


def _texts(paths: Iterable[Path]) -> dict[str, str]:
    return {path.name: path.read_text() for path in paths}


def _picture(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        info = {name: str(value) for name, value in picture.info.items()}
        return {
            "pixels": _array(np.asarray(picture)),
            "palette": picture.getpalette(),
            "info": info,
            "text": dict(getattr(picture, "text", {})),
        }


def _array(values: np.ndarray) -> list[Any]:
    data = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    return [values.dtype.str, list(values.shape), data]


def _hashed(value: Any) -> str:
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:_LENGTH]


def _plain(value: Any) -> Any:
    """Floats as their exact bits, bytes as hexadecimal digits."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
