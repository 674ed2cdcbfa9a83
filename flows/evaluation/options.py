"""Options of an evaluation as users give them, and the truth files and job options from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from maskloom.flows.recipes.yaml_files import read_yaml
from maskloom.segcore import formats
from maskloom.segcore.annotations.label_mapping import (
    UNKNOWN,
    VOID,
    VOID_NAME,
    LabelMapping,
    ValueRule,
    default_rules,
    parse_table,
    parse_values,
)
from maskloom.segcore.annotations.pairing import NameSuffixes
from maskloom.segcore.annotations.polygons.rules import PolygonRules
from maskloom.segcore.errors import ImageError, RecipeError
from maskloom.segcore.evaluation.scoring import EvaluationOptions
from maskloom.segcore.raster.source import ABSENT
from maskloom.tasks.clusters.local import LocalCluster
from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.discovery.discover import discover, passed_over_note

if TYPE_CHECKING:
    from maskloom.segcore.evaluation.run_tables import Output
    from maskloom.tasks.clusters.protocol import Cluster


REST = "rest"
"""In place of a void value: all values that no class has."""


@dataclass(frozen=True, slots=True)
class PolygonOptions:
    """How polygons are truth; see `segcore.annotations.polygons.rules`."""

    attribute: str = ""
    of: str = ""
    outside: str = ""
    overlap: Literal["last", "class"] = "last"
    all_touched: bool = False
    layer: str = ""
    image: str = ""
    pixels: bool = False


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Everything that users set for an evaluation."""

    truth: tuple[str, ...]
    """Files, globs, folders or list files."""
    values: tuple[str, ...] = ()
    """Each VALUE=CLASS."""
    colours: Path | None = None
    """YAML file of classes with their values or colours."""
    void: tuple[str, ...] = ()
    """Values, ranges or colours of the truth that are ignored; `rest`: all without a class."""
    polygons: PolygonOptions | None = None
    """How polygons are truth. None: as the defaults say, if the files hold polygons."""
    suffixes: NameSuffixes = field(default_factory=NameSuffixes)
    tolerance: float = 2.0
    """Distance in pixels up to which boundaries agree."""
    objects: Literal["auto", "yes", "no"] = "auto"
    """Whether objects are compared. auto: if the run's masks hold ids of objects."""
    out: str | None = None
    """Folder for the results. None: `evaluation` below the output."""
    cluster: Cluster | None = None
    """Where to compare. None: in this process if there are few pixels, otherwise on worker
    processes of this machine.
    """

    def job_options(
        self, output: Output, numbered: bool, *, polygons: bool = False
    ) -> EvaluationOptions:
        """The options of the jobs. `numbered`: whether the run's masks hold ids of objects;
        `polygons`: whether the truth is polygons. Raises `RecipeError` if the options do not suit
        the run.
        """
        classes = output.classes
        compared = numbered if self.objects == "auto" else self.objects == "yes"
        if compared and not classes.foreground:
            raise RecipeError(
                f"--objects: the classes of the run ({', '.join(classes.names)}) all mean "
                "background, so nothing is an object. Use --no-objects."
            )
        objects = tuple(classes.names[i] for i in classes.foreground) if numbered else None
        foreground = classes.foreground if compared else ()
        if polygons:
            drawn = self.polygon_rules(classes.names, foreground)
            mapping = LabelMapping.of(drawn.value_rules(), classes.names)
            return EvaluationOptions(mapping, self.tolerance, foreground, numbered)
        rules = self._rules() or default_rules(classes.names, objects)
        mapping = LabelMapping.of(
            [*rules, *self._void_rules()],
            classes.names,
            VOID if REST in self._void_texts() else UNKNOWN,
        )
        return EvaluationOptions(mapping, self.tolerance, foreground, numbered)

    def polygon_rules(self, names: tuple[str, ...], foreground: tuple[int, ...]) -> PolygonRules:
        """The meaning of polygons. Raises `RecipeError` for options that do not suit them."""
        wanted = self.polygons or PolygonOptions()
        if self.colours is not None:
            raise RecipeError("--colours: polygons have no colours. Use --values VALUE=CLASS.")
        values = dict(_attribute_values(self.values))
        values |= {text: VOID_NAME for text in self._void_texts() if text != REST}
        return PolygonRules(
            names,
            attribute=wanted.attribute,
            values=_with_own_names(values, names),
            of=wanted.of,
            outside=wanted.outside,
            rest_is_void=REST in self._void_texts(),
            overlap=wanted.overlap,
            all_touched=wanted.all_touched,
            numbered=frozenset(foreground),
            layer=wanted.layer,
            image=wanted.image,
            pixels=wanted.pixels,
        )

    def _rules(self) -> list[ValueRule]:
        rules = list(parse_values(self.values))
        if self.colours is not None:
            content = read_yaml(self.colours, "the file of --colours")
            rules += parse_table(content, f"--colours {self.colours}")
        return rules

    def _void_rules(self) -> list[ValueRule]:
        return [
            ValueRule.parse(value, VOID_NAME, "--void")
            for value in self._void_texts()
            if value != REST
        ]

    def _void_texts(self) -> list[str]:
        return [value.strip() for text in self.void for value in text.split(",")]


def _attribute_values(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Values of an attribute and their classes, from VALUE=CLASS."""
    for part in (part for text in texts for part in text.split(",")):
        # Values may hold the sign, names of classes seldom do.
        value, equals, name = part.rpartition("=")
        if not equals or not name.strip():
            raise RecipeError(
                f"--values {part!r}: expected VALUE=CLASS, for example Tumor=tumour, or "
                f"maize={VOID_NAME} for polygons that do not count."
            )
        yield value.strip(), name.strip()


def _with_own_names(values: dict[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """These values and, if they only say what is void, the classes by their own names."""
    if not values or set(values.values()) != {VOID_NAME}:
        return values
    return {**{name: name for name in names}, **values}


def cluster_of(workers: int) -> Cluster:
    """This process for one worker, otherwise a local cluster of so many worker processes."""
    return SerialCluster() if workers == 1 else LocalCluster(workers)


def find_truths(given: Sequence[str], output: str) -> tuple[dict[str, str], str]:
    """Truth files, with their paths below their common folder, by URI; and a sentence about files
    in folders that no format reads, empty if there are none.

    Raises `RecipeError` if there is no truth file or one does not exist.
    """
    try:
        found = discover(given, output, {})
    except RecipeError as error:
        raise RecipeError(f"--truth: {str(error).removeprefix('inputs: ')}") from error
    absent = [source.uri for source in found.sources if source.version == ABSENT]
    if absent:
        raise RecipeError(f"--truth: {absent[0]!r} does not exist. Check its name.")
    truths: dict[str, str] = {}
    for source in found.sources:
        try:
            truths |= {image.uri: image.image_id for image in formats.images_of(source)}
        except ImageError:
            # It is reported where it is compared.
            truths[source.uri] = source.image_id
    return truths, passed_over_note(found.passed_over).strip()
