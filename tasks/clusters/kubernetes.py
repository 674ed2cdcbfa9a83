"""Pods of Kubernetes, by the operator of dask-kubernetes.

The run creates a resource `DaskCluster`; the operator, which an administrator has installed, makes
the pods of it, and Kubernetes replaces lost ones. The driver runs in the cluster too, in a pod of
its own, since it must reach the scheduler. The resource is removed when the run ends, and with the
driver's pod if that is told its name and UID.
"""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import RecipeError, RunError
from maskloom.tasks.clusters.joining import Wait, joined
from maskloom.tasks.clusters.protocol import CLUSTERS, Cluster, import_extra, parse_bytes
from maskloom.tasks.clusters.settings import ONE_THREAD, SCHEDULER, WORKER, as_environment
from maskloom.tasks.clusters.tls import Tls
from maskloom.tasks.fanout.dask import Dask
from maskloom.tasks.fanout.protocol import stopped

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping

_API = "kubernetes.dask.org/v1"
_PORT, _HEALTH_PORT = 8786, 8787
_BESIDE_WORKER = 512 * 2**20
"""Memory of a pod beside that of its worker: the nanny, and the worker itself while a part that is
suspected of killing workers runs in a child process.
"""
_SCHEDULER_MEMORY = "2Gi"
_START_SECONDS = 900.0
"""How long the pods may take to start, with the pull of their image."""
_POLL_SECONDS = 2.0
_CERTIFICATES = "/etc/maskloom/tls"
"""Where the Secret with the certificates is mounted in the pods."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@CLUSTERS.register("kubernetes")
@dataclass(frozen=True, slots=True)
class KubernetesCluster(Cluster):
    """Pods of Kubernetes, one worker each, made by the operator of dask-kubernetes for the run."""

    image: str
    """Image with the same maskloom, e.g. registry.example/maskloom:0.2."""
    workers: int
    """Number of workers."""
    memory: str
    """Memory of a worker, e.g. 8 GiB. A pod asks for 512 MiB more."""
    cores: int = 1
    """Cores of a worker. Only networks use more than one."""
    gpu: bool = False
    """Each worker asks for a GPU (nvidia.com/gpu: 1), for networks."""
    namespace: str = "default"
    """Namespace of the pods."""
    secret: str | None = None
    """Name of a Secret with ca.crt, tls.crt and tls.key, for the scheduler and the workers."""
    tls: Tls | None = None
    """Certificates of the driver: the files `ca`, `cert` and `key`, e.g. of the same Secret."""
    insecure: bool = False
    """Allow connections that are not encrypted. Anyone who reaches the pods can run code there."""
    environment: str | None = None
    """Name of a Secret whose keys become environment variables of the workers, e.g. for stores."""
    service_account: str | None = None
    """Service account of the workers, e.g. for stores. None: the namespace's default."""

    def __post_init__(self) -> None:
        for name in ("workers", "cores"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}: must be 1 or more, not {getattr(self, name)}.")
        parse_bytes(self.memory)
        for name in ("namespace", "secret", "environment", "service_account"):
            value = getattr(self, name)
            if value is not None and not _NAME.fullmatch(value):
                raise RecipeError(f"{name}: {value!r} is not the name of a Kubernetes object.")
        if (self.secret is None) != (self.tls is None):
            raise RecipeError(
                "secret: `secret` names the certificates of the pods and `tls` those of the "
                "driver; give both or neither."
            )
        if self.secret is None and not self.insecure:
            raise RecipeError(
                "secret: connections between pods cross the network. Encrypt them by `secret` (a "
                "Secret with ca.crt, tls.crt and tls.key) and `tls`, or add insecure: true if a "
                "NetworkPolicy keeps everybody else out."
            )

    @property
    def worker_memory(self) -> int:
        """Bytes that one worker may hold."""
        return parse_bytes(self.memory)

    @property
    def worker_threads(self) -> int:
        """All cores of a worker."""
        return self.cores

    def look(self) -> str:
        """Ask Kubernetes whether it knows the resource of the operator; nothing is created. Raises
        `RunError` if it does not, or does not answer.
        """
        objects = import_extra("kr8s", "kubernetes")
        try:
            found = list(objects.api().api_resources())
        except Exception as error:
            raise RunError(
                f"Kubernetes does not answer ({type(error).__name__}: {error}). Check the driver's "
                "access to it (service account, or KUBECONFIG)."
            ) from error
        if not any(each["kind"] == "DaskCluster" for each in found):
            raise RunError(
                "Kubernetes answers, but knows no DaskCluster. Install the operator of "
                "dask-kubernetes in this cluster first."
            )
        return f"Kubernetes answers and knows DaskCluster; namespace {self.namespace}"

    def open(self, prepare: Callable[[], None], stop: threading.Event) -> Dask:
        """A fan-out on pods that are asked for when it starts. Raises `RunError` if the library is
        missing, and `RecipeError` if the certificates cannot be used.
        """
        import_extra("kr8s", "kubernetes")
        security = None if self.tls is None else self.tls.security()
        return Dask(lambda: self._created(security, stop), prepare, stop, gpu=self.gpu)

    @contextmanager
    def _created(self, security: Any, stop: threading.Event) -> Iterator[Any]:
        """A client of a cluster that exists for this block. Raises `RunError` if there is none."""
        name = f"maskloom-{uuid.uuid4().hex[:10]}"
        resource = _resource(self.manifest(name, _owner(os.environ)), self.namespace)
        try:
            resource.create()
        except Exception as error:
            raise _refused(error) from error
        try:
            address = self.address(name)
            _wait_for(address, lambda: _pods(name, self.namespace), stop)
            wait = Wait(_START_SECONDS, stop)
            with joined(address, security, self.tls, self.gpu, wait) as client:
                yield client
        finally:
            # If it cannot be removed, it goes with the driver's pod.
            with suppress(Exception):
                resource.delete()

    def address(self, name: str) -> str:
        """Address of the scheduler of a cluster in this namespace."""
        protocol = "tcp" if self.secret is None else "tls"
        return f"{protocol}://{name}-scheduler.{self.namespace}.svc:{_PORT}"

    def manifest(self, name: str, owner: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The resource that the operator gets. `owner`: reference to the object that it is to be
        removed with.
        """
        owners = {} if owner is None else {"ownerReferences": [dict(owner)]}
        labels = {"app.kubernetes.io/name": "maskloom", "app.kubernetes.io/instance": name}
        return {
            "apiVersion": _API,
            "kind": "DaskCluster",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": dict(labels),
                **owners,
            },
            "spec": {"scheduler": self._scheduler(name), "worker": self._workers(name)},
        }

    def _scheduler(self, name: str) -> dict[str, Any]:
        environment = {
            **as_environment({key: SCHEDULER[key] for key in SCHEDULER if ".deploy." not in key}),
            # Probes ask for /health, and there is nothing else at that port.
            "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES": "['distributed.http.health']",
        }
        ports = {"tcp-comm": _PORT, "http-dashboard": _HEALTH_PORT}
        probe = {"httpGet": {"port": "http-dashboard", "path": "/health"}}
        container = {
            **self._container("scheduler", environment),
            "command": [
                *("python", "-P", "-m", "distributed.cli.dask_scheduler"),
                *("--port", str(_PORT)),
                *("--no-dashboard", "--dashboard-address", f":{_HEALTH_PORT}"),
                *("--preload", "maskloom.tasks.clusters.scheduler"),
                *self._tls_options(),
            ],
            "resources": _resources("1", _SCHEDULER_MEMORY),
            "ports": [{"name": each, "containerPort": port} for each, port in ports.items()],
            "readinessProbe": {**probe, "periodSeconds": 2},
            "livenessProbe": {**probe, "initialDelaySeconds": 30, "periodSeconds": 30},
        }
        return {
            "spec": self._pod(container),
            "service": {
                "type": "ClusterIP",
                "selector": {"dask.org/cluster-name": name, "dask.org/component": "scheduler"},
                "ports": [
                    {"name": each, "port": port, "targetPort": each, "protocol": "TCP"}
                    for each, port in ports.items()
                ],
            },
        }

    def _workers(self, name: str) -> dict[str, Any]:
        environment = {
            **ONE_THREAD,
            **as_environment(WORKER),
            # The operator would write tcp://.
            "DASK_SCHEDULER_ADDRESS": self.address(name),
        }
        more = {"nvidia.com/gpu": "1"} if self.gpu else {}
        memory = -(-(self.worker_memory + _BESIDE_WORKER) // 2**20)
        container = {
            **self._container("worker", environment),
            "command": [
                *("python", "-P", "-m", "distributed.cli.dask_worker"),
                *("--name", "$(DASK_WORKER_NAME)"),
                *("--nthreads", "1", "--memory-limit", f"{self.worker_memory} B".replace(" ", "")),
                # With --no-dashboard it would still serve HTTP, to everybody.
                *("--dashboard-address", "127.0.0.1:0"),
                *(("--resources", "GPU=1") if self.gpu else ()),
                *self._tls_options(),
            ],
            "resources": _resources(str(self.cores), f"{memory}Mi", more),
        }
        if self.environment is not None:
            container["envFrom"] = [{"secretRef": {"name": self.environment}}]
        pod = self._pod(container)
        if self.service_account is not None:
            pod["serviceAccountName"] = self.service_account
        return {"replicas": self.workers, "spec": pod}

    def _container(self, name: str, environment: Mapping[str, str]) -> dict[str, Any]:
        mounts: list[dict[str, Any]] = [{"name": "scratch", "mountPath": "/tmp"}]  # noqa: S108 - its own in each pod
        if self.secret is not None:
            mounts.append({"name": "tls", "mountPath": _CERTIFICATES, "readOnly": True})
        return {
            "name": name,
            "image": self.image,
            "env": [
                {"name": each, "value": value}
                for each, value in {"HOME": "/tmp", **environment}.items()  # noqa: S108
            ],
            "volumeMounts": mounts,
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }

    def _pod(self, container: dict[str, Any]) -> dict[str, Any]:
        volumes: list[dict[str, Any]] = [{"name": "scratch", "emptyDir": {}}]
        if self.secret is not None:
            volumes.append({"name": "tls", "secret": {"secretName": self.secret}})
        return {
            "containers": [container],
            "volumes": volumes,
            "automountServiceAccountToken": self.service_account is not None
            and container["name"] == "worker",
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }

    def _tls_options(self) -> list[str]:
        if self.secret is None:
            return []
        files = {"ca-file": "ca.crt", "cert": "tls.crt", "key": "tls.key"}
        paths = [(f"--tls-{each}", f"{_CERTIFICATES}/{file}") for each, file in files.items()]
        return ["--protocol", "tls", *(part for pair in paths for part in pair)]


def _resources(cores: str, memory: str, more: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a container gets. Requests are the limits, so that it is the last to be evicted."""
    return {
        kind: {"cpu": cores, "memory": memory, **(more or {})} for kind in ("requests", "limits")
    }


def _owner(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Reference to the driver's pod. None: the driver was not told its name and UID."""
    name, uid = environment.get("POD_NAME"), environment.get("POD_UID")
    return {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid} if name and uid else None


def _resource(manifest: Mapping[str, Any], namespace: str) -> Any:
    objects = import_extra("kr8s.objects", "kubernetes")
    kind = objects.new_class("DaskCluster", _API, asyncio=False, namespaced=True)
    try:
        return kind(dict(manifest), namespace=namespace)
    except Exception as error:
        raise _refused(error) from error


def _refused(error: Exception) -> RunError:
    """The error of a cluster that could not be created."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    remedies = {
        403: "Allow the driver's service account to create, get and delete daskclusters.",
        404: "Install the operator of dask-kubernetes in this Kubernetes cluster first.",
    }
    remedy = remedies.get(
        status or 0, "Check the driver's access to Kubernetes (service account, or KUBECONFIG)."
    )
    return RunError(
        f"Kubernetes did not create the DaskCluster ({type(error).__name__}: {error}). {remedy}"
    )


def _wait_for(address: str, pods: Callable[[], str], stop: threading.Event) -> None:
    """Wait until a scheduler listens at an address. Raises `RunError` if none does in time, and
    `Stopped` when the run is asked to stop.
    """
    host, _, port = address.partition("://")[2].rpartition(":")
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=_POLL_SECONDS):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"No scheduler listens at {address} after {_START_SECONDS:.0f} s ({error}). "
                    f"{pods()} The command must run in a pod of the same Kubernetes cluster, and "
                    "the operator of dask-kubernetes must be at work there."
                ) from error
        if stop.wait(_POLL_SECONDS):
            raise stopped()


def _pods(name: str, namespace: str) -> str:
    """The state of a cluster's pods, as a sentence."""
    try:
        selector = f"dask.org/cluster-name={name}"
        found = list(
            import_extra("kr8s", "kubernetes").get(
                "pods", namespace=namespace, label_selector=selector
            )
        )
    except Exception as error:  # noqa: BLE001 - only part of another error's message
        return f"Its pods could not be listed ({error})."
    if not found:
        return "It has no pods."
    return "Its pods: " + ", ".join(f"{each.name} {_state(each.raw)}" for each in found) + "."


def _state(pod: Mapping[str, Any]) -> str:
    status = pod.get("status", {})
    waiting = [
        container["state"]["waiting"].get("reason", "")
        for container in status.get("containerStatuses", [])
        if "waiting" in container.get("state", {})
    ]
    return " ".join([str(status.get("phase", "unknown")), *waiting])
