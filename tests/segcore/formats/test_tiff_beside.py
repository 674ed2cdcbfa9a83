"""Files beside a TIFF: read as what they must be, or refused; none leads to another file or host.
Oracle: rasterio.
"""

from __future__ import annotations

import http.server
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import numpy as np
import pytest
import rasterio
from affine import Affine
from skimage import data

import maskloom.segcore.formats  # noqa: F401  registers all formats
from maskloom.segcore.errors import FormatError
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS, RasterSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

TIFF = FORMATS["tiff"]
PHOTO = np.moveaxis(data.astronaut()[:64, :96], -1, 0).copy()


@pytest.fixture
def host() -> Iterator[tuple[str, list[str]]]:
    """A host that refuses all, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def write(path: Path, bands: np.ndarray = PHOTO, **profile: object) -> Path:
    count, height, width = bands.shape
    size = {"width": width, "height": height, "count": count, "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", **size, **profile) as file:
        file.write(bands)
    return path


def vrt(target: str, bands: int = 1) -> str:
    source = (
        f"<SimpleSource><SourceFilename>{target}</SourceFilename>"
        "<SourceBand>1</SourceBand></SimpleSource>"
    )
    band = f'<VRTRasterBand dataType="Byte" band="1">{source}</VRTRasterBand>'
    flags = '<Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>'
    return f'<VRTDataset rasterXSize="96" rasterYSize="64">{flags}{band}</VRTDataset>'


def everything(location: Path | str) -> tuple[np.ndarray, np.ndarray, RasterSpec]:
    """All that a run asks of an image: header, bands in two orders, boxes."""
    spec = TIFF.describe(str(location), "v")
    with TIFF.open(spec.select(spec.bands[::-1])) as reader:
        reader.read(Box((1, 2), (9, 11)))
    with TIFF.open(spec) as reader:
        return *reader.read(Box.whole(spec.shape)), spec


def stored(folder: Path, remote: bool) -> str:
    """The folder, or its copy in a store."""
    if not remote:
        return str(folder)
    fsspec.filesystem("memory").put(str(folder), f"/beside/{folder.name}", recursive=True)
    return f"memory://beside/{folder.name}"


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    "target",
    [
        "/vsicurl/{host}/secret/x.tif",
        "{folder}/other.tif",
        "/vsimem/x.tif",
        "GTIFF_DIR:1:{folder}/other.tif",
    ],
)
def test_a_mask_that_leads_elsewhere_is_refused_unread(
    tmp_path: Path, host: tuple[str, list[str]], target: str, remote: bool
) -> None:
    write(tmp_path / "other.tif", PHOTO[:1] // 128)
    write(tmp_path / "x.tif")
    (tmp_path / "x.tif.msk").write_text(vrt(target.format(host=host[0], folder=tmp_path)))
    with pytest.raises(
        FormatError,
        match=r"x\.tif\.msk, the mask beside .*x\.tif, should be TIFF, "
        r"but its content is a GDAL VRT\. Remove it",
    ):
        everything(f"{stored(tmp_path, remote)}/x.tif")
    assert host[1] == []


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "x.tif.ovr",
        "x.ovr",
        "x.tif.msk.ovr",
        "x.tif.msk.msk",
        "x.tif.aux.xml",
        "x.tif.msk.aux.xml",
        "inside",
    ],
)
def test_overviews_and_metadata_lead_nowhere(
    tmp_path: Path, host: tuple[str, list[str]], name: str, remote: bool
) -> None:
    target = f"/vsicurl/{host[0]}/secret/x.tif"
    write(tmp_path / "x.tif")
    mask = np.ones((64, 96), bool)
    mask[:9] = False
    write(tmp_path / "x.tif.msk", mask[None].astype(np.uint8) * 255)
    with rasterio.open(tmp_path / "x.tif.msk", "r+") as file:
        file.update_tags(**{f"INTERNAL_MASK_FLAGS_{band}": "2" for band in (1, 2, 3)})
    if name == "inside":
        with rasterio.open(tmp_path / "x.tif", "r+") as file:
            file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=target)
    elif name.endswith(".aux.xml"):
        domain = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{target}</MDI></Metadata>'
        (tmp_path / name).write_text(f"<PAMDataset>{domain}</PAMDataset>")
    else:
        (tmp_path / name).write_text(vrt(target))
    pixels, valid, _ = everything(f"{stored(tmp_path, remote)}/x.tif")
    np.testing.assert_array_equal(pixels, np.moveaxis(PHOTO, 0, -1))
    np.testing.assert_array_equal(valid, mask)
    assert host[1] == []


def test_pipes_beside_an_image_are_no_files(tmp_path: Path) -> None:
    write(tmp_path / "x.tif")
    for name in ("x.tif.msk", "x.tif.aux.xml", "x.tfw", "x_RPC.TXT"):
        os.mkfifo(tmp_path / name)
    np.testing.assert_array_equal(everything(tmp_path / "x.tif")[0], np.moveaxis(PHOTO, 0, -1))


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.tif")
    write(tmp_path / "x.tif.msk", np.ones((1, 32, 48), np.uint8))
    with rasterio.open(tmp_path / "x.tif.msk", "r+") as file:
        file.update_tags(INTERNAL_MASK_FLAGS_1="2")
    with pytest.raises(
        FormatError, match=r"x\.tif\.msk has 48 x 32 pixels and 1 band\(s\).*96 x 64"
    ):
        everything(tmp_path / "x.tif")


@pytest.mark.parametrize(
    "flags",
    [{"1": "0", "2": "0", "3": "0"}, {"1": "2", "2": "2", "3": "2"}, {"1": "2"}, {"3": "0"}, {}],
)
def test_a_mask_beside_an_image_means_what_it_means_to_gdal(
    tmp_path: Path, flags: dict[str, str]
) -> None:
    write(tmp_path / "x.tif", photometric="MINISBLACK")
    write(tmp_path / "x.tif.msk", (PHOTO > 60).astype(np.uint8) * 255, photometric="MINISBLACK")
    with rasterio.open(tmp_path / "x.tif.msk", "r+") as file:
        file.update_tags(**{f"INTERNAL_MASK_FLAGS_{band}": value for band, value in flags.items()})
    with rasterio.open(tmp_path / "x.tif") as file:
        expected = file.read_masks() != 0
    _, valid, spec = everything(tmp_path / "x.tif")
    np.testing.assert_array_equal(valid, expected.all(axis=0))
    with TIFF.open(spec.select((2,))) as reader:
        np.testing.assert_array_equal(reader.read(Box.whole(spec.shape))[1], expected[1])


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    ("image", "world"),
    [
        ("x.tif", "x.tfw"),
        ("x.tif", "x.tifw"),
        ("x.tif", "x.wld"),
        ("X.TIF", "X.TFW"),
        ("a.b.tif", "a.b.tfw"),
    ],
)
def test_a_world_file_places_an_image_that_does_not_say_where_it_lies(
    tmp_path: Path, image: str, world: str, remote: bool
) -> None:
    write(tmp_path / image, crs="EPSG:32633")
    (tmp_path / world).write_text("10\n1\n2\n-10\n500005\n5299995\n")
    with rasterio.open(tmp_path / image) as file:
        expected = file.transform
    assert not expected.is_identity
    space = everything(f"{stored(tmp_path, remote)}/{image}")[2].space
    assert space.affine == pytest.approx(tuple(expected)[:6])
    assert rasterio.crs.CRS.from_wkt(space.crs).to_epsg() == 32633


def test_the_place_in_the_image_goes_before_a_world_file(tmp_path: Path) -> None:
    grid = Affine(10, 0, 500000, 0, -10, 5300000)
    write(tmp_path / "x.tif", crs="EPSG:32633", transform=grid)
    (tmp_path / "x.tfw").write_text("1\n0\n0\n-1\n0\n0\n")
    with rasterio.open(tmp_path / "x.tif") as file:
        assert file.transform == grid
    assert everything(tmp_path / "x.tif")[2].space.affine == tuple(grid)[:6]


def test_metadata_beside_an_image_says_nodata_of_each_band_and_the_place(tmp_path: Path) -> None:
    write(tmp_path / "x.tif", photometric="MINISBLACK")
    bands = "".join(
        f'<PAMRasterBand band="{i + 1}"><NoDataValue>{value}</NoDataValue></PAMRasterBand>'
        for i, value in enumerate((0, 7, 255))
    )
    place = "<SRS>EPSG:32633</SRS><GeoTransform>500000, 10, 0, 5300000, 0, -10</GeoTransform>"
    (tmp_path / "x.tif.aux.xml").write_text(f"<PAMDataset>{place}{bands}</PAMDataset>")
    with rasterio.open(tmp_path / "x.tif") as file:
        expected, transform = file.read_masks() != 0, file.transform
        assert file.nodatavals == (0, 7, 255)
    _, valid, spec = everything(tmp_path / "x.tif")
    np.testing.assert_array_equal(valid, expected.all(axis=0))
    assert not expected.all()
    assert spec.space.affine == tuple(transform)[:6]
    assert rasterio.crs.CRS.from_wkt(spec.space.crs) == rasterio.crs.CRS.from_epsg(32633)


def test_endless_text_beside_an_image_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.tif")
    with (tmp_path / "x.tif.aux.xml").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(
        FormatError, match=r"x\.tif\.aux\.xml .* has 1099511627776 bytes; the limit is"
    ):
        everything(tmp_path / "x.tif")


RPC_NUMBERS = {
    "LINE_OFF": "005234.50",
    "SAMP_OFF": "+004872.25",
    "LAT_OFF": "47.12345678",
    "LONG_OFF": "-8.5",
    "HEIGHT_OFF": "412.0",
    "LINE_SCALE": "5235",
    "SAMP_SCALE": "4873",
    "LAT_SCALE": "0.1",
    "LONG_SCALE": "0.15",
    "HEIGHT_SCALE": "5.0E+02",
}
RPC_LISTS = ("LINE_NUM", "LINE_DEN", "SAMP_NUM", "SAMP_DEN")
COEFFICIENTS = [f"{(-1) ** i * (i + 1) * 1.25e-3:+.6E}" for i in range(20)]


def rpc_txt() -> str:
    lines = [f"{name}: {value} pixels" for name, value in RPC_NUMBERS.items()]
    lines += [
        f"{name}_COEFF_{i + 1}: {value}"
        for name in RPC_LISTS
        for i, value in enumerate(COEFFICIENTS)
    ]
    return "\n".join(lines) + "\n"


def rpb() -> str:
    names = {"OFF": "Offset", "SCALE": "Scale"}
    lines = []
    for name, value in RPC_NUMBERS.items():
        first, _, last = name.partition("_")
        lines.append(f"\t{first.lower()}{names[last]} = {value};")
    for name in RPC_LISTS:
        first, _, last = name.partition("_")
        lines.append(
            f"\t{first.lower()}{last.capitalize()}Coef = (\n\t\t\t"
            + ",\n\t\t\t".join(COEFFICIENTS)
            + ");"
        )
    head = (
        'satId = "QB02";\nbandId = "P";\nSpecId = "RPC00B";\n'
        "BEGIN_GROUP = IMAGE\n\terrBias = 0.0;\n\terrRand = 0.0;\n"
    )
    return head + "\n".join(lines) + "\nEND_GROUP = IMAGE\nEND;\n"


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(("name", "text"), [("x_RPC.TXT", rpc_txt()), ("x.RPB", rpb())])
def test_rational_polynomials_beside_an_image_are_those_that_gdal_reads(
    tmp_path: Path, name: str, text: str, remote: bool
) -> None:
    write(tmp_path / "x.tif")
    (tmp_path / name).write_text(text)
    with rasterio.open(tmp_path / "x.tif") as file:
        expected = file.rpcs
    assert expected is not None
    found = dict(everything(f"{stored(tmp_path, remote)}/x.tif")[2].space.rpcs)
    assert rasterio.rpc.RPC.from_gdal(found) == expected
    (tmp_path / name).write_text(text[: len(text) // 2])
    _, _, spec = everything(tmp_path / "x.tif")
    assert spec.space.rpcs == ()
    assert "incomplete" in spec.notes[0]
