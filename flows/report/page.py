"""The page `report.html` of an output of masks, as bytes.

It has a budget of bytes: pictures are left out, those of ordinary images first, rather than that no
browser opens the page. Names and messages are foreign text: the template escapes all of it, and the
page forbids every script but its own.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

import maskloom
from maskloom.flows.report import charts
from maskloom.flows.report.collect import Collected
from maskloom.flows.report.notable import ODD, Findings, Notable
from maskloom.flows.terminal import count, duration, pixels
from maskloom.segcore.ground.amounts import amount
from maskloom.segcore.models.protocols import SEGMENTERS

if TYPE_CHECKING:
    from jinja2 import Environment

    from maskloom.tasks.output import Output

MOST_BYTES = 30_000_000
_MOST_IMAGES = 20_000
_MOST_THUMBNAIL_BYTES = 17_000_000
_MOST_PAIRS = 400
_ROW_BYTES = 160
_CARDS = 60
_KINDS = {"kmeans": "k-means", "mean_shift": "mean shift", "mixture": "a Gaussian mixture"}
_EXACT = {
    "exact": "every pixel is the same for any tiling.",
    "exact if smaller than halo": "objects smaller than the halo are the same for any tiling.",
    "approximate": "tiles are blended, and pixels near seams may differ a little.",
}


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates, which escape what they are given."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def rendered(template: str, values: Mapping[str, Any]) -> bytes:
    """A page from a template and its values."""
    from markupsafe import Markup

    folder = Path(__file__).parent / "templates"
    script = (folder / "script.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = (
        environment()
        .get_template(template)
        .render(
            values,
            version=maskloom.__version__,
            style=Markup((folder / "style.css").read_text("utf-8")),  # noqa: S704
            script=Markup(script),  # noqa: S704
            script_hash=f"sha256-{digest}",
        )
    )
    return text.encode("utf-8", "backslashreplace")


def fact(name: str, value: str, *, bad: bool = False) -> dict[str, Any]:
    """A number at the top of the page."""
    return {"name": name, "value": value, "bad": bad}


def embedded(value: Any) -> Any:
    """A value as JSON that cannot end the element that holds it."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(value, separators=(",", ":"))


def page(output: Output, collected: Collected, findings: Findings, left: int, when: str) -> bytes:
    """The page. `left`: images that a run still has to do; `when`: when the last run ended."""
    images = collected.images
    shown = _shown(findings)
    thumbnails, pairs = _pictures(output, collected, findings, shown)
    place = {int(image): row for row, image in enumerate(shown)}
    rows = _rows(collected, findings, shown)
    rows["pictures"] = bool(thumbnails)
    settings = collected.manifests[-1]["settings"] if collected.manifests else {}
    written = settings.get("written") or {}
    name = (
        written.get("document", {}).get("name") or output.store.root.rstrip("/").rpartition("/")[2]
    )
    failed, done = int(images.failed.sum()), int((~images.failed).sum())
    cards = _Cards(collected, findings, thumbnails, place)
    stripes = _stripes(collected)
    values = {
        "title": f"{name}: maskloom report",
        "heading": name,
        "state": _state(failed, left),
        "lead": _lead(collected, settings, done, when),
        "facts": _facts(collected, failed, done, left),
        "sections": [],
        "areas": _areas(collected),
        "reasons": [asdict(each) for each in findings.reasons],
        "odd": cards.of(findings.odd),
        "odd_text": (
            f"{count(findings.odd_count, 'image is', 'images are')} more than {ODD} robust "
            "standard deviations from the median share of a class. Odd is not wrong: look."
        ),
        "unsure": cards.of(findings.unsure),
        "empty": cards.of(findings.empty),
        "warnings": findings.warnings,
        "sample": _sample(len(images.ids), len(shown)),
        "dates": bool(images.dates_from),
        "class_names": collected.classes.names,
        "shown": f"{len(shown):,} of {len(shown):,} images",
        "cards": [cards.plain(int(i)) for i in findings.order if int(i) in place][:_CARDS],
        "stripes": stripes,
        "stripes_text": (
            f"{count(done, 'image')}, sorted by the share of the largest class. Neighbours are "
            "drawn together where there are many."
        ),
        "key": _key(collected),
        **_over_time(collected),
        "objects": _objects(collected),
        "model": _model(output, collected, settings),
        "exactness": _exactness(settings, written),
        "audits": _audits(output),
        "command": _command(written),
        "recipe": _recipe(written),
        "provenance": _provenance(collected, settings, written, output.store.root),
        "versions": sorted(settings.get("libraries", {}).items()),
        "location": output.store.root,
        "snippets": _snippets(output.store.root),
        "rows": embedded(rows),
        "thumbs": embedded({str(place[i]): _base64(each) for i, each in thumbnails.items()}),
        "pairs": embedded(
            {str(place[i]): [_base64(each) for each in both] for i, both in pairs.items()}
        ),
    }
    values["sections"] = [
        (id_, text)
        for id_, text, there in (
            ("areas", "Area", True),
            ("look", "What needs a look", True),
            ("images", "Images", True),
            ("shares", "Shares", bool(stripes)),
            ("objects", "Objects", bool(values["objects"])),
            ("model", "Model", True),
            ("repeat", "Repeat it", True),
            ("tables", "Tables", True),
        )
        if there
    ]
    return rendered("run.html", values)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _shown(findings: Findings) -> list[int]:
    """The images on the page in their order: all, or those that need a look and an even sample."""
    order = findings.order
    if len(order) > _MOST_IMAGES:
        first = order[: _MOST_IMAGES // 2]
        rest = order[_MOST_IMAGES // 2 :]
        even = np.linspace(0, len(rest) - 1, _MOST_IMAGES - len(first)).astype(np.int64)
        order = np.concatenate([first, rest[even]])
    return [int(i) for i in np.sort(order)]


def _sample(images: int, shown: int) -> str:
    if images == shown:
        return ""
    return (
        f"This page shows {shown:,} of {images:,} images: those that need a look, up to half of "
        "them, and an even sample of the others. All sums are over all images."
    )


def _pictures(
    output: Output, collected: Collected, findings: Findings, shown: Sequence[int]
) -> tuple[dict[int, bytes], dict[int, tuple[bytes, bytes]]]:
    """Thumbnails and pairs by the number of the image, as many as the budget allows, those of
    notable images first. At most these are in memory, and one file of the table.
    """
    rank = {int(i): number for number, i in enumerate(findings.order)}
    ids = {collected.images.ids[i]: i for i in shown}
    paired = set(sorted(shown, key=rank.__getitem__)[:_MOST_PAIRS])
    thumbnails: dict[int, bytes] = {}
    pairs: dict[int, tuple[bytes, bytes]] = {}
    for table in output.tables("pictures", ["image_id", "thumbnail", "source", "mask"]):
        for number, image_id in enumerate(table["image_id"].to_pylist()):
            i = ids.get(image_id)
            if i is None:
                continue
            thumbnails[i] = table["thumbnail"][number].as_py()
            if i in paired and table["source"][number].is_valid:
                pairs[i] = (table["source"][number].as_py(), table["mask"][number].as_py())
    small = _within(thumbnails, rank, _MOST_THUMBNAIL_BYTES)
    used = sum(map(len, small.values())) + len(shown) * _ROW_BYTES * 3 // 4
    sizes = {i: both[0] + both[1] for i, both in pairs.items()}
    kept = _within(sizes, rank, MOST_BYTES * 3 // 4 - 750_000 - used)
    return small, {i: pairs[i] for i in kept}


def _within(content: Mapping[int, bytes], rank: Mapping[int, int], most: int) -> dict[int, bytes]:
    """The first in rank whose bytes fit."""
    kept: dict[int, bytes] = {}
    for i in sorted(content, key=rank.__getitem__):
        most -= len(content[i])
        if most < 0:
            break
        kept[i] = content[i]
    return kept


def _rows(collected: Collected, findings: Findings, shown: Sequence[int]) -> dict[str, Any]:
    """The columns by which the page sorts, filters and describes images."""
    images, chosen = collected.images, np.array(shown, np.int64)
    rows = images.rows.take(chosen) if len(chosen) else images.rows
    total = images.column("total_pixels")[chosen]
    nodata = np.divide(
        images.column("nodata_pixels")[chosen], total, out=np.zeros(len(total)), where=total > 0
    )
    shares = np.nan_to_num(images.shares[chosen] * 10_000, nan=-1).round().astype(int)
    rank = np.empty(len(images.ids), np.int64)
    rank[findings.order] = np.arange(len(images.ids))
    columns = {
        name: rows[name].to_pylist()
        for name in ("image_id", "uri", "error", "error_type", "warning", "mask_uri")
    }
    score = findings.score[chosen]
    sizes = [_size(row) for row in rows.select(["width", "height", "depth"]).to_pylist()]
    return {
        "classes": list(
            zip(
                collected.classes.names,
                map(charts.hexadecimal, collected.classes.colours),
                strict=True,
            )
        ),
        "limit": ODD,
        "id": columns["image_id"],
        "uri": columns["uri"],
        "failed": images.failed[chosen].astype(int).tolist(),
        "error": _sparse(columns["error"]),
        "type": _sparse(columns["error_type"]),
        "warning": _sparse(columns["warning"]),
        "mask": columns["mask_uri"],
        "size": sizes,
        "tiny": _sparse(
            [
                int(max(w or 0, h or 0) <= 80) or None
                for w, h in zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True)
            ]
        ),
        "pixels": total.astype(np.int64).tolist(),
        "seconds": images.column("seconds")[chosen].round(2).tolist(),
        "nodata": nodata.round(4).tolist(),
        "odd": (np.floor(np.float64(findings.distance[chosen]) * 10) / 10).tolist(),
        "score": [None if np.isnan(each) else round(float(each), 3) for each in score],
        "date": [
            None if images.dates[i] is None else images.dates[i].isoformat()  # type: ignore[union-attr]
            for i in shown
        ],
        "objects": [collected.objects.of_image.get(each, 0) for each in columns["image_id"]],
        "rank": rank[chosen].tolist(),
        "shares": shares.T.tolist(),
    }


def _sparse(values: Sequence[Any]) -> dict[str, Any]:
    """A column that is mostly null, by number."""
    return {str(i): value for i, value in enumerate(values) if value is not None}


def _size(row: Mapping[str, Any]) -> str:
    if row["width"] is None:
        return ""
    depth = f" × {row['depth']}" if (row["depth"] or 1) > 1 else ""
    return f"{row['width']:,} × {row['height']:,}{depth}"


class _Cards:
    """The cards of images in plain HTML, which print and search find."""

    def __init__(
        self,
        collected: Collected,
        findings: Findings,
        thumbnails: Mapping[int, bytes],
        place: Mapping[int, int],
    ) -> None:
        self._collected, self._findings = collected, findings
        self._thumbnails, self._place = thumbnails, place

    def of(self, notable: Sequence[Notable]) -> list[dict[str, Any]]:
        return [
            {**self.plain(each.number), "flag": f"{each.figure}: {each.text}", "kind": ""}
            for each in notable
            if each.number in self._place
        ]

    def plain(self, i: int) -> dict[str, Any]:
        images, row = self._collected.images, self._collected.images.rows.slice(i, 1).to_pylist()[0]
        failed, thumbnail = bool(images.failed[i]), self._thumbnails.get(i)
        distance = float(self._findings.distance[i])
        kind, flag = "", _size(row)
        if failed:
            kind, flag = "failed", f"failed: {row['error_type']}"
        elif distance >= ODD:
            kind, flag = "odd", f"odd: {distance:.1f}"
        elif row["warning"]:
            kind, flag = "odd", "has a warning"
        return {
            "i": self._place[i],
            "id": images.ids[i],
            "src": f"data:image/webp;base64,{_base64(thumbnail)}" if thumbnail else "",
            "tiny": max(row["width"] or 0, row["height"] or 0) <= 80,
            "instead": "no mask" if failed else "no picture",
            "bar": "" if failed else self._bar(i),
            "kind": kind,
            "flag": flag,
        }

    def _bar(self, i: int) -> str:
        shares, parts, at = self._collected.images.shares[i], [], 0.0
        if np.isnan(shares).any() or not shares.size:
            return ""
        for share, colour in zip(shares.tolist(), self._collected.classes.colours, strict=True):
            if share > 0.0005:
                parts.append(
                    f"{charts.hexadecimal(colour)} {100 * at:.1f}% {100 * (at + share):.1f}%"
                )
            at += share
        return f"linear-gradient(90deg,{','.join(parts)})" if parts else ""


def _state(failed: int, left: int) -> dict[str, str]:
    if left:
        return {"kind": "stopped", "text": f"not finished: {left:,} left"}
    if failed:
        return {"kind": "partly", "text": f"done, {failed:,} failed"}
    return {"kind": "done", "text": "done"}


def _lead(collected: Collected, settings: Mapping[str, Any], done: int, when: str) -> list[str]:
    kind = settings.get("segmenter", {}).get("kind", "")
    classes = count(len(collected.classes.names), "class", "classes")
    fitted = {
        "collection": ", one model for all images",
        "image": ", a model for each image",
    }.get(settings.get("fit", ""), "")
    by = f" by {_KINDS.get(kind, kind)}{fitted}" if kind else ""
    machine = f", on {settings['machine']} with Python {settings['python']}" if settings else ""
    worked = float(collected.images.column("seconds").sum())
    return [
        f"{count(done, 'image was', 'images were')} segmented into {classes}{by}.",
        f"Finished {when}{machine}; the workers spent {duration(worked)} on it in all."
        if when
        else f"The workers spent {duration(worked)} on it in all.",
    ]


def _facts(collected: Collected, failed: int, done: int, left: int) -> list[dict[str, Any]]:
    images = collected.images
    ok = ~images.failed
    total, worked = images.column("total_pixels"), float(images.column("seconds")[ok].sum())
    volumes = bool(done) and bool((images.column("depth")[ok] > 1).all())
    unit = "megavoxels" if volumes else "megapixels"
    unprocessed = float(images.column("unprocessed_pixels").sum())
    sums: dict[str, float] = {}
    for (_, area_unit), size in collected.areas.items():
        sums[area_unit] = sums.get(area_unit, 0.0) + size
    facts = [
        fact("images done", f"{done:,}"),
        fact("failed", f"{failed:,}", bad=bool(failed)),
        fact("segmented", pixels(float(total[ok].sum()), unit)),
        *(
            fact("volume" if name == "mm3" else "area", amount(size, name))
            for name, size in sums.items()
            if name != "px"
        ),
        fact("unprocessed", f"{unprocessed / total.sum():.1%}" if total.sum() else "–"),
        fact("classes", f"{len(collected.classes.names):,}"),
    ]
    if left:
        facts.insert(2, fact("left", f"{left:,}", bad=True))
    if collected.objects.counts:
        facts.append(fact("objects", f"{sum(collected.objects.counts.values()):,}"))
    if worked:
        speed = pixels(float(total[ok].sum()) / worked, unit)
        facts.append(fact("speed of a worker", f"{speed}/s"))
    return facts


def _areas(collected: Collected) -> list[dict[str, Any]]:
    """A table and a bar for each unit of area."""
    found = []
    for unit in dict.fromkeys(unit for _, unit in collected.areas):
        sizes = {name: collected.areas.get((name, unit), 0.0) for name in collected.classes.names}
        whole = sum(sizes.values())
        rows = [
            {
                "name": name,
                "colour": charts.hexadecimal(colour),
                "area": amount(sizes[name], unit),
                # Filled where the sampling error of an area is known.
                "interval": "",
                "share": f"{sizes[name] / whole:.1%}" if whole else "–",
                "width": round(100 * sizes[name] / whole, 3) if whole else 0,
                "pixels": f"{collected.pixels.get(name, 0):,}",
            }
            for name, colour in zip(collected.classes.names, collected.classes.colours, strict=True)
        ]
        rows.sort(key=lambda row: -float(str(row["width"])))
        label = "Shares: " + ", ".join(f"{row['name']} {row['share']}" for row in rows[:12])
        kind = "volume" if unit == "mm3" else "area"
        found.append({"rows": rows, "label": label, "kind": kind, "intervals": False})
    return found


def _stripes(collected: Collected) -> Any:
    shares = collected.images.shares
    known = shares[~np.isnan(shares).any(axis=1)] if shares.size else shares
    if len(known) < 2:
        return ""
    largest = int(known.mean(axis=0).argmax())
    ordered = known[np.argsort(-known[:, largest], kind="stable")]
    return charts.stacked_shares(
        ordered, collected.classes, f"Shares of the classes in {len(known):,} images"
    )


def _over_time(collected: Collected) -> dict[str, Any]:
    images = collected.images
    nothing = {"over_time": "", "over_time_text": ""}
    if not images.dates_from or not images.shares.size:
        return nothing
    known = np.asarray(~np.isnan(images.shares).any(axis=1))
    by_date: dict[dt.date, list[int]] = {}
    for i, date in enumerate(images.dates):
        if date is not None and known[i]:
            by_date.setdefault(date, []).append(i)
    if len(by_date) < 3:
        return nothing
    dates = sorted(by_date)
    shares = np.array([images.shares[by_date[date]].mean(axis=0) for date in dates])
    text = (
        f"Mean shares on {len(dates)} dates from {dates[0]} to {dates[-1]}, in their order. "
        f"The dates are from {images.dates_from}."
    )
    chart = charts.stacked_shares(shares, collected.classes, text)
    return {"over_time": chart, "over_time_text": text}


def _key(collected: Collected) -> list[tuple[str, str]]:
    colours = map(charts.hexadecimal, collected.classes.colours)
    return list(zip(collected.classes.names, colours, strict=True))


def _objects(collected: Collected) -> dict[str, Any] | None:
    sums = collected.objects
    if not sums.counts:
        return None
    colour = dict(_key(collected))
    units: dict[str, dict[tuple[str, int], int]] = {}
    for (unit, name, each), number in sums.bins.items():
        units.setdefault(unit, {})[name, each] = number
    return {
        "histograms": [
            {
                "text": f"Sizes of {sum(bins.values()):,} objects, on a logarithmic axis.",
                "chart": charts.histogram(bins, collected.classes, unit),
            }
            for unit, bins in units.items()
        ],
        "counts": [
            (name, colour.get(name, "#888888"), f"{number:,}")
            for name, number in sums.counts.most_common()
        ],
        "largest": [
            {
                "colour": colour.get(each.class_name, "#888888"),
                "class_name": each.class_name,
                "number": each.object_id,
                "image": each.image_id,
                "size": amount(each.area, each.unit),
            }
            for each in sums.largest
        ],
    }


def _model(output: Output, collected: Collected, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was fitted or chosen, in words and numbers."""
    section = settings.get("segmenter", {})
    kind = section.get("kind", "unknown")
    fields: dict[str, Any] = {}
    if collected.manifests:
        name = f"runs/{collected.manifests[-1]['run_id']}/model.json"
        if output.store.exists(name):
            fields = json.loads(output.store.read(name)).get("fields", {})
    centres = fields.get("centres")
    colours = dict(_key(collected))
    names = fields.get("classes") or collected.classes.names
    usable = isinstance(centres, list) and len(centres) == len(names)
    rows = (
        [
            {
                "name": name,
                "colour": colours.get(name, "#888888"),
                "values": [f"{value:.4g}" for value in centre],
            }
            for name, centre in zip(names, centres, strict=True)
        ]
        if usable and centres
        else []
    )
    bands = fields.get("bands") or range(1, len(centres[0]) + 1) if rows and centres else ()
    simple = {
        key: value
        for key, value in (fields or section).items()
        if isinstance(value, int | float | str) and not isinstance(value, bool) and key != "type"
    }
    text = f"Segmenter: {_KINDS.get(kind, kind)}."
    if rows:
        text += " The centres of the clusters, in the values of the bands:"
    return {
        "text": text,
        "bands": [f"band {band}" for band in bands],
        "centres": rows,
        "values": [
            (key.replace("_", " "), f"{value:,.6g}" if isinstance(value, float) else f"{value}")
            for key, value in simple.items()
        ],
        "spreads": [
            {
                "name": key.replace("_", " "),
                "chart": charts.spread(values, f"Spread of {key} over {len(values):,} images"),
                "least": f"{min(values):.4g}",
                "median": f"{np.median(values):.4g}",
                "greatest": f"{max(values):.4g}",
            }
            for key, values in collected.fits.items()
        ],
    }


def _exactness(settings: Mapping[str, Any], written: Mapping[str, Any]) -> str:
    kind = settings.get("segmenter", {}).get("kind", "")
    found = SEGMENTERS.get(kind)
    promise = getattr(getattr(found, "exactness", None), "value", "")
    said = f"{_KINDS.get(kind, kind)} is {promise}: {_EXACT.get(promise, '')} " if promise else ""
    recipe = shlex.quote(written.get("file") or "RECIPE.yaml")
    return f"{said[:1].upper()}{said[1:]}To check it on this recipe: maskloom audit {recipe}"


def _audits(output: Output) -> list[str]:
    """The lines of audits of this output."""
    name = "runs/audit/audit.json"
    if not output.store.exists(name):
        return []
    return ["\n".join(map(str, json.loads(output.store.read(name))["lines"]))]


def _command(written: Mapping[str, Any]) -> str:
    if not written:
        return ""
    changes = "".join(f" --set {shlex.quote(each)}" for each in written.get("changes", ()))
    file = written.get("file")
    if file:
        return f"maskloom run {shlex.quote(file)}{changes}"
    folder = shlex.quote(str(written.get("folder", ".")))
    return f"cd {folder}\nmaskloom run recipe.yaml{changes}   # the recipe below, saved there"


def _recipe(written: Mapping[str, Any]) -> str:
    document = written.get("document")
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True) if document else ""


def _provenance(
    collected: Collected, settings: Mapping[str, Any], written: Mapping[str, Any], root: str
) -> list[tuple[str, str]]:
    last = collected.manifests[-1] if collected.manifests else {}
    runs = len(collected.manifests)
    version = settings.get("maskloom", maskloom.__version__)
    found = [
        ("output", root),
        ("recipe", str(written.get("file", ""))),
        ("last run", str(last.get("run_id", ""))),
        ("runs in this output", f"{runs}" if runs else ""),
        ("fingerprint of what decides the result", str(last.get("fingerprint", ""))),
        ("maskloom", str(version)),
        ("digests", "runs/*/manifest.json; maskloom verify compares them"),
        ("to cite", f"maskloom {version}, recipe fingerprint {last.get('fingerprint', '')}"),
    ]
    return [(name, value) for name, value in found if value]


def _snippets(root: str) -> list[tuple[str, str]]:
    """Programs that sum the areas of the classes."""
    folder = f"{root}/tables/areas"
    files = f"{folder}/*.parquet"
    quoted = files.replace("'", "''")
    duckdb = (
        "SELECT class_name, sum(area) AS area, any_value(area_unit) AS unit\n"
        f"FROM '{quoted}' GROUP BY 1 ORDER BY 2 DESC;"
    )
    pandas = (
        f"import pandas as pd\n\nareas = pd.read_parquet({folder!r})\n"
        'print(areas.groupby("class_name")["area"].sum())'
    )
    polars = (
        f"import polars as pl\n\nareas = pl.read_parquet({files!r})\n"
        'print(areas.group_by("class_name").agg(pl.col("area").sum()))'
    )
    return [("DuckDB", duckdb), ("pandas", pandas), ("Polars", polars)]
