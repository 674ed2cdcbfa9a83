"""How large pixels are: on the ground, by a spacing, or unknown."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.space import Metric, Space
from maskloom.segcore.raster.spec import RasterSpec, load_spec

VOLUME = ("z", "y", "x")


@pytest.mark.parametrize(
    ("metric", "axes", "unit", "size"),
    [
        (Metric((2.0, 0.5, 0.5), "mm"), VOLUME, "mm3", 0.5),
        (Metric((2.0, 0.5, 0.5), "cm"), VOLUME, "mm3", 500.0),
        (Metric((250.0, 4.0), "um"), VOLUME[1:], "mm2", 0.001),
        (Metric((0.001, 0.002), "m"), VOLUME[1:], "mm2", 2.0),
        (Metric((1000.0, 1000.0), "nm"), VOLUME[1:], "mm2", 1e-6),
        (None, VOLUME, "px", 1.0),
    ],
)
def test_a_spacing_gives_square_or_cubic_millimetres(
    metric: Metric | None, axes: tuple[str, ...], unit: str, size: float
) -> None:
    space = Space(metric=metric, axes=axes)
    shape = (5,) * len(axes)
    assert space.unit == unit
    assert space.cell_size(Box.whole(shape), shape) == pytest.approx(size, rel=1e-12)


@pytest.mark.parametrize(
    ("spacing", "unit", "message"),
    [
        ((1.0, 0.0), "mm", "above 0"),
        ((1.0, -1.0), "mm", "above 0"),
        ((1.0, float("nan")), "mm", "above 0"),
        ((1.0, float("inf")), "mm", "above 0"),
        ((1.0, 1.0), "px", "expected one of m, cm, mm, um, nm; got 'px'"),
    ],
)
def test_a_spacing_that_is_none_is_refused(
    spacing: tuple[float, ...], unit: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Metric(spacing, unit)


def test_axes_spacing_and_shape_go_together() -> None:
    with pytest.raises(ValueError, match="cannot have the spacing"):
        Space(metric=Metric((1.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match="not from both"):
        Space(crs="EPSG:4326", metric=Metric((1.0, 1.0)))
    with pytest.raises(ValueError, match="does not have the axes y, x"):
        volume(Space())


def volume(space: Space) -> RasterSpec:
    return RasterSpec("a.npz", "array", (9, 8, 7), (1, 2), "uint8", (1, 8, 7), "1", 2, space=space)


@pytest.mark.parametrize("metric", [None, Metric((2.0, 0.5, 0.25), "um")])
def test_a_volume_comes_back_from_its_record(metric: Metric | None) -> None:
    spec = volume(Space(metric=metric, axes=VOLUME))
    record: Any = json.loads(json.dumps(dataclasses.asdict(spec)))
    assert load_spec(record) == spec


def test_a_record_from_before_volumes_comes_back_as_an_image() -> None:
    spec = RasterSpec("a.tif", "tiff", (9, 8), (1,), "uint8", (9, 8), "1", 1)
    record: Any = json.loads(json.dumps(dataclasses.asdict(spec)))
    del record["space"]["axes"], record["space"]["metric"]
    assert load_spec(record) == spec


def test_a_plane_of_a_volume_is_an_image() -> None:
    plane = volume(Space(metric=Metric((2.0, 0.5, 0.25), "mm"), axes=VOLUME)).plane
    assert (plane.shape, plane.chunks) == ((8, 7), (8, 7))
    assert plane.space == Space(metric=Metric((0.5, 0.25), "mm"))
    assert plane.plane == plane
