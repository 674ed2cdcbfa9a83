"""The metadata files of OME-Zarr groups and arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.masks.ome_zarr.chunks import filling
from maskloom.segcore.masks.ome_zarr.pyramid import Pyramid, lattice_of

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec

_BLOSC = {"cname": "zstd", "clevel": 3, "blocksize": 0}
"""Blosc with bits shuffled compresses labels three times better than Zstandard alone."""


def metadata_files(
    pyramid: Pyramid, dtype: str, classes: ClassTable, spec: RasterSpec, zarr_format: int
) -> dict[str, Any]:
    """The metadata files of the group and its arrays, by their endings."""
    version = "0.5" if zarr_format == 3 else "0.4"
    image = multiscale(pyramid, spec)
    label = {"version": version} | ({} if dtype == "uint32" else _legend(classes))
    if zarr_format == 3:
        ome = {"version": version, "multiscales": [image], "image-label": label}
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
        return {"/zarr.json": group} | {
            f"/{level}/zarr.json": array_3(shape, pyramid.chunk, dtype, spec)
            for level, shape in enumerate(pyramid.shapes)
        }
    attributes = {"multiscales": [{"version": version, **image}], "image-label": label}
    return {"/.zgroup": {"zarr_format": 2}, "/.zattrs": attributes} | {
        f"/{level}/.zarray": _array_2(shape, pyramid.chunk, dtype)
        for level, shape in enumerate(pyramid.shapes)
    }


def multiscale(pyramid: Pyramid, spec: RasterSpec) -> dict[str, Any]:
    """The axes and levels of a pyramid, as OME-Zarr describes an image."""
    lattice = lattice_of(spec)
    axes = [
        {"name": name, "type": "space"} | ({"unit": unit} if unit else {})
        for name, unit in zip(spec.space.axes, lattice.units, strict=True)
    ]
    datasets = []
    for level in range(len(pyramid.shapes)):
        sizes = [factor**level for factor in pyramid.factors]
        scale = [a * n for a, n in zip(lattice.scale, sizes, strict=True)]
        # The centre of the first pixel is that of the pixels that it covers.
        begin = [
            t + (n - 1) / 2 * a
            for t, a, n in zip(lattice.translation, lattice.scale, sizes, strict=True)
        ]
        steps = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": begin},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    return {"name": "maskloom", "type": "mode", "axes": axes, "datasets": datasets}


def _legend(classes: ClassTable) -> dict[str, Any]:
    """Names and colours of the classes, and of the label that means no data."""
    legend: Iterator[tuple[int, str, tuple[int, ...]]] = (
        (value, name, (*colour, 255))
        for value, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True))
    )
    entries = [*legend, (classes.nodata, "no data", (0, 0, 0, 0))]
    return {
        "colors": [{"label-value": value, "rgba": list(rgba)} for value, _, rgba in entries],
        "properties": [{"label-value": value, "name": name} for value, name, _ in entries],
    }


def array_3(shape: Shape, chunk: Shape, dtype: str, spec: RasterSpec) -> Mapping[str, Any]:
    """The `zarr.json` of an array (Zarr core specification, version 3)."""
    blosc = {**_BLOSC, "shuffle": "bitshuffle", "typesize": np.dtype(dtype).itemsize}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": filling(dtype),
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "blosc", "configuration": blosc},
        ],
        "dimension_names": spec.space.axes,
        "attributes": {},
    }


def _array_2(shape: Shape, chunk: Shape, dtype: str) -> Mapping[str, Any]:
    """The `.zarray` of an array (Zarr storage specification, version 2)."""
    return {
        "zarr_format": 2,
        "shape": shape,
        "chunks": chunk,
        "dtype": np.dtype(dtype).newbyteorder("<").str,
        "compressor": {"id": "blosc", "shuffle": 2, **_BLOSC},
        "fill_value": filling(dtype),
        "filters": None,
        "order": "C",
        "dimension_separator": "/",
    }
