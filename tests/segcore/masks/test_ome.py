"""Masks of slides: OME-TIFF with sub-resolutions, read back by tifffile, GDAL and maskloom."""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore import formats
from maskloom.segcore.geometry import Box, Grid
from maskloom.segcore.ground.space import Metric, Space
from maskloom.segcore.masks import MASKS
from maskloom.segcore.masks.cog import writer as cog
from maskloom.segcore.masks.cog.writer import CogMasks
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.spec import RasterSpec

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ClassTable.of(("glass", "tissue & fat", "<ink>", "u mô"))
MANY = ClassTable.of(tuple(f"class {i}" for i in range(300)))
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def labels_of(shape: tuple[int, int], dtype: str = "uint8", classes: int = 4) -> np.ndarray:
    coarse = np.random.default_rng(1).integers(0, classes, tuple(-(-n // 9) for n in shape))
    return np.kron(coarse, np.ones((9, 9), int))[: shape[0], : shape[1]].astype(dtype)


def write(labels: np.ndarray, space: Space, tile: int = 64, classes: ClassTable = CLASSES) -> bytes:
    spec = RasterSpec(
        "a.svs", "slide", labels.shape, (1, 2, 3), "uint8", (64, 64), "v1", 3, space=space
    )
    writer, grid = MASKS["ome"], Grid(labels.shape, (tile, tile))
    blocks = [
        block
        for each in grid
        for block in writer.encode(labels[each.core.slices], each, spec, grid.tile)
    ]
    random.Random(tile).shuffle(blocks)
    out = io.BytesIO()
    assert isinstance(writer, CogMasks)
    writer.write(iter(blocks), spec, classes, out, grid.tile)
    return out.getvalue()


def um(y: float, x: float) -> Space:
    return Space(metric=Metric((y, x), "um"))


@given(
    height=st.integers(1, 300), width=st.integers(1, 300), tile=st.sampled_from([16, 32, 64, 256])
)
def test_tifffile_and_gdal_find_the_levels(height: int, width: int, tile: int) -> None:
    labels = labels_of((height, width))
    content = write(labels, um(0.5, 0.5), tile)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        assert file.is_ome
        assert len(file.pages) == 1
        (series,) = file.series
        assert (series.kind, series.axes) == ("ome", "YX")
        levels = [level.asarray() for level in series.levels]
    np.testing.assert_array_equal(levels[0], labels)
    with rasterio.MemoryFile(content) as memory:
        with memory.open() as mask:
            np.testing.assert_array_equal(mask.read(1), labels)
            assert len(mask.overviews(1)) == len(levels) - 1
        for number, level in enumerate(levels[1:]):
            with memory.open(overview_level=number) as mask:
                np.testing.assert_array_equal(mask.read(1), level)
    # Those of a COG, which has its own tests.
    assert [level.shape for level in levels] == [
        (-(-height >> k), -(-width >> k)) for k in range(len(levels))
    ]


def test_the_levels_are_those_of_a_cog() -> None:
    labels = labels_of((301, 407))
    ome = write(labels, um(0.5, 0.5))
    cog_file = io.BytesIO()
    spec = RasterSpec("a.tif", "tiff", labels.shape, (1,), "uint8", (64, 64), "v1", 1)
    grid = Grid(labels.shape, (64, 64))
    blocks = [b for t in grid for b in CogMasks().encode(labels[t.core.slices], t, spec, grid.tile)]
    CogMasks().write(blocks, spec, CLASSES, cog_file, grid.tile)
    with rasterio.MemoryFile(ome) as a, rasterio.MemoryFile(cog_file.getvalue()) as b:
        for level in range(3):
            with a.open(overview_level=level) as one, b.open(overview_level=level) as other:
                np.testing.assert_array_equal(one.read(1), other.read(1))


def test_the_pixel_size_the_names_and_the_colours_are_there() -> None:
    with tifffile.TiffFile(io.BytesIO(write(labels_of((90, 70)), um(0.499, 0.252)))) as file:
        page = file.pages[0]
        xml = page.description
        for tag, size in ((282, 0.252), (283, 0.499)):
            numerator, denominator = page.tags[tag].value
            assert numerator / denominator == pytest.approx(1e4 / size, rel=1e-9)
        assert page.tags[296].value == 3  # centimetres
        assert page.photometric == 3  # a palette
        red, green, blue = page.colormap[:, 1] // 257
    assert (red, green, blue) == CLASSES.colours[1]
    assert xml.isascii()
    root = ET.fromstring(xml)
    pixels = root.find(f"{OME}Image/{OME}Pixels")
    assert pixels is not None
    assert {name: pixels.get(name) for name in ("SizeX", "SizeY", "SizeC", "Type")} == {
        "SizeX": "70", "SizeY": "90", "SizeC": "1", "Type": "uint8",
    }  # fmt: skip
    assert (pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeY")) == ("0.252", "0.499")
    assert pixels.get("PhysicalSizeXUnit") == "µm"
    names = {each.get("K"): each.text for each in root.iter(f"{OME}M")}
    assert names == {str(i): name for i, name in enumerate(CLASSES.names)}


def test_without_a_pixel_size_none_is_written() -> None:
    with tifffile.TiffFile(io.BytesIO(write(labels_of((90, 70)), Space()))) as file:
        assert "PhysicalSize" not in file.pages[0].description
        assert 282 not in file.pages[0].tags


@pytest.mark.parametrize(("dtype", "classes"), [("uint16", MANY), ("uint32", CLASSES)])
def test_many_classes_and_objects(dtype: str, classes: ClassTable) -> None:
    labels = labels_of((90, 170), dtype, 300)
    content = write(labels, um(1, 1), classes=classes)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        assert f'Type="{dtype}"' in file.pages[0].description
        np.testing.assert_array_equal(file.series[0].levels[0].asarray(), labels)
        assert ("<M K=" in file.pages[0].description) == (dtype == "uint16")


def test_the_mask_of_a_level_lies_on_full_resolution(tmp_path: Path) -> None:
    scale = (4.0119, 0.0, 0.0, 0.0, 4.004, 0.0)
    space = Space(affine=scale, metric=Metric((2.002, 2.006), "um"))
    with rasterio.MemoryFile(write(labels_of((90, 70)), space)) as memory, memory.open() as mask:
        assert tuple(mask.transform)[:6] == pytest.approx(scale)
        assert mask.crs is None


def test_maskloom_reads_the_stored_labels_back(tmp_path: Path) -> None:
    labels = labels_of((301, 207))
    (tmp_path / "a.ome.tif").write_bytes(write(labels, um(0.5, 0.5)))
    spec = formats.describe(str(tmp_path / "a.ome.tif"))
    with formats.open_stored(spec) as reader:
        np.testing.assert_array_equal(reader.read(Box.whole(spec.shape))[0][..., 0], labels)


def test_large_files_become_bigtiff(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = labels_of((301, 207))
    monkeypatch.setattr(cog, "LARGEST_CLASSIC_FILE", 2**10)
    content = write(labels, um(0.5, 0.5))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        assert file.is_bigtiff
        assert [level.shape for level in file.series[0].levels] == [
            (301, 207), (151, 104), (76, 52), (38, 26),
        ]  # fmt: skip
        np.testing.assert_array_equal(file.series[0].levels[0].asarray(), labels)
    with rasterio.MemoryFile(content) as memory, memory.open() as mask:
        assert mask.overviews(1) == [2, 4, 8]


def test_openslide_opens_the_mask(tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide")
    labels = labels_of((301, 207))
    (tmp_path / "a.ome.tif").write_bytes(write(labels, um(0.5, 0.25)))
    with openslide.OpenSlide(tmp_path / "a.ome.tif") as mask:
        assert mask.dimensions == (207, 301)
        assert float(mask.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        colours = np.asarray(mask.read_region((0, 0), 0, (207, 301)))[..., :3]
    palette = np.array(CLASSES.colours, np.uint8)
    np.testing.assert_array_equal(colours, palette[labels])
