"""Networks get one worker for each GPU, unless the recipe says how many."""

from __future__ import annotations

import pytest

from maskloom.tasks.fanout import local_cluster
from maskloom.tasks.fanout.dask import InProcess, LocalCluster, with_gpus


@pytest.mark.parametrize(
    ("cluster", "gpus", "expected"),
    [
        (LocalCluster(), 2, LocalCluster(workers=2)),
        (LocalCluster(), 0, LocalCluster()),
        (LocalCluster(workers=5), 2, LocalCluster(workers=5)),
        (InProcess(), 2, InProcess()),
    ],
)
def test_one_worker_a_gpu_where_the_number_is_open(cluster, gpus, expected, monkeypatch):
    monkeypatch.setattr(local_cluster, "gpu_count", lambda: gpus)
    assert with_gpus(cluster) == expected
