"""Slides: every level against tifffile and OpenSlide, sizes, damage, and pictures that must never
be read.
"""

from __future__ import annotations

import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from slides_support import (
    LABEL,
    MACRO,
    RGB_JPEG,
    THUMBNAIL,
    describe,
    write_aperio,
    write_philips,
    write_tiles,
)

from maskloom.segcore import formats
from maskloom.segcore.errors import FormatError, ReadError
from maskloom.segcore.formats.slide.slides import Slide
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.space import Metric, PixelSize
from maskloom.segcore.raster.stored import ReadOptions, StoredImage
from maskloom.segcore.testing import formats as check

if TYPE_CHECKING:
    from pathlib import Path

    from maskloom.segcore.raster.spec import RasterSpec

TISSUE = data.immunohistochemistry()[:239, :311]
"""Prime sides: no tile and no factor divides them."""
STORED: dict[str, dict[str, Any]] = {
    "rgb": RGB_JPEG,
    "ycbcr": {"compression": "jpeg", "photometric": "ycbcr"},
    "lzw": {"compression": "lzw", "predictor": True},
    "plain": {"compression": None},
    "jpeg2000": {"compression": 33005},
}


def spec_of(path: Path, **options: Any) -> RasterSpec:
    return Slide().describe_image(StoredImage(str(path), "v1"), ReadOptions(**options))


def read(spec: RasterSpec) -> tuple[np.ndarray, np.ndarray]:
    with Slide().open(spec) as reader:
        return check.whole(reader, spec)


def um(size: str) -> PixelSize:
    return PixelSize.parse(f"{size} um")


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_all_levels_are_those_of_tifffile(tmp_path: Path, stored: dict[str, Any]) -> None:
    write_aperio(tmp_path / "a.svs", TISSUE, **stored)
    with tifffile.TiffFile(tmp_path / "a.svs") as file:
        levels = [level.asarray() for level in file.series[0].levels]
    assert [level.shape[:2] for level in levels] == [(239, 311), (59, 77), (34, 44)]
    for number, level in enumerate(levels):
        spec = spec_of(tmp_path / "a.svs", level=number)
        assert (spec.format, spec.level, spec.interpretation) == ("slide", number, "rgb")
        pixels, valid = read(spec)
        np.testing.assert_array_equal(pixels, level)
        assert valid.all()


def test_all_levels_are_those_of_openslide(tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide")
    write_aperio(tmp_path / "a.svs", TISSUE)
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        for number, size in enumerate(slide.level_dimensions):
            region = np.asarray(slide.read_region((0, 0), number, size))
            spec = spec_of(tmp_path / "a.svs", level=number)
            np.testing.assert_array_equal(read(spec)[0], region[..., :3])


def test_grey_slides_of_16_bits_are_read(tmp_path: Path) -> None:
    grey = TISSUE[..., 0].astype(np.uint16) * 250
    write_aperio(tmp_path / "a.svs", grey, compression="lzw")
    spec = spec_of(tmp_path / "a.svs")
    assert (spec.dtype, spec.bands, spec.interpretation) == ("uint16", (1,), "bands")
    np.testing.assert_array_equal(read(spec)[0][..., 0], grey)


def test_a_slide_named_tif_is_read_as_one_if_the_user_says_so(tmp_path: Path) -> None:
    write_aperio(tmp_path / "a.tif", TISSUE)
    path = str(tmp_path / "a.tif")
    assert formats.describe(path).format == "tiff"
    assert formats.describe(path, explicit="slide").space.metric == Metric((0.5, 0.5), "um")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_box_of_any_level_is_its_part_of_the_whole(tmp_path: Path, level: int) -> None:
    write_aperio(tmp_path / "a.svs", TISSUE)
    spec = spec_of(tmp_path / "a.svs", level=level)
    image = read(spec)
    check.check_chunks(Slide().open(spec), spec, image)

    @given(box=check.boxes(spec.shape))
    def compare(box: Box) -> None:
        with Slide().open(spec) as reader:
            check.check_box(reader, spec, image, box)

    compare()


def test_threads_may_share_a_reader(tmp_path: Path) -> None:
    write_aperio(tmp_path / "a.svs", TISSUE)
    spec = spec_of(tmp_path / "a.svs")
    whole, _ = read(spec)
    boxes = [Box((y, 3), (y + 30, 300)) for y in range(0, 200, 7)]
    with Slide().open(spec) as reader, ThreadPoolExecutor(4) as pool:
        for box, (pixels, _) in zip(boxes, pool.map(reader.read, boxes), strict=True):
            np.testing.assert_array_equal(pixels, whole[box.slices])


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    """Whether some pixel has about this colour."""
    return bool((np.abs(pixels.astype(int) - colour).max(axis=-1) < 40).any())


def test_label_macro_and_thumbnail_are_no_level_and_never_read(tmp_path: Path) -> None:
    write_aperio(tmp_path / "a.svs", TISSUE)
    for level in range(3):
        spec = spec_of(tmp_path / "a.svs", level=level)
        assert "thumbnail, label and macro pictures in the file are not" in spec.notes[0]
        pixels, _ = read(spec)
        assert not any(near(pixels, colour) for colour in (LABEL, MACRO, THUMBNAIL))
    with pytest.raises(FormatError, match=r"no level 3\. Its levels are 0 \(311 x 239 pixels, 0"):
        spec_of(tmp_path / "a.svs", level=3)


def test_a_label_or_macro_in_tiles_is_no_level(tmp_path: Path) -> None:
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "tile": (48, 48)}
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        file.write(TISSUE, description=describe(TISSUE.shape), **options)
        label = np.full((60, 78, 3), LABEL, np.uint8)  # the proportions of the slide
        file.write(label, description="Aperio Image Library\r\nlabel 78x60", **options)
        macro = np.full((20, 90, 3), MACRO, np.uint8)
        file.write(macro, description=describe(macro.shape), **options)
    assert read(spec_of(tmp_path / "a.svs"))[0].shape == TISSUE.shape
    with pytest.raises(FormatError, match="no level 1"):
        spec_of(tmp_path / "a.svs", level=1)


# ---- sizes
# --------------------------------------------------------------------------------------------------


def test_pixels_of_a_level_are_larger_by_the_true_ratio_of_its_sides(tmp_path: Path) -> None:
    write_aperio(tmp_path / "a.svs", TISSUE)
    for level, (height, width) in enumerate([(239, 311), (59, 77), (34, 44)]):
        space = spec_of(tmp_path / "a.svs", level=level).space
        assert space.metric == Metric((0.5 * 239 / height, 0.5 * 311 / width), "um")
        assert space.unit == "mm2"
        # The level covers the slide.
        assert space.metric.size * height * width == pytest.approx(239 * 311 * 0.25e-6)
        a, _, _, _, e, _ = space.affine or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
        assert (e * height, a * width) == pytest.approx((239, 311))


@pytest.mark.parametrize(
    ("mpp", "spacing"),
    [("0.2521", 0.2521), ("0,2521", 0.2521), ("0", None), ("-0.5", None), ("1e9", None),
     ("soon", None), ("..", None), (None, None)],
)  # fmt: skip
def test_the_size_of_a_pixel_is_the_scanners_or_unknown(
    tmp_path: Path, mpp: str | None, spacing: float | None
) -> None:
    write_aperio(
        tmp_path / "a.svs", TISSUE, mpp=mpp, resolution=(72, 72), resolutionunit=2, **RGB_JPEG
    )
    spec = spec_of(tmp_path / "a.svs")
    if spacing is None:
        assert spec.space.unit == "px"
        assert any("does not state the size of a pixel (MPP" in note for note in spec.notes)
        return
    assert spec.space.metric == Metric((spacing, spacing), "um")
    assert not any("MPP" in note for note in spec.notes)


def test_the_users_pixel_size_is_that_of_full_resolution(tmp_path: Path) -> None:
    write_aperio(tmp_path / "a.svs", TISSUE)
    spec = spec_of(tmp_path / "a.svs", pixel_size=PixelSize((0.2, 0.1), "um"), level=2)
    assert spec.space.metric == Metric((0.2 * 239 / 34, 0.1 * 311 / 44), "um")


@pytest.mark.parametrize(
    ("size", "level"), [("0.5", 0), ("1.9", 0), ("2.02", 1), ("2.03", 1), ("3.4", 1), ("90", 2)]
)
def test_a_size_chooses_the_coarsest_level_with_pixels_no_larger(
    tmp_path: Path, size: str, level: int
) -> None:
    # The levels have 0.5, 2.03 and 3.53 um; one percent is rounding.
    write_aperio(tmp_path / "a.svs", TISSUE)
    spec = spec_of(tmp_path / "a.svs", level=um(size))
    assert spec.level == level
    assert not any("larger than" in note for note in spec.notes)


def test_a_size_finer_than_the_slide_or_of_unknown_pixels_is_reported(tmp_path: Path) -> None:
    write_aperio(tmp_path / "a.svs", TISSUE)
    spec = spec_of(tmp_path / "a.svs", level=um("0.25"))
    assert spec.level == 0
    assert spec.notes[-1] == "its finest pixels are larger than 0.25 um; they are read"
    write_aperio(tmp_path / "b.svs", TISSUE, mpp=None)
    with pytest.raises(FormatError, match=r"Set `pixel_size` to that of full resolution"):
        spec_of(tmp_path / "b.svs", level=um("1"))
    assert spec_of(tmp_path / "b.svs", level=um("1"), pixel_size=um("0.1")).level == 2


# ---- damage
# --------------------------------------------------------------------------------------------------


def tile_of(path: Path, number: int = 0, page: int = 0) -> tuple[int, int]:
    """The offset and size of a tile in the file."""
    with tifffile.TiffFile(path) as file:
        at = file.pages[page]
        return at.dataoffsets[number], at.databytecounts[number]


def change(path: Path, at: int, content: bytes) -> None:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(content)] = content
    path.write_bytes(whole)


def test_a_damaged_tile_fails_where_it_is_and_nowhere_else(tmp_path: Path) -> None:
    write_aperio(tmp_path / "a.svs", TISSUE)
    offset, size = tile_of(tmp_path / "a.svs", number=8)
    change(tmp_path / "a.svs", offset + size // 2, b"\xff\xd9" * 10)
    spec = spec_of(tmp_path / "a.svs")
    with Slide().open(spec) as reader:
        reader.read(Box((0, 0), (48, 311)))
        with pytest.raises(
            ReadError, match=r"tile of rows 48 to 96, columns 48 to 96 .*slide is damaged"
        ):
            reader.read(Box((50, 50), (51, 51)))


@pytest.mark.parametrize("stored", [RGB_JPEG, {"compression": 33005}], ids=["jpeg", "jpeg2000"])
def test_a_tile_that_claims_another_size_is_refused_before_it_is_decoded(
    tmp_path: Path, stored: dict[str, Any]
) -> None:
    write_aperio(tmp_path / "a.svs", TISSUE, **stored)
    offset, size = tile_of(tmp_path / "a.svs")
    content = (tmp_path / "a.svs").read_bytes()[offset : offset + size]
    if stored is RGB_JPEG:
        frame = content.index(b"\xff\xc0")
        change(tmp_path / "a.svs", offset + frame + 5, struct.pack(">HH", 60_000, 60_000))
    else:
        head = content.index(b"\xff\x4f\xff\x51")
        change(tmp_path / "a.svs", offset + head + 8, struct.pack(">II", 2**30, 2**30))
    spec = spec_of(tmp_path / "a.svs")
    with Slide().open(spec) as reader, pytest.raises(ReadError, match=r"picture of \d+ x \d+ pix"):
        reader.read(Box((0, 0), (1, 1)))


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    # The directories are in front, as in files written for the web.
    write_aperio(tmp_path / "a.svs", TISSUE, attached=False, factors=())
    with tifffile.TiffFile(tmp_path / "a.svs") as file:
        last = max(file.pages[0].dataoffsets)
        directory = file.pages[0].offset
    whole = (tmp_path / "a.svs").read_bytes()
    if directory < last:
        (tmp_path / "a.svs").write_bytes(whole[: last + 10])
        with pytest.raises(FormatError, match="ends early"):
            spec_of(tmp_path / "a.svs")
    (tmp_path / "a.svs").write_bytes(whole[: directory + 10])
    with pytest.raises(FormatError, match="damaged or incomplete; copy or export it again"):
        spec_of(tmp_path / "a.svs")


@pytest.fixture(scope="module")
def whole_slide(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.svs"
    write_aperio(path, TISSUE[:100, :120])
    return path.read_bytes()


@given(drawn=st.data())
def test_any_damage_is_an_error_of_the_image(
    tmp_path_factory: pytest.TempPathFactory, whole_slide: bytes, drawn: st.DataObject
) -> None:
    content = bytearray(whole_slide)
    places = st.integers(8, len(content) - 1) | st.integers(8, 2000)
    for at in drawn.draw(st.lists(places, min_size=1, max_size=5)):
        content[at] = drawn.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a.svs"
    path.write_bytes(content[: drawn.draw(st.integers(8, len(content)) | st.just(len(content)))])
    try:
        spec = spec_of(path)
        with Slide().open(spec) as reader:
            reader.read(Box((0, 0), (100, 120)) & Box.whole(spec.shape))
    except (FormatError, ReadError) as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("compression", [33005, 33003])
def test_tiles_without_bytes_were_not_scanned(tmp_path: Path, compression: int) -> None:
    if compression == 33003:
        pytest.importorskip("openslide")
    write_tiles(tmp_path / "a.svs", TISSUE, compression, absent=(0, 9))
    pixels, valid = read(spec_of(tmp_path / "a.svs"))
    expected = np.ones(TISSUE.shape[:2], bool)
    expected[:48, :48] = expected[48:96, 96:144] = False
    np.testing.assert_array_equal(valid, expected)
    # The colours of YCbCr are rounded.
    assert np.abs(pixels[valid].astype(int) - TISSUE[valid]).max() <= (compression == 33003)
    assert (pixels[~valid] == 0).all()


def test_a_tiff_of_no_scanner_and_focal_planes_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.svs", TISSUE, tile=(48, 48), resolution=(72, 72))
    with pytest.raises(FormatError, match="set `format: tiff`"):
        spec_of(tmp_path / "a.svs")
    write_aperio(tmp_path / "b.svs", TISSUE, factors=(1, 1, 4))
    with pytest.raises(FormatError, match="3 pictures at full resolution, focal planes"):
        spec_of(tmp_path / "b.svs")
    (tmp_path / "c.svs").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(60))
    with pytest.raises(FormatError, match=r"slide in TIFF by its suffix \.svs, but its content is"):
        formats.describe(str(tmp_path / "c.svs"))


# ---- OpenSlide
# --------------------------------------------------------------------------------------------------


def test_slides_of_other_scanners_are_read_by_openslide(tmp_path: Path) -> None:
    pytest.importorskip("openslide")
    write_philips(tmp_path / "a.tiff", TISSUE, (0.00025, 0.00026))
    spec = spec_of(tmp_path / "a.tiff")
    assert (spec.shape, spec.dtype, spec.interpretation) == ((239, 311), "uint8", "rgb")
    assert spec.space.metric is not None
    assert spec.space.metric.spacing == pytest.approx((0.25, 0.26))
    assert "label and macro pictures in the file are not" in spec.notes[0]
    with tifffile.TiffFile(tmp_path / "a.tiff") as file:
        np.testing.assert_array_equal(read(spec)[0], file.pages[0].asarray())
    half = spec_of(tmp_path / "a.tiff", level=um("0.6"))
    assert (half.level, half.shape) == (1, (119, 155))
    for each in (spec, half):
        pixels, valid = read(each)
        assert valid.all()
        assert not near(pixels, LABEL)
        assert not near(pixels, MACRO)
    with pytest.raises(FormatError, match="no level 2"):
        spec_of(tmp_path / "a.tiff", level=2)


def test_a_slide_of_several_files_is_read_where_it_is_named(tmp_path: Path) -> None:
    pytest.importorskip("openslide")
    pixels = np.tile(TISSUE, (2, 2, 1))[:256, :512]
    macro = np.full((64, 128, 3), MACRO, np.uint8)
    for name, picture in (("0", pixels), ("map", pixels[::4, ::4]), ("macro", macro)):
        Image.fromarray(np.ascontiguousarray(picture)).save(
            tmp_path / f"a-{name}.jpg", quality=95, subsampling=0, restart_marker_blocks=8
        )
    (tmp_path / "a.vms").write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\n"
        "ImageFile=a-0.jpg\nMapFile=a-map.jpg\nMacroImage=a-macro.jpg\nSourceLens=20\n"
        "PhysicalWidth=128000\nPhysicalHeight=64000\n"
        "PhysicalMacroWidth=1000000\nPhysicalMacroHeight=1000000\n"
    )
    spec = formats.describe(str(tmp_path / "a.vms"))
    assert (spec.format, spec.shape) == ("slide", (256, 512))
    assert spec.space.metric == Metric((0.25, 0.25), "um")
    np.testing.assert_array_equal(read(spec)[0], np.asarray(Image.open(tmp_path / "a-0.jpg")))
    (tmp_path / "a-0.jpg").unlink()
    with pytest.raises(FormatError, match=r"a\.vms .*copy or export it again|all its files"):
        formats.describe(str(tmp_path / "a.vms"))


def test_a_plain_tiled_tiff_is_no_slide_whatever_openslide_says(tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide")
    tifffile.imwrite(
        tmp_path / "a.tif", TISSUE, tile=(48, 48), resolution=(72, 72), resolutionunit=2
    )
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(352.78, abs=0.01)
    with pytest.raises(FormatError, match="a TIFF that no slide scanner wrote"):
        spec_of(tmp_path / "a.tif")
    assert formats.describe(str(tmp_path / "a.tif")).space.unit == "px"


def test_levels_read_by_openslide_do_not_depend_on_the_box(tmp_path: Path) -> None:
    """A level whose factor is no whole number: OpenSlide interpolates, by where a region begins."""
    pytest.importorskip("openslide")
    wide = np.tile(TISSUE, (6, 8, 1))
    write_aperio(tmp_path / "a.svs", wide, factors=(2,))
    from maskloom.segcore.formats.slide.vendors import OpenSlide
    from maskloom.segcore.formats.source import StoredFile

    slide = OpenSlide.read(StoredFile.of(str(tmp_path / "a.svs")))
    spec = slide.pyramid.spec("v1", ReadOptions(level=1))
    assert spec.space.metric == spec_of(tmp_path / "a.svs", level=1).space.metric
    with slide.open(spec) as reader:
        image = check.whole(reader, spec)

        @given(box=check.boxes(spec.shape))
        def compare(box: Box) -> None:
            check.check_box(reader, spec, image, box)

        compare()
    ours, _ = read(spec_of(tmp_path / "a.svs", level=1))
    assert np.abs(image[0].astype(int) - ours).mean() < 1


def test_without_openslide_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiles(tmp_path / "a.svs", TISSUE, 33003)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(FormatError, match=r"pip install 'maskloom\[microscopy\]'"):
        spec_of(tmp_path / "a.svs")


def test_slides_of_other_scanners_in_object_stores_are_refused_in_words(tmp_path: Path) -> None:
    pytest.importorskip("openslide")
    import fsspec

    write_tiles(tmp_path / "a.svs", TISSUE, 33003)
    with fsspec.open("memory://slides/a.svs", "wb") as file:
        file.write((tmp_path / "a.svs").read_bytes())
    with pytest.raises(FormatError, match="read from disks only"):
        Slide().describe("memory://slides/a.svs", "v1")
