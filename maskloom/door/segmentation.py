"""`maskloom.segment`: one image in this process, without Prefect, Dask or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.door.frames import frame, object_frame
from maskloom.door.images import Given, image_of, is_path
from maskloom.segcore.errors import RecipeError

if TYPE_CHECKING:
    import os

    import pandas as pd
    from numpy.typing import NDArray

    from maskloom.door.pictures import Pair
    from maskloom.flows.recipes.run import RunRecipe
    from maskloom.segcore.models.protocols import Fitter, Model
    from maskloom.segcore.pipeline.one_image import SegmentedImage

_NOT_OF_AN_IMAGE = frozenset(
    {
        "name",
        "inputs",
        "output",
        "segmenter",
        "fit",
        "cluster",
        "max_failed_fraction",
        "schedule",
        "limits",
        "storage",
        "masks",
        "scores",
        "tiling",
        "identifiers",
    }
)
"""Keys of a recipe that say nothing about one image."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result of `maskloom.segment`. In a notebook it shows itself."""

    segmenter: str
    """Kind of the segmenter."""
    _found: SegmentedImage
    _title: str = "image"
    _xarray: Any = None

    @property
    def labels(self) -> NDArray[np.unsignedinteger]:
        """What the mask of a run holds: (y, x), or (z, y, x) of a volume. Class ids, and `nodata`
        in pixels without a class; or ids of objects as uint32, with 0 for the background.
        """
        return self._found.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by class id."""
        return self._found.class_table.names

    @property
    def nodata(self) -> int | None:
        """The label of pixels without a class. None: the labels are objects."""
        return None if self.holds_objects else self._found.class_table.nodata

    @property
    def holds_objects(self) -> bool:
        """Whether the labels are ids of objects."""
        return self._found.labels.dtype == np.uint32

    @cached_property
    def legend(self) -> pd.DataFrame:
        """Id, name and colour of every class."""
        import pandas as pd

        table = self._found.class_table
        colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in table.colours]
        return pd.DataFrame(
            {"class_id": range(len(table.names)), "class_name": table.names, "colour": colours}
        )

    @cached_property
    def areas(self) -> pd.DataFrame:
        """The table `areas`: pixels, fraction, area and its unit of every class."""
        return self._frame("areas")

    @cached_property
    def objects(self) -> pd.DataFrame | None:
        """The table `objects`; a GeoDataFrame in longitude and latitude where the image has a CRS
        and geopandas is installed. None: it was not asked for, see `statistics`.
        """
        return self._frame("objects") if "objects" in self._found.tables else None

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables by name, also those of plug-ins."""
        return {name: self._frame(name) for name in self._found.tables}

    @property
    def model(self) -> Model:
        """The fitted model. `maskloom.segment(other, seg.model)` uses it again."""
        return self._found.model

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What was fitted or chosen: threshold, centres, number of clusters."""
        return self._found.model.provenance()

    @property
    def warning(self) -> str | None:
        """What to look at in the result. None: no warning."""
        return self._found.warning

    def show(self) -> Any:
        """The picture of a notebook, for a cell in which the result is not the last value."""
        from IPython.display import HTML, display

        return display(HTML(self._repr_html_()))

    def to_xarray(self) -> Any:
        """The labels as an `xarray.DataArray`, with the coordinates of the image if it had some."""
        from maskloom.door.extras import labels_as_xarray

        return labels_as_xarray(self.labels, self._found.spec, self._xarray, self.legend)

    def __repr__(self) -> str:
        size = " x ".join(map(str, reversed(self.labels.shape)))
        if self.holds_objects:
            found = f"{int(self.labels.max(initial=0)):,} objects"
        else:
            found = f"{len(self.classes)} classes: {', '.join(self.classes)}"
        return f"<Segmentation of {self._title} by {self.segmenter}, {size} pixels, {found}>"

    def _repr_html_(self) -> str:
        from maskloom.door.pictures import area_rows, block, figure, paragraph, table

        rows = area_rows(self._found.tables["areas"].to_pydict())
        parts = [figure(self._pair, f"{self._title} · {self.segmenter} · {self._size}")]
        side = [
            table(("class", "area", "share"), rows, self._found.class_table.colours)
            if not self.holds_objects
            else self._largest()
        ]
        if self.warning:
            side.append(paragraph(self.warning))
        return block(*parts, f"<div>{''.join(side)}</div>")

    @property
    def _size(self) -> str:
        size = " × ".join(map(str, reversed(self.labels.shape)))
        if self.holds_objects:
            return f"{size} pixels, {int(self.labels.max(initial=0)):,} objects"
        return f"{size} pixels"

    def _largest(self) -> str:
        """The largest objects, or the areas of the classes if there is no table of objects."""
        from maskloom.door.pictures import area_rows, table
        from maskloom.segcore.ground.amounts import amount

        if "objects" not in self._found.tables:
            return table(
                ("class", "area", "share"), area_rows(self._found.tables["areas"].to_pydict())
            )
        columns = ["object_id", "class_name", "area", "area_unit"]
        rows = self._found.tables["objects"].select(columns).sort_by([("area", "descending")])
        rows = rows.to_pylist()
        cells = [
            (str(row["object_id"]), row["class_name"], amount(row["area"], row["area_unit"]))
            for row in rows
        ]
        return table(("object", "class", "area"), cells)

    def _frame(self, name: str) -> pd.DataFrame:
        table = self._found.tables[name]
        return object_frame(table) if name == "objects" else frame(table)

    @cached_property
    def _pair(self) -> Pair:
        from maskloom.door.pictures import pair_of_previews

        return pair_of_previews(self._found)


def segment(
    image: str | os.PathLike[str] | NDArray[Any] | Any,
    segmenter: str | Mapping[str, Any] | Sequence[Any] | Model | Segmentation,
    *,
    statistics: Sequence[str | Mapping[str, Any]] | str | Mapping[str, Any] | None = None,
    pixel_size: str | float | tuple[Any, ...] | None = None,
    **parameters: Any,
) -> Segmentation:
    """Segment one image in this process: labels, areas and objects, as a run gives them.

    Nothing is written.

    Parameters
    ----------
    image
        A path or URI of any format that runs read; an array (y, x) or (y, x, band); or an
        `xarray.DataArray` with the dimensions y, x, and perhaps band and z.
    segmenter
        A kind such as `"kmeans"` (`maskloom list segmenters` names all); a section of a recipe with
        `kind`; a list of these, which is an ensemble; or a fitted model, to use it again.
    statistics
        Tables beside the areas, as in a recipe: `"objects"` measures the connected parts of
        classes. None: objects if the labels are objects.
    pixel_size
        `(0.5, "um")`, `(2.5, 0.7, 0.7, "mm")` for z, y, x, or the text of a recipe, `"0.5 um"`.
        None: as the image says.
    **parameters
        Of the segmenter, by their names on the command line: `clusters=5`, `bands=[1, 2]`,
        `classes=…`. Keys of a recipe that say something on one image: `nodata`, `level`, `format`,
        `axes`, `colours`, `features`, and so on; `tile`, the side of the tiles (2048), which
        changes memory and speed and no result of an exact segmenter.

        Of an array, what a file would say: `axes`, `"yxb"` (the usual order), `"byx"` (bands
        first, as rasterio reads), `"zyx"` or `"zyxb"`; `valid`, booleans that are True where there
        is data (NaN and masked pixels never are); `crs` (`"EPSG:32633"`) and `transform`, the six
        numbers of the affine; `rgb`, whether the first bands are red, green and blue (by default,
        if there are three of uint8).

    Raises
    ------
    RecipeError
        If an argument is wrong.
    ImageError
        If the image cannot be read, or does not suit the segmenter.
    FitError
        If no model can be fitted to the image.
    """
    from maskloom.segcore.pipeline.one_image import segment_in_memory

    of_arrays = set() if is_path(image) else {"axes"}
    given, stated = _taken(parameters, {"valid", "crs", "transform", "rgb"} | of_arrays)
    stated |= {"statistics": statistics, "pixel_size": _size(pixel_size)}
    recipe = _recipe(segmenter, stated)
    opened = image_of(image, Given(**given), recipe.options, recipe.format)
    _use_all_cores()
    found = segment_in_memory(recipe.run_settings("in-memory"), opened)
    is_xarray = type(image).__module__.partition(".")[0] == "xarray"
    return Segmentation(recipe.kind, found, _name(image), image if is_xarray else None)


def _taken(parameters: Mapping[str, Any], names: Set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of these names, and the others."""
    inside = {name: value for name, value in parameters.items() if name in names}
    return inside, {name: parameters[name] for name in parameters.keys() - names}


def _recipe(segmenter: Any, stated: Mapping[str, Any]) -> RunRecipe:
    """The recipe of this call, checked as that of a run is. Raises `RecipeError`."""
    from maskloom.flows.recipes.run import make
    from maskloom.flows.recipes.run_file import RunFile

    known = set(RunFile.model_fields) - _NOT_OF_AN_IMAGE
    sections, own = _taken(stated, known | {"tile"})
    tile = sections.pop("tile", None)
    section, started = _started(segmenter, own)
    document = {
        "inputs": "image",
        "output": "nothing",
        "cluster": "serial",
        "segmenter": section,
        **{name: _plain(value) for name, value in sections.items() if value is not None},
    }
    if tile is not None:
        document["tiling"] = {"tile": _plain(tile)}
    try:
        return make(document, Path.cwd(), started=started)
    except RecipeError as error:
        raise type(error)(_in_python(str(error))) from None


def _started(segmenter: Any, own: Mapping[str, Any]) -> tuple[Any, Fitter | Model | None]:
    """The section of a recipe; or the kind and the model, if that is fitted already."""
    from maskloom.segcore.models.protocols import (
        MODELS,
        SEGMENTERS,
        ObjectSegmenter,
        Segmenter,
    )

    if isinstance(segmenter, Segmentation):
        segmenter = segmenter.model
    if isinstance(segmenter, str):
        return {"kind": segmenter, **_plain(own)}, None
    if isinstance(segmenter, Mapping):
        return {**_plain(segmenter), **_plain(own)}, None
    if isinstance(segmenter, list | tuple):
        _refuse_parameters(own, "an ensemble; put them into its members")
        return [_plain(each) for each in segmenter], None
    if isinstance(segmenter, Segmenter | ObjectSegmenter):
        _refuse_parameters(own, "a fitted model")
        return MODELS.name_of(type(segmenter)) or type(segmenter).__name__, segmenter
    raise RecipeError(
        f"segmenter: expected a kind ({', '.join(SEGMENTERS)}), a mapping with `kind`, a list of "
        f"these, or a fitted model; got {type(segmenter).__name__}."
    )


def _refuse_parameters(own: Mapping[str, Any], what: str) -> None:
    if own:
        raise RecipeError(f"{', '.join(own)}: no parameter of {what}.")


def _plain(value: Any) -> Any:
    """A value as YAML would give it: tuples, arrays and numbers of NumPy are lists and numbers."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _size(said: Any) -> str | None:
    """A pixel size in the words of a recipe."""
    if said is None or isinstance(said, str):
        return said
    *numbers, unit = said if isinstance(said, list | tuple) and said else (said, None)
    if len(numbers) == 1 and isinstance(numbers[0], list | tuple):
        numbers = list(numbers[0])
    if not isinstance(unit, str) or not numbers:
        raise RecipeError(
            "pixel_size: expected numbers and a unit, e.g. (0.5, 'um'), (2.5, 0.7, 0.7, 'mm') or "
            f"'0.5 um'; got {said!r}."
        )
    return " ".join([*map(str, map(_plain, numbers)), unit])


def _in_python(message: str) -> str:
    """The message about a recipe without the section that Python does not have."""
    lines = message.split("\n")
    return "\n".join(line.removeprefix("segmenter.").removeprefix("tiling.") for line in lines)


def _use_all_cores() -> None:
    """Networks run on all cores of this process; stores and limits have their defaults."""
    from maskloom.segcore.deep.inference.engines import opening as engines
    from maskloom.tasks.clusters import machine

    engines.configure(machine.core_count())


def _name(image: Any) -> str:
    if is_path(image):
        return str(image).rstrip("/").rsplit("/", 1)[-1]
    return str(getattr(image, "name", None) or "image")
