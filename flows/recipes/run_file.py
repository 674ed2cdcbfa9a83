"""The file of a run recipe: its keys with their types and help, and its JSON Schema.

The segmenter, the cluster and the statistics are sections of their own (`flows.recipes.schemas`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from maskloom.flows.recipes.messages import explain
from maskloom.flows.recipes.schedule import Schedule
from maskloom.flows.recipes.schemas import NUMBER, ColourText, complete, model_of, schema_of
from maskloom.flows.recipes.yaml_files import refuse_secrets, shown
from maskloom.segcore import geometry
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import DEFAULT_TILE
from maskloom.segcore.ground.space import PixelSize
from maskloom.segcore.models.protocols import SEGMENTERS
from maskloom.segcore.processes.limits import Limits
from maskloom.segcore.raster.dates import DateInName
from maskloom.segcore.raster.stored import GroundControl, ReadOptions
from maskloom.segcore.statistics.protocol import STATISTICS
from maskloom.tasks.clusters.protocol import CLUSTERS

_SMALLEST_TILE, _LARGEST_TILE = 16, 16384


def _of_three(sides: list[int]) -> list[int]:
    if len(sides) != len("zyx"):
        raise ValueError(
            f"expected one whole number, or three for volumes: [z, y, x]; got {len(sides)}: "
            f"{shown(sides)}"
        )
    return sides


def _size(text: str) -> str:
    PixelSize.parse(text)
    return text


def _size_or_tags(text: str) -> str:
    return text if text == "tags" else _size(text)


def _date_in_name(text: str) -> str:
    DateInName(text)
    return text


def _kind_of_tile(value: Any) -> str:
    return "list[int]" if isinstance(value, list | tuple) else "int"


_Side = Annotated[int, pydantic.Field(ge=_SMALLEST_TILE, le=_LARGEST_TILE, strict=True)]
_Sides = Annotated[
    list[Annotated[int, pydantic.Field(ge=1, le=_LARGEST_TILE, strict=True)]],
    pydantic.Field(json_schema_extra={"minItems": len("zyx"), "maxItems": len("zyx")}),
    pydantic.AfterValidator(_of_three),
]


class TilingOptions(pydantic.BaseModel):
    """How images are cut into tiles."""

    model_config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)

    tile: Annotated[
        Annotated[_Side, pydantic.Tag("int")] | Annotated[_Sides, pydantic.Tag("list[int]")],
        pydantic.Discriminator(_kind_of_tile),
    ] = DEFAULT_TILE
    """Side of a tile in pixels. It never changes a result, only memory and speed. Rounded up, to a
    power of two below 256 and to a multiple of 256 above, so that no two tiles share a block of the
    mask. Volumes are cut into cubes with about as many voxels; `[z, y, x]` gives the sides instead,
    where y and x are rounded up to multiples of 16.
    """

    @property
    def value(self) -> geometry.Tiling:
        """The tiling with its sides rounded up."""
        if isinstance(self.tile, int):
            return geometry.Tiling(effective_tile(self.tile))
        z, *sides = self.tile
        # A pixel of a preview must not span two tiles.
        return geometry.Tiling(
            (z, *(-(-side // _SMALLEST_TILE) * _SMALLEST_TILE for side in sides))
        )


class ReportOptions(pydantic.BaseModel):
    """What `report.html` shows."""

    model_config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)

    pictures: Annotated[bool, pydantic.Field(strict=True)] = True
    """Whether it holds small pictures of the images, and the output the table `pictures`. False
    for images that must not leave their place, such as those of patients.
    """


class AlertOptions(pydantic.BaseModel):
    """A condition on classes."""

    model_config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)

    when: str
    """The condition that raises the alert, e.g. burned.area > 5 ha and burned.growth > 1 ha/day."""
    until: str = ""
    """The condition that ends it. Default: that `when` does not hold."""
    of: Literal["image", "zone", "collection"] = "image"
    """What it is about: each image, each zone, or all images together."""


class ChannelOptions(pydantic.BaseModel):
    """Where alerts are sent: one of both keys."""

    model_config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)

    webhook: str = ""
    """Address that gets a POST with the event as JSON; take it from the environment: ${HOOK}."""
    block: str = ""
    """Notification block of Prefect, e.g. slack-webhook/fire."""

    @pydantic.model_validator(mode="after")
    def _is_one(self) -> ChannelOptions:
        if bool(self.webhook) == bool(self.block):
            raise ValueError("expected either webhook or block")
        if self.webhook and not self.webhook.startswith(("http://", "https://")):
            raise ValueError("expected an address that begins with https:// or http://")
        return self


class ZonesOptions(pydantic.BaseModel):
    """Polygons whose areas by class are wanted."""

    model_config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)

    file: str
    """The file; a local path, relative to the recipe file, or an fsspec URI."""
    layer: str = ""
    """Layer of a file with several."""
    attributes: list[str] | None = None
    """Attributes that the table carries as `zone_<attribute>`. Default: all."""


class PhysicalValues(pydantic.BaseModel):
    """How stored numbers become physical ones."""

    model_config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)

    scale: Annotated[float, NUMBER, pydantic.Field(allow_inf_nan=False)] = 1.0
    """Factor of the stored number."""
    offset: Annotated[float, NUMBER, pydantic.Field(allow_inf_nan=False)] = 0.0
    """What is added to the product."""

    @property
    def numbers(self) -> tuple[float, float]:
        """Scale and offset."""
        return self.scale, self.offset


class RunFile(pydantic.BaseModel):
    """A run recipe as users write it."""

    model_config = pydantic.ConfigDict(
        extra="forbid", use_attribute_docstrings=True, title="maskloom recipe"
    )

    name: str = pydantic.Field("", pattern="^[a-z0-9-]*$", max_length=60)
    """Name of the runs, of the characters a-z, 0-9 and -. Default: the recipe's file name."""
    inputs: str | list[str]
    """Files, globs, folders, or list files (.csv, .parquet, .txt) with a column `uri`; local paths
    or fsspec URIs.
    """
    output: str
    """Folder for masks, tables, previews and records of runs; a local path, relative to the recipe
    file, or an fsspec URI.
    """
    segmenter: dict[str, Any] | str | list[dict[str, Any] | str]
    """The segmenter: `kind` and its parameters. A list makes an ensemble. See `maskloom list
    segmenters`.
    """
    fit: Literal["collection", "image"] = "collection"
    """collection: one model for all images, so that a class means the same in all of them. image: a
    model for each image.
    """
    tiling: TilingOptions = pydantic.Field(default_factory=lambda: TilingOptions(tile=DEFAULT_TILE))
    """How images are cut into tiles."""
    statistics: list[str | dict[str, Any]] | str | dict[str, Any] | None = None
    """Tables to write beside `images`. `area` is always written; `objects` is too if masks are of
    objects, unless this key is set. See `maskloom list statistics`.
    """
    zones: str | ZonesOptions | None = None
    """Polygons whose areas by class are wanted, such as parcels: GeoJSON, GeoPackage, GeoParquet
    and others, in any CRS. Fills the table `zones`.
    """
    alerts: dict[str, str | AlertOptions] = {}
    """Conditions on classes, by name: {weeds: weed / (weed + crop) > 0.3}. Those that come true are
    rows of the table `alerts`, and sent to `notify`.
    """
    notify: list[ChannelOptions] = []
    """Where alerts are sent, besides the Prefect server of the run."""
    cluster: dict[str, Any] | str = "local"
    """Where jobs run: local (worker processes on this machine), serial (this process), address (an
    existing Dask cluster), slurm (jobs of SLURM), kubernetes (pods).
    """
    format: str | None = None
    """Format of all inputs, instead of the one that their names suggest. See `maskloom list
    formats`.
    """
    ground_control: GroundControl = "keep"
    """For images georeferenced by ground control points only. keep: masks keep the points, and
    areas are in px. affine: masks and areas use the transform that fits the points best.
    """
    pixel_size: Annotated[str, pydantic.AfterValidator(_size_or_tags)] | None = None
    """Size of a pixel for images that do not state it, or state it wrongly: one number and a unit,
    e.g. 0.25 um, or one number for each axis, e.g. 2.5 0.7 0.7 mm (z, y, x). tags: the resolution
    tags of TIFF files, which most programs fill with sizes for printing.
    """
    level: (
        Annotated[int, pydantic.Field(ge=0, strict=True)]
        | Annotated[str, pydantic.AfterValidator(_size)]
    ) = 0
    """Level of pyramids, e.g. of slides: its number (0: full resolution), or a size such as 1 um
    for the coarsest level with pixels no larger than that.
    """
    axes: Literal["zyx", "tyx"] | None = None
    """Meaning of the pages of files that do not name their axes: zyx for volumes, tyx for images
    over time.
    """
    nodata: Annotated[float, NUMBER, pydantic.Field(allow_inf_nan=False)] | None = None
    """A value of pixels that means "no data", besides what the files say: e.g. 0 outside of a brain
    whose skull was removed. Colours are no data where all bands have it, other pixels where any
    band has.
    """
    features: list[str] = pydantic.Field([], max_length=256)
    """What segmenters see in place of the bands of the files: indices (ndvi, excess_green), bands
    (red, b4, all of them: bands), formulas (b5 / b4), lab, and windows (gaussian(2), texture(5),
    gaussian(ndvi, 2)). `bands` of the segmenter then counts features.
    """
    sensor: str | None = None
    """What took the images, so that their bands have names: sentinel2, landsat8 (and 9), landsat5
    (and 7), planetscope, naip, micasense.
    """
    band_names: list[Annotated[str, pydantic.Field(min_length=1, max_length=60)]] = []
    """Names of the bands of the files, in their order, in place of those that they state."""
    values: Literal["stored", "physical"] | PhysicalValues = "stored"
    """stored: the numbers of the files. physical: times the scale plus the offset that the file
    states, e.g. reflectances. {scale: 0.0001, offset: -0.1}: with these.
    """
    scores: Annotated[bool, pydantic.Field(strict=True)] = False
    """Whether to keep the probability of each class, as files in `scores`, with the mean entropy
    and margin of each image in the table `images`. For segmenters that give probabilities: mixture,
    network, unet, fcn, deeplab, and ensembles of these.
    """
    colours: dict[str, ColourText] = {}
    """Colours by class name, for masks, pictures and tables: `#rrggbb` or a name of CSS, e.g.
    {water: "#1d6fa5", forest: darkgreen}. Other classes keep their
    own. They change no label, but a run with other colours makes the masks again.
    """
    identifiers: bool = False
    """Name DICOM series by their SeriesInstanceUID, with which a hospital can find the patient,
    instead of by a keyed hash of it (the key: environment variable MASKLOOM_PSEUDONYM_KEY).
    """
    acquired: Annotated[str, pydantic.AfterValidator(_date_in_name)] | None = None
    """The date that names of files hold, as a pattern of strptime: `%Y%m%d` finds 20260513, and
    `%Y/%m/%d/` folders. It goes before the date that a file states. Times are in UTC.
    """
    assets: list[str] | str = []
    """Names of the assets of STAC items to read, in the order of the bands: [red, green, blue].
    Without it, those of the role `data`.
    """
    masks: dict[str, str] = {}
    """Other masks than the usual ones, by format: {dicom: seg} for DICOM segmentation objects,
    which copy name, number and birth date of the patient from the scans; {dicom: seg_binary} for
    viewers that do not read label maps.
    """
    storage: dict[str, dict[str, Any]] = {}
    """fsspec options by protocol, e.g. {s3: {profile: lab, endpoint_url: ...}}. No secrets."""
    max_failed_fraction: Annotated[float, NUMBER] = pydantic.Field(
        1.0, ge=0, le=1, allow_inf_nan=False
    )
    """The run fails (exit code 1) if a larger fraction of the images fails. Otherwise failed images
    give exit code 3.
    """
    schedule: Schedule | None = None
    """When a server starts the recipe: see `maskloom serve`."""
    report: bool | ReportOptions = True
    """Whether a run ends with `report.html`, a page to look at: true, false, or options. See
    `maskloom report`.
    """
    limits: dict[str, Any] = {}
    """Time limits in seconds, after which a step is given up: read, work, examine."""

    @property
    def options(self) -> ReadOptions:
        """What the recipe says about how images are read."""
        size, level = self.pixel_size, self.level
        return ReadOptions(
            self.ground_control,
            "tags" if size == "tags" else PixelSize.parse(size) if size is not None else None,
            PixelSize.parse(level) if isinstance(level, str) else level,
            self.axes,
            self.nodata,
            self.identifiers,
            None if self.acquired is None else DateInName(self.acquired),
            (self.assets,) if isinstance(self.assets, str) else tuple(self.assets),
            tuple(self.features),
            self.sensor,
            tuple(self.band_names),
            self.values.numbers if isinstance(self.values, PhysicalValues) else self.values,
        )


def effective_tile(tile: int) -> int:
    """The side of the tiles as used: a power of two below 256, otherwise a multiple of 256.

    >>> [effective_tile(side) for side in (16, 100, 256, 300, 2048)]
    [16, 128, 256, 512, 2048]
    """
    return 1 << (tile - 1).bit_length() if tile < 256 else -(-tile // 256) * 256


def checked(document: dict[str, Any]) -> RunFile:
    """The document with types and keys checked. Raises `RecipeError`."""
    if isinstance(document.get("cluster"), dict):
        document["cluster"].setdefault("kind", "local")
    try:
        file = RunFile.model_validate(document)
    except pydantic.ValidationError as error:
        raise RecipeError(
            explain(
                error,
                "",
                list(RunFile.model_fields),
                {
                    "tiling": TilingOptions.model_fields,
                    "report": ReportOptions.model_fields,
                    "schedule": Schedule.model_fields,
                },
            )
        ) from None
    refuse_secrets(file.storage)
    return file


def schema() -> dict[str, Any]:
    """JSON Schema of the recipe."""
    document = RunFile.model_json_schema()
    sections = {
        "segmenter": schema_of(SEGMENTERS),
        "cluster": schema_of(CLUSTERS),
        "statistics": schema_of(STATISTICS),
    }
    properties = document["properties"]
    for name in ("segmenter", "cluster"):
        text = {
            "enum": [
                alternative["properties"]["kind"]["const"]
                for alternative in sections[name]["oneOf"]
            ]
        }
        properties[name] = {
            "description": properties[name].get("description", ""),
            "oneOf": [*sections[name]["oneOf"], text],
        }
    # A list is an ensemble.
    properties["segmenter"]["oneOf"].append(
        {"type": "array", "items": {"$ref": "#/properties/segmenter"}}
    )
    properties["limits"] = model_of(Limits).model_json_schema()
    properties["statistics"]["items"] = {
        "oneOf": [*sections["statistics"]["oneOf"], {"enum": list(STATISTICS)}]
    }
    return complete(document)
