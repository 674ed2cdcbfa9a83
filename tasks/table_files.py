"""The files of tables: rows put in place of others, in the draft of a commit."""

from __future__ import annotations

import io
from collections.abc import Set

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskloom.segcore.statistics.protocol import Statistic
from maskloom.segcore.storage.parquet import extending, extends
from maskloom.segcore.storage.records import parse_table, read_table
from maskloom.segcore.storage.store import Store
from maskloom.tasks.commits.ledger import Ledger
from maskloom.tasks.commits.log import IMAGES, Draft
from maskloom.tasks.image_rows import IMAGES_SCHEMA
from maskloom.tasks.object_files import KEYS, ROW_GROUP


def heal(ledger: Ledger, folder: str) -> int:
    """Remove superseded rows (`Ledger.superseded`) in one commit. Returns the number of files that
    had such rows. `folder`: the folder of this process.
    """
    store = ledger.store
    while superseded := ledger.superseded:
        with ledger.log.draft("heal", folder) as draft:
            for file, image_ids in superseded.items():
                for name in store.names("tables", f"/{file}"):
                    if not name.startswith(f"{IMAGES}/"):
                        write_rows(
                            store, draft, name, read_table(store, name).slice(0, 0), image_ids
                        )
                write_rows(store, draft, f"{IMAGES}/{file}", IMAGES_SCHEMA.empty_table(), image_ids)
            claimed = ledger.log.claim(draft)
        ledger.refresh()
        ledger.find_superseded()
        if claimed:
            return len(superseded)
    return 0


def write_rows(
    store: Store, draft: Draft, name: str, rows: pa.Table, replaced: Set[str] | None
) -> None:
    """Add a table file to the draft: its present rows, except those of the images in `replaced`
    (None: all images), and then `rows`.
    """
    try:
        content = store.read(name)
    except FileNotFoundError:
        table = rows
    else:
        old = parse_table(store, name, content)
        gone = (
            old["image_id"].unique()
            if replaced is None
            else pa.array(sorted(replaced), pa.string())
        )
        kept = old.filter(pc.invert(pc.is_in(old["image_id"], value_set=gone)))
        present = io.BytesIO(content)
        if len(kept) == len(old) and extends(present, rows.schema):
            with draft.table(name) as out, extending(present, out, rows.schema) as writer:
                if len(rows):
                    writer.write_table(rows, row_group_size=ROW_GROUP)
            return
        # A later version of maskloom may have added columns or widened their types.
        table = (
            pa.concat_tables([kept, rows], promote_options="permissive")
            .select(rows.schema.names)
            .cast(rows.schema)
        )
    with draft.table(name) as out:
        pq.write_table(
            table.replace_schema_metadata(rows.schema.metadata),
            out,
            compression="zstd",
            row_group_size=ROW_GROUP,
        )


def table_schema(statistic: Statistic) -> pa.Schema:
    """The full schema of a statistic's table."""
    return pa.schema([*KEYS, *statistic.schema], metadata={"maskloom_schema": "1"})
