"""The tables of an evaluation: Parquet files, always with the same columns.

    classes     measures by image and class; `image_id` null: all images together
    images      measures by image; `image_id` null: all images together
    means       measures by class, as means over the images in which they are defined
    confusion   pixels by class of the truth and of the mask, by image and for all;
                `predicted_class` null: the mask has no data there
    objects     objects by image, class and threshold of the intersection over union; `image_id`
                null: all images together
    areas       mapped and error-adjusted area of each class
    reliability pixels, mean confidence and accuracy by image and range of confidence, where the run
                has kept scores; `image_id` null: all images together

Measures that are not defined (the recall of a class that the truth lacks) are null.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskloom.segcore.annotations.metrics import mean_of_known
from maskloom.segcore.annotations.object_metrics import THRESHOLDS
from maskloom.segcore.evaluation.areas import NORMAL_95, estimate_areas
from maskloom.segcore.evaluation.scoring import total
from maskloom.segcore.models.calibration import Reliability
from maskloom.segcore.raster.colours import hexadecimal

if TYPE_CHECKING:
    from maskloom.segcore.annotations.metrics import Confusion
    from maskloom.segcore.annotations.object_metrics import ObjectCounts
    from maskloom.segcore.evaluation.boundary import Boundary
    from maskloom.segcore.evaluation.run_tables import Classes
    from maskloom.segcore.evaluation.scoring import Score
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.storage.store import Store


def _schema(keys: str, counts: str, measures: str) -> pa.Schema:
    """Columns: strings that may be null, counts, measures that may be null."""
    return pa.schema(
        [
            *(pa.field(name, pa.string()) for name in keys.split()),
            *(pa.field(name, pa.int64(), nullable=False) for name in counts.split()),
            *(pa.field(name, pa.float64()) for name in measures.split()),
        ],
        metadata={"maskloom_schema": "1"},
    )


SCHEMAS = {
    "classes": _schema(
        "image_id class_name colour",
        "class_id truth_pixels predicted_pixels correct_pixels unpredicted_pixels",
        "iou dice precision recall boundary_f boundary_precision boundary_recall",
    ),
    "images": _schema(
        "image_id truth_uri",
        "pixels void_pixels unpredicted_pixels",
        "accuracy majority_baseline kappa mean_iou mean_dice mean_boundary_f pq ap_dsb2018_50 "
        "ap_dsb2018",
    ),
    "means": _schema("class_name", "class_id images", "iou dice pq ap_dsb2018_50 ap_dsb2018"),
    "confusion": _schema("image_id truth_class predicted_class", "pixels", "share_of_truth"),
    "objects": _schema(
        "image_id class_name",
        "class_id matched false missed",
        "threshold precision recall f1 ap_dsb2018 ap_coco pq sq rq",
    ),
    "areas": _schema(
        "class_name area_unit",
        "class_id sample_pixels",
        "mapped_area adjusted_area standard_error low_95 high_95 users_accuracy "
        "users_accuracy_error producers_accuracy producers_accuracy_error",
    ),
}
RELIABILITY = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("above", pa.float64(), nullable=False),
        pa.field("up_to", pa.float64(), nullable=False),
        pa.field("pixels", pa.int64(), nullable=False),
        pa.field("confidence", pa.float64()),
        pa.field("accuracy", pa.float64()),
    ],
    metadata={"maskloom_schema": "1"},
)


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The results of all images."""

    classes: Classes
    scores: Sequence[Score]

    @property
    def total(self) -> tuple[Confusion, Boundary, ObjectCounts | None]:
        """The sums over all images."""
        return total(self.scores, len(self.classes.names))

    @property
    def reliability(self) -> Reliability | None:
        """That of the scores of all images. None: the run has kept no scores."""
        known = [each.reliability for each in self.scores if each.reliability is not None]
        return sum(known, Reliability.none()) if known else None

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each table, first those of all images together."""
        pooled, names = self.total, self.classes.names
        parts = [
            (None, pooled),
            *(
                (each.image_id, (each.confusion, each.boundary, each.objects))
                for each in self.scores
            ),
        ]
        truth_of = {each.image_id: {"truth_uri": each.truth} for each in self.scores}
        return {
            "classes": [
                row
                for image_id, part in parts
                for row in _class_rows(image_id, part, self.classes.table)
            ],
            "images": [
                _image_row(part) | {"image_id": image_id} | truth_of.get(image_id or "", {})
                for image_id, part in parts
            ],
            "means": list(self.means()),
            "confusion": [
                row for image_id, part in parts for row in _confusion_rows(image_id, part[0], names)
            ],
            "objects": [
                row for image_id, part in parts for row in _object_rows(image_id, part[2], names)
            ],
            "areas": list(_area_rows(pooled[0], self.classes)),
        }

    def means(self) -> Iterator[dict[str, Any]]:
        """The means over images of the measures of each class, as papers give them for objects. An
        image counts where the measure is defined: the class has pixels, or objects, on one side.
        """
        for i, name in enumerate(self.classes.names):
            values = {
                "iou": [each.confusion.iou[i] for each in self.scores],
                "dice": [each.confusion.dice[i] for each in self.scores],
            }
            counted = [each.objects for each in self.scores if each.objects is not None]
            if counted:
                values |= {
                    "pq": [each.pq[i] for each in counted],
                    "ap_dsb2018_50": [each.ap_dsb2018[i, 0] for each in counted],
                    "ap_dsb2018": [each.ap_dsb2018[i].mean() for each in counted],
                }
            defined = int(np.count_nonzero(~np.isnan(values["dice"])))
            yield {"class_id": i, "class_name": name, "images": defined} | {
                measure: mean_of_known(np.array(of)) for measure, of in values.items()
            }

    def publish(self, store: Store, folder: str) -> list[str]:
        """Write the tables as `<folder><table>.parquet`; their names. Raises `StoreError`."""
        names = []
        for table, rows in self.rows().items():
            schema = SCHEMAS[table]
            known = [{field.name: _known(row.get(field.name)) for field in schema} for row in rows]
            names.append(f"{folder}{table}.parquet")
            with store.writing(names[-1]) as out:
                pq.write_table(pa.Table.from_pylist(known, schema=schema), out, compression="zstd")
        if self.reliability is not None:
            names.append(f"{folder}reliability.parquet")
            with store.writing(names[-1]) as out:
                table = pa.Table.from_pylist(list(self._reliability_rows()), schema=RELIABILITY)
                pq.write_table(table, out, compression="zstd")
        return names

    def _reliability_rows(self) -> Iterator[dict[str, Any]]:
        parts = [(None, self.reliability), *((e.image_id, e.reliability) for e in self.scores)]
        for image_id, part in parts:
            for row in part.rows() if part is not None else ():
                yield {"image_id": image_id, **row}


def _class_rows(
    image_id: str | None,
    part: tuple[Confusion, Boundary, ObjectCounts | None],
    classes: ClassTable,
) -> Iterator[dict[str, Any]]:
    confusion, boundary, _ = part
    columns = {
        "truth_pixels": confusion.truth,
        "predicted_pixels": confusion.predicted,
        "correct_pixels": confusion.correct,
        "unpredicted_pixels": confusion.counts[:, -1],
        "iou": confusion.iou,
        "dice": confusion.dice,
        "precision": confusion.precision,
        "recall": confusion.recall,
        "boundary_f": boundary.f,
        "boundary_precision": boundary.precision,
        "boundary_recall": boundary.recall,
    }
    for i, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True)):
        yield {
            "image_id": image_id,
            "class_id": i,
            "class_name": name,
            "colour": hexadecimal(colour),
        } | {column: values[i].item() for column, values in columns.items()}


def _image_row(part: tuple[Confusion, Boundary, ObjectCounts | None]) -> dict[str, Any]:
    confusion, boundary, objects = part
    row = {
        "pixels": confusion.pixels,
        "void_pixels": confusion.void,
        "unpredicted_pixels": confusion.unpredicted,
        "accuracy": confusion.accuracy,
        "majority_baseline": confusion.majority_baseline,
        "kappa": confusion.kappa,
        "mean_iou": mean_of_known(confusion.iou),
        "mean_dice": mean_of_known(confusion.dice),
        "mean_boundary_f": mean_of_known(boundary.f),
    }
    if objects is not None:
        row |= {
            "pq": mean_of_known(objects.pq),
            "ap_dsb2018_50": mean_of_known(objects.ap_dsb2018[:, 0]),
            "ap_dsb2018": mean_of_known(objects.ap_dsb2018.mean(axis=1)),
        }
    return row


def _confusion_rows(
    image_id: str | None, confusion: Confusion, names: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """All pairs of classes for all images together; of one image those that occur."""
    sums = confusion.truth
    for i, j in np.ndindex(confusion.counts.shape):
        count = int(confusion.counts[i, j])
        if count or image_id is None:
            predicted = names[j] if j < len(names) else None
            share = count / sums[i].item() if predicted is not None and sums[i] else None
            yield {
                "image_id": image_id,
                "truth_class": names[i],
                "predicted_class": predicted,
                "pixels": count,
                "share_of_truth": share,
            }


def _object_rows(
    image_id: str | None, objects: ObjectCounts | None, names: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    if objects is None:
        return
    ranked = objects.ap_coco
    for i, name in enumerate(names):
        for t, threshold in enumerate(THRESHOLDS):
            matched, false, missed = objects.tallies[i, t].tolist()
            if not matched + false + missed:
                continue
            row = {
                "image_id": image_id,
                "class_id": i,
                "class_name": name,
                "threshold": threshold,
                "matched": matched,
                "false": false,
                "missed": missed,
                "precision": matched / (matched + false) if matched + false else None,
                "recall": matched / (matched + missed) if matched + missed else None,
                "f1": 2 * matched / (2 * matched + false + missed),
                "ap_dsb2018": objects.ap_dsb2018[i, t].item(),
                "ap_coco": None if ranked is None else ranked[i, t].item(),
            }
            panoptic = {"pq": objects.pq, "sq": objects.sq, "rq": objects.rq}
            yield row | (
                {measure: values[i].item() for measure, values in panoptic.items()}
                if t == 0
                else {}
            )


def _area_rows(confusion: Confusion, classes: Classes) -> Iterator[dict[str, Any]]:
    estimate = estimate_areas(confusion.square.T, np.array(classes.areas))
    for i, name in enumerate(classes.names):
        row = {
            "class_id": i,
            "class_name": name,
            "area_unit": classes.area_unit,
            "mapped_area": classes.areas[i],
        }
        row["sample_pixels"] = int(confusion.predicted[i])
        if estimate is not None:
            adjusted, error = estimate.adjusted[i].item(), estimate.error[i].item()
            row |= {
                "adjusted_area": adjusted,
                "standard_error": error,
                "low_95": adjusted - NORMAL_95 * error,
                "high_95": adjusted + NORMAL_95 * error,
                "users_accuracy": estimate.users[i].item(),
                "users_accuracy_error": estimate.users_error[i].item(),
                "producers_accuracy": estimate.producers[i].item(),
                "producers_accuracy_error": estimate.producers_error[i].item(),
            }
        yield row


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
