"""A Zarr folder: which images it holds, and the array of each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import FormatError, NotInstalled
from maskloom.segcore.formats.source import store_failures
from maskloom.segcore.formats.zarr import ome
from maskloom.segcore.formats.zarr.array import CHANNEL, DAMAGE, TIME, ZarrArray, sizes_of
from maskloom.segcore.ground.space import AXES, MILLIMETRES, PixelSize
from maskloom.segcore.storage.filesystems import filesystem

if TYPE_CHECKING:
    from maskloom.segcore.raster.stored import ReadOptions


@dataclass(frozen=True, slots=True)
class Folder:
    """A Zarr folder: an array, or a group that holds images."""

    location: str
    node: Any
    """The array or group of the package `zarr`."""

    @classmethod
    def open(cls, location: str) -> Folder:
        """The folder at a location. Raises `FormatError` if it is missing or broken."""
        try:
            import zarr
        except ImportError as error:
            raise NotInstalled(
                f"{location} is Zarr, which needs the extra 'zarr': pip install 'maskloom[zarr]'."
            ) from error
        fs, path = filesystem(location)
        with store_failures(location):
            try:
                store = zarr.storage.FsspecStore.from_mapper(fs.get_mapper(path), read_only=True)
                return cls(location, zarr.open(store, mode="r"))
            except (*DAMAGE, FileNotFoundError) as error:
                raise FormatError(
                    f"The metadata of {location} cannot be read as Zarr: {error}. Write it again, "
                    "or install the package of the codec that they name."
                ) from error

    def image(self, part: str, options: ReadOptions) -> ZarrArray:
        """The image, or the part with this name, at a level. Raises `FormatError`."""
        path, time = ome.path_of_part(part)
        if not part:
            path, *others = self.images()
            if others:
                raise FormatError(
                    f"{self.location} holds {1 + len(others)} images ({path}, {others[0]} ...). "
                    "Name the folder of one."
                )
        array = self.array(path, options, time)
        if time is None and array.times > 1:
            raise FormatError(
                f"{self.location} holds {array.times} images, the times of a series, where one is "
                "expected. Write each time to a folder of its own."
            )
        if time is not None and time >= array.times:
            raise FormatError(f"{self.location} has {array.times} times, and no part {part}.")
        return array

    def images(self) -> tuple[str, ...]:
        """The paths of its images in it; empty for the folder itself."""
        return self._images("", self.node)

    def times(self, path: str, options: ReadOptions) -> list[int | None]:
        """The times of an image, counted from 0; None if it has one."""
        count = self.array(path, options).times
        return [None] if count == 1 else list(range(count))

    def array(self, path: str, options: ReadOptions, time: int | None = None) -> ZarrArray:
        """The array of an image at a level. Raises `FormatError`."""
        node = self._node(path)
        if hasattr(node, "chunks"):
            if options.level != 0:
                raise FormatError(
                    f"{self.location} is a plain array without levels. Leave `level` out of the "
                    "recipe."
                )
            return self._array(node, _axes(node, options, in_image=False), time)
        with _well_formed(self.location):
            image = ome.Multiscale.of(ome.ome_attributes(dict(node.attrs)))
        arrays = [
            self._array(level, image.axes or _axes(level, options, in_image=True), time, i, image)
            for i, level in enumerate(self._levels(path, image, options.level))
        ]
        if len({each.axes for each in arrays}) > 1:
            raise FormatError(f"{self.location}: its levels do not have the same axes.")
        chosen = arrays[_level(self.location, arrays, options.level)]
        return replace(chosen, full=arrays[0].values.shape)

    def _levels(self, path: str, image: ome.Multiscale, wanted: int | PixelSize) -> list[Any]:
        """The arrays of the levels among which to choose: those up to a number, or all."""
        chosen = image.levels[: wanted + 1] if isinstance(wanted, int) else image.levels
        return [self._node("/".join(filter(None, (path, each.path)))) for each in chosen]

    def _array(
        self,
        node: Any,
        axes: tuple[str, ...],
        time: int | None,
        level: int = 0,
        image: ome.Multiscale | None = None,
    ) -> ZarrArray:
        _check_axes(self.location, axes, node)
        return ZarrArray(self.location, node, axes, time or 0, level, image)

    def _images(self, path: str, node: Any) -> tuple[str, ...]:
        if hasattr(node, "chunks"):
            return (path,)
        with _well_formed(self.location):
            group = ome.Group.of(ome.ome_attributes(dict(node.attrs)))
        if group is None:
            raise FormatError(
                f"{self.location} is a group of arrays without `multiscales` that can be read. "
                "Name one of the arrays in it."
            )
        if group.kind == "image":
            return (path,)
        below = group.paths or tuple(self._series(node))
        paths = [f"{path}/{each}".lstrip("/") for each in below]
        if group.kind != "plate":
            return tuple(paths)
        return tuple(field for well in paths for field in self._images(well, self._node(well)))

    def _series(self, node: Any) -> Iterator[str]:
        """The images of a converted file: groups whose names are numbers, in order."""
        numbers = sorted(int(name) for name in node.group_keys() if name.isdecimal())
        if not numbers:
            raise FormatError(f"{self.location} is a converted file without an image.")
        return map(str, numbers)

    def _node(self, path: str) -> Any:
        if not path:
            return self.node
        with store_failures(self.location):
            try:
                return self.node[path]
            except (*DAMAGE, FileNotFoundError) as error:
                raise FormatError(
                    f"{self.location}: its metadata name {path!r}, which is not in it or cannot be "
                    f"read: {error}. It is incomplete; copy or write it again."
                ) from error


@contextlib.contextmanager
def _well_formed(location: str) -> Iterator[None]:
    try:
        yield
    except ome.Malformed as error:
        raise FormatError(
            f"The OME metadata of {location} cannot be used: {error}. Write it again."
        ) from error


def _level(location: str, arrays: list[ZarrArray], wanted: int | PixelSize) -> int:
    """The number of the wanted level among those of an image. Raises `FormatError`."""
    if isinstance(wanted, int):
        if wanted >= len(arrays):
            raise FormatError(
                f"{location} has {len(arrays)} levels, counted from 0; `level` asks for {wanted}."
            )
        return wanted
    most = [distance * MILLIMETRES[wanted.unit] for distance in wanted.spacing]
    suiting = 0
    for number, array in enumerate(arrays):
        lattice = array.lattice(number)
        sizes = sizes_of(lattice) if lattice is not None else ()
        if not sizes:
            raise FormatError(
                f"{location} does not state the size of its pixels, so `level` must be a number, "
                f"from 0 to {len(arrays) - 1}."
            )
        # One number is for the plane, since slices are often further apart.
        compared = sizes[-2:] if len(most) == 1 else sizes[-len(most) :]
        limits = most * len(compared) if len(most) == 1 else most
        # Sizes such as 0.1 * 2 * 2 are not exact.
        if all(a <= b * (1 + 1e-6) for a, b in zip(compared, limits, strict=True)):
            suiting = number
    return suiting


def _check_axes(location: str, axes: tuple[str, ...], array: Any) -> None:
    """Raise `FormatError` for axes that are no image."""
    others = [
        f"{name} of length {size}"
        for name, size in zip(axes, array.shape, strict=False)
        if name not in (*AXES, *CHANNEL, *TIME) and size != 1
    ]
    if (
        others
        or len(axes) != array.ndim
        or len(set(axes)) != len(axes)
        or not {"y", "x"} <= set(axes)
        or any(sum(name in names for name in axes) > 1 for names in (CHANNEL, TIME))
    ):
        shown = ", ".join(others) or f"{axes} for {array.ndim} axes"
        raise FormatError(
            f"{location} is no image with the axes y and x, and z, channels and times if any: it "
            f"has {shown}. Name its axes in `dimension_names`, and write other axes to arrays "
            "apart."
        )


def _axes(array: Any, options: ReadOptions, in_image: bool) -> tuple[str, ...]:
    """The names of an array's axes: as stated, as implied by an early OME-Zarr, by the recipe, or
    (y, x) and (z, y, x).
    """
    named = getattr(array.metadata, "dimension_names", None)
    named = named or array.attrs.get("_ARRAY_DIMENSIONS")
    if named:
        return tuple(str(name).lower() for name in named)
    if in_image and array.ndim == len(ome.IMPLIED):
        return ome.IMPLIED
    if options.axes is not None and array.ndim == len(options.axes):
        return tuple(options.axes)
    return AXES[-array.ndim :]
