"""Jobs of SLURM as they would be submitted; `tests/drills/test_slurm.py` submits them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import psutil
import pytest
from tls_support import certificates

from maskloom.flows.recipes.run import load
from maskloom.segcore.errors import RecipeError, RunError
from maskloom.tasks.clusters import slurm_commands
from maskloom.tasks.clusters.slurm import SlurmCluster
from maskloom.tasks.clusters.tls import Tls

ROOT = Path(__file__).parents[2]


def recipe(root: Path, /, **keys: object) -> SlurmCluster:
    given = {"workers": 2, "memory": "2 GiB", "interface": "lo", "folder": str(root / "jobs")}
    return SlurmCluster(**{**given, **keys})  # type: ignore[arg-type]


def test_the_script_of_a_job_asks_for_what_its_worker_needs(tmp_path: Path) -> None:
    cluster = recipe(
        tmp_path,
        cores=4,
        gpu=True,
        partition="long",
        account="lab",
        walltime="1-00:00:00",
        directives=("--constraint=avx2",),
        prologue=("module load gdal",),
        python="/opt/the env/bin/python",
    )
    with cluster.certificates() as tls, cluster.dask_cluster(tls) as dask:
        lines = dask.job_script().splitlines()
        listening = {
            each.laddr.ip
            for each in psutil.Process().net_connections("tcp")
            if each.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
        assert dask.scheduler_address.startswith("tls://127.0.0.1:")
        assert Path(tls.key).parent.stat().st_mode & 0o077 == 0
    assert not Path(tls.key).exists()

    folder = tmp_path / "jobs"
    assert [line for line in lines if line.startswith("#SBATCH")] == [
        "#SBATCH -J maskloom",
        f"#SBATCH -e {folder}/maskloom-%J.err",
        f"#SBATCH -o {folder}/maskloom-%J.out",
        "#SBATCH -p long",
        "#SBATCH -A lab",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=2560M",
        "#SBATCH -t 1-00:00:00",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --constraint=avx2",
    ]
    assert {
        "export PYTHONSAFEPATH=1",
        "export OMP_NUM_THREADS=1",
        "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False",
    } < {*lines}
    assert lines[-2] == "module load gdal"
    command = lines[-1]
    assert command.startswith("'/opt/the env/bin/python' -m distributed.cli.dask_worker tls://")
    for words in (
        "--nthreads 1 --memory-limit 2.00GiB --nanny",
        "--interface lo --protocol tls://",
        "--dashboard-address 127.0.0.1:0",
        "--lifetime 85500s --lifetime-stagger 300s",
        "--resources GPU=1",
        f"--tls-ca-file {tls.ca}",
        f"--tls-key {tls.key}",
    ):
        assert words in command
    assert "0.0.0.0" not in command
    assert "PRIVATE" not in "\n".join(lines)


def test_certificates_of_the_recipe_are_used(tmp_path: Path) -> None:
    folder = certificates(tmp_path / "tls", "all")
    tls = Tls(*(str(folder / name) for name in ("ca.pem", "all.pem", "all-key.pem")))
    cluster = recipe(tmp_path, tls=tls)
    with cluster.certificates() as used, cluster.dask_cluster(used) as dask:
        assert f"--tls-cert {folder}/all.pem" in dask.job_script()
    assert Path(tls.key).exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"workers": 0}, "workers: must be 1 or more"),
        ({"memory": "plenty"}, "cluster.memory must be a number and a unit"),
        ({"walltime": "240"}, "walltime: must be .days-.hours:minutes:seconds"),
        ({"walltime": "00:00:59"}, "a minute or more"),
        ({"folder": "my jobs"}, "has a space"),
    ],
)
def test_wrong_values_are_refused(keys: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(tmp_path, **keys)


def test_a_machine_without_slurm_or_the_interface_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(RunError, match=r"cannot start its scheduler .*nowhere0.*ip -brief address"),
        recipe(tmp_path, interface="nowhere0").certificates() as tls,
    ):
        recipe(tmp_path, interface="nowhere0").dask_cluster(tls)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="needs the command sbatch"):
        recipe(tmp_path).open(print, threading.Event())


def test_a_slurm_that_does_not_answer_is_told_from_one_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "sbatch"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for said, words in (
        ("sbatch: error: Unable to contact slurm controller (connect failure)", "does not answer"),
        ("sbatch: error: Invalid generic resource (gres) specification", "remove cluster.gpu"),
    ):
        program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
        program.chmod(0o755)
        with pytest.raises(RunError, match=words):
            recipe(tmp_path, gpu=True).look()


def test_the_library_does_not_take_the_interrupt_for_itself() -> None:
    program = """
        import signal
        from maskloom.tasks.clusters.slurm import _jobqueue
        before = signal.getsignal(signal.SIGINT)
        assert _jobqueue().SLURMCluster
        assert signal.getsignal(signal.SIGINT) is before
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=120)


def test_the_queue_is_what_squeue_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "squeue"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program.write_text("#!/bin/sh\necho '7|PENDING|(Resources)'\necho '8|COMPLETING|None'\n")
    program.chmod(0o755)
    assert slurm_commands.jobs_in_queue() == {"7": ("PENDING", "(Resources)")}
    # Where SLURM itself is away no job is taken for lost.
    program.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    assert slurm_commands.jobs_in_queue() is None


def test_the_recipe_of_deploy_loads() -> None:
    cluster = load(ROOT / "deploy" / "slurm" / "recipe.yaml").cluster
    assert isinstance(cluster, SlurmCluster)
    assert cluster.folder == str(ROOT / "deploy" / "slurm" / "slurm-jobs")
