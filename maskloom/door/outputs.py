"""`maskloom.open`: an output read back, its tables as DataFrames and its masks by windows."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.door.frames import frame, object_frame
from maskloom.flows.terminal import count
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.classes import ClassTable
from maskloom.tasks import output as stored

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from maskloom.door.comparisons import Evaluation
    from maskloom.segcore.raster.spec import RasterSpec

Window = tuple[slice, ...]
"""Slices of rows and columns, or of planes, rows and columns."""
_SHOWN = 6


def open(output: str | os.PathLike[str]) -> Output:  # noqa: A001  users write maskloom.open
    """An output that runs have written: a folder, or an fsspec URI. Reads tables when asked.

    Raises `RecipeError` if no run has written there, and `StoreError` if it cannot be read.
    """
    location = os.fspath(output)
    if "://" not in location:
        location = str(Path(location).expanduser().resolve())
    return Output(stored.Output.open(location.rstrip("/")))


@dataclass(frozen=True, eq=False)
class Output(Mapping[str, "Image"]):
    """An output of runs: a mapping from image ids to images, with the tables as they were when they
    were first asked for. Open it again to see what a run has added since.
    """

    _stored: stored.Output

    @property
    def location(self) -> str:
        """Path or URI."""
        return self._stored.store.root

    @cached_property
    def images(self) -> pd.DataFrame:
        """The table `images`: one row an image, done or failed."""
        return frame(self._images)

    @cached_property
    def failed(self) -> pd.DataFrame:
        """The rows of `images` that failed, with the reasons."""
        failed = self.images["status"] == "failed" if len(self.images) else []
        found: pd.DataFrame = self.images[failed].reset_index(drop=True)
        return found

    @cached_property
    def areas(self) -> pd.DataFrame:
        """The table `areas`: one row an image and class."""
        return frame(self._areas)

    @cached_property
    def objects(self) -> pd.DataFrame | None:
        """The table `objects`; a GeoDataFrame where all images have a CRS and geopandas is
        installed. None: the runs made none.
        """
        table = self._stored.objects()
        return object_frame(table) if table.num_columns else None

    @property
    def report(self) -> str:
        """Where its report is. A missing one is made; raises `StoreError` if it cannot be
        written.
        """
        if not self._stored.store.exists("report.html"):
            from maskloom.flows.report.write import write_report

            return write_report(self.location)
        return self._stored.store.uri("report.html")

    def evaluate(self, truth: str | Sequence[str], **options: Any) -> Evaluation:
        """See `maskloom.evaluate`."""
        from maskloom.door.commands import evaluate

        return evaluate(self, truth, **options)

    def show(self) -> Any:
        """The overview of a notebook, for a cell in which the output is not the last value."""
        from IPython.display import HTML, display

        return display(HTML(self._repr_html_()))

    def __getitem__(self, image_id: str) -> Image:
        if image_id not in self._done:
            near = difflib.get_close_matches(str(image_id), self._done, 3)
            failed = dict(zip(self.failed["image_id"], self.failed["error"], strict=True))
            why = f" It failed: {failed[image_id]}" if image_id in failed else ""
            meant = f" Did you mean {' or '.join(map(repr, near))}?" if near and not why else ""
            raise KeyError(
                f"{self.location} has no mask of {image_id!r} among its {len(self._done)}."
                f"{why or meant}"
            )
        return Image(image_id, self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._done)

    def __len__(self) -> int:
        return len(self._done)

    def __repr__(self) -> str:
        return f"<Output {self.location}: {self._counts}>"

    def _repr_html_(self) -> str:
        from maskloom.door.pictures import area_rows, block, figure, paragraph, table

        total = (
            self.areas.groupby(["class_name", "area_unit"], sort=False)[["area"]]
            .sum()
            .reset_index()
        )
        whole = total.groupby("area_unit")["area"].transform("sum")
        total["fraction"] = (total["area"] / whole.where(whole > 0)).fillna(0.0)
        classes = self.classes_of(self._areas)
        colours = dict(zip(classes.names, classes.colours, strict=True))
        side = table(
            ("class", "area", "share"),
            area_rows(total.to_dict("list")),
            [colours.get(name) for name in total["class_name"]],
        )
        reasons = [
            paragraph(f"failed: {row.image_id}: {row.error}")
            for row in self.failed.head(_SHOWN).itertuples()
        ]
        first = [figure(self[each].pair, each) for each in list(self)[:1]]
        head = paragraph(f"{self.location}: {self._counts}")
        return block(*first, f"<div>{side}{head}{''.join(reasons)}</div>")

    def classes_of(self, areas: pa.Table) -> ClassTable:
        """Names and colours of the classes in these rows of `areas`."""
        columns = ["class_id", "class_name"]
        has_colours = "colour" in areas.column_names
        rows = areas.select([*columns, *(["colour"] if has_colours else [])]).to_pylist()
        named = {row["class_id"]: row for row in reversed(rows)}
        ordered = [named[i] for i in sorted(named)]
        names = tuple(row["class_name"] for row in ordered)
        return ClassTable.recorded(names, [row.get("colour") for row in ordered])

    @cached_property
    def _images(self) -> pa.Table:
        return self._stored.images()

    @cached_property
    def _areas(self) -> pa.Table:
        return self._stored.areas()

    @cached_property
    def _done(self) -> dict[str, None]:
        if not self._images.num_columns:
            return {}
        rows = self._images.select(["image_id", "status"]).to_pylist()
        return {row["image_id"]: None for row in rows if row["status"] == "ok"}

    @property
    def _counts(self) -> str:
        return f"{count(len(self), 'image')} done, {len(self.failed):,} failed"


@dataclass(frozen=True, eq=False)
class Image:
    """One image of an output. Pixels are read when asked for, and no more than asked for."""

    image_id: str
    output: Output

    @cached_property
    def row(self) -> pd.Series:
        """Its row of the table `images`."""
        images = self.output.images
        found: pd.Series = images[images["image_id"] == self.image_id].iloc[0]
        return found

    @cached_property
    def areas(self) -> pd.DataFrame:
        """Its rows of the table `areas`."""
        return frame(self._areas)

    @cached_property
    def objects(self) -> pd.DataFrame | None:
        """Its rows of the table `objects`. None: the runs made none."""
        table = self.output._stored.objects(of=[self.image_id])  # noqa: SLF001
        return object_frame(table) if table.num_columns else None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(y, x), or (z, y, x)."""
        return self._mask_spec.shape

    @cached_property
    def legend(self) -> pd.DataFrame:
        """Id, name and colour of every class."""
        import pandas as pd

        classes = self._classes
        colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in classes.colours]
        ids = range(len(classes.names))
        return pd.DataFrame({"class_id": ids, "class_name": classes.names, "colour": colours})

    def mask(self, window: Window | None = None, level: int = 0) -> NDArray[Any]:
        """The mask, or a window of it: `np.s_[1000:2000, 500:900]`. Level 1 has every second pixel
        along y and x, level 2 every fourth, and so on.

        Raises `RecipeError` if the window or the level is wrong, and `ReadError`.
        """
        return self._read("mask", window, level)[0]

    def source(self, window: Window | None = None, level: int = 0) -> NDArray[Any]:
        """The image that was segmented, (y, x, band), as `mask`."""
        return self._read("source", window, level)[0]

    def scores(self, window: Window | None = None, level: int = 0) -> NDArray[np.float32]:
        """The probability of each class, (y, x, class), of a run with `scores: true`; NaN where
        there is no data. Windows and levels as `mask`.
        """
        from maskloom.segcore.masks.quantised import probabilities

        return probabilities(self._read("scores", window, level)[0])

    def show(self) -> Any:
        """Source and mask with a slider, in a notebook."""
        from IPython.display import HTML, display

        return display(HTML(self._repr_html_()))

    def to_xarray(self, window: Window | None = None, level: int = 0) -> Any:
        """The mask as an `xarray.DataArray` with coordinates, as `mask`."""
        from maskloom.door.extras import coordinates_of, import_xarray

        xarray = import_xarray()
        box, stride = self._box(window, level)
        labels, spec = self.mask(window, level), self._mask_spec
        coordinates = coordinates_of(spec, box.start, labels.shape, stride)
        return xarray.DataArray(labels, coordinates, spec.space.axes, self.image_id)

    @property
    def pair(self) -> Any:
        """Source and mask, reduced to a picture; the middle plane of a volume."""
        from maskloom.door.pictures import SIDE, Pair, coloured, shown

        level = max(0, (-(-max(self.shape[-2:]) // SIDE) - 1).bit_length())
        planes = tuple(slice(n // 2, n // 2 + 1) for n in self.shape[:-2])
        window = (*planes, slice(None), slice(None))
        labels: NDArray[np.integer] = self._read("mask", window, level)[0]
        labels = labels.reshape(labels.shape[-2:])
        try:
            pixels, valid = self._read("source", window, level)
            pixels = pixels.reshape(*pixels.shape[-3:])
            picture = shown(pixels[..., :3], valid.reshape(labels.shape))
        except (OSError, ValueError):
            # The source is gone, or has changed: the mask is still there to see.
            picture = np.full((*labels.shape, 3), 235, np.uint8)
        return Pair(picture, coloured(labels, self._classes, objects=self._holds_objects(labels)))

    def __repr__(self) -> str:
        size = " x ".join(map(str, reversed(self.shape)))
        return f"<Image {self.image_id} of {self.output.location}, {size} pixels>"

    def _repr_html_(self) -> str:
        from maskloom.door.pictures import area_rows, block, figure, table

        rows = area_rows(self._areas.to_pydict())
        size = " × ".join(map(str, reversed(self.shape)))
        side = table(("class", "area", "share"), rows, self._classes.colours)
        return block(figure(self.pair, f"{self.image_id} · {size} pixels"), side)

    def _holds_objects(self, labels: NDArray[Any]) -> bool:
        """Whether the mask holds ids: in 32 bits, or in 16 for pictures, where few classes would
        have 8.
        """
        return labels.dtype == np.uint32 or (
            labels.dtype.itemsize > 1 and len(self._classes.names) <= 255
        )

    @cached_property
    def _areas(self) -> pa.Table:
        import pyarrow.compute as pc

        areas = self.output._areas  # noqa: SLF001
        return areas.filter(pc.equal(areas["image_id"], self.image_id))

    @cached_property
    def _classes(self) -> ClassTable:
        return self.output.classes_of(self._areas)

    @cached_property
    def _mask_spec(self) -> RasterSpec:
        return self.output._stored.mask_spec(self.image_id)  # noqa: SLF001

    def _box(self, window: Window | None, level: int) -> tuple[Box, int]:
        if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level < 32:
            raise RecipeError(f"level: expected a whole number from 0 on; got {level!r}.")
        shape = self.shape
        given = window if isinstance(window, tuple) else (window,) if window is not None else ()
        given = given or (slice(None),) * len(shape)
        if len(given) != len(shape) or not all(isinstance(each, slice) for each in given):
            raise RecipeError(
                f"window: expected a slice for each of {len(shape)} axes, e.g. "
                f"np.s_[{', '.join(['0:512'] * len(shape))}]; got {window!r}."
            )
        ranges = [each.indices(length) for each, length in zip(given, shape, strict=True)]
        if any(step != 1 or stop <= start for start, stop, step in ranges):
            raise RecipeError(
                f"window: expected slices that hold pixels of {shape}, without a step; got "
                f"{window!r}. `level` takes every second, fourth … pixel."
            )
        starts, stops = zip(*((start, stop) for start, stop, _ in ranges), strict=True)
        return Box(starts, stops), 2**level

    def _read(
        self, layer: str, window: Window | None, level: int
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        box, stride = self._box(window, level)
        opened = getattr(self.output._stored, layer)(self.image_id)  # noqa: SLF001
        with opened as reader:
            found: tuple[NDArray[Any], NDArray[np.bool_]] = reader.read_window(box, stride)
        return found
