"""Arrays of NumPy as images and volumes: what their axes mean, sizes, and what is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.segcore import formats
from maskloom.segcore.errors import FormatError, ReadError, SourceChanged
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.space import Metric

VOLUME = np.arange(6 * 7 * 8, dtype=np.uint16).reshape(6, 7, 8)


def read(path: Path) -> np.ndarray:
    spec = formats.describe(str(path))
    with formats.open_image(spec) as reader:
        return reader.read(Box.whole(spec.shape))[0]


def test_the_axes_of_an_array_are_never_bands(tmp_path: Path) -> None:
    """Three planes are three planes, however much they look like red, green and blue."""
    np.save(tmp_path / "image.npy", VOLUME[0])
    np.save(tmp_path / "volume.npy", VOLUME[:, :, :3])
    image, volume = (formats.describe(str(tmp_path / name)) for name in ("image.npy", "volume.npy"))

    assert (image.shape, image.space.axes, image.file_bands) == ((7, 8), ("y", "x"), 1)
    assert (volume.shape, volume.space.axes, volume.file_bands) == ((6, 7, 3), ("z", "y", "x"), 1)
    assert {image.interpretation, volume.interpretation} == {"bands"}
    assert np.array_equal(read(tmp_path / "volume.npy")[..., 0], VOLUME[:, :, :3])


@pytest.mark.parametrize(
    ("pixels", "axes", "shape", "bands"),
    [
        (VOLUME[0], "yx", (7, 8), 1),
        (VOLUME, "zyx", (6, 7, 8), 1),
        (VOLUME, "yxb", (6, 7), 8),
        (np.stack([VOLUME, VOLUME + 1], axis=-1), "zyxb", (6, 7, 8), 2),
    ],
)
def test_an_archive_says_which_axes_it_has(
    pixels: np.ndarray, axes: str, shape: tuple[int, ...], bands: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, pixels=pixels, axes=axes)
    spec = formats.describe(str(path))

    assert (spec.shape, spec.file_bands, "".join(spec.space.axes)) == (
        shape,
        bands,
        axes.strip("b"),
    )
    assert np.array_equal(read(path), pixels.reshape(*shape, bands))


def test_a_spacing_with_its_unit_gives_sizes_and_without_none(tmp_path: Path) -> None:
    sized, alone, odd = (tmp_path / f"{name}.npz" for name in ("sized", "alone", "odd"))
    np.savez(sized, pixels=VOLUME, spacing=[2.5, 0.5, 0.5], unit="um")
    np.savez(alone, pixels=VOLUME, spacing=[2.5, 0.5, 0.5])
    np.savez(odd, pixels=VOLUME, spacing=[1, 1, -1], unit="mm")

    space = formats.describe(str(sized)).space
    assert space.metric == Metric((2.5, 0.5, 0.5), "um")
    assert space.unit == "mm3"
    for path in (alone, odd):
        spec = formats.describe(str(path))
        assert (spec.space.metric, spec.space.unit) == (None, "px")
        assert "sizes are in px" in spec.notes[0]


def test_a_row_is_the_least_that_is_read_of_an_array_and_the_whole_of_an_archive(
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "rows.npy", VOLUME)
    np.save(tmp_path / "columns.npy", np.asfortranarray(VOLUME))
    np.savez(tmp_path / "packed.npz", pixels=VOLUME)

    chunks = [
        formats.describe(str(tmp_path / name)).chunks
        for name in ("rows.npy", "columns.npy", "packed.npz")
    ]
    assert chunks == [(1, 1, 8), (6, 1, 1), (6, 7, 8)]


def saved(save: Any, *arguments: Any, **arrays: Any) -> bytes:
    out = io.BytesIO()
    save(out, *arguments, **arrays)
    return out.getvalue()


WHOLE = saved(np.save, VOLUME)


def foreign() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("pixels.npy", b"no array")
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "one_axis.npy",
            saved(np.save, VOLUME[0, 0]),
            r"expected an array \(y, x\) or \(z, y, x\)",
        ),
        ("four_axes.npy", saved(np.save, VOLUME[None]), r"Bands and other axes need a \.npz"),
        ("empty.npy", saved(np.save, VOLUME[:0]), "whole numbers or floats"),
        ("complex.npy", saved(np.save, VOLUME * 1j), "whole numbers or floats"),
        ("text.npy", saved(np.save, np.array([["a"]])), "whole numbers or floats"),
        ("short.npy", WHOLE[:-2], "ends early: it has 798 bytes, its header promises 800"),
        ("header.npy", WHOLE[:20], "no header of a NumPy array"),
        ("nameless.npz", saved(np.savez, VOLUME), r"array called `pixels`, got arr_0"),
        ("axes.npz", saved(np.savez, pixels=VOLUME, axes="xyz"), r"got `axes` 'xyz'"),
        ("number.npz", saved(np.savez, pixels=VOLUME, axes="yx"), r"got `axes` 'yx' for the shape"),
        ("four.npz", saved(np.savez, pixels=VOLUME[None]), "got no `axes`"),
        ("foreign.npz", foreign(), "no header of a NumPy array"),
        ("cut.npz", saved(np.savez, pixels=VOLUME)[:-30], "no archive of NumPy"),
    ],
)
def test_what_is_no_image_is_refused_with_a_remedy(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=message):
        formats.describe(str(tmp_path / name))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))

    trap = np.empty((1, 1), object)
    trap[0, 0] = Trap()
    np.save(tmp_path / "trap.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "trap.npz", pixels=VOLUME, axes=trap)
    for name in ("trap.npy", "trap.npz"):
        with pytest.raises(FormatError):
            formats.describe(str(tmp_path / name))
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(WHOLE)
    spec = formats.describe(str(path))
    with formats.open_image(spec) as reader:
        path.write_bytes(WHOLE[:200])
        with pytest.raises(ReadError, match="ends early"):
            reader.read(Box.whole(spec.shape))
    np.save(path, VOLUME[:2])
    with pytest.raises(SourceChanged):
        formats.open_image(spec)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive_is_an_error(save: Any, tmp_path: Path) -> None:
    content = bytearray(saved(save, pixels=VOLUME))
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    spec = formats.describe(str(path))
    content[400] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(FormatError, match="damaged"):
        formats.open_image(spec)


@pytest.mark.parametrize("text", ["(" * 8999, "{'shape': " * 800, "\\\n", "'" * 99])
def test_a_header_that_python_cannot_parse_is_a_broken_file(tmp_path: Path, text: str) -> None:
    header = text.encode() + b"\n"
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(FormatError, match="no header of a NumPy array"):
        formats.describe(str(path))


@pytest.mark.parametrize("shape", [(-5, 10), (-5, -10, 20), (True, 10, 20), (2**70, 3)])
def test_a_header_with_an_impossible_shape_is_a_broken_file(tmp_path: Path, shape: Any) -> None:
    described = {"descr": "|u1", "fortran_order": False, "shape": shape}
    path = tmp_path / "a.npy"
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, described)
        stream.write(bytes(200))
    with pytest.raises(FormatError, match=r"whole numbers from 1 on|ends early"):
        formats.describe(str(path))
