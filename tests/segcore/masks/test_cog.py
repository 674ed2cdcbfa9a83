"""Masks as Cloud Optimized GeoTIFFs, read back by rasterio, rio-cogeo and gdalinfo."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from maskloom.segcore.errors import RunError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.ground.space import Metric, Space
from maskloom.segcore.masks import EncodedBlock
from maskloom.segcore.masks.cog import writer as cog
from maskloom.segcore.masks.cog.beside import gdal_metadata, qgis_style
from maskloom.segcore.masks.cog.blocks import block_size
from maskloom.segcore.masks.cog.writer import CogMasks
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.colours import parse_colour
from maskloom.segcore.raster.spec import FORMATS, RasterSpec

TILE_SIZES = [16, 32, 64, 128, 256, 512, 768, 1024]
LEGEND = ClassTable.of(("water", "forest & meadow", "<soil>", 'the "city"', "đất trồng"))
MANY = ClassTable.of(tuple(f"class {i}" for i in range(300)))
UTM = Space((10.0, 0.0, 500000.0, 0.0, -10.0, 4600000.0), CRS.from_epsg(32633).to_wkt())


def spec_of(shape: tuple[int, ...], space: Space | None = None) -> RasterSpec:
    return RasterSpec(
        "image.tif", "geotiff", shape, (1,), "uint8", (256, 256), "v1", 1, space=space or Space()
    )


def pieces_of(labels: np.ndarray, tile_size: int) -> list[EncodedBlock]:
    spec = spec_of(labels.shape)
    grid = Grid(labels.shape, (tile_size, tile_size))
    return [
        piece
        for tile in grid
        for piece in CogMasks().encode(labels[tile.core.slices], tile, spec, grid.tile)
    ]


def write(
    labels: np.ndarray, tile_size: int, space: Space | None = None, class_table: ClassTable = LEGEND
) -> bytes:
    out = io.BytesIO()
    pieces = pieces_of(labels, tile_size)
    random.Random(tile_size).shuffle(pieces)
    CogMasks().write(
        iter(pieces), spec_of(labels.shape, space), class_table, out, (tile_size, tile_size)
    )
    return out.getvalue()


def read_levels(file: bytes) -> list[np.ndarray]:
    with rasterio.MemoryFile(file) as memory:
        with memory.open() as source:
            levels, count = [source.read(1)], len(source.overviews(1))
        for i in range(count):
            with memory.open(overview_level=i) as source:
                levels.append(source.read(1))
    return levels


def halve_slowly(labels: np.ndarray) -> np.ndarray:
    """The mode of 2 x 2 pixels by counting each label: a second opinion on `halve`."""
    nodata = np.iinfo(labels.dtype).max
    height, width = (-(-n // 2) for n in labels.shape)
    out = np.empty((height, width), labels.dtype)
    for y, x in np.ndindex(height, width):
        inside = labels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel().tolist()
        data = [label for label in inside if label != nodata]
        out[y, x] = max(data, key=data.count) if data else nodata
    return out


def patchy(shape: tuple[int, int], dtype: str, classes: int, seed: int) -> np.ndarray:
    """Labels of small patches, noise and nodata."""
    draw = np.random.default_rng(seed)
    values = (
        draw.integers(0, classes, (-(-shape[0] // 3), -(-shape[1] // 3)))
        .repeat(3, 0)
        .repeat(3, 1)[: shape[0], : shape[1]]
    )
    values = np.where(draw.random(shape) < 0.2, draw.integers(0, classes, shape), values)
    return np.where(draw.random(shape) < 0.15, np.iinfo(dtype).max, values).astype(dtype)


@given(
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from(["uint8", "uint16", "uint32"]),
    st.integers(0, 10**6),
)
def test_halving_takes_the_most_frequent_label_and_the_first_of_equals(height, width, dtype, seed):
    from maskloom.segcore.kernels.overviews import halve

    labels = patchy((height, width), dtype, 4, seed)
    np.testing.assert_array_equal(halve(labels), halve_slowly(labels))


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(TILE_SIZES), st.integers(0, 10**6))
def test_the_mask_is_the_labels_and_each_overview_halves_the_level_below(
    height, width, tile_size, seed
):
    labels = patchy((height, width), "uint8", 5, seed)
    levels = read_levels(write(labels, tile_size))
    np.testing.assert_array_equal(levels[0], labels)
    block = block_size((tile_size, tile_size))
    assert max(levels[-1].shape) <= block
    assert len(levels) == 1 or max(levels[-2].shape) > block
    for below, above in pairwise(levels):
        np.testing.assert_array_equal(above, halve_slowly(below))


def test_overviews_do_not_depend_on_the_tile_size():
    labels = patchy((1300, 1111), "uint8", 5, seed=1)
    masks = {tile_size: read_levels(write(labels, tile_size)) for tile_size in [*TILE_SIZES, 1280]}
    for levels in masks.values():
        for level, finest in zip(levels, masks[16], strict=False):
            np.testing.assert_array_equal(level, finest)
    assert {size: len(levels) for size, levels in masks.items() if size in (16, 768, 1024)} == {
        16: 8,
        768: 4,
        1024: 3,
    }


@pytest.mark.parametrize("tile_size", [16, 256, 768, 1024])
@pytest.mark.parametrize("space", [None, UTM])
def test_rio_cogeo_finds_nothing_to_complain_about(tmp_path, tile_size, space):
    from rio_cogeo.cogeo import cog_validate

    path = tmp_path / "mask.tif"
    path.write_bytes(write(patchy((1301, 777), "uint8", 5, seed=2), tile_size, space))
    assert cog_validate(path, strict=True) == (True, [], [])


def gdalinfo(path: Path) -> dict:
    """What GDAL's own program says; it must not see the GDAL data files of Python packages."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GDAL_DATA", "PROJ_LIB", "PROJ_DATA")
    }
    done = subprocess.run(
        ["gdalinfo", "-json", "-checksum", str(path)],
        capture_output=True,
        check=True,
        env=environment,
    )
    assert b"ERROR" not in done.stderr + done.stdout, done.stderr
    assert b"Warning" not in done.stderr, done.stderr
    return json.loads(done.stdout)


needs_gdalinfo = pytest.mark.skipif(
    shutil.which("gdalinfo") is None, reason="gdalinfo is not installed (Debian: gdal-bin)"
)


@needs_gdalinfo
@pytest.mark.parametrize("class_table", [LEGEND, MANY], ids=["uint8", "uint16"])
def test_gdal_sees_a_cog_and_the_names_of_the_classes(tmp_path, class_table):
    path = tmp_path / "mask.tif"
    path.write_bytes(
        write(
            patchy((600, 700), class_table.dtype, len(class_table.names), seed=3),
            128,
            UTM,
            class_table,
        )
    )
    (tmp_path / "mask.tif.aux.xml").write_bytes(gdal_metadata(class_table))
    info = gdalinfo(path)
    assert info["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    band = info["bands"][0]
    assert band["noDataValue"] == class_table.nodata
    assert band["colorInterpretation"] == "Palette"
    assert [
        tuple(entry[:3]) for entry in band["colorTable"]["entries"][: len(class_table.colours)]
    ] == list(class_table.colours)
    text = subprocess.run(["gdalinfo", str(path)], capture_output=True, check=True).stdout.decode()
    for i, name in enumerate(class_table.names):
        assert f"  {i}: {name}\n" in text.split("Categories:")[1]
    start, end = "<GDALRasterAttributeTable", "</GDALRasterAttributeTable>"
    table = ET.fromstring(text[text.index(start) : text.index(end) + len(end)])
    assert [[each.text for each in row] for row in table.iter("Row")] == [
        [str(i), name, *map(str, colour)]
        for i, (name, colour) in enumerate(zip(class_table.names, class_table.colours, strict=True))
    ]


@pytest.mark.parametrize("class_table", [LEGEND, MANY], ids=["uint8", "uint16"])
def test_the_style_of_qgis_lists_the_classes(class_table):
    style = ET.fromstring(qgis_style(class_table))
    assert [
        (int(each.get("value")), each.get("label"), parse_colour(each.get("color")))
        for each in style.findall("pipe/rasterrenderer/colorPalette/paletteEntry")
    ] == list(zip(range(300), class_table.names, class_table.colours, strict=False))


def test_every_block_has_the_leader_and_the_trailer_that_the_head_promises():
    import tifffile

    file = write(patchy((500, 300), "uint8", 5, seed=4), 64)
    starts = []
    with tifffile.TiffFile(io.BytesIO(file)) as tiff:
        for page in tiff.pages:
            for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                assert struct.unpack_from("<I", file, offset - 4) == (size,)
                assert (
                    file[offset + size : offset + size + 4]
                    == file[offset + size - 4 : offset + size]
                )
                starts.append(offset)
        assert [page.shape for page in tiff.pages] == [(500, 300), (250, 150), (125, 75), (63, 38)]
        assert [page.dataoffsets[0] for page in tiff.pages] == sorted(
            (page.dataoffsets[0] for page in tiff.pages), reverse=True
        )
        assert max(page.offset for page in tiff.pages) < min(starts)
        assert tiff.pages[0].dataoffsets[-1] + tiff.pages[0].databytecounts[-1] + 4 == len(file)


SPACES = {
    "utm": UTM,
    "degrees": Space((0.001, 0.0, 12.0, 0.0, -0.001, 47.0), CRS.from_epsg(4326).to_wkt()),
    "web mercator": Space((2.5, 0.0, 1.2e6, 0.0, -2.5, 5.9e6), CRS.from_epsg(3857).to_wkt()),
    "rotated": Space((8.66, 5.0, 5e5, 5.0, -8.66, 4.6e6), CRS.from_epsg(32633).to_wkt()),
    "south up": Space((10.0, 0.0, 5e5, 0.0, 10.0, 4.6e6), CRS.from_epsg(32733).to_wkt()),
    "custom": Space(
        (1000.0, 0.0, -5e6, 0.0, -1000.0, 5e6),
        CRS.from_proj4("+proj=laea +lat_0=10 +lon_0=20 +ellps=GRS80").to_wkt(),
    ),
    "no crs": Space((2.0, 0.0, 7.0, 0.0, -2.0, 9.0), None),
    "nothing": Space(),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_the_grid_of_the_source_is_kept(space):
    with (
        rasterio.MemoryFile(write(np.zeros((40, 50), np.uint8), 32, space)) as memory,
        memory.open() as source,
    ):
        assert source.transform == (
            rasterio.Affine.identity() if space.affine is None else rasterio.Affine(*space.affine)
        )
        assert source.crs == (None if space.crs is None else CRS.from_wkt(space.crs))


RPCS = {
    **{
        f"{axis}_{what}": str(i + 1.5)
        for i, axis in enumerate(("LINE", "SAMP", "LAT", "LONG", "HEIGHT"))
        for what in ("OFF", "SCALE")
    },
    **{
        f"{axis}_{part}_COEFF": " ".join(str(i / 64) for i in range(20))
        for axis in ("LINE", "SAMP")
        for part in ("NUM", "DEN")
    },
}
POINTS = [
    GroundControlPoint(row=r + 0.5, col=c, x=12 + c / 100 + r / 700, y=47 - r / 90, z=r)
    for r in (0, 20, 40)
    for c in (0, 25, 50)
]


PLACES = [
    {"gcps": POINTS, "crs": "EPSG:4326"},
    {"gcps": POINTS, "crs": "EPSG:32633"},
    {"transform": rasterio.Affine(10, 1, 5e5, 1, -10, 5e6), "crs": "EPSG:32633"},
    {},
]


@pytest.mark.parametrize("placed", PLACES)
@pytest.mark.parametrize("rpcs", [{}, RPCS])
def test_control_points_and_polynomials_are_kept_as_gdal_translate_keeps_them(
    tmp_path, placed, rpcs
):
    source, translated = tmp_path / "a.tif", tmp_path / "b.tif"
    with rasterio.open(
        source, "w", driver="GTiff", width=50, height=40, count=1, dtype="uint8", **placed
    ) as file:
        file.update_tags(ns="RPC", **rpcs)
    rasterio.shutil.copy(source, translated, driver="COG")
    space = FORMATS["tiff"].describe(str(source), "").space
    with (
        rasterio.MemoryFile(write(np.zeros((40, 50), np.uint8), 32, space)) as memory,
        memory.open() as ours,
        rasterio.open(translated) as theirs,
    ):
        assert [point.asdict() | {"id": 0} for point in ours.gcps[0]] == [
            point.asdict() | {"id": 0} for point in theirs.gcps[0]
        ]
        assert len(ours.gcps[0]) == (len(POINTS) if "gcps" in placed else 0)
        assert ours.gcps[1] == theirs.gcps[1]
        assert ours.rpcs == theirs.rpcs
        assert (ours.rpcs is not None) == bool(rpcs)
        assert ours.transform == theirs.transform
        assert ours.crs == theirs.crs


def test_palette_nodata_and_names_come_back():
    labels = patchy((100, 90), "uint8", 5, seed=5)
    with rasterio.MemoryFile(write(labels, 64, UTM)) as memory, memory.open() as source:
        assert source.nodata == 255
        np.testing.assert_array_equal(source.read_masks(1) > 0, labels != 255)
        palette = source.colormap(1)
        assert [palette[i][:3] for i in range(5)] == list(LEGEND.colours)
        assert palette[255] == (0, 0, 0, 0)
        assert json.loads(source.tags()["CLASSES"]) == {
            str(i): name for i, name in enumerate(LEGEND.names)
        }
        assert source.tags(1) == {f"CLASS_{i}": name for i, name in enumerate(LEGEND.names)}


def test_a_control_character_in_a_name_does_not_break_the_file():
    class_table = ClassTable.of(("a\x00b\x07", "c"))
    with (
        rasterio.MemoryFile(write(np.zeros((20, 20), np.uint8), 16, None, class_table)) as memory,
        memory.open() as source,
    ):
        assert json.loads(source.tags()["CLASSES"]) == {"0": "a\x00b\x07", "1": "c"}
        assert source.tags(1)["CLASS_1"] == "c"


def test_masks_of_many_classes_are_uint16_without_a_palette():
    labels = patchy((200, 333), "uint16", 300, seed=6)
    file = write(labels, 128, UTM, MANY)
    np.testing.assert_array_equal(read_levels(file)[0], labels)
    with rasterio.MemoryFile(file) as memory, memory.open() as source:
        assert (source.dtypes, source.nodata, source.colorinterp[0].name) == (
            ("uint16",),
            65535,
            "gray",
        )


def test_object_masks_are_uint32_and_their_background_is_data():
    labels = np.random.default_rng(7).integers(0, 2**31, (150, 170)).astype(np.uint32)
    labels[20:90] = 0
    levels = read_levels(write(labels, 64))
    np.testing.assert_array_equal(levels[0], labels)
    np.testing.assert_array_equal(levels[1], halve_slowly(labels))
    with rasterio.MemoryFile(write(labels, 64)) as memory, memory.open() as source:
        assert (source.dtypes, source.nodata, source.tags().get("CLASSES")) == (
            ("uint32",),
            None,
            None,
        )


def test_large_files_become_bigtiff(monkeypatch, tmp_path):
    from rio_cogeo.cogeo import cog_validate

    labels = patchy((700, 600), "uint8", 5, seed=8)
    small = write(labels, 128, UTM)
    assert small[:4] == b"II\x2a\0"
    monkeypatch.setattr(cog, "LARGEST_CLASSIC_FILE", len(small) - 1)
    large = write(labels, 128, UTM)
    assert large[:4] == b"II\x2b\0"
    for a, b in zip(read_levels(large), read_levels(small), strict=True):
        np.testing.assert_array_equal(a, b)
    (tmp_path / "large.tif").write_bytes(large)
    assert cog_validate(tmp_path / "large.tif", strict=True) == (True, [], [])
    with rasterio.open(tmp_path / "large.tif") as source:
        assert (source.crs, source.nodata, source.colormap(1)[1][:3]) == (
            CRS.from_epsg(32633),
            255,
            LEGEND.colours[1],
        )
    monkeypatch.setattr(cog, "LARGEST_CLASSIC_FILE", len(small))
    assert write(labels, 128, UTM) == small


class Pipe:
    """Takes bytes and offers nothing else."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def write(self, data: bytes) -> int:
        self.taken += data
        return len(data)


def test_the_file_is_written_in_one_pass_and_its_bytes_do_not_depend_on_the_order_of_pieces():
    labels = patchy((400, 500), "uint8", 5, seed=9)
    pieces = pieces_of(labels, 64)
    files = []
    for order in (pieces, pieces[::-1], pieces + pieces[:5]):
        pipe = Pipe()
        CogMasks().write(order, spec_of(labels.shape), LEGEND, pipe, (64, 64))
        files.append(bytes(pipe.taken))
    assert files[0] == files[1] == files[2] == write(labels, 64)


@pytest.mark.parametrize("tile_size", [64, 1024])
def test_a_missing_block_of_any_level_is_an_error_and_never_a_hole(tile_size):
    labels = patchy((1100, 1050), "uint8", 5, seed=10)
    pieces = pieces_of(labels, tile_size)
    assert {piece.level for piece in pieces} == ({0} if tile_size == 64 else {0, 1})
    for level in {piece.level for piece in pieces}:
        absent = next(piece for piece in reversed(pieces) if piece.level == level)
        out = io.BytesIO()
        with pytest.raises(
            RunError,
            match=(
                f"lacks 1 of .* level {level}, the first at row {absent.index[0]}, column "
                f"{absent.index[1]}"
            ),
        ):
            CogMasks().write(
                [piece for piece in pieces if piece is not absent],
                spec_of(labels.shape),
                LEGEND,
                out,
                (tile_size, tile_size),
            )
        assert not out.getvalue()


def test_pieces_that_do_not_fit_are_refused():
    labels = patchy((100, 100), "uint8", 5, seed=11)
    pieces, spec = pieces_of(labels, 64), spec_of(labels.shape)
    payload = pieces[0].payload
    for stray in (
        EncodedBlock(0, (2, 0), payload),
        EncodedBlock(7, (0, 0), payload),
        EncodedBlock(-1, (0, 0), payload),
        EncodedBlock(0, (0, -1), payload),
        EncodedBlock(0, (0, 0), b""),
    ):
        with pytest.raises(RunError, match="does not belong"):
            CogMasks().write([*pieces, stray], spec, LEGEND, io.BytesIO(), (64, 64))
    with pytest.raises(RunError, match="twice"):
        CogMasks().write(
            [*pieces, EncodedBlock(0, (0, 0), pieces[1].payload)],
            spec,
            LEGEND,
            io.BytesIO(),
            (64, 64),
        )
    with pytest.raises(RunError, match="uint16"):
        CogMasks().write(pieces, spec, MANY, io.BytesIO(), (64, 64))


@pytest.mark.parametrize("tile_size", [0, 8, 24, 100, 300, 500, 1000])
def test_tile_sizes_that_tiff_does_not_allow_are_refused(tile_size):
    with pytest.raises(ValueError, match=r"tiling\.tile"):
        block_size((tile_size, tile_size))


@pytest.mark.parametrize(
    ("tile_size", "block"),
    [(16, 16), (128, 128), (256, 256), (512, 512), (768, 256), (1536, 512), (2048, 512)],
)
def test_blocks_divide_tiles(tile_size, block):
    assert block_size((tile_size, tile_size)) == block
    assert tile_size % block == 0


def test_assembling_takes_the_memory_of_a_few_blocks(tmp_path):
    import tracemalloc

    side, tile_size = 8192, 512
    noise = np.random.default_rng(12).integers(0, 5, (tile_size, tile_size), np.uint8)
    grid, spec = Grid((side, side), (tile_size, tile_size)), spec_of((side, side))
    [payload] = {piece.payload for piece in CogMasks().encode(noise, grid[0], spec, grid.tile)}
    pieces = (EncodedBlock(0, tile.index, bytes(bytearray(payload))) for tile in grid)
    with (tmp_path / "mask.tif").open("wb") as out:
        tracemalloc.start()
        CogMasks().write(pieces, spec, LEGEND, out, grid.tile)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(payload) * len(grid) > 20e6
    assert peak < 16e6
    with rasterio.open(tmp_path / "mask.tif") as source:
        np.testing.assert_array_equal(source.read(1, window=((7680, 8192), (7680, 8192))), noise)


def test_masks_of_real_images_keep_their_grid():
    folder = os.environ.get("MASKLOOM_TEST_DATA")
    if not folder:
        pytest.skip("MASKLOOM_TEST_DATA is not set")
    seen = 0
    for path in sorted(Path(folder, "geotiff", "images").rglob("*.tif")):
        try:
            with rasterio.open(path) as source:
                crs, transform = source.crs, source.transform
        except rasterio.errors.RasterioIOError:
            continue
        space = Space(tuple(transform)[:6], crs.to_wkt() if crs else None)
        with (
            rasterio.MemoryFile(write(np.zeros((20, 30), np.uint8), 16, space)) as memory,
            memory.open() as mask,
        ):
            assert (mask.crs, mask.transform) == (crs, transform), path
        seen += 1
    assert seen > 20


@pytest.mark.parametrize(
    ("spacing", "unit", "expected"),
    [((0.5, 0.25), "um", (40000.0, 20000.0)), ((3.0, 3.0), "mm", (10 / 3, 10 / 3))],
)
def test_a_stated_size_of_a_pixel_is_that_of_the_mask(spacing, unit, expected):
    """Pixels per centimetre along x and y, as QuPath and ImageJ read them."""
    content = write(np.zeros((70, 90), np.uint8), 32, Space(metric=Metric(spacing, unit)))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        assert page.tags[296].value == 3
        found = [np.divide(*page.tags[code].value) for code in (282, 283)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
