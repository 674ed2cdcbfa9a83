"""The image is built, and runs without rights what this environment runs; `compose.yaml` is brought
up, and its schedule starts a run.

They need podman and an image to build on, named by MASKLOOM_BASE_IMAGE. MASKLOOM_BUILD_OPTIONS are
further options of `podman build`, e.g. "--network host".
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BASE = os.environ.get("MASKLOOM_BASE_IMAGE", "")
OPTIONS = shlex.split(os.environ.get("MASKLOOM_BUILD_OPTIONS", ""))
NO_RIGHTS = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "all"),
    *("--security-opt", "no-new-privileges", "--network", "none"),
)

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3000)]


def podman(*command: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["podman", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@dataclass(frozen=True)
class Service:
    """The services of `compose.yaml`."""

    api: str
    password: bytes

    def completed(self) -> list[dict[str, str]]:
        """The runs that Prefect has recorded as completed; none if it does not answer yet."""
        request = urllib.request.Request(
            f"{self.api}/flow_runs/filter",
            data=b'{"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}',
            headers={
                "Authorization": f"Basic {b64encode(self.password).decode()}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except OSError:
            return []


def build(name: str, dockerfile: Path, context: Path) -> str:
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    if not BASE:
        pytest.skip("MASKLOOM_BASE_IMAGE names no image to build on")
    image = f"localhost/{name}:tests"
    podman("build", "--build-arg", f"BASE={BASE}", "-f", dockerfile, "-t", image, *OPTIONS, context)
    return image


@pytest.fixture(scope="module")
def image() -> str:
    return build("maskloom", DEPLOY / "Dockerfile", ROOT)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    folder.chmod(0o755)  # the container runs as another user
    random = np.random.default_rng(5)
    for number in range(30):
        values = random.integers(0, 256, (50, 50), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
        Image.fromarray(values).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory) -> list[tuple[object, ...]]:
    """The areas that this environment finds."""
    output = tmp_path_factory.mktemp("here")
    command = ["maskloom", "segment", pictures, "-o", output, "-s", "threshold", "--no-prefect"]
    subprocess.run([Path(sys.executable).parent / command[0], *command[1:]], check=True)
    return areas(str(output))


def areas(output: str, filesystem=None) -> list[tuple[object, ...]]:
    """Class, pixels and area of every image."""
    import duckdb

    connection = duckdb.connect()
    if filesystem is not None:
        connection.register_filesystem(filesystem)
    return connection.sql(
        "SELECT image_id, class_name, pixel_count, area "
        f"FROM '{output}/tables/areas/*.parquet' ORDER BY ALL"
    ).fetchall()


def command(pictures: Path, output: Path) -> list[str | Path]:
    """`podman run` with the arguments of a run in the image, as a user of no name."""
    output.mkdir(exist_ok=True)
    output.chmod(0o777)
    return [
        *("run", *NO_RIGHTS, "--user", "12345:54321"),
        *("-v", f"{pictures}:/in:ro", "-v", f"{output}:/out", "--name", f"maskloom-{os.getpid()}"),
    ]


SEGMENT = ("maskloom", "segment", "/in", "-o", "/out", "-s", "threshold", "--no-prefect")


def test_a_container_without_rights_finds_the_same(image, pictures, undisturbed, tmp_path):
    podman(*command(pictures, tmp_path / "out"), "--rm", image, *SEGMENT)
    assert areas(str(tmp_path / "out")) == undisturbed


def test_a_stopped_container_is_continued_by_another(image, pictures, undisturbed, tmp_path):
    start = command(pictures, tmp_path / "out")
    podman(*start, "-d", image, *SEGMENT)
    name = start[start.index("--name") + 1]
    try:
        while not list((tmp_path / "out").glob("runs/*/plan.json")):
            time.sleep(0.2)
        podman("stop", "--time", "60", name)
        code = podman("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip()
        said = podman("logs", name).stderr
    finally:
        podman("rm", "--force", name)
    assert code == "1", said
    assert "asked to stop" in said
    podman(*start, "--rm", image, *SEGMENT)
    assert areas(str(tmp_path / "out")) == undisturbed


def test_the_image_has_no_root_and_nothing_of_its_builder(image):
    inside = podman("run", "--rm", *NO_RIGHTS, image, "sh", "-c", "id -u; touch /opt/x 2>&1; env")
    assert inside.stdout.startswith("10001\n")
    assert "Read-only file system" in inside.stdout
    assert "PIP_" not in inside.stdout
    # Files that a build mounts leave empty ones behind, at most.
    find = ("find", "/", "-xdev", "-name", "pip.conf", "-size", "+0")
    assert podman("run", "--rm", "--user", "0", image, *find).stdout == ""


@pytest.fixture
def service(image, tmp_path, monkeypatch) -> Iterator[Service]:
    """A copy of `compose.yaml` that is up, with a recipe that is due every minute."""
    if shutil.which("podman-compose") is None:
        pytest.skip("podman-compose is not installed")
    shutil.copy(DEPLOY / "compose.yaml", tmp_path)
    folder = tmp_path / "compose"
    shutil.copytree(DEPLOY / "compose", folder, ignore=shutil.ignore_patterns("secrets"))
    subprocess.run([folder / "make-secrets.sh"], check=True)
    recipe = folder / "recipes/brightness.yaml"
    hourly = recipe.read_text()
    assert hourly.count('"0 * * * *"') == 1
    recipe.write_text(hourly.replace('"0 * * * *"', '"* * * * *"'))
    prefect, store = free_port(), free_port()
    settings = {
        "MASKLOOM_IMAGE": image,
        "POSTGRES_IMAGE": helper("postgres"),
        "SEAWEEDFS_IMAGE": helper("seaweedfs"),
        "PREFECT_PORT": str(prefect),
        "S3_PORT": str(store),
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "secrets/s3_credentials"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "RECIPES"):
        monkeypatch.delenv(name, raising=False)
    compose = [
        *("podman-compose", "-p", f"maskloom-tests-{os.getpid()}"),
        *("-f", str(tmp_path / "compose.yaml")),
    ]
    subprocess.run([*compose, "up", "-d"], check=True)
    yield Service(f"http://127.0.0.1:{prefect}/api", (folder / "secrets/prefect_auth").read_bytes())
    subprocess.run([*compose, "down", "-v"], check=True)


def helper(name: str) -> str:
    """An image beside maskloom's, made from the same base."""
    folder = DEPLOY / "compose" / name
    return build(name, folder / "Dockerfile", folder)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_the_schedule_of_compose_starts_a_run(service, pictures, undisturbed):
    import fsspec

    store = fsspec.filesystem("s3", skip_instance_cache=True)
    for _ in range(100):
        try:
            store.put(str(pictures / "*.png"), "s3://images/")
            break
        except OSError:
            time.sleep(1)
    uploaded = datetime.now(UTC).isoformat()
    while not any(run["expected_start_time"] > uploaded for run in service.completed()):
        time.sleep(2)
    renamed = {"dark": "background", "bright": "foreground"}
    rows = [
        (image, renamed[name], *rest)
        for image, name, *rest in areas("s3://masks/brightness", store)
    ]
    assert sorted(rows) == sorted(undisturbed)
