"""Static STAC catalogs as other programs (pystac) write them, with their images."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pystac
import rasterio
from rasterio.transform import from_origin

TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
BANDS = {"B02": "blue", "B03": "green", "B04": "red"}


def write_band(path: Path, pixels: np.ndarray, resolution: int = 10, **profile: object) -> None:
    """One band on the grid of the catalog's scenes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape[-2:]
    profile = {
        "crs": "EPSG:32633",
        "transform": from_origin(500_000, 5_600_000, resolution, resolution),
        **profile,
    }
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=1 if pixels.ndim == 2 else len(pixels),
        dtype=pixels.dtype,
        **profile,
    ) as file:
        file.write(pixels, 1 if pixels.ndim == 2 else None)


def write_catalog(folder: Path, scenes: int = 2) -> list[np.ndarray]:
    """A collection with a catalog of scenes below it; bands at 10 m and one at 20 m. Returns the
    pixels (band, y, x) of the scenes.
    """
    random, written = np.random.default_rng(0), []
    top = pystac.Collection(
        "scenes",
        "Scenes",
        pystac.Extent(
            pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[None, None]])
        ),
    )
    tiles = pystac.Catalog("tiles", "Tiles")
    top.add_child(tiles)
    for number in range(scenes):
        when = dt.datetime(2026, 5, 13 + number, 10, 20, tzinfo=dt.UTC)
        item = pystac.Item(f"T{number}", None, None, when, {})
        place = folder / "tiles" / item.id
        written.append(random.integers(1, 3000, (3, 48, 40), np.uint16))
        written[-1][1, :5, :7] = 0
        for (band, common), pixels in zip(BANDS.items(), written[-1], strict=True):
            write_band(place / f"{band}.tif", pixels)
            item.add_asset(
                band,
                pystac.Asset(
                    f"./{band}.tif",
                    media_type=TIFF,
                    roles=["data"],
                    extra_fields={
                        "eo:bands": [{"name": band, "common_name": common}],
                        "raster:bands": [{"nodata": 0, "scale": 0.0001, "offset": -0.1}],
                    },
                ),
            )
        write_band(place / "B05.tif", written[-1][0, ::2, ::2], 20)
        item.add_asset("B05", pystac.Asset("./B05.tif", media_type=TIFF, roles=["data"]))
        item.add_asset(
            "look", pystac.Asset("./look.png", media_type="image/png", roles=["overview"])
        )
        tiles.add_item(item)
    top.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    return written


def write_search(folder: Path) -> Path:
    """The items of a catalog as the result of a search: one document."""
    features = []
    for path in sorted(folder.rglob("T*.json")):
        item = json.loads(path.read_text())
        for asset in item["assets"].values():
            asset["href"] = f"{path.parent.relative_to(folder)}/{asset['href']}"
        features.append(item)
    document = folder / "search.json"
    document.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return document
