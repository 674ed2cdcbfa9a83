"""The accuracy of an output, and the true areas of its classes, from labelled samples."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskloom.flows.evaluation.evaluate import FOLDER
from maskloom.flows.evaluation.samples import LabelledSamples, read_samples
from maskloom.flows.recipes.messages import did_you_mean
from maskloom.flows.terminal import count
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.evaluation.estimation import (
    AccuracyEstimate,
    Estimate,
    Sample,
    estimate,
)
from maskloom.segcore.ground.amounts import amount
from maskloom.segcore.storage.store import Store
from maskloom.tasks.output import Output
from maskloom.tasks.samples import Place, looked_up, pixels_by_class

if TYPE_CHECKING:
    from maskloom.tasks.samples import Found

ACCURACY = "accuracy.json"
"""The estimates, for programs and for the report."""


@dataclass(frozen=True, slots=True)
class SampledAccuracy:
    """What samples say about an output."""

    estimates: AccuracyEstimate
    unit: str
    """Of the areas."""
    notes: tuple[str, ...]
    folder: str

    @property
    def table(self) -> str:
        """Estimates of each class, as text with aligned columns."""
        heads = ("class", "samples", "user's", "producer's", "area", "95 % interval")
        rows = [
            (
                each.name,
                str(each.samples),
                _share(each.users),
                _share(each.producers),
                amount(each.area.value, self.unit),
                "-" if math.isnan(each.area.half) else f"± {amount(each.area.half, self.unit)}",
            )
            for each in self.estimates.classes
        ]
        wide = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
        return "\n".join(
            "  ".join(
                (
                    row[0].ljust(wide[0]),
                    *(cell.rjust(n) for cell, n in zip(row[1:], wide[1:], strict=True)),
                )
            )
            for row in (heads, *rows)
        )

    @property
    def summary(self) -> str:
        """The main figure in one line."""
        samples = sum(map(sum, self.estimates.counts))
        overall = _share(self.estimates.overall)
        return f"{count(samples, 'sample')}: overall accuracy {overall}"


def evaluate_samples(
    location: str, path: str, attribute: str = "label", out: str | None = None
) -> SampledAccuracy:
    """Compare the masks of an output with labelled samples, and write what follows.

    Raises `RecipeError` if the samples do not suit the output, `ReadError`, `StoreError`.
    """
    output, given = Output.open(location), read_samples(path, attribute)
    pixels = pixels_by_class(output)
    classes = {name: sum(of_image.values()) for name, of_image in pixels.items()}
    labelled = [each for each in given.samples if each.label]
    if not labelled:
        raise RecipeError(f"{path}: none of {count(len(given.samples), 'sample')} has a label.")
    for each in labelled:
        if each.label not in classes:
            raise RecipeError(
                f"{path}: sample {each.sample_id} is labelled {each.label!r}, which is no class of "
                f"the output.{did_you_mean(each.label, classes)} Its classes are "
                f"{', '.join(classes)}."
            )
    found = looked_up(output, [each.at for each in labelled])
    unit = _unit(output)
    sizes, notes = _strata(given, classes, path)
    used = [
        Sample(
            (each.stratum if given.sizes or each.stratum else said.name),
            said.name,
            each.label,
            1.0 if unit == "px" else said.area,
        )
        for each, said in zip(labelled, found, strict=True)
        if said.name
    ]
    if not used:
        reason = Counter(said.reason for said in found).most_common(1)[0][0]
        raise RecipeError(f"{path}: no sample is on a pixel with a class; most: {reason}.")
    notes += _left_out(given, labelled, found)
    estimates = estimate(sizes, used, tuple(classes))
    store, folder = (Store(location), f"{FOLDER}/") if out is None else (Store(out), "")
    table = _rows(labelled, found)
    content = io.BytesIO()
    pq.write_table(table, content)
    store.publish(f"{folder}samples.parquet", content.getvalue())
    record = {"unit": unit, "samples": len(used), "notes": notes, **asdict(estimates)}
    store.publish(folder + ACCURACY, (json.dumps(record, indent=1) + "\n").encode())
    return SampledAccuracy(estimates, unit, tuple(notes), store.uri(folder).rstrip("/"))


def _strata(
    given: LabelledSamples, classes: Mapping[str, int], path: str
) -> tuple[Mapping[str, int], list[str]]:
    """The sizes of the strata, and what is assumed of them."""
    if given.sizes:
        return given.sizes, []
    stated = {each.stratum for each in given.samples if each.stratum}
    strangers = sorted(stated - set(classes))
    if strangers:
        raise RecipeError(
            f"{path}: the strata {strangers[0]!r}, ... have no known size: without a design.json "
            "beside the table, strata are classes of the output."
        )
    note = (
        "the samples are taken as a random sample within each class of the map, since no "
        "design.json is beside them"
    )
    return classes, [note]


def _unit(output: Output) -> str:
    """The unit of areas that all images share, or px."""
    units = output.areas(["area_unit"])["area_unit"].unique().to_pylist()
    return str(units[0]) if len(units) == 1 else "px"


def _left_out(given: LabelledSamples, labelled: Sequence[Any], found: Sequence[Found]) -> list[str]:
    notes = []
    without = len(given.samples) - len(labelled)
    if without:
        notes.append(f"{count(without, 'sample')} without a label left out")
    reasons = Counter(said.reason for said in found if not said.name)
    notes += [f"{count(number, 'sample')} left out: {why}" for why, number in reasons.items()]
    return notes


def _rows(labelled: Sequence[Any], found: Sequence[Found]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "sample_id": each.sample_id,
                "image_id": each.at.image_id if isinstance(each.at, Place) else None,
                "stratum": each.stratum or said.name or None,
                "mapped": said.name or None,
                "reference": each.label,
                "pixel_area": said.area if said.name else None,
                "left_out": said.reason or None,
            }
            for each, said in zip(labelled, found, strict=True)
        ],
        schema=pa.schema(
            [
                (name, pa.string())
                for name in ("sample_id", "image_id", "stratum", "mapped", "reference")
            ]
            + [("pixel_area", pa.float64()), ("left_out", pa.string())]
        ),
    )


def _share(figure: Estimate) -> str:
    if math.isnan(figure.value):
        return "-"
    spread = "" if math.isnan(figure.standard_error) else f" ± {figure.half:.3f}"
    return f"{figure.value:.3f}{spread}"
