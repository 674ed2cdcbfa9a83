"""Clusters as values: what a recipe says of them, and what a run may ask of them."""

from __future__ import annotations

import fnmatch
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from maskloom.segcore.errors import RecipeError, RunError, StoreError
from maskloom.tasks.clusters import local, machine
from maskloom.tasks.clusters.address import ExistingCluster
from maskloom.tasks.clusters.kubernetes import KubernetesCluster
from maskloom.tasks.clusters.local import LocalCluster
from maskloom.tasks.clusters.protocol import CLUSTERS, Cluster, import_extra, parse_bytes
from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.clusters.slurm import SlurmCluster

GIB = 2**30


@pytest.fixture(autouse=True)
def machine_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores, 16 GiB, no GPU."""
    monkeypatch.setattr(machine, "core_count", lambda: 8)
    monkeypatch.setattr(machine, "memory_limit", lambda: 16 * GIB)
    monkeypatch.setattr(machine, "gpus", tuple)


@pytest.mark.parametrize(
    ("cluster", "memory", "threads"),
    [
        (SerialCluster(), 16 * GIB, 8),
        (LocalCluster(), 2 * GIB, 1),
        (LocalCluster(workers=2), 8 * GIB, 4),
        (LocalCluster(workers=20), 16 * GIB // 20, 1),
        (LocalCluster(workers=2, memory="3 GiB"), 3 * GIB, 4),
        (ExistingCluster("tls://10.0.0.1:8786"), None, 1),
        (SlurmCluster(4, "3 GiB", "ib0", "jobs", cores=2), 3 * GIB, 2),
        (KubernetesCluster("maskloom", 4, "3 GiB", cores=2, insecure=True), 3 * GIB, 2),
    ],
)
def test_workers_share_the_machine(cluster: Cluster, memory: int | None, threads: int) -> None:
    assert (cluster.worker_memory, cluster.worker_threads) == (memory, threads)


@pytest.mark.parametrize(
    ("cluster", "gpus", "expected"),
    [
        (LocalCluster(), 2, LocalCluster(workers=2)),
        (LocalCluster(), 0, LocalCluster()),
        (LocalCluster(workers=5), 2, LocalCluster(workers=5)),
        (SerialCluster(), 2, SerialCluster()),
        (ExistingCluster("tls://10.0.0.1:8786"), 2, ExistingCluster("tls://10.0.0.1:8786")),
    ],
)
def test_one_worker_per_gpu_where_the_number_is_open(
    cluster: Cluster, gpus: int, expected: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: tuple(map(str, range(gpus))))
    assert cluster.with_one_worker_per_gpu() == expected


def test_a_fanout_knows_its_workers_before_it_starts() -> None:
    assert SerialCluster().open(lambda: None, threading.Event()).workers == 1
    assert LocalCluster(workers=3).open(print, threading.Event()).workers == 3
    assert LocalCluster().open(print, threading.Event()).workers == 8


def test_only_the_serial_cluster_sees_the_memory_of_the_driver() -> None:
    assert {name for name, kind in CLUSTERS.items() if kind.in_process} == {"serial"}


def test_recipes_can_name_clusters() -> None:
    sections = {
        "local": {"workers": 3, "memory": "1.5 GiB"},
        "address": {"address": "tcp://127.0.0.1:8786"},
        "serial": {},
        "slurm": {"workers": 2, "memory": "4 GiB", "interface": "ib0", "folder": "jobs"},
        "kubernetes": {"image": "i", "workers": 2, "memory": "4 GiB", "insecure": True},
    }
    assert set(sections) == set(CLUSTERS)
    for kind, section in sections.items():
        cluster = TypeAdapter(CLUSTERS[kind]).validate_python(section)
        assert type(cluster) is CLUSTERS[kind]
    for wrong in ({"workers": 0}, {"memory": "plenty"}, {"workers": "many"}):
        with pytest.raises(ValidationError):
            TypeAdapter(LocalCluster).validate_python(wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4 GiB", 4 * GIB), ("800MB", 800_000_000), ("1.5 k", 1500), ("17", 17), ("2tib", 2 * 2**40)],
)
def test_memory_is_a_number_and_a_unit(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "plenty", "4 GiBs", "-1 GB", "GB"])
def test_other_memory_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"cluster\.memory"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("devices", "visible", "expected"),
    [
        ((), None, ()),
        (("nvidia1", "nvidia0", "nvidia10", "nvidiactl"), None, ("0", "1", "10")),
        (("nvidia0", "nvidia1"), "1", ("1",)),
        (("nvidia0", "nvidia1"), "", ()),
        ((), "GPU-a, GPU-b", ("GPU-a", "GPU-b")),
    ],
)
def test_gpus_are_those_that_this_process_may_use(
    devices: tuple[str, ...],
    visible: str | None,
    expected: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    class Devices(type(Path())):  # type: ignore[misc]
        def glob(self, pattern: str) -> list[Path]:
            return [Path(name) for name in devices if fnmatch.fnmatch(name, pattern)]

    monkeypatch.setattr(machine, "Path", Devices)
    assert machine.gpus() == expected


def test_workers_on_this_machine_see_one_gpu_each() -> None:
    nanny = local._nanny(("0", "GPU-b"))
    seen = [
        nanny("tcp://127.0.0.1:1", name=name, loop=None).env["CUDA_VISIBLE_DEVICES"]
        for name in range(3)
    ]
    assert seen == ["0", "GPU-b", "0"]


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(RunError, match=r"pip install 'maskloom\[slurm\]'"):
        import_extra("no_such_module", "slurm")


def test_one_file_with_one_decorator_adds_a_kind(tmp_path) -> None:
    """In the folder of clusters, here extended by another one."""
    (tmp_path / "twice.py").write_text(
        textwrap.dedent(
            '''
            from dataclasses import dataclass

            from maskloom.tasks.clusters.protocol import CLUSTERS, Cluster
            from maskloom.tasks.fanout.serial import Serial


            @CLUSTERS.register("twice")
            @dataclass(frozen=True, slots=True)
            class Twice(Cluster):
                """Every job twice."""

                times: int = 2
                """How often."""

                def open(self, prepare, stop):
                    return Serial(prepare, stop)
            '''
        )
    )
    program = f"""
        import json
        from pathlib import Path

        import maskloom.tasks.clusters
        maskloom.tasks.clusters.__path__.append({str(tmp_path)!r})
        from maskloom.flows.recipes.run import make
        from maskloom.flows.recipes.run_file import schema

        recipe = make(
            {{"inputs": "a", "output": "b", "segmenter": "threshold",
              "cluster": {{"kind": "twice", "times": 3}}}},
            Path("/"),
        )
        assert (recipe.cluster.times, recipe.cluster.worker_memory) == (3, None)
        assert '"const": "twice"' in json.dumps(schema()["properties"]["cluster"])
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=120)


class Broken(SerialCluster):
    """A plug-in's cluster that cannot be opened."""

    error: Exception = OSError("no such queue")

    def open(self, prepare, stop):
        raise self.error


def test_a_cluster_of_a_plug_in_that_cannot_be_opened_says_so(monkeypatch) -> None:
    monkeypatch.setitem(CLUSTERS._loaded, "queue", Broken)
    with (
        pytest.raises(RunError, match=r"cluster 'queue' cannot be opened \(OSError: no such queue"),
        Broken().opened(lambda: None, threading.Event()),
    ):
        pass


def test_errors_for_users_and_those_of_the_work_pass_as_they_are(monkeypatch) -> None:
    monkeypatch.setattr(Broken, "error", StoreError("the store is away"))
    with (
        pytest.raises(StoreError, match="the store is away"),
        Broken().opened(lambda: None, threading.Event()),
    ):
        pass
    with (
        pytest.raises(ZeroDivisionError),
        SerialCluster().opened(lambda: None, threading.Event()) as fanout,
    ):
        assert fanout.workers == 1
        raise ZeroDivisionError
