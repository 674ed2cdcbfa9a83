"""Plans whose shards are in memory, as a run makes them while it writes their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from maskloom.segcore.pipeline.records import Plan, PlannedImage
from maskloom.tasks.commits.ledger import Committed
from maskloom.tasks.last_run import LastRun
from maskloom.tasks.plan import Fingerprint, empty_plan, in_order_of_files, make_shards


def plan_of(
    work: Fingerprint,
    head: LastRun,
    identity: str,
    images: Sequence[PlannedImage],
    committed: Mapping[str, Committed],
) -> Plan:
    """The plan of a new run over these images."""
    by_uri = {image.source.uri: image for image in images}
    sources = in_order_of_files([image.source for image in images], committed)
    ordered = [by_uri[source.uri] for source in sources]
    shards = make_shards(identity, ordered, committed, work.apart_by_crs)
    return replace(empty_plan(work, head, identity), shards=tuple(shards))
