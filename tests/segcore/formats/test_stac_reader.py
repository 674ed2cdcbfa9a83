"""STAC items as images: what an item says, and the pixels of its assets, against rasterio."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stac_support import TIFF, write_band

from maskloom.segcore import formats
from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.stac.documents import features, resolved
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.stored import ReadOptions

PIXELS = np.random.default_rng(0).integers(1, 200, (3, 30, 20), np.uint16)


def write_item(folder: Path, **assets: object) -> Path:
    said = {"datetime": None, "start_datetime": "2026-05-13T12:00:00+02:00"}
    document = {"type": "Feature", "id": "i", "properties": said, "assets": assets}
    (folder / "item.json").write_text(json.dumps(document))
    return folder / "item.json"


def describe(path: Path, *assets: str):
    source = Source(str(path), "i", "", 0)
    ((_, spec),) = formats.describe_images(source, "1", None, ReadOptions(assets=assets))
    return spec


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_names_scales_and_nodata_are_those_of_the_item(tmp_path, version):
    for name, pixels in zip("abc", PIXELS, strict=True):
        write_band(tmp_path / f"{name}.tif", pixels)

    def asset(name: str, common: str) -> dict[str, object]:
        said = {"href": f"{name}.tif", "type": TIFF, "roles": ["data", "reflectance"]}
        numbers = {"nodata": 7, "scale": 0.5, "offset": -1}
        if version == "1.0":
            band = {"name": name.upper(), "common_name": common}
            return {**said, "eo:bands": [band], "raster:bands": [numbers]}
        scaled = {"raster:scale": 0.5, "raster:offset": -1, "nodata": 7}
        return {**said, "bands": [{"name": name.upper(), "eo:common_name": common, **scaled}]}

    path = write_item(tmp_path, one=asset("a", "red"), two=asset("b", "nir"), three=asset("c", "x"))
    spec = describe(path, "nir", "three", "A")
    assert spec.band_names == ("two B nir", "three C x", "one A red")
    assert spec.scaling == ((0.5, -1.0),) * 3
    assert spec.acquired == "2026-05-13T10:00:00Z"
    box, expected = Box((3, 5), (29, 17)), PIXELS[[1, 2, 0], 3:29, 5:17]
    with formats.open_image(spec) as reader:
        pixels, valid = reader.read(box)
    assert np.array_equal(pixels, np.moveaxis(expected, 0, -1))
    assert np.array_equal(valid, (expected != 7).all(axis=0))
    with formats.open_image(spec.select([3, 1])) as reader:
        assert np.array_equal(reader.read(box)[0], np.moveaxis(expected[[2, 0]], 0, -1))


def test_the_data_is_found_without_names_or_asked_for(tmp_path):
    write_band(tmp_path / "a.tif", PIXELS)
    image = {"href": "a.tif", "type": TIFF}
    look = {"href": "look.png", "type": "image/png", "roles": ["thumbnail"]}
    assert describe(write_item(tmp_path, look=look, image=image)).file_bands == 3
    with pytest.raises(FormatError, match=r"which of its assets.*`assets: \[image, other\]`"):
        describe(write_item(tmp_path, image=image, other={**image, "href": "b.tif"}))
    with pytest.raises(FormatError, match="several assets with the band 'red': a, b"):
        band = {**image, "eo:bands": [{"common_name": "red"}]}
        describe(write_item(tmp_path, a=band, b={**band, "href": "b.tif"}), "red")


def test_items_of_a_search_are_found_at_their_bytes():
    found = [{"id": "ä/ö", "type": "Feature"}, {"id": "ä/ö"}, {"nested": {"features": [1]}}]
    text = json.dumps({"x": [{}], "features": found, "after": {"features": []}}, ensure_ascii=False)
    for content in (text.encode(), json.dumps(json.loads(text), indent=2).encode()):
        listed = list(features(content, "search.json"))
        assert [json.loads(content[start:stop]) for _, start, stop in listed] == found
        names = [name for name, *_ in listed]
        assert len(set(names)) == len(found)
        assert all("/" not in name for name in names)
    for cut in range(1, len(text) - 1, 7):
        with pytest.raises(FormatError, match=r"is no JSON"):
            list(features(text[:cut].encode(), "search.json"))


@pytest.mark.parametrize(
    ("href", "base", "said"),
    [
        ("/etc/secret.tif", "s3://bucket/item.json", "leads to a file of this machine"),
        ("file:///etc/secret.tif", "https://host/item.json", "leads to a file of this machine"),
        ("zip://a.tif::https://host/a.zip", "item.json", "chains stores"),
        ("https://me:word@host/a.tif", "item.json", "holds a password"),
        ("s3://bucket/a.tif?sig=c0ffee", "item.json", "is signed"),
    ],
)
def test_links_that_must_not_be_followed(href, base, said):
    with pytest.raises(FormatError, match=said) as raised:
        resolved(href, base)
    assert "c0ffee" not in str(raised.value)
    assert "word@" not in str(raised.value)


def test_a_path_from_the_root_of_a_server_stays_on_it():
    assert resolved("/etc/a.tif", "https://host/b/item.json") == "https://host/etc/a.tif"
