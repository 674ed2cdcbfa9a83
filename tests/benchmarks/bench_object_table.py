"""What a table of ten million objects takes to write, to rewrite and to query:

    python tests/benchmarks/bench_object_table.py [FOLDER] [objects]

Workers stage the rows of 20 images, with outlines of 12 points; the driver makes one file of the
table of them, and makes it again with one image replaced. Prints seconds, sizes and the growth of
the peak memory, and what DuckDB takes for three queries.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from maskloom.segcore.pipeline.records import ImageResult
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.storage.store import Store
from maskloom.tasks.commits.log import Draft
from maskloom.tasks.object_files import KEYS, ObjectFile, objects_schema

IMAGES, BATCH, POINTS = 20, 50_000, 12
NAME = "tables/objects/run-00000.parquet"


def peak() -> float:
    """Peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rows(count: int, first: int) -> Iterator[pa.RecordBatch]:
    """The rows of one image, as its worker stages them."""
    generator = np.random.default_rng(first)
    schema = pa.schema([field for field in objects_schema(3, located=False) if field not in KEYS])
    head = np.frombuffer(b"\x01\x03\0\0\0\x01\0\0\0" + POINTS.to_bytes(4, "little"), np.uint8)
    for start in range(0, count, BATCH):
        n = min(BATCH, count - start)
        centre = generator.uniform(0, 1e5, (n, 1, 2))
        outline = (centre + generator.integers(-8, 8, (n, POINTS, 2))).astype("<f8")
        outline[:, -1] = outline[:, 0]
        text = np.concatenate(
            [np.broadcast_to(head, (n, len(head))), outline.reshape(n, -1).view(np.uint8)], axis=1
        )
        box = [outline.min(axis=1), outline.max(axis=1)]
        bounds = dict(zip(("xmin", "ymin", "xmax", "ymax"), np.concatenate(box, 1).T, strict=True))
        columns: dict[str, object] = {
            "object_id": np.arange(start + 1, start + n + 1),
            "class_id": np.ones(n, np.int32),
            "class_name": pa.repeat("blob", n),
            "area_unit": pa.repeat("px", n),
            "pixel_count": generator.integers(1, 200, n),
            "touches_edge": np.zeros(n, np.bool_),
            "geometry": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(text.shape[1]), n, [None, pa.py_buffer(text.tobytes())]
            ).cast(pa.binary()),
            "bbox": pa.StructArray.from_arrays(
                [pa.array(np.ascontiguousarray(each)) for each in bounds.values()],
                fields=list(schema.field("bbox").type),
            ),
        }
        for field in schema:
            if field.name not in columns:
                columns[field.name] = generator.uniform(0, 1e5, n).astype(
                    field.type.to_pandas_dtype()
                )
        yield pa.RecordBatch.from_arrays(
            [pa.array(columns[field.name], field.type) for field in schema], schema=schema
        )


def timed(what: str, work: Callable[[], object]) -> None:
    """Print what some work takes."""
    before, started, processor = peak(), time.perf_counter(), time.process_time()
    found = work()
    print(
        f"{what}: {time.perf_counter() - started:.1f} s, of the processor "
        f"{time.process_time() - processor:.1f} s; peak memory {before:.0f} -> {peak():.0f} MiB"
        f"{'' if found is None else f'; {found}'}"
    )


def main() -> None:
    """Print all figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        each = int(sys.argv[2] if len(sys.argv) > 2 else 10_000_000) // IMAGES
        store = Store(str(folder / "objects"))
        spec = RasterSpec("a", "tiff", (100_000, 100_000), (1, 2, 3), "uint8", (512, 512), "1", 3)
        results = [
            ImageResult(Source(f"{i}.tif", str(i), "1", 1), spec, None) for i in range(IMAGES)
        ]

        def stage(i: int) -> str:
            name = f"staging/{i}.arrow"
            with store.writing(name) as out:
                batches = rows(each, i)
                first = next(batches)
                with pa.ipc.new_stream(out, first.schema) as stream:
                    stream.write(first)
                    for batch in batches:
                        stream.write(batch)
            return name

        names: dict[str, str] = {}
        timed(
            f"stage {IMAGES} x {each} rows",
            lambda: names.update({str(i): stage(i) for i in range(IMAGES)}),
        )

        def write(staged: dict[str, str], of: list[ImageResult]) -> str:
            draft = Draft(store, "run", "staging/draft")
            ObjectFile(store, NAME, "run", "fingerprint").write(draft, staged, of, [spec])
            path = Path(store.uri(f"staging/draft/{NAME}"))
            target = Path(store.uri(NAME))
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            return f"{target.stat().st_size / 2**20:.0f} MiB"

        timed("write the file", lambda: write(names, results))
        timed("write it again, one image replaced", lambda: write({"3": names["3"]}, [results[3]]))
        table = f"'{folder}/objects/tables/objects/*.parquet'"
        for query in (
            f"SELECT class_name, count(*), sum(area) FROM {table} GROUP BY 1",
            f"SELECT count(*) FROM {table} WHERE image_id = '7' AND pixel_count > 150",
            f"SELECT count(*) FROM {table} WHERE bbox.xmin > 5e4 AND bbox.xmax < 5.1e4",
        ):
            timed(
                query.partition("FROM")[0] + "…" + query.partition("parquet'")[2],
                lambda query=query: duckdb.sql(query).fetchall(),
            )


if __name__ == "__main__":
    main()
