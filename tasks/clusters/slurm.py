"""Jobs of SLURM, submitted by the run itself: one worker in each.

The scheduler runs in the driver's process. All connections are encrypted (TLS), by certificates
that are made for the run unless the recipe names files. SLURM is asked every few seconds which jobs
it still has, and those that it has lost (`scancel`, a node that failed, too much memory, the end of
their time) are replaced.
"""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import signal
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from maskloom.segcore.errors import RecipeError, RunError
from maskloom.segcore.storage.addresses import RelativeToRecipe
from maskloom.tasks.clusters.protocol import CLUSTERS, Cluster, import_extra, parse_bytes
from maskloom.tasks.clusters.scheduler import extensions
from maskloom.tasks.clusters.settings import ONE_THREAD, SCHEDULER, WORKER, as_environment
from maskloom.tasks.clusters.slurm_commands import (
    jobs_in_queue,
    margin_of,
    refusal,
    require_accepted,
    seconds_of,
    words_of,
)
from maskloom.tasks.clusters.tls import Tls
from maskloom.tasks.fanout.client import Client, import_distributed
from maskloom.tasks.fanout.dask import Dask

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping

log = logging.getLogger("maskloom.cluster")
_NAME = "maskloom"
_BESIDE_WORKER = 512 * 2**20
"""Memory of a job beside that of its worker: the nanny, and the worker itself while a part that is
suspected of killing workers runs in a child process.
"""
_ASK_SECONDS = 10.0
"""How often SLURM is asked which jobs it has."""
_CONNECT_SECONDS = 60
"""How long a worker looks for the driver. A job that starts after the driver has died ends then."""
_FAILED_STARTS = 3
"""Jobs that ended before their workers joined, one after the other, after which the run ends."""
_REPORT_SECONDS = 600.0
"""How often a run that waits in the queue says so."""


@CLUSTERS.register("slurm")
@dataclass(frozen=True, slots=True)
class SlurmCluster(Cluster):
    """Jobs of SLURM, one worker each. The run submits them, replaces lost ones, and cancels them
    when it ends.
    """

    workers: int
    """Number of jobs."""
    memory: str
    """Memory of a worker, e.g. 8 GiB. A job asks SLURM for 512 MiB more."""
    interface: str
    """Network interface of the nodes by which driver and workers reach one another, e.g. ib0."""
    folder: Annotated[str, RelativeToRecipe()]
    """Folder that this machine and the nodes share, for the logs of the jobs
    (maskloom-<job id>.out and .err) and the certificates of the run. Relative to the recipe file.
    """
    walltime: str = "04:00:00"
    """Time limit of a job, [days-]hours:minutes:seconds. A worker takes no more work shortly before
    it, and another job follows.
    """
    partition: str | None = None
    """Partition. None: SLURM's default."""
    account: str | None = None
    """Account that is charged. None: SLURM's default."""
    cores: int = 1
    """Cores of a worker. Only networks use more than one."""
    gpu: bool = False
    """Each job asks for a GPU (--gres=gpu:1), for networks."""
    driver_interface: str | None = None
    """Network interface of this machine. None: named like that of the nodes."""
    python: str | None = None
    """Python on the nodes, with the same maskloom. None: the path of the driver's."""
    directives: tuple[str, ...] = ()
    """Further options of sbatch, e.g. --constraint=avx2."""
    prologue: tuple[str, ...] = ()
    """Lines of shell that run on the node before the worker, e.g. module load gdal."""
    tls: Tls | None = None
    """Certificates: the files `ca`, `cert` and `key`, at the same paths on all nodes. None: made
    for the run.
    """

    def __post_init__(self) -> None:
        for name in ("workers", "cores"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}: must be 1 or more, not {getattr(self, name)}.")
        parse_bytes(self.memory)
        seconds_of(self.walltime)
        if re.search(r"\s", self.folder):
            raise RecipeError(
                f"folder: {self.folder!r} has a space, which SLURM does not accept in the paths of "
                "logs. Choose another folder."
            )

    @property
    def worker_memory(self) -> int:
        """Bytes that one worker may hold."""
        return parse_bytes(self.memory)

    @property
    def worker_threads(self) -> int:
        """All cores of a job."""
        return self.cores

    def look(self) -> str:
        """Ask SLURM whether it would take such a job: partition, account, time, memory, GPU.
        Nothing is submitted. Raises `RunError` if it would not, or does not answer.
        """
        _require_slurm()
        asked = {
            "--cpus-per-task": self.cores,
            "--mem": f"{self._job_mebibytes}M",
            "--time": self.walltime,
            "--partition": self.partition,
            "--account": self.account,
            "--gres": "gpu:1" if self.gpu else None,
        }
        options = [f"{key}={value}" for key, value in asked.items() if value is not None]
        require_accepted([*options, *self.directives])
        return "SLURM would take its jobs"

    @property
    def _job_mebibytes(self) -> int:
        return -(-(self.worker_memory + _BESIDE_WORKER) // 2**20)

    def open(self, prepare: Callable[[], None], stop: threading.Event) -> Dask:
        """A fan-out on jobs that are submitted when it starts. Raises `RunError` if this machine
        has no SLURM, and `RecipeError` if the certificates cannot be used.
        """
        _require_slurm()
        if self.tls is not None:
            self.tls.security()
        jobs = _Jobs(self)
        return Dask(
            jobs.submitted,
            prepare,
            stop,
            own_workers=self.workers,
            gpu=self.gpu,
            expect_workers=jobs.keep_up,
        )

    @contextmanager
    def certificates(self) -> Iterator[Tls]:
        """The files of the recipe, or files that exist for this block, in a folder that nobody else
        can read. Raises `RunError` if they cannot be written.
        """
        if self.tls is not None:
            yield self.tls
            return
        made = import_distributed().Security.temporary()
        contents = {
            "ca": made.tls_ca_file,
            "cert": made.tls_client_cert,
            "key": made.tls_client_key,
        }
        try:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            private = tempfile.TemporaryDirectory(prefix="certificates-", dir=self.folder)
        except OSError as error:
            raise RunError(f"cluster.folder: {self.folder} cannot be written ({error}).") from error
        with private as folder:
            for name, content in contents.items():
                Path(folder, f"{name}.pem").write_text(content)
            yield Tls(**{name: f"{folder}/{name}.pem" for name in contents})

    def dask_cluster(self, tls: Tls) -> Any:
        """A `dask_jobqueue.SLURMCluster` whose scheduler runs and whose jobs are not submitted yet.
        Raises `RunError` if the scheduler cannot start.
        """
        seconds, margin = seconds_of(self.walltime), margin_of(self.walltime)
        # Nothing is imported from the folder in which the command was given.
        environment = {"PYTHONSAFEPATH": "1", **ONE_THREAD, **as_environment(WORKER)}
        try:
            return _jobqueue().SLURMCluster(
                job_cls=_job_class(),
                job_name=_NAME,
                cores=1,
                processes=1,
                job_cpu=self.cores,
                memory=f"{self.worker_memory} B",
                job_mem=f"{self._job_mebibytes}M",
                walltime=self.walltime,
                queue=self.partition,
                account=self.account,
                python=shlex.quote(self.python) if self.python else None,
                interface=self.interface,
                security=_security(tls),
                log_directory=self.folder,
                death_timeout=_CONNECT_SECONDS,
                scheduler_options={
                    "interface": self.driver_interface or self.interface,
                    "dashboard": False,
                    "dashboard_address": "127.0.0.1:0",
                    "extensions": extensions(),
                },
                job_extra_directives=[*(["--gres=gpu:1"] if self.gpu else []), *self.directives],
                job_script_prologue=[
                    *(f"export {name}={shlex.quote(text)}" for name, text in environment.items()),
                    *self.prologue,
                ],
                worker_extra_args=[
                    # With --no-dashboard it would still serve HTTP, to everybody.
                    *("--dashboard-address", "127.0.0.1:0"),
                    *("--lifetime", f"{seconds - 1.5 * margin:.0f}s"),
                    *("--lifetime-stagger", f"{margin / 2:.0f}s"),
                    *(("--resources", "GPU=1") if self.gpu else ()),
                ],
                silence_logs=logging.CRITICAL,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise RunError(
                f"The cluster slurm cannot start its scheduler ({error}). Check cluster.interface "
                "and cluster.driver_interface (`ip -brief address` lists those of a machine), and "
                "whether cluster.folder can be written."
            ) from error


@dataclass(slots=True)
class _Jobs:
    """The jobs of a run."""

    recipe: SlurmCluster
    _cluster: Any = None
    _asked: float = 0.0
    _joined: set[str] = field(default_factory=set)
    """Names of workers that have joined."""
    _failed_starts: int = 0
    _reported: float = 0.0

    @contextmanager
    def submitted(self) -> Iterator[Client]:
        """A client of a scheduler whose jobs are submitted; they are cancelled after the block.

        Raises `RunError` if SLURM refuses them.
        """
        import dask

        # Imported before the settings are set: leaving them would undo the defaults that its import
        # sets.
        distributed = import_distributed()
        with ExitStack() as stack:
            stack.enter_context(dask.config.set(SCHEDULER))
            tls = stack.enter_context(self.recipe.certificates())
            self._cluster = stack.enter_context(self.recipe.dask_cluster(tls))
            try:
                self._submit()
            except RuntimeError as error:
                raise refusal(words_of(error)) from error
            self._asked = self._reported = time.monotonic()
            yield stack.enter_context(distributed.Client(self._cluster, set_as_default=False))

    def _submit(self) -> None:
        """Submit jobs until there are as many as the recipe says."""
        cluster = self._cluster
        while len(cluster.worker_spec) < self.recipe.workers:
            cluster.worker_spec.update(cluster.new_worker_spec())
        cluster.sync(_up_to_date, cluster)

    def keep_up(self) -> bool:
        """Replace jobs that SLURM has no more. Returns whether some wait in its queue.

        Raises `RunError` if jobs end again and again before their workers join.
        """
        if time.monotonic() - self._asked < _ASK_SECONDS:
            return True
        ours = {name: job.job_id for name, job in dict(self._cluster.workers).items()}
        states = jobs_in_queue()
        self._asked = time.monotonic()
        if states is None:
            return True
        self._joined |= {str(each.name) for each in self._cluster.scheduler.workers.values()}
        lost = [name for name, job_id in ours.items() if job_id not in states]
        if lost:
            self._replace(lost, ours)
        waiting = [states[each] for each in ours.values() if each in states]
        self._report([reason for state, reason in waiting if state == "PENDING"])
        return bool(lost or waiting)

    def _replace(self, lost: list[str], ours: Mapping[str, str]) -> None:
        never_joined = [name for name in lost if name not in self._joined]
        self._failed_starts = (
            self._failed_starts + len(never_joined) if len(never_joined) == len(lost) else 0
        )
        if self._failed_starts >= _FAILED_STARTS:
            raise RunError(
                f"{self._failed_starts} jobs of SLURM, one after the other, ended before their "
                f"workers joined. {self._last_words(ours[never_joined[-1]])} Check "
                "cluster.interface, cluster.python and cluster.prologue on a node, then run the "
                "same command again to continue."
            )
        names = ", ".join(str(ours[name]) for name in lost)
        log.info("SLURM has ended the job %s; another one follows.", names)
        self._joined.difference_update(lost)
        try:
            self._cluster.sync(self._cluster.scale_down, lost)
            self._submit()
        except RuntimeError as error:
            # SLURM itself may be away for a while; the next time tries again.
            log.info("SLURM took no new job: %s", words_of(error))

    def _report(self, reasons: list[str]) -> None:
        """Say now and then that no worker has come because the jobs wait."""
        now = time.monotonic()
        if self._cluster.scheduler.workers or not reasons or now - self._reported < _ASK_SECONDS:
            return
        self._reported = now + _REPORT_SECONDS
        log.warning(
            "%d jobs wait in SLURM's queue (%s); the run continues when one starts.",
            len(reasons),
            ", ".join(sorted(set(reasons))),
        )

    def _last_words(self, job_id: str) -> str:
        """What a job wrote last, as a sentence."""
        path = Path(self.recipe.folder, f"{_NAME}-{job_id}.err")
        try:
            lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        if not lines:
            return f"The last one wrote nothing into {path}."
        return f"The last one wrote into {path}: {lines[-1].strip()[:300]}"


@cache
def _jobqueue() -> Any:
    """The library dask-jobqueue. Its import takes SIGINT for itself, and would end the process with
    exit code 0; so it is imported in the main thread, and the handler put back.
    """
    before = signal.getsignal(signal.SIGINT)
    library = import_extra("dask_jobqueue", "slurm")
    signal.signal(signal.SIGINT, before)
    return library


@cache
def _job_class() -> Any:
    """A job of dask-jobqueue that is closed when it was cancelled: the cluster insists, also on one
    that sbatch refused.
    """
    job: Any = _jobqueue().slurm.SLURMJob

    class Job(job):  # type: ignore[misc]
        """A job with one worker."""

        async def close(self) -> None:
            """Cancel the job."""
            await super().close()
            self.status = import_distributed().Status.closed

    return Job


def _security(tls: Tls) -> Any:
    """The same certificate for driver, scheduler and workers."""
    pairs = {
        f"tls_{role}_{part}": getattr(tls, part)
        for role in ("client", "scheduler", "worker")
        for part in ("cert", "key")
    }
    return import_distributed().Security(tls_ca_file=tls.ca, require_encryption=True, **pairs)


async def _up_to_date(cluster: Any) -> None:
    """Wait until all jobs that the cluster should have are submitted. Raises what sbatch said."""
    await cluster


def _require_slurm() -> None:
    """Raise `RunError` unless this machine can submit jobs."""
    _jobqueue()
    if shutil.which("sbatch") is None:
        raise RunError(
            "cluster.kind slurm needs the command sbatch, which this machine does not have. "
            "Run on a login node of the SLURM cluster, or use another kind of cluster."
        )
