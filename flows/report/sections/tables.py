"""Section: where the tables are, and how to read them."""

from __future__ import annotations

from typing import Any

from maskloom.flows.report.document import Section
from maskloom.flows.report.subject import RunSubject

_TABLES = ("images", "areas", "objects")


def _values(subject: RunSubject) -> dict[str, Any]:
    there = [name for name in _TABLES if name != "objects" or subject.collected.objects.counts]
    return {
        "paths": [f"{subject.root}/tables/{name}/*.parquet" for name in there],
        "snippets": _snippets(subject.root),
    }


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


SECTION = Section("run/tables.html", "Tables", "Read the tables", _values)
