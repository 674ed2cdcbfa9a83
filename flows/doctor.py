"""The checks of `maskloom doctor`: is everything there that runs on this machine need.

Each check is one line with a verdict and, if something is wrong, what to do. Stores are tried by
writing: a store that promises conditional writes may ignore them.
"""

from __future__ import annotations

import contextlib
import platform
import posixpath
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import fsspec

import maskloom
from maskloom.flows.terminal import count
from maskloom.segcore.deep.inference.engines.gpus import idle_gpu, nvidia_gpus
from maskloom.segcore.deep.inference.engines.opening import hardware_of
from maskloom.segcore.deep.inference.runtime import keras_backend
from maskloom.segcore.errors import MaskloomError, RecipeError
from maskloom.segcore.storage.addresses import redacted
from maskloom.segcore.storage.conditional import conditions_of
from maskloom.segcore.storage.filesystems import configure, filesystem, is_local, store_errors
from maskloom.segcore.storage.store import STAGING, Store

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from maskloom.flows.recipes.run import RunRecipe
    from maskloom.tasks.clusters.protocol import Cluster

Verdict = Literal["ok", "warning", "failed"]

DEAD_RUNS = "maskloom: dead runs"
"""The automation at a Prefect server that ends runs whose heartbeats have stopped."""
_SMALL_BYTES = 2 * 2**30
"""Memory and room below which a run is likely to fail."""
_CLOCKS_DIFFER_SECONDS = 60.0
_SERVER_SECONDS = 5.0
_INPUTS_TRIED = 20
_MAIN_LIBRARIES = ("numpy", "pyarrow", "rasterio", "dask", "distributed", "prefect")
_TRIED_CLUSTERS = ("address",)
"""Clusters that can be joined without starting anything."""
_DEVELOPERS = "test"
"""The extra that users do not need."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    text: str
    """What was found, and what to do if it is not ok."""
    wrong_recipe: bool = False
    """Whether the recipe or the command line is to blame."""


def examine(path: Path | None, changes: Sequence[str] = ()) -> Iterator[Check]:
    """The checks of this machine, and of everything that a recipe names."""
    recipe: RunRecipe | None = None
    yield from _each("maskloom", _versions)
    yield from _each("libraries", _libraries)
    yield from _each("extras", _extras)
    yield from _each("networks", _networks)
    yield from _each("machine", _machine)
    yield from _each("temporary files", _temporary)
    if path is not None:
        from maskloom.flows.recipes import run as recipes

        try:
            recipe = recipes.load(path, changes)
        except MaskloomError as error:
            wrong = isinstance(error, RecipeError)
            yield Check("recipe", "failed", redacted(str(error)), wrong_recipe=wrong)
        else:
            yield Check("recipe", "ok", f"{recipe.name}: segmenter {recipe.kind}")
            yield from _of_recipe(recipe)
    yield from _each(
        "prefect", lambda: _prefect(recipe is not None and recipe.schedule is not None)
    )


def _each(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks of one function. An error ends them and is a failed check."""
    try:
        yield from look()
    except MaskloomError as error:
        yield Check(name, "failed", redacted(str(error)))
    # A check that cannot be made must not keep the others from being made.
    except Exception as error:  # noqa: BLE001
        yield Check(name, "failed", redacted(f"{type(error).__name__}: {error}"))


def _versions() -> Iterator[Check]:
    yield Check(
        "maskloom",
        "ok",
        f"{maskloom.__version__}, Python {platform.python_version()}, {platform.platform()}",
    )


def _libraries() -> Iterator[Check]:
    """The packages that maskloom needs, compared with the versions that it allows."""
    found = ", ".join(f"{name} {version(name)}" for name in _MAIN_LIBRARIES if _installed(name))
    wrong = [each for each in _requirements() if each.marker is None and not _is_met(each)]
    if not wrong:
        yield Check("libraries", "ok", found)
    for each in wrong:
        present = _installed(each.name)
        has = f"{each.name} {present} is installed" if present else f"{each.name} is missing"
        yield Check(
            "libraries",
            "failed",
            f"{has}, maskloom needs {each.specifier}: pip install '{each.name}{each.specifier}'",
        )


def _extras() -> Iterator[Check]:
    """The optional packages, and how to install those that are missing."""
    names = metadata("maskloom").get_all("Provides-Extra") or []
    groups = {
        name: [
            each
            for each in _requirements()
            if each.marker is not None and each.marker.evaluate({"extra": name})
        ]
        for name in names
        if name != _DEVELOPERS
    }
    present = sorted(name for name, group in groups.items() if all(map(_is_met, group)))
    absent = sorted(groups.keys() - set(present))
    lacking = "; ".join(f"{name} (pip install 'maskloom[{name}]')" for name in absent)
    yield Check(
        "extras",
        "ok",
        f"installed: {', '.join(present) or 'none'}" + (f"; not: {lacking}" if lacking else ""),
    )


def _networks() -> Iterator[Check]:
    """What Keras runs networks on, and the GPU if there is one."""
    backend = keras_backend()
    if backend is None:
        text = "TensorFlow, JAX and PyTorch are missing (pip install 'maskloom[tensorflow]')"
        yield Check("networks", "ok", f"none can run: {text}")
        return
    text = f"Keras on {backend} {_installed(backend) or _installed(f'{backend}-cpu')}"
    if not nvidia_gpus():
        yield Check("networks", "ok", text)
        return
    # Imported for machines with a GPU alone: it takes seconds.
    hardware = hardware_of(backend)
    if hardware.is_gpu:
        yield Check("networks", "ok", f"{text}, {hardware.name}")
    else:
        yield Check("networks", "warning", f"{text}. {idle_gpu(backend)}.")


def _requirements() -> list[Requirement]:
    from packaging.requirements import Requirement

    return [Requirement(text) for text in requires("maskloom") or []]


def _installed(name: str) -> str | None:
    """The version of a package. None: it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_met(requirement: Requirement) -> bool:
    found = _installed(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def _machine() -> Iterator[Check]:
    import psutil

    from maskloom.tasks.clusters import machine

    limit, free = machine.memory_limit(), psutil.virtual_memory().available
    gpus = len(machine.gpus())
    text = (
        f"{count(machine.core_count(), 'core')}, {_size(limit)} of memory, {_size(free)} of it "
        f"free, {count(gpus, 'NVIDIA GPU') if gpus else 'no NVIDIA GPU'}"
    )
    if min(limit, free) < _SMALL_BYTES:
        yield Check("machine", "warning", f"{text}. Free memory, or lower cluster.workers.")
    else:
        yield Check("machine", "ok", text)


def _temporary() -> Iterator[Check]:
    folder = tempfile.gettempdir()
    with tempfile.TemporaryFile() as file:
        file.write(b"trial")
    free = shutil.disk_usage(folder).free
    text = f"{_size(free)} free in {folder}"
    if free < _SMALL_BYTES:
        yield Check(
            "temporary files",
            "warning",
            f"{text}. Free space there, or set TMPDIR to another disk.",
        )
    else:
        yield Check("temporary files", "ok", text)


def _of_recipe(recipe: RunRecipe) -> Iterator[Check]:
    configure(recipe.storage)
    for entry in recipe.inputs[:_INPUTS_TRIED]:
        yield from _each("inputs", lambda entry=entry: _input(entry))  # type: ignore[misc]
    more = len(recipe.inputs) - _INPUTS_TRIED
    if more > 0:
        yield Check("inputs", "ok", f"{more} more entries were not looked at")
    yield from _each("output", lambda: _output(recipe.output))
    yield from _each("cluster", lambda: _cluster(recipe.cluster))


def _input(entry: str) -> Iterator[Check]:
    """Whether an input exists. Nothing is listed: that may take minutes."""
    fs, path = filesystem(entry)
    place = path
    while fsspec.core.has_magic(place):
        place = posixpath.dirname(place)
    shown = redacted(entry)
    try:
        with store_errors(f"look for {shown}"):
            fs.info(place)
    except FileNotFoundError:
        yield Check(
            "inputs",
            "failed",
            f"{shown}: there is no {redacted(place)}. Correct `inputs`, or your access to it.",
        )
    else:
        yield Check("inputs", "ok", shown)


def _output(output: str) -> Iterator[Check]:
    """Whether the output can be written, takes several runs at once, and agrees on the time."""
    store, shown = Store(output), redacted(output)
    with _no_folder_left(output):
        name = f"{STAGING}/doctor-{uuid.uuid4().hex}"
        try:
            store.publish(f"{name}/a", b"one")
            if store.read(f"{name}/a") != b"one":
                yield Check("output", "failed", f"{shown}: does not return what was written")
                return
            created = [store.publish_new(f"{name}/b", content) for content in (b"one", b"two")]
        finally:
            # What the trial meets says more than what the clean-up meets.
            with contextlib.suppress(MaskloomError):
                store.remove(name)
        room = f", {_size(_room(output))} free" if is_local(output) else ""
        yield Check("output", "ok", f"{shown}: can be written and read{room}")
        if created == [True, False] and conditions_of(store).several_writers:
            yield Check("writes", "ok", "conditional writes are honoured: runs may overlap")
        else:
            yield Check(
                "writes",
                "warning",
                f"{shown}: conditional writes are not honoured, so only one run at a time may "
                "write there. A second one is refused; after a kill on another machine add "
                "--sole-writer.",
            )
        yield _clocks(store)


def _clocks(store: Store) -> Check:
    before = time.time()
    there = store.now()
    after = time.time()
    differ = max(before - there, there - after, 0.0)
    if differ > _CLOCKS_DIFFER_SECONDS:
        return Check(
            "clock",
            "warning",
            f"the store's clock and this machine's differ by {differ:.0f} s. Set this machine's by "
            "NTP: stores refuse requests of machines whose clock is wrong, and schedules run at "
            "the wrong time.",
        )
    return Check("clock", "ok", f"differs from the store's by {differ:.0f} s")


@contextlib.contextmanager
def _no_folder_left(output: str) -> Iterator[None]:
    """Remove the folders of a local output that the block creates, if they are empty."""
    root = Path(filesystem(output)[1]) if is_local(output) else None
    folders = [] if root is None else [root / STAGING, root, *root.parents]
    created = [folder for folder in folders if not folder.exists()]
    try:
        yield
    finally:
        for folder in created:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _room(output: str) -> int:
    """Free bytes on the disk of a local output."""
    place = Path(filesystem(output)[1])
    return shutil.disk_usage(next(each for each in (place, *place.parents) if each.exists())).free


def _cluster(cluster: Cluster) -> Iterator[Check]:
    import threading

    from maskloom.tasks.clusters.protocol import CLUSTERS

    kind = CLUSTERS.name_of(type(cluster)) or type(cluster).__name__
    if kind in _TRIED_CLUSTERS:
        with cluster.opened(_nothing, threading.Event()) as fanout:
            threads = fanout.workers
        yield Check("cluster", "ok", f"{kind}: {count(threads, 'thread')}, the same code as here")
        return
    memory = cluster.worker_memory
    each = "" if memory is None else f", {_size(memory)} a worker"
    found = cluster.look()
    yield Check("cluster", "ok", f"{kind}{each}{f': {found}' if found else ''}")


def _nothing() -> None:
    """Prepare a process for nothing."""


def _prefect(scheduled: bool) -> Iterator[Check]:
    """The Prefect server that records runs."""
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url is None:
        text = (
            "no server is named (PREFECT_API_URL): each run records itself with a server of its "
            "own, which ends with it"
        )
        if scheduled:
            yield Check(
                "prefect",
                "warning",
                f"{text}. The recipe's schedule needs one: prefect server start, then set "
                "PREFECT_API_URL=http://127.0.0.1:4200/api.",
            )
        else:
            yield Check("prefect", "ok", text)
        return
    from prefect.client.orchestration import get_client

    shown = redacted(url)
    with get_client(httpx_settings={"timeout": _SERVER_SECONDS}, sync_client=True) as client:
        problem = client.api_healthcheck()
        if problem is not None:
            yield Check(
                "prefect",
                "failed",
                f"the server at {shown} does not answer ({type(problem).__name__}: {problem}). "
                "Start it, correct PREFECT_API_URL, or use --no-prefect.",
            )
            return
        server, here = client.api_version(), version("prefect")
        if server != here:
            yield Check(
                "prefect",
                "warning",
                f"the server at {shown} has version {server}, this machine {here}. Install the "
                "same: a server must not be older than those that use it.",
            )
        else:
            yield Check("prefect", "ok", f"the server at {shown} answers, version {server}")
        if scheduled:
            watching = client.read_automations_by_name(DEAD_RUNS)
            if any(each.enabled for each in watching):
                yield Check("heartbeats", "ok", "the server ends runs whose heartbeats stop")
            else:
                yield Check(
                    "heartbeats",
                    "warning",
                    f"the server has no enabled automation named {DEAD_RUNS!r}, so a killed run "
                    "would keep the next one waiting. `maskloom serve` makes it.",
                )


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
