"""Formats of folders, of series and of files with several images, and a mask writer of folders, as
a plug-in would add them.

A `.chunks` folder holds `shape.json` and one `.npy` file per 32 rows. A series is a set of files
`NAME-0.rows`, `NAME-1.rows` ... of 32 rows each. A `.film` file holds images over time. Masks are
folders of one file per tile.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from collections import defaultdict
from dataclasses import dataclass, replace

import fsspec
import numpy as np

from maskloom.segcore.errors import FormatError, RunError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.masks import EncodedBlock, PublishedMask
from maskloom.segcore.raster.source import Grouping, Series
from maskloom.segcore.raster.spec import FileKind, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage

ROWS = 32
NPY = b"\x93NUMPY"


def save_rows(location: str, rows: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, rows)
    with fsspec.open(location, "wb", auto_mkdir=True) as file:
        file.write(buffer.getvalue())


def strips(pixels: np.ndarray) -> list[np.ndarray]:
    return [pixels[top : top + ROWS] for top in range(0, len(pixels), ROWS)]


def save_chunks(folder: str, pixels: np.ndarray) -> None:
    """Pixels (y, x, band) as a `.chunks` folder."""
    for i, rows in enumerate(strips(pixels)):
        save_rows(f"{folder}/rows/{i}.npy", rows)
    with fsspec.open(f"{folder}/shape.json", "w", auto_mkdir=True) as file:
        json.dump([*pixels.shape, pixels.dtype.name], file)


def save_series(stem: str, pixels: np.ndarray) -> None:
    """Pixels (y, x, band) as a series of `.rows` files."""
    for i, rows in enumerate(strips(pixels)):
        save_rows(f"{stem}-{i}.rows", rows)


@dataclass(frozen=True, slots=True)
class RowsReader:
    files: tuple[str, ...]
    spec: RasterSpec

    def read(self, box):
        parts = []
        for number in range(box.start[0] // ROWS, -(-box.stop[0] // ROWS)):
            with fsspec.open(self.files[number]) as file:
                parts.append(np.load(io.BytesIO(file.read())))
        top = box.start[0] // ROWS * ROWS
        rows = slice(box.start[0] - top, box.stop[0] - top)
        bands = [band - 1 for band in self.spec.bands]
        pixels = np.concatenate(parts)[rows, box.slices[1]][..., bands]
        return pixels, np.ones(box.shape, np.bool_)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def described(location, name, shape, dtype, version, files=()) -> RasterSpec:
    height, width, bands = shape
    return RasterSpec(
        location,
        name,
        (height, width),
        tuple(range(1, bands + 1)),
        dtype,
        (min(ROWS, height), width),
        version,
        bands,
        files=tuple(files),
    )


@dataclass(frozen=True, slots=True)
class Chunks:
    """A folder of rows."""

    kinds: tuple[FileKind, ...] = (
        FileKind("a folder of chunks", (".chunks",), markers=("shape.json",)),
    )
    mask: str = "tiles"

    def describe(self, location, version):
        with fsspec.open(f"{location}/shape.json") as file:
            *shape, dtype = json.load(file)
        return described(location, "chunks", shape, dtype, version)

    def open(self, spec):
        count = -(-spec.shape[0] // ROWS)
        return RowsReader(tuple(f"{spec.location}/rows/{i}.npy" for i in range(count)), spec)


@dataclass(frozen=True, slots=True)
class RowSeries:
    """A series of rows."""

    kinds: tuple[FileKind, ...] = (FileKind("rows", (".rows",), ((0, NPY),)),)
    mask: str = "png"

    def headers_version(self, options):
        return "1"

    def headers(self, files, options):
        return [file.uri.rpartition("-")[2] for file in files]

    def group(self, files, headers, options):
        members = defaultdict(list)
        for file, header in zip(files, headers, strict=True):
            stem = file.uri.removesuffix(f"-{header}")
            members[stem].append((int(header.removesuffix(".rows")), file))
        return Grouping(
            [
                Series(f"{stem}.series", tuple(file for _, file in sorted(found)))
                for stem, found in members.items()
                if len(found) > 1
            ]
        )

    def describe(self, location, version):
        return self.describe_image(StoredImage(location, version, files=(location,)), ReadOptions())

    def parts(self, image, options):
        return ()

    def describe_image(self, image, options):
        location, version = image.location, image.version
        files = sorted(
            image.files or [location], key=lambda uri: int(re.findall(r"-(\d+)\.rows$", uri)[0])
        )
        height = 0
        for uri in files:
            with fsspec.open(uri) as file:
                rows = np.load(io.BytesIO(file.read()))
            if rows.ndim != 3:
                raise FormatError(f"{uri} holds no rows of pixels.")
            height += len(rows)
        if height % ROWS and len(rows) == ROWS:
            raise FormatError(f"{location} lacks rows.")
        shape = (height, *rows.shape[1:])
        return described(location, "rows", shape, rows.dtype.name, version, files)

    def open(self, spec):
        return RowsReader(spec.files, spec)


@dataclass(frozen=True, slots=True)
class FrameReader:
    pixels: np.ndarray
    spec: RasterSpec

    def read(self, box):
        bands = [band - 1 for band in self.spec.bands]
        return self.pixels[box.slices][..., bands], np.ones(box.shape, np.bool_)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@dataclass(frozen=True, slots=True)
class Film:
    """Images over time in one file: (t, y, x, band). One that is all `BROKEN` cannot be read."""

    kinds: tuple[FileKind, ...] = (FileKind("a film", (".film",), ((0, NPY),)),)
    mask: str = "png"

    def parts(self, image, options):
        count = len(load_film(image.location))
        return [f"t{i + 1:04d}" for i in range(count)] if count > 1 else []

    def describe(self, location, version):
        return self.describe_image(StoredImage(location, version), ReadOptions())

    def describe_image(self, image, options):
        frame = load_film(image.location)[_number(image.part)]
        if (frame == BROKEN).all():
            raise FormatError(f"{image.location} is broken at {image.part}.")
        spec = described(image.location, "film", frame.shape, frame.dtype.name, image.version)
        return replace(spec, part=image.part)

    def open(self, spec):
        return FrameReader(load_film(spec.location)[_number(spec.part)], spec)


BROKEN = 77


def _number(part: str) -> int:
    return int(part[1:] or "1") - 1


def load_film(location: str) -> np.ndarray:
    with fsspec.open(location) as file:
        return np.load(io.BytesIO(file.read()))


@dataclass(frozen=True, slots=True)
class TileMasks:
    """A folder of one file per tile."""

    suffix: str = ".tiles"
    beside: tuple[str, ...] = (".names.json",)
    most_objects: int = 2**32 - 1

    def encode(self, labels, tile, spec, tile_shape):
        return [EncodedBlock(0, tile.index, zlib.compress(labels.tobytes()))]

    def publish(self, store, name, blocks, spec, classes, tile_shape):
        files, seen = {}, set()
        for block in blocks:
            ending = "/" + "/".join(map(str, block.index))
            files[ending] = store.publish(name + ending, block.payload)
            seen.add(block.index)
        grid = Grid(spec.shape, tile_shape)
        if seen != {tile.index for tile in grid}:
            raise RunError(f"The mask of {spec.location} lacks tiles.")
        about = json.dumps({"shape": spec.shape, "tile": tile_shape, "dtype": classes.dtype})
        files["/about.json"] = store.publish(f"{name}/about.json", about.encode())
        [beside] = self.beside
        names = json.dumps(classes.names).encode()
        files[beside] = store.publish(name + beside, names)
        return PublishedMask(files)


def load_mask(folder: str) -> np.ndarray:
    """The labels of a mask that `TileMasks` wrote."""
    with fsspec.open(f"{folder}/about.json") as file:
        about = json.load(file)
    labels = np.empty(about["shape"], about["dtype"])
    for tile in Grid(tuple(about["shape"]), tuple(about["tile"])):
        with fsspec.open("/".join([folder, *map(str, tile.index)])) as file:
            values = zlib.decompress(file.read())
        labels[tile.core.slices] = np.frombuffer(values, about["dtype"]).reshape(tile.core.shape)
    return labels


def folder_digest(folder: str) -> str:
    """What `sha256sum` over the sorted files of a folder would sign."""
    fs, path = fsspec.core.url_to_fs(folder)
    names = sorted(found[len(path) + 1 :] for found in fs.find(path))
    lines = [f"{hashlib.sha256(fs.cat_file(f'{path}/{n}')).hexdigest()}  {n}\n" for n in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
