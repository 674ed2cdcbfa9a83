"""The manifests are valid without exception: Kubernetes drops unknown keys in silence, so that a
misspelt limit would be no limit.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERNETES = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
FOLDERS = sorted(path.parent for path in KUBERNETES.glob("*/kustomization.yaml"))
OLDEST = "1.31"
"""Version of Kubernetes: the first in which all that the manifests use is stable."""
VERSIONS = pytest.mark.parametrize(
    "version", [OLDEST, pytest.param("1.37", marks=pytest.mark.nightly)]
)


def by_name(folder: Path | None) -> str:
    return folder.name if folder else "files"


@pytest.fixture(scope="module", params=[None, *FOLDERS], ids=by_name)
def manifests(request) -> list[dict[str, Any]]:
    """What `kubectl apply --kustomize` would send of a folder; without one, the files of all."""
    folder = request.param
    if folder is None:
        return [
            manifest
            for each in FOLDERS
            for name in yaml.safe_load((each / "kustomization.yaml").read_text())["resources"]
            if (each / name).is_file()
            for manifest in yaml.safe_load_all((each / name).read_text(encoding="utf-8"))
        ]
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        ["kubectl", "kustomize", folder], check=True, capture_output=True, text=True
    )
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    """The Job that a Kubernetes worker of Prefect would make from the work pool."""
    from prefect.utilities.templating import apply_values

    pool = json.loads((KUBERNETES / "prefect/work-pool.json").read_text())
    defaults = {
        name: each["default"]
        for name, each in pool["variables"]["properties"].items()
        if "default" in each
    }
    # What the worker adds.
    values = {
        "name": "brightness",
        "labels": {"prefect.io/flow-run-name": "brightness"},
        "env": [{"name": "PREFECT_API_URL", "value": "http://prefect:4200/api"}],
        "command": ["prefect", "flow-run", "execute"],
        "service_account_name": "maskloom",
        "cpu_limit": "4",
    }
    return apply_values(pool["job_configuration"]["job_manifest"], defaults | values)


def invalid(manifest: dict[str, Any], version: str) -> str | None:
    """What Kubernetes does not know or want in a manifest."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{manifest['kind']}: {error.message}"
    return None


def pods(value: Any) -> list[dict[str, Any]]:
    """The specifications of pods in a manifest, however deep."""
    if isinstance(value, list):
        return [pod for each in value for pod in pods(each)]
    if not isinstance(value, dict):
        return []
    if "containers" in value:
        return [value]
    return [pod for each in value.values() for pod in pods(each)]


def harmless(pod: dict[str, Any]) -> bool:
    """Whether a pod keeps the standard "restricted", with a read-only root and memory limits."""
    return (
        pod["securityContext"]["runAsNonRoot"]
        and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        and pod["automountServiceAccountToken"] is False
        and all(
            each["securityContext"]
            == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            and each["resources"]["limits"]["memory"] == each["resources"]["requests"]["memory"]
            for each in pod["containers"]
        )
    )


@VERSIONS
def test_manifests_are_valid(manifests, version):
    known = [each for each in manifests if each["kind"] != "DaskCluster"]
    assert known
    assert [error for each in known if (error := invalid(each, version))] == []


@VERSIONS
def test_pods_of_a_dask_cluster_are_valid(manifests, version):
    for manifest in manifests:
        for number, pod in enumerate(pods(manifest)):
            whole = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"pod-{number}"},
                "spec": pod,
            }
            assert invalid(whole, version) is None


def test_pods_have_no_rights(manifests):
    assert pods(manifests)
    assert all(map(harmless, pods(manifests)))


@VERSIONS
def test_the_job_of_a_work_pool_is_valid_and_has_no_rights(job, version):
    assert invalid(job, version) is None
    assert list(map(harmless, pods(job))) == [True]
    assert "{{" not in json.dumps(job)


def test_a_misspelt_key_is_found(job):
    """The check itself."""
    text = json.dumps(job)
    assert invalid(json.loads(text.replace('"requests"', '"request"')), OLDEST)


@pytest.mark.parametrize("manifests", [None], indirect=True, ids=by_name)
def test_dask_clusters_are_what_the_operator_knows(manifests):
    import jsonschema

    clusters = [each for each in manifests if each["kind"] == "DaskCluster"]
    assert clusters

    known = jsonschema.Draft202012Validator(strict(definition("daskcluster")["properties"]["spec"]))
    for cluster in clusters:
        known.validate(cluster["spec"])
        misspelt = {**cluster["spec"], "worker": {**cluster["spec"]["worker"], "replica": 4}}
        with pytest.raises(jsonschema.ValidationError, match="'replica' was unexpected"):
            known.validate(misspelt)


def definition(name: str) -> dict[str, Any]:
    """The schema of a kind of resource that the operator of dask-kubernetes defines."""
    found = importlib.util.find_spec("dask_kubernetes")
    if found is None or found.origin is None:
        pytest.skip("dask-kubernetes is not installed")
    crds = Path(found.origin).parent / ("operator/deployment/helm/dask-kubernetes-operator/crds")
    resource = yaml.load((crds / f"{name}.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    (version,) = resource["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def strict(schema: Any) -> Any:
    """The schema, with every object closed whose properties it names."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(each) for key, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get(
        "x-kubernetes-preserve-unknown-fields"
    ):
        closed.setdefault("additionalProperties", False)
    return closed


@pytest.mark.parametrize("manifests", FOLDERS, indirect=True, ids=by_name)
def test_dask_clusters_of_the_manifests_find_their_scheduler(manifests):
    """The address that the recipe is given is that of the service that the operator makes."""
    clusters = {each["metadata"]["name"] for each in manifests if each["kind"] == "DaskCluster"}
    (cronjob,) = (each for each in manifests if each["kind"] == "CronJob")
    ((container,),) = (pod["containers"] for pod in pods(cronjob))
    changes = [arg for arg in container["args"] if arg.startswith("cluster=")]
    addresses = [yaml.safe_load(each.removeprefix("cluster="))["address"] for each in changes]
    assert addresses == [f"tcp://{name}-scheduler:8786" for name in clusters]


def test_a_pod_has_the_processors_that_its_workers_want():
    """Inside a pod without a limit of processors, those of the whole node are seen."""
    recipe = yaml.safe_load((KUBERNETES / "cronjob/recipe.yaml").read_text(encoding="utf-8"))
    cronjob = yaml.safe_load((KUBERNETES / "cronjob/cronjob.yaml").read_text(encoding="utf-8"))
    ((container,),) = (pod["containers"] for pod in pods(cronjob))
    assert int(container["resources"]["requests"]["cpu"]) == recipe["cluster"]["workers"]
