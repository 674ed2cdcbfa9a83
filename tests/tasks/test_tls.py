"""Joining a cluster: encrypted, refused with a reason, or on workers that have a GPU."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tls_support import certificates

from maskloom.flows.recipes.run import make
from maskloom.segcore.errors import RecipeError, RunError, Stopped
from maskloom.tasks.clusters.address import ExistingCluster
from maskloom.tasks.clusters.joining import Wait
from maskloom.tasks.clusters.scheduler import dask_setup, extensions
from maskloom.tasks.clusters.tls import Tls
from maskloom.tasks.fanout import client as dask_client
from maskloom.tasks.fanout.dask import Dask

# distributed leaves the sockets of connections that were refused to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Nothing of a test is left to the next one."""
    yield
    gc.collect()


@dataclass(frozen=True)
class Work:
    wants_gpu: bool

    def split(self) -> tuple[Work, ...]:
        return (self,)


def who(_: Work) -> str:
    import distributed

    return str(distributed.get_worker().name)


async def beat(dask_worker: Any) -> None:
    await dask_worker.heartbeat()


def nothing() -> None:
    pass


def files(folder: Path, name: str = "driver", ca: Path | None = None) -> Tls:
    return Tls(
        str((ca or folder) / "ca.pem"), str(folder / f"{name}.pem"), str(folder / f"{name}-key.pem")
    )


@contextmanager
def a_cluster(security: Any = None, gpus: int = 0) -> Iterator[Any]:
    """A scheduler and two workers in this process; the first `gpus` of them offer a GPU."""
    from distributed import Scheduler, SpecCluster, Worker

    place = {
        "host": "127.0.0.1",
        "protocol": "tls" if security else "tcp",
        "security": security,
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",
    }
    workers = {
        name: {
            "cls": Worker,
            "options": {
                **place,
                "nthreads": 1,
                "resources": dask_client.ONE_GPU if name < gpus else {},
            },
        }
        for name in range(2)
    }
    scheduler = {"cls": Scheduler, "options": {**place, "extensions": extensions()}}
    with SpecCluster(workers, scheduler, security=security) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("tls") / "ours", "cluster", "driver")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("tls") / "theirs", "driver")


@pytest.fixture(scope="module")
def encrypted(ours: Path) -> Iterator[str]:
    from distributed import Security

    tls = files(ours, "cluster")
    roles = ("client", "scheduler", "worker")
    pairs = {f"tls_{role}_{part}": getattr(tls, part) for role in roles for part in ("cert", "key")}
    with a_cluster(Security(tls_ca_file=tls.ca, require_encryption=True, **pairs)) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def plain() -> Iterator[Any]:
    with a_cluster(gpus=1) as cluster:
        yield cluster


def opened(cluster: ExistingCluster) -> Dask:
    return cluster.open(nothing, threading.Event())


def refusal(cluster: ExistingCluster) -> str:
    with pytest.raises((RunError, RecipeError)) as refused, opened(cluster) as dask:
        assert dask.client
    return str(refused.value)


# TLS


def test_the_certificates_of_the_recipe_open_an_encrypted_cluster(
    encrypted: str, ours: Path
) -> None:
    assert encrypted.startswith("tls://127.0.0.1:")
    document = {
        "inputs": "a",
        "output": "b",
        "segmenter": "threshold",
        "cluster": {
            "kind": "address",
            "address": encrypted,
            "tls": {"ca": "ca.pem", "cert": "driver.pem", "key": "driver-key.pem"},
        },
    }
    cluster = make(document, ours).cluster
    assert cluster == ExistingCluster(encrypted, files(ours))
    with opened(cluster) as dask:
        assert dask.workers == 2
        assert {job for job, _ in dask.map(who, [Work(True), Work(False)])} == {
            Work(True),
            Work(False),
        }


def test_a_plain_address_of_an_encrypted_port_is_told_apart(encrypted: str) -> None:
    said = refusal(ExistingCluster(encrypted.replace("tls://", "tcp://")))
    assert "This port speaks TLS: write tls://" in said


def test_an_encrypted_address_of_a_plain_port_is_told_apart(plain: Any, ours: Path) -> None:
    address = plain.scheduler_address.replace("tcp://", "tls://")
    assert "This port does not speak TLS" in refusal(ExistingCluster(address, files(ours)))


def test_certificates_of_another_authority_are_named(
    encrypted: str, ours: Path, theirs: Path
) -> None:
    said = refusal(ExistingCluster(encrypted, files(theirs)))
    assert f"was not signed by cluster.tls.ca, {theirs / 'ca.pem'}" in said
    said = refusal(ExistingCluster(encrypted, files(theirs, ca=ours)))
    assert f"does not accept the certificate cluster.tls.cert, {theirs / 'driver.pem'}" in said


def test_an_encrypted_address_without_certificates_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RecipeError, match=r"is encrypted \(TLS\).*Add tls: {ca: ca\.pem"):
        opened(ExistingCluster("tls://10.0.0.1:8786"))
    with pytest.raises(RecipeError, match=r"is not encrypted\. Write tls://"):
        opened(ExistingCluster("tcp://127.0.0.1:8786", Tls("a", "b", "c")))


def test_dasks_own_configuration_will_do(encrypted: str, ours: Path) -> None:
    import dask

    tls = files(ours)
    configured = {
        "distributed.comm.tls.ca-file": tls.ca,
        "distributed.comm.tls.client.cert": tls.cert,
        "distributed.comm.tls.client.key": tls.key,
    }
    with dask.config.set(configured), opened(ExistingCluster(encrypted)) as fanout:
        assert fanout.workers == 2


def test_files_that_are_missing_or_do_not_belong_together_are_named(
    ours: Path, theirs: Path
) -> None:
    with pytest.raises(RecipeError, match=r"cluster\.tls\.cert: .*nobody\.pem cannot be read"):
        opened(ExistingCluster("tls://10.0.0.1:8786", files(ours, "nobody")))
    pair = Tls(str(ours / "ca.pem"), str(ours / "driver.pem"), str(theirs / "driver-key.pem"))
    with pytest.raises(RecipeError, match=r"cluster\.tls: these files do not belong together"):
        opened(ExistingCluster("tls://10.0.0.1:8786", pair))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"tls": {"ca": "a"}}, r"cluster\.tls\.cert: this key is required"),
        ({"tls": "a"}, r"cluster\.tls: expected a mapping with the keys `ca`, `cert`, `key`"),
        (
            {"tls": {"ca": "a", "cert": "b", "keys": "c"}},
            r"cluster\.tls\.keys: unknown key\. Did you mean `key`\? Known keys: ca, cert, key",
        ),
        (
            {"address": "tcp://10.0.0.1:8786"},
            r"cluster\.address: .*not encrypted.*insecure: true",
        ),
        ({"address": "scheduler:8786"}, r"cluster\.address: .*not encrypted"),
    ],
)
def test_what_is_wrong_in_the_section_is_said(section: dict[str, Any], words: str) -> None:
    cluster = {"kind": "address", "address": "tls://10.0.0.1:8786", **section}
    document = {"inputs": "a", "output": "b", "segmenter": "threshold", "cluster": cluster}
    with pytest.raises(RecipeError, match=words):
        make(document, Path("/"))


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:8786", "tcp://localhost:8786", "tcp://[::1]:8786", "tls://node:1"]
)
def test_this_machine_needs_no_encryption(address: str) -> None:
    assert ExistingCluster(address).address == address
    assert ExistingCluster("tcp://10.0.0.1:8786", insecure=True).insecure


# GPUs


def test_jobs_that_want_a_gpu_run_where_there_is_one(plain: Any) -> None:
    work = [Work(wants_gpu=number % 2 == 0) for number in range(40)]
    with opened(ExistingCluster(plain.scheduler_address, gpu=True)) as dask:
        results = list(dask.map(who, work))
    assert {name for job, name in results if job.wants_gpu} == {"0"}
    assert "1" in {name for job, name in results if not job.wants_gpu}


def test_a_cluster_without_gpus_says_how_to_offer_them(
    plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_client, "WORKERS_SECONDS", 0.5)
    with (
        a_cluster() as cluster,
        pytest.raises(RunError, match=r"no worker with a GPU.*CUDA_VISIBLE_DEVICES=0 dask worker"),
        opened(ExistingCluster(cluster.scheduler_address, gpu=True)) as dask,
    ):
        assert dask.client


# Schedulers that do not grow


def test_a_scheduler_of_ours_remembers_nothing_of_jobs_that_are_done(plain: Any) -> None:
    with opened(ExistingCluster(plain.scheduler_address)) as dask:
        assert len(list(dask.map(who, [Work(False)] * 20))) == 20
        # Workers report what they have done, which needs the extension.
        dask.client.run(beat)
    assert vars(plain.scheduler.extensions["spans"]) == {}


def test_a_scheduler_of_others_can_be_started_so() -> None:
    scheduler = SimpleNamespace(extensions={"spans": object()})
    dask_setup(scheduler)
    assert type(scheduler.extensions["spans"]) is extensions()["spans"]


def test_a_stop_ends_the_wait_for_a_worker() -> None:
    class Future:
        def result(self, timeout: float) -> None:
            raise TimeoutError

    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        Wait(60.0, stop).result(Future())
    with pytest.raises(TimeoutError):
        Wait(-1.0).result(Future())
