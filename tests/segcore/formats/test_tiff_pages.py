"""Pages of a TIFF that is one picture: channels are bands, levels and masks are no pictures, pages
without a meaning are refused. Oracle: tifffile. Stacks are in test_tiff_stacks.py.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

import maskloom.segcore.formats  # noqa: F401  registers all formats
from maskloom.segcore.errors import FormatError, ImageError, SourceChanged
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS, RasterSpec
from maskloom.segcore.testing import formats as check

TIFF = FORMATS["tiff"]
PHOTO = data.camera()[:80, :112]
STACK = np.stack([PHOTO, 255 - PHOTO, PHOTO // 2])


def describe(path: Path | str) -> RasterSpec:
    return TIFF.describe(str(path), "v")


def read(path: Path | str, bands: tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    spec = describe(path).select(bands)
    with TIFF.open(spec) as reader:
        return reader.read(Box.whole(spec.shape))


def says(metadata: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"metadata": metadata, "photometric": "minisblack", **options}


CHANNELS = {
    "imagej": says({"axes": "CYX"}, imagej=True),
    "ome": says({"axes": "CYX"}, ome=True),
    "ome tiles": says({"axes": "CYX"}, ome=True, tile=(32, 48), compression="zlib"),
    "bigtiff": says({"axes": "CYX"}, ome=True, bigtiff=True),
    "big-endian": says({"axes": "CYX"}, ome=True, byteorder=">"),
}


# --- channels are bands ---


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("options", CHANNELS.values(), ids=CHANNELS.keys())
def test_channels_are_bands(tmp_path: Path, options: dict[str, Any], dtype: str) -> None:
    path, stack = tmp_path / "a.tif", STACK.astype(dtype)
    tifffile.imwrite(path, stack, **options)
    spec = describe(path)
    check.check_spec(spec)
    assert (spec.bands, spec.dtype, spec.interpretation) == ((1, 2, 3), dtype, "bands")
    with TIFF.open(spec) as reader:
        image = check.whole(reader, spec)
        np.testing.assert_array_equal(image[0], np.moveaxis(tifffile.imread(path), 0, -1))
        check.check_chunks(reader, spec, image)
    check.check_bands(TIFF, spec, image)
    fsspec.filesystem("memory").pipe_file("/channels/a.tif", path.read_bytes())
    np.testing.assert_array_equal(read("memory://channels/a.tif")[0], image[0])


@given(box=check.boxes(PHOTO.shape), order=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_any_box_of_any_channels(
    tmp_path_factory: pytest.TempPathFactory, box: Box, order: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "channels.tif"
    if not path.exists():
        tifffile.imwrite(path, STACK, **CHANNELS["ome tiles"])
    with TIFF.open(describe(path).select(tuple(order))) as reader:
        pixels, valid = reader.read(box)
    np.testing.assert_array_equal(
        pixels, np.moveaxis(STACK, 0, -1)[box.slices][..., [band - 1 for band in order]]
    )
    assert valid.all()


def test_an_axis_named_by_tifffile_itself_counts(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for i, plane in enumerate(STACK):
            text = '{"shape": [3, 80, 112], "axes": "CYX"}' if i == 0 else None
            file.write(plane, description=text, metadata=None, photometric="minisblack")
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0], np.moveaxis(STACK, 0, -1))


def test_channels_lie_where_the_ome_metadata_says(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.tif", STACK, [(2, 0), (0, 1), (1, 2)])
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0], np.moveaxis(STACK[[2, 0, 1]], 0, -1))


def test_a_channel_with_white_as_0_is_inverted_and_nodata_of_any_channel_hides_a_pixel(
    tmp_path: Path,
) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        STACK,
        imagej=True,
        metadata={"axes": "CYX"},
        photometric="miniswhite",
        extratags=[(42113, "s", 0, "7", False)],
    )
    pixels, valid = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels, 255 - np.moveaxis(STACK, 0, -1))
    np.testing.assert_array_equal(valid, ~(STACK == 7).any(axis=0))


def write_ome(
    path: Path, planes: np.ndarray, places: list[tuple[int, int]], old: str = "", new: str = ""
) -> None:
    """An OME-TIFF with a plane a page; `places` are (page, channel). In its metadata `old` is
    replaced by `new`.
    """
    height, width = planes.shape[1:]
    blocks = "".join(
        f'<TiffData IFD="{page}" FirstC="{channel}" PlaneCount="1"/>' for page, channel in places
    )
    text = (
        '<?xml version="1.0"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<Image ID="I:0" Name="cells"><Pixels ID="P:0" Type="uint8" DimensionOrder="XYZCT" '
        f'SizeX="{width}" SizeY="{height}" SizeC="{len(planes)}" SizeZ="1" SizeT="1">'
        f"{blocks}</Pixels></Image></OME>"
    ).replace(old, new)
    with tifffile.TiffWriter(path) as file:
        for i, plane in enumerate(planes):
            file.write(
                plane, description=text if i == 0 else None, metadata=None, photometric="minisblack"
            )


# --- more than one picture is refused ---

SEVERAL = {
    "pages of which nothing is said": (
        {"metadata": None},
        STACK,
        "holds 3 pages, and does not say what they are",
    ),
    "pages by tifffile": ({}, STACK, "holds 3 pages"),
    "many pages": (
        {"metadata": None},
        np.repeat(STACK[:1, :16, :16], 40, axis=0),
        "holds 40 pages",
    ),
    "planes behind one directory": (
        {"metadata": {"axes": "QYX"}, "truncate": True},
        STACK,
        "holds 3 pages",
    ),
}


@pytest.mark.parametrize(("options", "stack", "message"), SEVERAL.values(), ids=SEVERAL.keys())
def test_several_pictures_are_refused_with_what_they_are_and_what_to_do(
    tmp_path: Path, options: dict[str, Any], stack: np.ndarray, message: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", **options)
    with pytest.raises(FormatError, match=message) as caught:
        describe(tmp_path / "a.tif")
    assert "a.tif" in str(caught.value)
    assert "`axes: zyx`" in str(caught.value)
    assert "Write each into a file of its own" in str(caught.value)


def test_subdatasets_of_gdal_are_refused(tmp_path: Path) -> None:
    for append in (False, True):
        with rasterio.open(
            tmp_path / "a.tif",
            "w",
            driver="GTiff",
            width=112,
            height=80,
            count=1,
            dtype="uint8",
            APPEND_SUBDATASET=append,
        ) as file:
            file.write(PHOTO, 1)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert len(file.pages) == 2
    with pytest.raises(FormatError, match=r"holds 2 pages.*GTIFF_DIR:2"):
        describe(tmp_path / "a.tif")


def test_parts_in_other_files_and_pages_that_are_missing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_ome(path, STACK, [(0, 0), (1, 1), (7, 2)])
    with pytest.raises(FormatError, match="page 8 is not in the file"):
        describe(path)
    write_ome(
        path,
        STACK,
        [(0, 0)],
        ' PlaneCount="1"/>',
        '><UUID FileName="b.tif">urn:uuid:2</UUID></TiffData>',
    )
    with pytest.raises(FormatError, match=r"several files .* is in b\.tif"):
        describe(path)
    write_ome(
        path,
        STACK,
        [(i, i) for i in range(3)],
        ' PlaneCount="1"/>',
        '><UUID FileName="b.tif">urn:uuid:1</UUID></TiffData>',
    )
    np.testing.assert_array_equal(read(path)[0], np.moveaxis(STACK, 0, -1))
    text = '<OME><BinaryOnly MetadataFile="x.companion.ome" UUID="urn:uuid:2"/></OME>'
    tifffile.imwrite(path, PHOTO, description=text, metadata=None)
    with pytest.raises(FormatError, match=r"metadata are in another file \(x\.companion\.ome\)"):
        describe(path)


def test_channels_of_unequal_size_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(PHOTO, description="ImageJ=1.53\nimages=2\nchannels=2\n", metadata=None)
        file.write(PHOTO[:40], metadata=None)
    with pytest.raises(FormatError, match="channel 2 has 112 x 40 pixels"):
        describe(tmp_path / "a.tif")


def test_a_thumbnail_does_not_pass_for_the_picture_in_a_sub_directory(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "raw.tif") as file:
        file.write(PHOTO[::8, ::8], subfiletype=1, subifds=1, metadata=None)
        file.write(PHOTO, subfiletype=0, metadata=None)
    with pytest.raises(
        FormatError,
        match=r"14 x 10 pixels and is a reduced picture.*112 x 80 lies in a sub-directory",
    ):
        describe(tmp_path / "raw.tif")


def test_ome_metadata_that_expands_is_refused(tmp_path: Path) -> None:
    bomb = '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "aaaaaaaaaa">]><OME>&a;</OME>'
    tifffile.imwrite(tmp_path / "a.tif", PHOTO, description=bomb, metadata=None)
    with pytest.raises(FormatError, match="document type"):
        describe(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", PHOTO, description="<OME><Image>", metadata=None)
    with pytest.raises(FormatError, match="cannot be read"):
        describe(tmp_path / "b.tif")


# --- what belongs to a picture is none of its own ---


@pytest.mark.parametrize("chained", [True, False])
def test_levels_of_a_pyramid_and_masks_belong_to_the_picture(tmp_path: Path, chained: bool) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(PHOTO, tile=(32, 32), metadata=None, subifds=0 if chained else 2)
        for factor in (2, 4):
            file.write(PHOTO[::factor, ::factor], tile=(16, 16), subfiletype=1, metadata=None)
        file.write(PHOTO > 50, photometric="mask", subfiletype=4, metadata=None)
        file.write(PHOTO[::2, ::2] > 50, photometric="mask", subfiletype=5, metadata=None)
    pixels, valid = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels[..., 0], PHOTO)
    np.testing.assert_array_equal(valid, PHOTO > 50)


@pytest.mark.parametrize(
    "options",
    [{"ome": True}, {"imagej": True}, {}, {"metadata": None, "planarconfig": "separate"}],
    ids=str,
)
def test_one_page_with_all_colours_is_one_picture(tmp_path: Path, options: dict[str, Any]) -> None:
    colours = data.astronaut()[:80, :112]
    planes = np.moveaxis(colours, -1, 0) if "planarconfig" in options else colours
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", **options)
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0], colours)
    assert (describe(tmp_path / "a.tif").interpretation, describe(tmp_path / "a.tif").notes) == (
        "rgb",
        (),
    )


def test_overviews_that_gdal_builds_belong_to_the_picture(tmp_path: Path) -> None:
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=112, height=80, count=1, dtype="uint8"
    ) as file:
        file.write(PHOTO, 1)
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.build_overviews([2, 4, 8])
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0][..., 0], PHOTO)


def test_the_pyramid_of_each_channel_belongs_to_it(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        file.write(
            STACK, subifds=1, tile=(32, 32), metadata={"axes": "CYX"}, photometric="minisblack"
        )
        file.write(STACK[:, ::2, ::2], subfiletype=1, tile=(32, 32))
    np.testing.assert_array_equal(read(tmp_path / "a.ome.tif")[0], np.moveaxis(STACK, 0, -1))


def write_slide(path: Path, further: bool = False) -> None:
    """As Aperio scanners do: a level without a mark, a thumbnail, a label and a macro picture."""
    slide = np.kron(data.astronaut()[:128, :192], np.ones((2, 2, 1), np.uint8))
    options: dict[str, Any] = {"metadata": None, "photometric": "rgb", "software": False}
    with tifffile.TiffWriter(path) as file:
        file.write(
            slide,
            tile=(64, 64),
            description="Aperio Image Library v12\n384x256 (64x64)|MPP = 0.5",
            **options,
        )
        file.write(
            slide[::3, ::3], description="Aperio Image Library v12\n384x256 -> 128x86", **options
        )
        file.write(
            slide[::4, ::4],
            tile=(64, 64),
            description="Aperio Image Library v12\n384x256 -> 96x64",
            **options,
        )
        file.write(
            slide[:90, :40],
            subfiletype=1,
            description="Aperio Image Library v12\nlabel 40x90",
            **options,
        )
        file.write(
            slide[:50, :140],
            subfiletype=9,
            description="Aperio Image Library v12\nmacro 140x50",
            **options,
        )
        if further:
            file.write(slide, tile=(64, 64), **options)


def test_of_a_slide_the_slide_alone_is_read_and_that_is_said(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif")
    spec = describe(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(read(tmp_path / "a.tif")[0], file.pages[0].asarray())
    assert "label and macro pictures in the file are not" in spec.notes[0]
    write_slide(tmp_path / "b.tif", further=True)
    with pytest.raises(FormatError, match=r"holds 6 pages of the kind .svs., which are no stack"):
        describe(tmp_path / "b.tif")


def test_label_and_macro_of_a_converted_slide_are_not_read(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for name, factor in (("slide", 1), ("label image", 4), ("macro image", 5)):
            file.write(PHOTO[::factor, ::factor], metadata={"axes": "YX", "Name": name})
    np.testing.assert_array_equal(read(tmp_path / "a.ome.tif")[0][..., 0], PHOTO)
    assert "label and macro" in describe(tmp_path / "a.ome.tif").notes[0]


@pytest.mark.parametrize(
    "options", [{}, CHANNELS["imagej"], CHANNELS["ome"]], ids=["tifffile", "imagej", "ome"]
)
def test_a_description_that_was_left_over_by_a_crop_counts_for_nothing(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, **options) if options else tifffile.imwrite(
        tmp_path / "a.tif", PHOTO
    )
    with rasterio.open(tmp_path / "a.tif") as file:
        part, tags = file.read(window=((8, 40), (0, 60))), file.tags()
    with rasterio.open(
        tmp_path / "b.tif", "w", driver="GTiff", width=60, height=32, count=1, dtype="uint8"
    ) as file:
        file.write(part)
        file.update_tags(TIFFTAG_IMAGEDESCRIPTION=tags["TIFFTAG_IMAGEDESCRIPTION"])
    np.testing.assert_array_equal(read(tmp_path / "b.tif")[0][..., 0], PHOTO[8:40, :60])


@pytest.mark.parametrize(
    "options",
    [
        says({"axes": "ZYX"}, imagej=True),
        CHANNELS["imagej"],
        CHANNELS["ome"],
        says({"axes": "TYX"}, ome=True),
    ],
    ids=str,
)
def test_a_page_that_was_taken_out_of_a_stack_is_read_and_its_description_spoken_of(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, **options)
    rasterio.shutil.copy(f"GTIFF_DIR:1:{tmp_path / 'a.tif'}", tmp_path / "b.tif", driver="GTiff")
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert len(file.pages) == 1
        assert file.pages[0].description
    np.testing.assert_array_equal(read(tmp_path / "b.tif")[0][..., 0], PHOTO)
    assert "speaks of 3 pictures; the file holds one" in describe(tmp_path / "b.tif").notes[0]


def test_the_advice_for_pages_of_which_nothing_is_said_leads_to_files_that_are_read(
    tmp_path: Path,
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack")
    for number, plane in enumerate(STACK, 1):
        rasterio.shutil.copy(
            f"GTIFF_DIR:{number}:{tmp_path / 'a.tif'}", tmp_path / f"{number}.tif", driver="GTiff"
        )
        np.testing.assert_array_equal(read(tmp_path / f"{number}.tif")[0][..., 0], plane)


def test_numbers_of_ome_metadata_that_nobody_can_have_cost_nothing(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.tif", STACK, [(0, 0), (1, 1)], 'SizeC="3"', 'SizeC="999999999"')
    with pytest.raises(FormatError, match="999999999 channels"):
        describe(tmp_path / "a.tif")
    write_ome(tmp_path / "b.tif", STACK, [(999999999, 999999999)])
    np.testing.assert_array_equal(read(tmp_path / "b.tif")[0], np.moveaxis(STACK, 0, -1))


# --- broken structure ---


def test_a_chain_that_leads_beyond_the_end_is_damage(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PHOTO, metadata=None)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * count, len(content) + 1000)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(FormatError, match="damaged or incomplete"):
        describe(tmp_path / "a.tif")
    struct.pack_into("<I", content, first + 2 + 12 * count, first)
    (tmp_path / "a.tif").write_bytes(content)
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0][..., 0], PHOTO)


@given(
    damage=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=8),
    kind=st.sampled_from(["imagej", "ome"]),
)
def test_damaged_stacks_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]], kind: str
) -> None:
    path, sample = (
        tmp_path_factory.getbasetemp() / f"{kind}.tif",
        tmp_path_factory.getbasetemp() / f"{kind}.sample.tif",
    )
    if not sample.exists():
        tifffile.imwrite(sample, STACK[:, :4, :4], **CHANNELS[kind])
    content = bytearray(sample.read_bytes())
    for place, value in damage:
        content[place % len(content)] = value
    path.write_bytes(content)
    try:
        spec = describe(path)
        with TIFF.open(spec) as reader:
            reader.read(Box.whole(spec.shape) & Box((0, 0), (64, 64)))
    except ImageError as error:
        assert path.name in str(error)


def test_a_stack_that_changed_after_planning_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, **CHANNELS["imagej"])
    spec = describe(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif", STACK[:2], **CHANNELS["imagej"])
    with pytest.raises(SourceChanged, match="changed since"):
        TIFF.open(spec)
