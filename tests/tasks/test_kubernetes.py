"""The DaskCluster of a run, checked by the operator's own schema and code, and by the schemas of
Kubernetes. No Kubernetes is needed: where it has to answer, a stand-in does, which takes nothing
that these schemas refuse and starts the very commands of the pods.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml
from tls_support import certificates

from maskloom.segcore.errors import RecipeError, RunError
from maskloom.tasks.clusters import kubernetes
from maskloom.tasks.clusters.kubernetes import KubernetesCluster
from maskloom.tasks.clusters.tls import Tls

RELEASE = "1.33"
GROUP = "kubernetes.dask.org/v1"
PLAIN = KubernetesCluster("registry.example/maskloom:1", 3, "4 GiB", insecure=True)
FULL = replace(
    PLAIN,
    cores=2,
    gpu=True,
    namespace="imaging",
    secret="maskloom-tls",
    tls=Tls("ca.pem", "driver.pem", "driver-key.pem"),
    insecure=False,
    environment="store-keys",
    service_account="imaging-workers",
)


def schema_of_the_operator() -> dict[str, Any]:
    """Strict: Kubernetes drops keys that are not in it without a word."""
    crds = resources.files("dask_kubernetes.operator.deployment") / "helm/dask-kubernetes-operator"
    definition = yaml.safe_load((crds / "crds" / "daskcluster.yaml").read_text())
    schema = strict(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    # Kubernetes itself knows these.
    schema["properties"] |= {name: {} for name in ("apiVersion", "kind", "metadata")}
    return schema


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get(
        "x-kubernetes-preserve-unknown-fields"
    ):
        found["additionalProperties"] = False
    return found


def problems(manifest: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema_of_the_operator())
    return [f"{each.json_path}: {each.message}" for each in validator.iter_errors(manifest)]


def made_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What the operator makes of a DaskCluster: Deployment and Service of the scheduler, then a
    Deployment for each worker.
    """
    controller = pytest.importorskip("dask_kubernetes.operator.controller.controller")
    name, spec = manifest["metadata"]["name"], manifest["spec"]
    namespace = manifest["metadata"]["namespace"]
    return [
        controller.build_scheduler_deployment_spec(name, spec["scheduler"]["spec"], {}, {}),
        controller.build_scheduler_service_spec(name, spec["scheduler"]["service"], {}, {}),
        *(
            controller.build_worker_deployment_spec(
                f"{name}-default", namespace, name, str(number), spec["worker"]["spec"], {}, {}
            )
            for number in range(spec["worker"]["replicas"])
        ),
    ]


def container_of(deployment: dict[str, Any]) -> dict[str, Any]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


def environment_of(deployment: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container_of(deployment)["env"]}


@pytest.mark.parametrize(
    "cluster",
    [pytest.param(PLAIN, marks=pytest.mark.nightly, id="plain"), pytest.param(FULL, id="full")],
)
def test_the_manifest_is_what_operator_and_kubernetes_take(cluster: KubernetesCluster) -> None:
    pytest.importorskip("dask_kubernetes")
    validate = pytest.importorskip("kubernetes_validate")
    manifest = cluster.manifest("maskloom-1")
    assert problems(manifest) == []
    for document in made_of(manifest):
        validate.validate(document, RELEASE, strict=True)
    text = json.dumps(manifest)
    assert yaml.safe_load(yaml.safe_dump(manifest)) == manifest
    assert "null" not in text


def test_the_schemas_find_a_misspelt_key() -> None:
    pytest.importorskip("dask_kubernetes")
    validate = pytest.importorskip("kubernetes_validate")
    manifest = PLAIN.manifest("maskloom-1")
    manifest["spec"]["worker"]["replica"] = 1
    assert any("replica" in line for line in problems(manifest))
    deployment = made_of(PLAIN.manifest("maskloom-1"))[0]
    container_of(deployment)["resurces"] = {}
    with pytest.raises(validate.ValidationError):
        validate.validate(deployment, RELEASE, strict=True)


def test_pods_say_what_they_need_and_may_do_little() -> None:
    pytest.importorskip("dask_kubernetes")
    scheduler, _, worker, *_ = made_of(FULL.manifest("maskloom-1"))
    assert container_of(worker)["resources"] == {
        kind: {"cpu": "2", "memory": "4608Mi", "nvidia.com/gpu": "1"}
        for kind in ("requests", "limits")
    }
    assert container_of(worker)["envFrom"] == [{"secretRef": {"name": "store-keys"}}]
    assert "envFrom" not in container_of(scheduler)
    # The operator keeps what the manifest says instead of its own tcp://.
    assert environment_of(worker)["DASK_SCHEDULER_ADDRESS"] == (
        "tls://maskloom-1-scheduler.imaging.svc:8786"
    )
    assert "--resources GPU=1" in " ".join(container_of(worker)["command"])
    for deployment in (scheduler, worker):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container_of(deployment)["securityContext"]["readOnlyRootFilesystem"]
        assert "--tls-key /etc/maskloom/tls/tls.key" in " ".join(
            container_of(deployment)["command"]
        )


def test_the_cluster_belongs_to_the_pod_of_the_driver() -> None:
    environment = {"POD_NAME": "run-1", "POD_UID": "5f0c"}
    owner = kubernetes._owner(environment)
    assert PLAIN.manifest("a", owner)["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "run-1", "uid": "5f0c"}
    ]
    assert "ownerReferences" not in PLAIN.manifest("a", kubernetes._owner({}))["metadata"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": 0}, "workers: must be 1 or more"),
        ({"memory": "plenty"}, "cluster.memory must be"),
        ({"insecure": False}, "secret: connections between pods cross the network"),
        ({"secret": "a"}, "secret: .*give both or neither"),
        ({"namespace": "Not_A_Name"}, "namespace: 'Not_A_Name' is not the name"),
    ],
)
def test_wrong_values_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        replace(PLAIN, **changes)


class StandIn:
    """The API of Kubernetes for DaskClusters, and the operator: pods are processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.status = folder, 201
        self.log: list[str] = []
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._ports: dict[int, int] = {}

    def port(self, inside: int) -> int:
        """The port of this machine that stands for one of a pod."""
        if inside not in self._ports:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self._ports[inside] = int(free.getsockname()[1])
        return self._ports[inside]

    def create(self, manifest: dict[str, Any]) -> None:
        assert problems(manifest) == []
        name = manifest["metadata"]["name"]
        scheduler, _, *workers = made_of(manifest)
        self._processes[name] = [self._pod(each) for each in (scheduler, *workers)]

    def _pod(self, deployment: dict[str, Any]) -> subprocess.Popen[bytes]:
        container = container_of(deployment)
        environment = {
            name: self._here(value)
            for name, value in environment_of(deployment).items()
            if name != "HOME"
        }
        command = [
            environment.get(found[1], "") if (found := re.fullmatch(r"\$\((\w+)\)", each)) else each
            for each in container["command"]
        ]
        command = [self._here(each) for each in command]
        if container["name"] == "scheduler":
            command += ["--host", "127.0.0.1"]
        else:
            command += ["--host", "127.0.0.1", "--local-directory", str(self.folder)]
        return subprocess.Popen(
            [sys.executable, *command[1:]],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _here(self, text: str) -> str:
        """What stands for a pod's host, port or file on this machine."""
        text = re.sub(r"[\w-]+-scheduler\.\w+\.svc", "127.0.0.1", text)
        text = re.sub(r"\b(8786|8787)\b", lambda found: str(self.port(int(found[0]))), text)
        return text.replace("/etc/maskloom/tls", str(self.folder / "tls"))

    def delete(self, name: str) -> None:
        for process in self._processes.pop(name, []):
            process.terminate()
            process.wait(60)

    def resources(self) -> dict[str, dict[str, Any]]:
        """What Kubernetes says of the resources that it knows, by path."""
        group = {"name": "kubernetes.dask.org", "versions": [{"groupVersion": GROUP}]}
        found = {"name": "daskclusters", "kind": "DaskCluster", "namespaced": True}
        return {
            "/api": {"versions": []},
            "/apis": {"groups": [group]},
            f"/apis/{GROUP}": {"resources": [found]},
        }

    def close(self) -> None:
        for name in list(self._processes):
            self.delete(name)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The address of the API."""
        stand_in = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_POST(self) -> None:
                stand_in.log.append(f"POST {urlsplit(self.path).path}")
                manifest = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if stand_in.status != 201:
                    reason = {"kind": "Status", "message": "no", "code": stand_in.status}
                    return self.answer(stand_in.status, reason)
                stand_in.create(manifest)
                return self.answer(201, manifest)

            def do_DELETE(self) -> None:
                path = urlsplit(self.path).path
                stand_in.log.append(f"DELETE {path}")
                stand_in.delete(path.rpartition("/")[2])
                self.answer(200, {"kind": "Status", "status": "Success"})

            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                if path.rstrip("/") == "/version":
                    return self.answer(200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0"})
                known = stand_in.resources()
                if path.rstrip("/") in known:
                    return self.answer(200, known[path.rstrip("/")])
                return self.answer(404, {"kind": "Status", "message": path, "code": 404})

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
            self.close()


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """One for all tests, since kr8s remembers the first that it has found."""
    pytest.importorskip("kr8s")
    folder = tmp_path_factory.mktemp("kubernetes")
    made = StandIn(folder)
    with made.serving() as address, pytest.MonkeyPatch.context() as patch:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [{"name": "here", "cluster": {"server": address}}],
            "users": [{"name": "me", "user": {"token": "t"}}],
        }
        (folder / "kubeconfig").write_text(yaml.safe_dump(config))
        patch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
        yield made


@pytest.mark.nightly
def test_kubernetes_is_asked_for_the_operator_before_a_run(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(stand_in.log)
    assert "knows DaskCluster; namespace" in PLAIN.look()
    # kr8s remembers what there is for some minutes.
    kr8s = pytest.importorskip("kr8s")
    monkeypatch.setattr(type(kr8s.api()), "api_resources", lambda _: [])
    with pytest.raises(RunError, match="Install the operator of dask-kubernetes"):
        PLAIN.look()
    assert stand_in.log == before


def opened(cluster: KubernetesCluster) -> Any:
    return cluster.open(print, threading.Event())


@pytest.mark.nightly
def test_what_kubernetes_refuses_is_said(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for status, words in (
        (403, "Allow the driver's service account"),
        (404, "Install the operator of dask-kubernetes"),
    ):
        monkeypatch.setattr(stand_in, "status", status)
        with pytest.raises(RunError, match=words), opened(PLAIN) as dask:
            assert dask.client


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_on_the_commands_of_the_pods_is_as_one_in_this_process(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = certificates(stand_in.folder / "tls", "tls", "driver")
    for name, key in (("ca.pem", "ca.crt"), ("tls.pem", "tls.crt"), ("tls-key.pem", "tls.key")):
        (folder / name).rename(folder / key)
    tls = Tls(*(str(folder / name) for name in ("ca.crt", "driver.pem", "driver-key.pem")))
    cluster = replace(FULL, workers=2, memory="1 GiB", tls=tls)
    stand_in.log.clear()
    monkeypatch.setattr(
        KubernetesCluster, "address", lambda self, name: "tls://x-scheduler.imaging.svc:8786"
    )
    monkeypatch.setattr(
        kubernetes,
        "_wait_for",
        lambda address, *rest, wait=kubernetes._wait_for: wait(stand_in._here(address), *rest),
    )
    monkeypatch.setattr(
        kubernetes,
        "joined",
        lambda address, *rest, join=kubernetes.joined: join(stand_in._here(address), *rest),
    )
    with opened(cluster) as dask:
        assert dict(dask.map(abs, list(map(Number, range(-20, 0))))) == {
            Number(number): -number for number in range(-20, 0)
        }
        # Probes ask for /health, and nothing else is there.
        pages = f"http://127.0.0.1:{stand_in.port(8787)}"
        assert [fetched(f"{pages}/{page}") for page in ("health", "info")] == [200, 404]
    path = "/apis/kubernetes.dask.org/v1/namespaces/imaging/daskclusters"
    assert stand_in.log[0] == f"POST {path}"
    assert re.fullmatch(rf"DELETE {path}/maskloom-\w{{10}}", stand_in.log[-1])
    assert stand_in._processes == {}


class Number(int):
    def split(self) -> tuple[Number, ...]:
        return (self,)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


def fetched(address: str) -> int:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
