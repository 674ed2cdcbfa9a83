"""The contract of formats over the whole registry: any box equals its part of the whole, for every
sample of every format.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING

import cv2
import fsspec
import numpy as np
import pytest
import rasterio
import tifffile
from dicom_support import encoded, enhanced, slice_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.enums import ColorInterp
from skimage import data
from slides_support import RGB_JPEG, write_aperio, write_tiles

from maskloom.segcore import formats
from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS, Format, RasterSpec, Reader
from maskloom.segcore.testing import formats as check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PHOTO = data.astronaut()[100:197, 150:293]
"""Prime sides: no block size divides them."""


def tiff(path: Path, bands: np.ndarray, **profile: object) -> None:
    count, height, width = bands.shape
    mask = profile.pop("mask", None)
    colours = profile.pop("colorinterp", None)
    palette = profile.pop("palette", None)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=width,
            height=height,
            count=count,
            dtype=bands.dtype,
            **profile,
        ) as file,
    ):
        if colours is not None:
            file.colorinterp = colours
        if palette is not None:
            file.write_colormap(1, palette)
        file.write(bands)
        if mask is not None:
            file.write_mask(mask)


def planes(dtype: str = "uint8", count: int = 3) -> np.ndarray:
    bands = np.moveaxis(np.concatenate([PHOTO, PHOTO[::-1]], axis=-1)[..., :count], -1, 0)
    return (
        bands.astype(dtype) * 200
        if np.dtype(dtype).itemsize > 1
        else (bands.astype(int) - 128 * (dtype == "int8")).astype(dtype)
    )


def holes() -> np.ndarray:
    mask = np.ones(PHOTO.shape[:2], bool)
    mask[10:60, 30:70] = mask[-1] = False
    return mask


def with_gaps(dtype: str) -> np.ndarray:
    bands = planes(dtype)
    bands[1, ~holes()] = np.nan
    bands[0, 3, 4] = np.inf
    return bands


RGBA = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
ALPHA = np.concatenate([planes(), holes()[None] * np.uint8(200)])
TILED = {"tiled": True, "blockxsize": 32, "blockysize": 16}
PALETTE = {
    value: (value, 255 - value, value // 2, 0 if value == 7 else 255) for value in range(256)
}
TIFFS: dict[str, Callable[[Path], None]] = {
    "tiled.tif": lambda p: tiff(
        p, planes(), compress="deflate", interleave="pixel", photometric="RGB", **TILED
    ),
    "planar.tif": lambda p: tiff(p, planes("uint16"), compress="lzw", interleave="band", **TILED),
    "strips.tif": lambda p: tiff(p, planes("int16"), blockysize=7, nodata=0),
    "one_strip.tif": lambda p: tiff(p, planes("float64", 1), compress="zstd", blockysize=97),
    "int8.tif": lambda p: tiff(p, planes("int8"), compress="deflate"),
    "int32.tiff": lambda p: tiff(p, planes("int32", 2), BIGTIFF="YES", nodata=0),
    "uint32.tif": lambda p: tiff(p, planes("uint32", 6), nodata=200, **TILED),
    "nan.tif": lambda p: tiff(p, with_gaps("float32"), nodata=float("nan"), **TILED),
    "infinite.tif": lambda p: tiff(p, with_gaps("float64")),
    "mask.tif": lambda p: tiff(p, planes(), mask=holes(), photometric="RGB", **TILED),
    "alpha.tif": lambda p: tiff(
        p, ALPHA, colorinterp=RGBA, photometric="RGB", compress="lzw", **TILED
    ),
    "grey_alpha.tif": lambda p: tiff(
        p, ALPHA[2:], colorinterp=[ColorInterp.gray, ColorInterp.alpha]
    ),
    "palette.tif": lambda p: tiff(
        p, planes(count=1), palette=PALETTE, photometric="palette", nodata=3, **TILED
    ),
    "channels.tif": lambda p: tifffile.imwrite(
        p,
        planes("uint16", 4),
        ome=True,
        metadata={"axes": "CYX"},
        tile=(32, 48),
        compression="zlib",
    ),
    "stack.tif": lambda p: tifffile.imwrite(
        p, planes("float32", 2), imagej=True, metadata={"axes": "CYX"}
    ),
    "volume.tif": lambda p: tifffile.imwrite(
        p,
        np.stack([planes("uint16"), planes("uint16")[::-1]]),
        ome=True,
        metadata={"axes": "ZCYX"},
        tile=(32, 48),
        compression="zlib",
    ),
    "hyperstack.tif": lambda p: tifffile.imwrite(
        p, np.stack([with_gaps("float32")] * 3), imagej=True, metadata={"axes": "ZCYX"}
    ),
    "white.tif": lambda p: tiff(
        p, planes("uint16", 1), photometric="MINISWHITE", nodata=200, **TILED
    ),
    "bits.tif": lambda p: tiff(p, planes(count=1) // 128, nbits=1, compress="CCITTFAX4"),
}


def picture(mode: str, **options: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        image = Image.fromarray(PHOTO).convert("RGB").convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.fromarray(holes() * np.uint8(255)))
        image.save(path, **options)

    return write


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


PICTURES: dict[str, Callable[[Path], None]] = {
    "rgb.png": picture("RGB"),
    "grey.png": picture("L"),
    "bilevel.png": picture("1"),
    "rgba.png": picture("RGBA"),
    "grey_alpha.png": picture("LA"),
    "palette.png": picture("P", transparency=9),
    "deep.png": lambda p: p.write_bytes(
        cv2.imencode(".png", PHOTO.astype(np.uint16) * 257)[1].tobytes()
    ),
    "deep_grey.png": lambda p: Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257).save(p),
    "photo.jpg": picture("RGB"),
    "grey.jpeg": picture("L"),
    "turned.jpg": picture("RGB", exif=turned()),
    "ink.jpe": picture("CMYK"),
    "plain.bmp": picture("RGB"),
    "palette.bmp": picture("P"),
    "alpha.webp": picture("RGBA", lossless=True),
}


def array(pixels: np.ndarray, **options: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        zarr = pytest.importorskip("zarr")
        made = zarr.create_array(path, shape=pixels.shape, dtype=pixels.dtype, **options)
        made[...] = pixels

    return write


def multiscale(path: Path) -> None:
    """OME-Zarr 0.4: an image of full and half resolution."""
    zarr = pytest.importorskip("zarr")
    pixels = np.moveaxis(PHOTO, -1, 0)[None, :, None]
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for name, level in (("0", pixels), ("1", pixels[..., ::2, ::2])):
        group.create_array(name, data=level, chunks=(1, 1, 1, 40, 50))
    axes = [{"name": name} for name in "tczyx"]
    datasets = [{"path": name} for name in "01"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


VOLUME = np.stack([PHOTO[::3, ::4, 0] // n for n in range(1, 12)])
ARRAYS: dict[str, Callable[[Path], None]] = {
    "plain.zarr": array(PHOTO[..., 0], chunks=(40, 64)),
    "second.zarr": array(planes("uint16", 1)[0], chunks=(32, 32), zarr_format=2),
    "bands.zarr": array(planes("int16", 4), chunks=(2, 33, 47), dimension_names=("band", "y", "x")),
    "turned.zarr": array(
        PHOTO.transpose(1, 0, 2), chunks=(50, 50, 3), dimension_names=("x", "y", "c")
    ),
    "shards.zarr": array(PHOTO[..., 1], chunks=(16, 16), shards=(64, 64)),
    "gaps.zarr": array(
        np.moveaxis(with_gaps("float32"), 0, -1),
        chunks=(97, 50, 2),
        dimension_names=("y", "x", "channel"),
    ),
    "big_endian.zarr": array(PHOTO[..., 0].astype(">i4") * 1000, chunks=(50, 50), zarr_format=2),
    "levels.zarr": multiscale,
    "volume.zarr": array(VOLUME, chunks=(3, 20, 16)),
    "half.zarr": array(with_gaps("float16")[0], chunks=(50, 40), zarr_format=2),
    "unfilled.zarr": array(VOLUME, chunks=(3, 20, 16), zarr_format=2, fill_value=None),
}


def archive(compressed: bool = False, **arrays: object) -> Callable[[Path], None]:
    save = np.savez_compressed if compressed else np.savez
    return lambda path: save(path, **arrays)


NUMPY: dict[str, Callable[[Path], None]] = {
    "image.npy": lambda p: np.save(p, PHOTO[..., 0]),
    "volume.npy": lambda p: np.save(p, VOLUME.astype(">i2") * 100),
    "columns.npy": lambda p: np.save(p, np.asfortranarray(VOLUME.astype("uint32"))),
    "truth.npy": lambda p: np.save(p, VOLUME > 50),
    "gaps.npy": lambda p: np.save(p, np.where(VOLUME > 30, VOLUME, np.nan)),
    "plain.npz": archive(pixels=VOLUME.astype("float16")),
    "bands.npz": archive(True, pixels=PHOTO, axes="yxb", spacing=[0.5, 0.25], unit="um"),
    "columns.npz": archive(pixels=np.asfortranarray(VOLUME), axes="zyx"),
    "voxels.npz": archive(
        True, pixels=np.stack([VOLUME, 255 - VOLUME], -1), axes="zyxb", spacing=[3, 1, 1], unit="mm"
    ),
}


AFFINE = np.array([[0, -0.5, 0, 9], [0.75, 0, 0, -8], [0, 0, -3, 7], [0, 0, 0, 1]])


def nifti(pixels: np.ndarray, *, kind: str = "Nifti1Image", slope: float = 1.0) -> Callable:
    """A volume (z, y, x), or (band, time, z, y, x), with x fastest in the file."""

    def write(path: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        made = getattr(nibabel, kind)(pixels.T, AFFINE)
        if slope != 1.0:
            made.header.set_slope_inter(slope, -7.5)
        nibabel.save(made, path)

    return write


def mgh(path: Path) -> None:
    freesurfer = pytest.importorskip("nibabel.freesurfer")
    freesurfer.MGHImage(VOLUME.T.astype(np.float32), AFFINE).to_filename(path)


COLOURS = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
SCANS: dict[str, Callable[[Path], None]] = {
    "plain.nii": nifti(VOLUME),
    "packed.nii.gz": nifti(VOLUME.astype(np.int16) * 100),
    "big_endian.nii": nifti(VOLUME.astype(">f8")),
    "scaled.nii.gz": nifti(VOLUME.astype(np.int16), slope=0.0754),
    "gaps.nii.gz": nifti(np.where(VOLUME > 30, VOLUME, np.nan).astype(np.float32)),
    "vectors.nii": nifti(np.stack([VOLUME, VOLUME // 2, 255 - VOLUME])[:, None]),
    "colours.nii.gz": nifti(np.stack([VOLUME, VOLUME // 2, 9 - VOLUME], -1).view(COLOURS)[..., 0]),
    "second.nii": nifti(VOLUME, kind="Nifti2Image"),
    "slice.nii": nifti(VOLUME[0]),
    "scan.mgz": mgh,
    "scan.mgh": mgh,
}


def nrrd(pixels: np.ndarray, **header: object) -> Callable[[Path], None]:
    """A volume, its axes as in NumPy; the header has them in reverse."""

    def write(path: Path) -> None:
        writer = pytest.importorskip("nrrd")
        writer.write(str(path), pixels, header, index_order="C")

    return write


LPS = {
    "space": "left-posterior-superior",
    "space directions": [[0.5, 0, 0], [0, -0.5, 0], [0, 0, 3]],
    "space origin": [1, 2, 3],
}
VECTORS = {**LPS, "space directions": [[np.nan] * 3, *LPS["space directions"]]}
NRRDS: dict[str, Callable[[Path], None]] = {
    "raw.nrrd": nrrd(VOLUME.astype(">i2"), encoding="raw", endian="big", **LPS),
    "packed.nrrd": nrrd(VOLUME, encoding="gzip", **LPS),
    "bzip2.nrrd": nrrd(VOLUME.astype(np.float32), encoding="bzip2"),
    "colours.nrrd": nrrd(
        np.stack([VOLUME, VOLUME // 2, 9 - VOLUME], -1),
        kinds=["RGB-color", "domain", "domain", "domain"],
        **VECTORS,
    ),
}


def metaimage(pixels: np.ndarray, *lines: str, packed: bool = False) -> Callable[[Path], None]:
    """A volume (z, y, x), or (z, y, x, channel), of bytes."""

    def write(path: Path) -> None:
        sizes = " ".join(map(str, pixels.shape[2::-1]))
        head = ["ObjectType = Image", "NDims = 3", f"DimSize = {sizes}", *lines]
        head += ["ElementDataFile = LOCAL", ""]
        content = zlib.compress(pixels.tobytes()) if packed else pixels.tobytes()
        path.write_bytes("\n".join(head).encode() + content)

    return write


METAIMAGES: dict[str, Callable[[Path], None]] = {
    "raw.mha": metaimage(
        VOLUME.astype(">i2"), "ElementType = MET_SHORT", "ElementByteOrderMSB = True"
    ),
    "packed.mha": metaimage(
        VOLUME,
        "ElementType = MET_UCHAR",
        "CompressedData = True",
        "ElementSpacing = 0.5 0.5 3",
        packed=True,
    ),
    "channels.mha": metaimage(
        np.stack([VOLUME, 255 - VOLUME], -1),
        "ElementNumberOfChannels = 2",
        "ElementType = MET_UCHAR",
    ),
}


def dicom(**elements: object) -> Callable[[Path], None]:
    return lambda p: p.write_bytes(encoded(slice_of(**elements)))


SCAN = VOLUME.astype("int16") * 10
SERIES: dict[str, Callable[[Path], None]] = {
    "slice.dcm": dicom(pixels=SCAN[0], RescaleSlope=1, RescaleIntercept=-1024),
    "dose.ima": dicom(pixels=SCAN[1], RescaleSlope=0.25, PixelPaddingValue=30),
    "colours.dicom": dicom(pixels=PHOTO[:, :-1], position=None),
    "frames.dcm": lambda p: p.write_bytes(encoded(enhanced(SCAN))),
    "map.dcm": dicom(pixels=np.where(SCAN[0] > 600, SCAN[0], np.nan).astype("float32")),
}
SLIDES: dict[str, Callable[[Path], None]] = {
    "jpeg.svs": lambda p: write_aperio(p, PHOTO, **RGB_JPEG),
    "grey.svs": lambda p: write_aperio(p, PHOTO[..., 0], mpp=None, compression="lzw"),
    "gaps.svs": lambda p: write_tiles(p, PHOTO, 33005, absent=(0, 4)),
}


def item(path: Path, nodata: int, *files: tuple[np.ndarray, dict[str, object]]) -> None:
    assets = {}
    for number, (bands, profile) in enumerate(files):
        name = f"{path.stem}_{number}.tif"
        tiff(path.parent / name, bands, **profile)
        said = {"href": f"./{name}", "roles": ["data"], "raster:bands": [{"nodata": nodata}]}
        assets[f"B{number}"] = said
    document = {"type": "Feature", "id": path.stem, "properties": {}, "assets": assets}
    path.write_text(json.dumps(document))


BANDS = np.moveaxis(PHOTO, -1, 0)
TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32}
ITEMS: dict[str, Callable[[Path], None]] = {
    "one.json": lambda p: item(p, 0, (BANDS, {"nodata": 9})),
    "types.json": lambda p: item(p, 3, (BANDS[:2], TILED), (BANDS[2:] * 257.0, {})),
}
SAMPLES = {
    "stac": ITEMS,
    "slide": SLIDES,
    "nifti": SCANS,
    "nrrd": NRRDS,
    "metaimage": METAIMAGES,
    "tiff": TIFFS,
    "picture": PICTURES,
    "zarr": ARRAYS,
    "array": NUMPY,
    "dicom": SERIES,
}
CASES = [(name, sample) for name in FORMATS for sample in SAMPLES.get(name, [None])]
each = pytest.mark.parametrize(("name", "sample"), CASES, ids=str)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("samples")


@pytest.fixture
def opened(name: str, sample: str, folder: Path) -> Iterator[tuple[Format, RasterSpec, Reader]]:
    assert name in SAMPLES, f"write samples of the format {name!r} here"
    path = folder / name / sample
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        SAMPLES[name][sample](path)
    if path.is_dir():
        assert formats.format_of_folder(str(path), [each.name for each in path.iterdir()]) == name
    else:
        assert formats.format_of(str(path), path.read_bytes()[:512]) == name
    spec = FORMATS[name].describe(str(path), "v1")
    with FORMATS[name].open(spec) as reader:
        yield FORMATS[name], spec, reader


@each
def test_headers_and_chunks(opened: tuple[Format, RasterSpec, Reader]) -> None:
    image_format, spec, reader = opened
    image = check.whole(reader, spec)
    check.check_spec(spec)
    check.check_chunks(reader, spec, image)
    check.check_bands(image_format, spec, image)
    assert spec.version == "v1"
    with pytest.raises(ModelMismatch, match=r"has .* band"):
        spec.select((spec.file_bands + 1,))


@each
def test_any_box_equals_its_part_of_the_whole(opened: tuple[Format, RasterSpec, Reader]) -> None:
    _, spec, reader = opened
    image = check.whole(reader, spec)

    @given(box=check.boxes(spec.shape))
    def compare(box: Box) -> None:
        check.check_box(reader, spec, image, box)

    compare()


@each
def test_any_store_gives_the_same_image(
    opened: tuple[Format, RasterSpec, Reader], name: str, sample: str, folder: Path
) -> None:
    image_format, local, reader = opened
    pixels, valid = check.whole(reader, local)
    location = f"memory://contract/{name}/{sample}"
    fs, path = fsspec.core.url_to_fs(location)
    # An item has its files beside it.
    for file in (folder / name).glob(f"{sample.partition('.')[0]}[._]*"):
        fs.put(str(file), f"{path.rpartition('/')[0]}/{file.name}", recursive=True)
    spec = image_format.describe(location, "v1")
    here = f"memory://contract/{name}/"
    assert repr(spec).replace(here, f"{folder / name}/") == repr(local)
    with image_format.open(spec) as remote:
        remote_pixels, remote_valid = check.whole(remote, spec)
    np.testing.assert_array_equal(remote_pixels, pixels)
    np.testing.assert_array_equal(remote_valid, valid)


@given(st.data())
def test_drawn_boxes_lie_inside(drawn: st.DataObject) -> None:
    shape = drawn.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    box = drawn.draw(check.boxes(shape))
    assert box & Box.whole(shape) == box
    assert box.size > 0
