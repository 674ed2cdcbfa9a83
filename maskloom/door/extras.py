"""Results for libraries that are installed on request: xarray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import RecipeError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import RasterSpec


def import_xarray() -> Any:
    """The module. Raises `RecipeError` if it is not installed."""
    try:
        import xarray
    except ImportError as error:
        raise RecipeError(
            "to_xarray needs xarray, which is not installed. Run: pip install 'maskloom[xarray]'"
        ) from error
    return xarray


def labels_as_xarray(
    labels: NDArray[Any], spec: RasterSpec, like: Any, legend: pd.DataFrame
) -> Any:
    """Labels with the coordinates of `like`, or else of the spec, and the names of the classes in
    the attributes of the CF conventions.
    """
    xarray = import_xarray()
    attributes = {
        "flag_values": legend["class_id"].tolist(),
        "flag_meanings": " ".join(name.replace(" ", "_") for name in legend["class_name"]),
        "flag_colors": " ".join(legend["colour"]),
    }
    coordinates = coordinates_of(spec) if like is None else _coordinates_like(like, labels.ndim)
    names = tuple(spec.space.axes) if like is None else tuple(coordinates.pop("__dims__"))
    return xarray.DataArray(labels, coordinates, names, "labels", attributes)


def coordinates_of(
    spec: RasterSpec,
    start: tuple[int, ...] | None = None,
    shape: tuple[int, ...] | None = None,
    stride: int = 1,
) -> dict[str, Any]:
    """Coordinates of pixel centres of a window: of a map, or else in pixels, and the CRS as
    rioxarray reads it.
    """
    import numpy as np

    space = spec.space
    start = start or (0,) * len(spec.shape)
    shape = shape or spec.shape
    steps = [1] * (len(shape) - 2) + [stride, stride]
    centres = {
        axis: (first + (np.arange(length) * step) + (step - 1) / 2)
        for axis, first, length, step in zip(space.axes, start, shape, steps, strict=True)
    }
    affine = space.affine
    if affine is None or affine[1] or affine[3]:
        return dict(centres)
    a, _, c, _, e, f = affine
    centres["x"], centres["y"] = a * (centres["x"] + 0.5) + c, e * (centres["y"] + 0.5) + f
    if space.crs is None:
        return dict(centres)
    return {**centres, "spatial_ref": ((), 0, {"crs_wkt": space.crs, "spatial_ref": space.crs})}


def _coordinates_like(image: Any, axes: int) -> dict[str, Any]:
    """The coordinates of the plane, or the volume, of an image with bands."""
    from maskloom.door.images import plane_dims

    dims = plane_dims(image)[-axes:]
    kept = {
        name: value
        for name, value in image.coords.items()
        if set(value.dims) <= set(dims) and name != "band"
    }
    return {**kept, "__dims__": dims}
