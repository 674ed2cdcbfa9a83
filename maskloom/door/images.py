"""The image that a user hands over: a path or URI, an array, or an `xarray.DataArray`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import FormatError, RecipeError
from maskloom.segcore.ground.space import Space
from maskloom.segcore.pipeline.one_image import HeldImage, Openable, PlannedFile
from maskloom.segcore.pipeline.reading import describe_source, placed, spec_of
from maskloom.segcore.raster.spec import RasterSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Affine
    from maskloom.segcore.pipeline.records import PlannedImage
    from maskloom.segcore.raster.stored import ReadOptions

_ORDERS = ("yx", "zyx", "yxb", "byx", "zyxb", "bzyx")
"""Orders of the axes of arrays: z, y, x, and b for bands."""
_NAMES = {
    "y": ("y", "lat", "latitude", "northing", "row", "rows"),
    "x": ("x", "lon", "longitude", "easting", "column", "columns", "col"),
    "z": ("z", "plane", "slice", "depth"),
    "b": ("band", "bands", "channel", "channels", "c", "b", "variable", "wavelength"),
}
"""Names of dimensions of an `xarray.DataArray`, in lower case, by our letter."""
_LARGEST_NUMBER = 8
_ARRAY = "the array"
_REGULAR = 1e-3
"""Share of a pixel by which coordinates may differ from a regular grid."""


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What a user says about an array."""

    axes: str | None = None
    valid: Any = None
    crs: Any = None
    transform: Sequence[float] | None = None
    rgb: bool | None = None

    @property
    def said(self) -> list[str]:
        """The names of what is said that only arrays need."""
        named = {"valid": self.valid, "crs": self.crs, "transform": self.transform, "rgb": self.rgb}
        return [name for name, value in named.items() if value is not None]


def is_path(image: object) -> bool:
    """Whether this names an image, instead of being one."""
    return isinstance(image, str | os.PathLike)


def image_of(image: Any, given: Given, options: ReadOptions, name: str | None) -> Openable:
    """The image, ready to be read as `options` say; `name` is the format of a file.

    Raises `RecipeError` if it is not understood, and `ImageError` if it cannot be read.
    """
    if is_path(image):
        if given.said:
            raise RecipeError(
                f"{', '.join(given.said)}: only for arrays; the file says it itself. "
                "Leave it out, or read the file into an array."
            )
        return _file(os.fspath(image), options, name)
    if _is_xarray(image):
        return _from_xarray(image, given, options)
    return _from_array(image, given, options)


def _file(path: str, options: ReadOptions, name: str | None) -> PlannedFile:
    from pathlib import Path

    from maskloom.segcore.pipeline.jobs import DescribeJob
    from maskloom.segcore.raster.stored import split_part
    from maskloom.tasks.discovery.single import single_source

    place, part, _ = split_part(path)
    if "://" not in place:
        place = str(Path(place).expanduser().absolute())
    source = single_source(place)
    found = describe_source(source, DescribeJob((source,), name, options))
    chosen = _chosen(path, part, found)
    if chosen.failure is not None:
        raise FormatError(chosen.failure.error)
    return PlannedFile(chosen, spec_of(chosen))


def _chosen(path: str, part: str, found: Sequence[PlannedImage]) -> PlannedImage:
    """The only image of a file, or the one that is named."""
    if len(found) == 1 and not part:
        return found[0]
    uris = [each.source.uri for each in found]
    for each in found:
        if part and each.source.part == part:
            return each
    listed = "\n".join(f"  {uri}" for uri in uris[:9])
    more = f"\n  and {len(uris) - 9} more" if len(uris) > 9 else ""
    held = f"holds {len(found)} images" if not part else f"has no part {part!r}"
    raise RecipeError(f"{path!r} {held}. Name one of them:\n{listed}{more}")


# ---- arrays


def _from_array(image: Any, given: Given, options: ReadOptions) -> HeldImage:
    mask = None
    if isinstance(image, np.ma.MaskedArray):
        mask, image = np.ma.getmaskarray(image), image.data
    try:
        array = np.asarray(image)
    except (TypeError, ValueError) as error:
        array = np.empty((), object)
        raise _not_an_image(image, array) from error
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > _LARGEST_NUMBER or array.ndim < 2:
        raise _not_an_image(image, array)
    if not array.size:
        raise RecipeError(f"image: expected pixels; got an array of the shape {array.shape}.")
    order = _order(array.shape, given.axes)
    pixels = _bands_last(array, order)
    valid: NDArray[np.bool_] | None = None
    if mask is not None:
        valid = np.logical_not(np.any(_bands_last(mask, order), axis=-1))
    return _held(pixels, valid, given, options, _space(given, pixels.ndim - 1))


def _not_an_image(image: Any, array: NDArray[Any]) -> RecipeError:
    got = f"{array.dtype} in the shape {array.shape}" if array.ndim else type(image).__name__
    return RecipeError(
        "image: expected a path, a URI, an xarray.DataArray, or an array (y, x) or (y, x, band) of "
        f"whole numbers or floats of at most 64 bits; got {got}."
    )


def _order(shape: tuple[int, ...], said: str | None) -> str:
    """The letters of an array's axes, in their order. Raises `RecipeError`."""
    possible = [order for order in _ORDERS if len(order) == len(shape)]
    if said is not None:
        if said not in possible:
            raise RecipeError(
                f"axes: expected one of {', '.join(possible or _ORDERS)} (b: bands) for an array "
                f"of the shape {shape}; got {said!r}."
            )
        return said
    if not possible:
        raise RecipeError(
            f"image: expected 2 to 4 axes; got the shape {shape}. Choose one image of the stack."
        )
    if len(shape) == 3 and shape[-1] >= min(shape[:2]):
        raise RecipeError(
            f"axes: an array of the shape {shape} may be bands first, a volume, or have many bands."
            " Say axes='byx', 'zyx' or 'yxb' (b: bands)."
        )
    return {2: "yx", 3: "yxb", 4: "zyxb"}[len(shape)]


def _bands_last(array: NDArray[Any], order: str) -> NDArray[Any]:
    """(y, x, band) or (z, y, x, band), without a copy."""
    if "b" not in order:
        return array[..., np.newaxis]
    return np.moveaxis(array, order.index("b"), -1)


def _space(given: Given, axes: int) -> Space:
    """The place of an array in the world, as the user says it."""
    names = tuple("zyx"[-axes:])
    if given.transform is None:
        if given.crs is not None:
            raise RecipeError("crs: needs `transform` too, the six numbers of the affine.")
        return Space(axes=names)
    return Space(_affine(given.transform), _wkt(given.crs), axes=names)


def _affine(transform: Sequence[float]) -> Affine:
    """Six numbers, or those of `affine.Affine` or `rasterio`."""
    try:
        a, b, c, d, e, f = (float(number) for number in tuple(transform)[:6])
    except (TypeError, ValueError) as error:
        raise RecipeError(
            "transform: expected six numbers (a, b, c, d, e, f) with x = a·column + b·row + c and "
            f"y = d·column + e·row + f, as rasterio has them; got {transform!r}."
        ) from error
    return a, b, c, d, e, f


def _wkt(crs: Any) -> str | None:
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    if crs is None:
        return None
    try:
        return str(CRS.from_user_input(crs).to_wkt())
    except CRSError as error:
        raise RecipeError(
            f"crs: expected a coordinate reference system, e.g. 'EPSG:32633'; got {crs!r}."
        ) from error


def _held(
    pixels: NDArray[Any],
    valid: NDArray[np.bool_] | None,
    given: Given,
    options: ReadOptions,
    space: Space,
) -> HeldImage:
    """An image in memory from its pixels with the bands last."""
    shape, bands = pixels.shape[:-1], pixels.shape[-1]
    kind = np.dtype(np.uint8) if pixels.dtype.kind == "b" else pixels.dtype.newbyteorder("=")
    rgb = bands == 3 and kind == np.uint8 if given.rgb is None else given.rgb
    if rgb and bands < 3:
        raise RecipeError(f"rgb: expected at least three bands; the array has {bands}.")
    spec = RasterSpec(
        location=_ARRAY,
        format="array",
        shape=shape,
        bands=tuple(range(1, bands + 1)),
        dtype=kind.name,
        chunks=shape,
        version="",
        file_bands=bands,
        interpretation="rgb" if rgb else "bands",
        space=space,
    )
    return HeldImage(placed(spec, options), pixels, _both(valid, given.valid, shape))


def _both(
    known: NDArray[np.bool_] | None, said: Any, shape: tuple[int, ...]
) -> NDArray[np.bool_] | None:
    """Where there is data, by the array's own mask and by the user's."""
    if said is None:
        return known
    mask = np.asarray(said)
    if mask.shape != shape or mask.dtype != np.bool_:
        raise RecipeError(
            f"valid: expected booleans of the shape {shape}, True where there is data; got "
            f"{mask.dtype} of the shape {mask.shape}."
        )
    return mask if known is None else known & mask


# ---- xarray


def _is_xarray(image: object) -> bool:
    """Whether this comes from xarray, without importing it."""
    return type(image).__module__.partition(".")[0] == "xarray"


def _from_xarray(image: Any, given: Given, options: ReadOptions) -> HeldImage:
    if type(image).__name__ != "DataArray":
        raise RecipeError(
            f"image: expected an xarray.DataArray; got a {type(image).__name__}. Take one variable,"
            " or stack them as bands with `.to_dataarray('band')`."
        )
    if given.axes is not None:
        raise RecipeError("axes: a DataArray names its own dimensions; rename them instead.")
    single = [dim for dim in image.dims if image.sizes[dim] == 1 and not _is_plane(str(dim))]
    image = image.squeeze(single, drop=True)
    order = "".join(_letter(str(name), image.dims) for name in image.dims)
    if order not in _ORDERS:
        wanted = [each for each in _ORDERS if sorted(each) == sorted(order)]
        if not wanted:
            raise RecipeError(
                f"image: expected the dimensions y and x, and perhaps z and band; got {image.dims}."
            )
        image = image.transpose(*(image.dims[order.index(letter)] for letter in wanted[0]))
        order = wanted[0]
    array = image.values
    if array.dtype.kind not in "biuf":
        raise _not_an_image(image, array)
    pixels = _bands_last(array, order)
    fill = image.attrs.get("_FillValue", image.encoding.get("_FillValue"))
    valid = None
    if fill is not None and np.isfinite(fill) and array.dtype.kind != "b":
        valid = np.logical_not(np.any(pixels == fill, axis=-1))
    space = _space(given, pixels.ndim - 1) if given.transform is not None else None
    if space is None:
        space = _space_of_xarray(image, order, given.crs)
    return _held(pixels, valid, given, options, space)


def _is_plane(name: str) -> bool:
    return name.lower() in (*_NAMES["y"], *_NAMES["x"])


def _letter(name: str, dims: Sequence[Any]) -> str:
    for letter, names in _NAMES.items():
        if name.lower() in names:
            return letter
    raise RecipeError(
        f"image: the dimension {name!r} of {tuple(dims)} is not known. Choose one of it with "
        f"`.isel({name}=0)`, or rename it to y, x, z or band."
    )


def _space_of_xarray(image: Any, order: str, crs: Any) -> Space:
    """The place that the coordinates and the CF attributes say."""
    axes = tuple(order.replace("b", ""))
    grid = image.attrs.get("grid_mapping", image.encoding.get("grid_mapping", "spatial_ref"))
    said = image.coords[grid].attrs if grid in image.coords else {}
    crs = crs or said.get("crs_wkt") or said.get("spatial_ref") or image.attrs.get("crs")
    y, x = (image.dims[order.index(letter)] for letter in "yx")
    # The coordinates first: a selection changes them, and leaves GeoTransform as it was.
    affine = _affine_of(image, x, y)
    if affine is None and said.get("GeoTransform") is not None:
        c, a, b, f, d, e = (float(number) for number in str(said["GeoTransform"]).split())
        affine = (a, b, c, d, e, f)
    return Space(affine, _wkt(crs) if affine is not None else None, axes=axes)


def _affine_of(image: Any, x: Any, y: Any) -> Affine | None:
    """The affine of regular coordinates of pixel centres. None: there are none."""
    if x not in image.coords or y not in image.coords:
        return None
    steps = []
    for name in (x, y):
        values = np.asarray(image.coords[name].values)
        if values.dtype.kind not in "iuf" or len(values) < 2:
            return None
        values = values.astype(np.float64)
        step = (values[-1] - values[0]) / (len(values) - 1)
        regular = values[0] + step * np.arange(len(values))
        if not step or np.abs(values - regular).max() > abs(step) * _REGULAR:
            raise RecipeError(
                f"image: the coordinate {name!r} is not regular, so pixels have no one size. "
                f"Reproject it, or drop it with `.drop_vars({name!r})`."
            )
        steps.append((step, values[0] - step / 2))
    (a, c), (e, f) = steps
    return a, 0.0, c, 0.0, e, f


def plane_dims(image: Any) -> tuple[Any, ...]:
    """The dimensions z, y and x of a DataArray, as far as it has them, in this order."""
    found = {
        _letter(str(name), image.dims): name
        for name in image.dims
        if image.sizes[name] > 1 or _is_plane(str(name))
    }
    return tuple(found[letter] for letter in "zyx" if letter in found)
