"""Section: what was fitted or chosen and why, and whether tiling can change a result."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskloom.flows.report import charts
from maskloom.flows.report.document import Section
from maskloom.flows.report.intensities import values_of
from maskloom.flows.report.subject import KINDS, RunSubject
from maskloom.segcore.models.protocols import SEGMENTERS
from maskloom.tasks.output import Output

_EXACT = {
    "exact": "every pixel is the same for any tiling.",
    "exact if smaller than halo": "objects smaller than the halo are the same for any tiling.",
    "approximate": "tiles are blended, and pixels near seams may differ a little.",
}
_WHY = {
    "otsu": "Otsu's method: it parts the values into two groups that differ most.",
    "multi-otsu": "Otsu's method for several classes.",
    "li": "Li's method of minimum cross entropy.",
    "triangle": "the triangle method, for one broad peak with a tail.",
    "value": "the recipe.",
}
_AUTO = {
    "kmeans": (
        "clusters",
        "max_clusters",
        (
            "the index of Calinski and Harabasz, which compares the scatter between clusters with "
            "that within"
        ),
    ),
    "mixture": (
        "components",
        "max_components",
        (
            "the Bayesian information criterion (BIC), which weighs the fit against the number of "
            "parameters"
        ),
    ),
}
"""Keys of the number that is chosen and of the most that are tried, and the reason."""
_FEWEST = {"kmeans": 2, "mixture": 1}


def _values(subject: RunSubject) -> dict[str, Any]:
    section = subject.settings.get("segmenter", {})
    fields = _fields(subject)
    rows = _centres(subject, fields)
    named = {"kind", "type", "suspect"}
    return {
        "text": _text(subject, section, fields),
        "note": fields.get("suspect") or "",
        "centres": rows,
        "bands": [f"band {band}" for band in _bands(fields, rows)],
        "weights": any(row["weight"] for row in rows),
        "values": [
            (
                key.replace("_", " "),
                value
                if isinstance(value, str)
                else f"{value:,.6g}"
                if isinstance(value, float)
                else f"{value:,}",
            )
            for key, value in (fields or section).items()
            if isinstance(value, int | float | str)
            and not isinstance(value, bool)
            and key not in named
        ],
        **_thresholds(subject, fields),
        "spreads": [
            {
                "name": key.replace("_", " "),
                "chart": charts.spread(values, f"Spread of {key} over {len(values):,} images"),
                "least": f"{min(values):.4g}",
                "median": f"{np.median(values):.4g}",
                "greatest": f"{max(values):.4g}",
            }
            for key, values in subject.collected.fits.items()
        ],
        "exactness": _exactness(subject),
        "audits": _audits(subject.output),
    }


def _fields(subject: RunSubject) -> dict[str, Any]:
    """The fitted model. Empty: none was fitted to the collection."""
    name = f"runs/{subject.run_id}/model.json"
    if not subject.run_id or not subject.output.store.exists(name):
        return {}
    found: dict[str, Any] = json.loads(subject.output.store.read(name)).get("fields", {})
    return found


def _text(subject: RunSubject, section: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    kind = subject.kind or "unknown"
    text = f"Segmenter: {KINDS.get(kind, kind)}."
    thresholds = fields.get("thresholds")
    if thresholds:
        found = " and ".join(f"{each:.6g}" for each in thresholds)
        many = len(thresholds) > 1
        text += (
            f" The {'thresholds are' if many else 'threshold is'} {found}, by "
            f"{_WHY.get(str(fields.get('method')), str(fields.get('method')))}"
        )
    key, most, why = _AUTO.get(kind, ("", "", ""))
    if key and section.get(key) == "auto":
        number = len(fields.get("centres") or fields.get("means") or ())
        chosen = f"{number} {key} are" if fields else f"The number of {key} of each image is"
        text += f" {chosen} the best of {_FEWEST[kind]} to {section.get(most, 8)} by {why}."
    return text


def _centres(subject: RunSubject, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The centres of clusters, or the means of components, with the shares of the fitted pixels."""
    centres = fields.get("centres") or fields.get("means")
    if not isinstance(centres, list) or not centres or not isinstance(centres[0], list):
        return []
    names: Sequence[str] = fields.get("classes") or subject.collected.classes.names
    of = fields.get("class_of") or range(len(centres))
    weights = fields.get("fractions") or fields.get("weights") or [None] * len(centres)
    colours = dict(subject.key)
    if len(weights) != len(centres) or max(of) >= len(names):
        return []
    return [
        {
            "name": names[number],
            "colour": colours.get(names[number], charts.OTHER),
            "weight": "" if weight is None else f"{weight:.1%}",
            "values": [f"{value:.4g}" for value in centre],
        }
        for number, centre, weight in zip(of, centres, weights, strict=True)
    ]


def _bands(fields: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Sequence[int]:
    if not rows:
        return ()
    found: Sequence[int] = fields.get("bands") or range(1, len(rows[0]["values"]) + 1)
    return found


def _thresholds(subject: RunSubject, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The thresholds on a histogram of values."""
    thresholds = fields.get("thresholds")
    values, images = (
        values_of(subject.output, subject.collected.images, fields.get("band"))
        if thresholds
        else (np.empty(0), 0)
    )
    if not thresholds or values.size < 2:
        return {"histogram": "", "histogram_text": ""}
    text = (
        f"Values of {values.size:,} pixels in the middle of {images} of the images, with the "
        "thresholds as lines."
    )
    return {"histogram": charts.values(values, thresholds, text), "histogram_text": text}


def _exactness(subject: RunSubject) -> str:
    kind = subject.kind
    found = SEGMENTERS.get(kind)
    promise = getattr(getattr(found, "exactness", None), "value", "")
    said = f"{KINDS.get(kind, kind)} is {promise}: {_EXACT.get(promise, '')} " if promise else ""
    recipe = shlex.quote(subject.written.get("file") or "RECIPE.yaml")
    return f"{said[:1].upper()}{said[1:]}To check it on this recipe: maskloom audit {recipe}"


def _audits(output: Output) -> list[str]:
    """The lines of audits of this output."""
    name = "runs/audit/audit.json"
    if not output.store.exists(name):
        return []
    return ["\n".join(map(str, json.loads(output.store.read(name))["lines"]))]


SECTION = Section("run/model.html", "Model", "Model", _values)
