"""The contract of formats, as functions that any test can call on a format and a file.

spec = image_format.describe(location, version)
check_spec(spec)
with image_format.open(spec) as reader:
    check_box(reader, spec, whole(reader, spec), box)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.geometry import Box, Grid
from maskloom.segcore.raster.stored import StoredImage, split_part, uri_of_part

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import Format, OptionsFormat, RasterSpec, Reader
    from maskloom.segcore.raster.stored import ReadOptions

Image = tuple["NDArray[Any]", "NDArray[np.bool_]"]
"""Pixels and `valid`."""


def boxes(shape: Shape) -> SearchStrategy[Box]:
    """Boxes inside a raster of this shape, single pixels and the whole included."""
    from hypothesis import strategies

    ends = [
        strategies.tuples(strategies.integers(0, n - 1), strategies.integers(1, n)) for n in shape
    ]
    return strategies.tuples(*ends).map(
        lambda ranges: Box(
            tuple(min(a, b - 1) for a, b in ranges), tuple(max(a + 1, b) for a, b in ranges)
        )
    )


def whole(reader: Reader, spec: RasterSpec) -> Image:
    """The whole raster, read at once."""
    return reader.read(Box.whole(spec.shape))


def check_spec(spec: RasterSpec) -> None:
    """A spec is consistent and pickles."""
    import pickle

    assert len(spec.chunks) == len(spec.shape)
    assert all(1 <= chunk <= n for chunk, n in zip(spec.chunks, spec.shape, strict=True)), (
        "a chunk lies within the raster"
    )
    assert spec.bands == tuple(range(1, spec.file_bands + 1)), "by default all data bands are read"
    assert np.dtype(spec.dtype).name == spec.dtype
    assert np.dtype(spec.dtype).kind in "uif"
    assert spec.interpretation == "bands" or spec.file_bands >= 3
    assert spec.space.crs is None or spec.space.affine is not None, (
        "a coordinate system without a transform is of no use"
    )
    assert repr(pickle.loads(pickle.dumps(spec))) == repr(spec)


def check_parts(image_format: OptionsFormat, location: str, options: ReadOptions) -> list[Image]:
    """Each part of a file is an image of its own; returns them in order. A file without parts is
    one image.
    """
    stored = StoredImage(location, "1")
    names = image_format.parts(stored, options)
    assert len(set(names)) == len(names), "no two parts have one name"
    assert list(names) == list(image_format.parts(stored, options)), "the order is always the same"
    images = []
    for name in names or [""]:
        assert not name or split_part(uri_of_part(location, name, len(names)))[1] == name
        spec = image_format.describe_image(replace(stored, part=name), options)
        assert (spec.location, spec.version, spec.part) == (location, "1", name)
        check_spec(spec)
        with image_format.open(spec) as reader:
            images.append(whole(reader, spec))
    return images


def check_box(reader: Reader, spec: RasterSpec, image: Image, box: Box) -> None:
    """A box equals its part of the whole, in type, pixels and `valid`, and belongs to the
    caller.
    """
    for _ in range(2):
        pixels, valid = reader.read(box)
        assert pixels.shape == (*box.shape, spec.channels)
        assert pixels.dtype == spec.dtype
        assert valid.shape == box.shape
        assert valid.dtype == np.bool_
        np.testing.assert_array_equal(pixels, image[0][box.slices])
        np.testing.assert_array_equal(valid, image[1][box.slices])
        assert np.isfinite(pixels).all(), "what is not finite comes out as 0"
        # The second read must not show this.
        pixels[...] = 0
        valid[...] = False


def check_chunks(reader: Reader, spec: RasterSpec, image: Image) -> None:
    """Chunks can be read like any other box, and together they are the image."""
    for tile in Grid(spec.shape, spec.chunks):
        check_box(reader, spec, image, tile.core)


def check_bands(image_format: Format, spec: RasterSpec, image: Image) -> None:
    """Selected bands are delivered in the requested order."""
    for bands in {spec.bands[::-1], spec.bands[-1:], spec.bands[:1] * 2}:
        with image_format.open(spec.select(bands)) as reader:
            pixels, valid = whole(reader, spec)
        expected = image[0][..., [band - 1 for band in bands]]
        # Which pixels are data may depend on the bands that are read; a pixel that is data in all
        # bands is data in each.
        both = valid & image[1]
        assert pixels.shape == expected.shape
        np.testing.assert_array_equal(pixels[both], expected[both])
