"""Arguments and options that several commands share, and groups of options as one value."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer


def segmenter_kinds(incomplete: str) -> list[str]:
    """Kinds of segmenters that begin so, for the completion of shells."""
    from maskloom.segcore.models.protocols import SEGMENTERS

    return [kind for kind in SEGMENTERS if kind.startswith(incomplete)]


RecipePath = Annotated[
    Path,
    typer.Argument(metavar="RECIPE.yaml", help="The recipe: a YAML file (see `maskloom schema`)."),
]
TrainingPath = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE.yaml",
        help="The training recipe: a YAML file (see `maskloom schema train`).",
    ),
]
Output = Annotated[
    str, typer.Argument(metavar="OUTPUT", help="The output of a run: a folder or fsspec URI.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.SUB=VALUE",
        help="Change a key of the recipe, e.g. tiling.tile=1024. Repeatable.",
    ),
]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
NoPrefect = Annotated[
    bool,
    typer.Option(
        "--no-prefect",
        help="Run without Prefect: nothing is recorded, and the start is faster.",
    ),
]
KeepOthers = Annotated[
    bool,
    typer.Option(
        "--keep-other-recipes",
        help=(
            "Allow images of other recipes in the same output. Group the tables by the column "
            "`fingerprint`."
        ),
    ),
]
SoleWriter = Annotated[
    bool,
    typer.Option(
        "--sole-writer",
        help=(
            "Assert that no other run writes to the output. Needed after a killed run on stores "
            "without conditional writes."
        ),
    ),
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        "--values",
        "-v",
        metavar="VALUE=CLASS",
        help=(
            "Class of a value of the truth masks: a number 255=inside, a colour "
            "'#3C1098=building', or a range in which each value is an object, 4..6=roof or "
            "1..=nucleus. Repeatable, or separated by commas. Default: class ids, or ids of "
            "objects if the run has objects."
        ),
    ),
]
Colours = Annotated[
    Path | None,
    typer.Option(
        metavar="CLASSES.yaml",
        help=(
            'The same as a YAML file with one line per class, `building: "#3C1098"`; a list gives '
            "a class several values."
        ),
    ),
]
Void = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VALUE",
        help=(
            "Value, range or colour of the truth masks to ignore, e.g. 255; of polygons, a value "
            "of their attribute. Repeatable. `rest`: all that have no class."
        ),
    ),
]
Attribute = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=(
            "Polygons: attribute that names the class. Default: class_name, class, classification "
            "or label."
        ),
    ),
]
AllOf = Annotated[
    str, typer.Option("--of", metavar="CLASS", help="Polygons: the class of all of them.")
]
Outside = Annotated[
    str,
    typer.Option(
        metavar="CLASS",
        help=(
            "Polygons: class of pixels that none covers, or void. Default: the first class if its "
            "name means background, otherwise void."
        ),
    ),
]
OverlapRule = Annotated[
    str,
    typer.Option(
        "--overlap",
        metavar="last|class",
        help="Polygons: the last in the file covers others, or that of the last class.",
    ),
]
AllTouched = Annotated[
    bool,
    typer.Option(
        "--all-touched",
        help="Polygons have all pixels that they touch, not only those whose centre they have.",
    ),
]
VectorLayer = Annotated[
    str, typer.Option("--layer", metavar="NAME", help="Polygons: layer of the file.")
]
ImageAttribute = Annotated[
    str,
    typer.Option(
        "--image-attribute",
        metavar="NAME",
        help=(
            "Polygons: attribute that names the image. Default: the file's name if it is that of "
            "an image, otherwise the place."
        ),
    ),
]
PixelCoordinates = Annotated[
    bool,
    typer.Option("--pixels", help="Polygons: coordinates are pixels in images with a CRS too."),
]
TruthSuffix = Annotated[
    str,
    typer.Option(
        metavar="END", help="End of the truth masks' names to ignore in pairing, e.g. _mask."
    ),
]
ImageSuffix = Annotated[
    str,
    typer.Option(metavar="END", help="End of the images' names to ignore in pairing, e.g. _sat."),
]
Tolerance = Annotated[
    float,
    typer.Option(
        min=0,
        max=100,
        help="Distance in pixels up to which boundaries agree, for boundary F.",
    ),
]
CompareObjects = Annotated[
    bool | None,
    typer.Option(
        "--objects/--no-objects",
        help=(
            "Compare objects too: panoptic quality and AP. The objects of a class with a single "
            "value are its connected components. Default: if the run's masks hold ids of objects."
        ),
        show_default=False,
    ),
]
ResultFolder = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Folder for the results. Default: OUTPUT/evaluation."),
]
LabelledSamples = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help=(
            "In place of truth: samples with labels. A table of `maskloom sample`, or one with "
            "image_id, row, column (or longitude, latitude) and label; or points or polygons as "
            "GeoJSON, GeoPackage or GeoParquet with an attribute `label` (other: --attribute)."
        ),
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of worker processes. Default: none for few pixels, otherwise one per core.",
        show_default=False,
    ),
]


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
LogFile = Annotated[
    Path | None,
    typer.Option(
        "--log-file",
        metavar="PATH",
        help=(
            "Append the lines of this command to a file, with time; as JSON lines if its name ends "
            "with .jsonl."
        ),
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class RunFlags:
    """Options of the commands that run a recipe."""

    changes: Changes = None
    no_prefect: NoPrefect = False
    quiet: QuietFlag = False
    keep_other_recipes: KeepOthers = False
    sole_writer: SoleWriter = False
    log_file: LogFile = None


@dataclass(frozen=True, slots=True)
class EvaluationFlags:
    """Options of `maskloom evaluate`."""

    values: Values = None
    colours: Colours = None
    void: Void = None
    truth_suffix: TruthSuffix = ""
    image_suffix: ImageSuffix = ""
    attribute: Attribute = ""
    of: AllOf = ""
    outside: Outside = ""
    overlap: OverlapRule = "last"
    all_touched: AllTouched = False
    layer: VectorLayer = ""
    image_attribute: ImageAttribute = ""
    pixels: PixelCoordinates = False
    tolerance: Tolerance = 2.0
    objects: CompareObjects = None
    samples: LabelledSamples = None
    out: ResultFolder = None
    workers: Workers = None
    quiet: QuietFlag = False


Command = Callable[..., None]


def takes_flags(group: type[Any]) -> Callable[[Command], Command]:
    """Decorate a command so that the fields of a dataclass become options; the command gets them as
    one value, its argument `flags`.
    """

    def decorate(command: Command) -> Command:
        """The command, with an option for each field of the group in place of `flags`."""
        own = inspect.signature(command, eval_str=True).parameters
        hints = typing.get_type_hints(group, include_extras=True)
        options = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(group)
        ]

        @functools.wraps(command)
        def with_flags(**values: Any) -> None:
            flags = group(**{each.name: values.pop(each.name) for each in options})
            command(**values, flags=flags)

        parameters = [*(each for name, each in own.items() if name != "flags"), *options]
        with_flags.__annotations__ = {each.name: each.annotation for each in parameters}
        with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return with_flags

    return decorate
