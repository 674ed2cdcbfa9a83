"""Plans, heads and what is pending."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans_support import plan_of

from maskloom.segcore.ground.space import Space
from maskloom.segcore.pipeline.records import Failure, PlannedImage
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.storage.store import Store
from maskloom.tasks.commits.ledger import Committed
from maskloom.tasks.last_run import HEAD, LastRun, read_head, write_head
from maskloom.tasks.plan import Fingerprint, identify, pending
from maskloom.tasks.plan_file import read_plan, with_addresses, write_plan

WORK = Fingerprint("name", "f1", {"segmenter": {"kind": "kmeans"}})


def source(i: int, version: str = "1") -> Source:
    return Source(f"s3://bucket/{i}.tif", str(i), version, 10)


def row(i: int, *, file: str = "a.parquet", final: bool = True) -> Committed:
    return Committed(
        source(i).uri,
        str(i),
        "1",
        "f1",
        "run",
        ok=final,
        needs_no_retry=final,
        file=file,
    )


def item(i: int, side: int = 100) -> PlannedImage:
    space = Space((10.0, 0.0, 5.5, 0.0, -10.0, 7.25), "EPSG:32633")
    return PlannedImage(
        source(i),
        RasterSpec(
            f"s3://bucket/{i}.tif",
            "tiff",
            (side, side),
            (1, 2),
            "uint16",
            (64, 64),
            "1",
            4,
            0.5,
            "bands",
            space,
        ),
    )


def test_pending_are_the_new_the_changed_and_those_that_may_succeed_now():
    committed = {
        r.uri: r for r in (row(1), row(2), replace(row(3), fingerprint="f0"), row(4, final=False))
    }
    found = pending([source(1), source(2, "2"), source(3), source(4), source(5)], committed, "f1")
    assert [s.image_id for s in found] == ["2", "3", "4", "5"]


def test_a_plan_is_read_back_as_it_was_written(tmp_path):
    store = Store(str(tmp_path))
    broken = PlannedImage(source(9), None, Failure("FormatError", "no header", permanent=True))
    points = Space(
        gcps=((0.0, 0.5, 10.0, 60.0, 5.0), (9.0, 0.0, 11.0, 60.0, 0.1)),
        gcp_crs="EPSG:4326",
        rpcs=(("LINE_OFF", "5"),),
    )
    spec = item(3).spec
    assert spec is not None
    placed = replace(item(3), spec=replace(spec, space=points, notes=("it is placed by points",)))
    plan = plan_of(WORK, LastRun("before", 4), "name-1", [item(1), item(2), placed, broken], {})
    write_plan(store, plan)
    assert read_plan(store, "name-1") == plan
    assert (plan.parent, plan.sequence) == ("before", 5)
    assert read_plan(store, "name-2") is None


def test_addresses_are_not_in_plans_and_come_back_from_the_inputs(tmp_path):
    store = Store(str(tmp_path))
    items = [
        replace(item(i), source=replace(source(i), address=f"https://host/{i}?sig=c0ffee"))
        for i in range(2)
    ]
    write_plan(store, plan_of(WORK, LastRun(), "r", items, {}))

    assert not any(b"c0ffee" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    plan = read_plan(store, "r")
    assert plan is not None
    addressed = with_addresses(plan, [each.source for each in items])
    assert [each.source.address for shard in addressed.shards for each in shard.images] == [
        each.source.address for each in items
    ]
    assert "c0ffee" not in repr(addressed)


def test_images_that_replace_rows_go_where_these_rows_are():
    committed = {row(i).uri: row(i, file=f"{i % 2}.parquet") for i in range(4)}
    plan = plan_of(WORK, LastRun(), "new", [item(i) for i in range(6)], committed)
    files = {shard.file: [i.source.image_id for i in shard.images] for shard in plan.shards}
    assert files == {
        "0.parquet": ["0", "2"],
        "1.parquet": ["1", "3"],
        "new-00000.parquet": ["4", "5"],
    }


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=60))
def test_shards_hold_every_image_once_in_order_and_stay_small(sides):
    items = [item(i, side) for i, side in enumerate(sides)]
    plan = plan_of(WORK, LastRun(), "run", items, {})
    assert [i for shard in plan.shards for i in shard.images] == items
    for shard in plan.shards:
        assert len(shard.images) == 1 or sum(i.spec.pixels for i in shard.images if i.spec) <= 2**29


def test_a_run_is_named_after_inputs_work_and_the_run_before():
    base = identify(WORK, LastRun(), [source(1), source(2)])
    assert identify(WORK, LastRun(), [source(2), source(1)]) == base
    others = [
        identify(WORK, LastRun(), [source(1), source(2, "2")]),
        identify(WORK, LastRun(), [source(1)]),
        identify(WORK, LastRun("x", 1), [source(1), source(2)]),
        identify(replace(WORK, fingerprint="f2"), LastRun(), [source(1), source(2)]),
    ]
    assert len({base, *others}) == 5


@pytest.mark.parametrize(
    "head", [None, {"run_id": "r1", "sequence": 1}, {"run_id": "r1", "sequence": 1, "finished": 1}]
)
def test_a_head_that_is_behind_its_manifests_is_put_right(tmp_path, head):
    store = Store(str(tmp_path))
    assert read_head(store) == LastRun()
    for sequence in (1, 2):
        store.publish(
            f"runs/r{sequence}/manifest.json",
            json.dumps({"run_id": f"r{sequence}", "sequence": sequence}).encode(),
        )
    if head is not None:
        store.publish(HEAD, json.dumps(head).encode())
    assert read_head(store) == LastRun("r2", 2, 2)


def test_runs_that_end_side_by_side_leave_the_last_of_them_as_head(tmp_path):
    store = Store(str(tmp_path))
    plans = [plan_of(WORK, LastRun(), identity, [item(1)], {}) for identity in ("r-a", "r-b")]
    for plan in plans:
        record = {"run_id": plan.run_id, "sequence": plan.sequence}
        store.publish(f"runs/{plan.run_id}/manifest.json", json.dumps(record).encode())
    for plan in reversed(plans):
        write_head(store, LastRun(), plan)
    assert read_head(store) == LastRun("r-b", 1, 2)
