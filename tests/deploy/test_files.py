"""Each file of `deploy/` is what the programs that read it expect."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
DOCKERFILES = sorted(DEPLOY.rglob("Dockerfile"))


def check(*command: str | Path) -> None:
    """Run a linter of this environment."""
    program = Path(sys.executable).parent / command[0]
    if not program.exists():
        pytest.skip(f"{command[0]} is not installed: pip install -c constraints.txt '.[test]'")
    done = subprocess.run(
        [program, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_dockerfiles():
    assert DOCKERFILES
    check("hadolint", *DOCKERFILES)


def test_yaml_passes_the_linter():
    check("yamllint", "--strict", "--config-file", DEPLOY / ".yamllint", DEPLOY)


def test_compose_is_what_the_specification_allows():
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


@pytest.mark.parametrize("script", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_posix_shell(script):
    shell = shutil.which("dash") or "sh"
    assert script.read_text(encoding="utf-8").startswith("#!/bin/sh\n")
    subprocess.run([shell, "-n", script], check=True)


def test_no_port_of_compose_is_open_to_the_network():
    ports = [
        port
        for service in yaml.safe_load(COMPOSE.read_text())["services"].values()
        for port in service.get("ports", ())
    ]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_services_of_our_image_have_no_rights():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    ours = [each for each in services.values() if "MASKLOOM_IMAGE" in each["image"]]
    assert ours
    for service in ours:
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_dask_workers_take_the_memory_of_their_container():
    """Dask's own choice is that memory divided by the processors of the machine."""
    compose = yaml.safe_load(COMPOSE.read_text())["services"]["worker"]["command"]
    cluster = yaml.safe_load((DEPLOY / "kubernetes/dask/cluster.yaml").read_text())
    (container,) = cluster["spec"]["worker"]["spec"]["containers"]
    for command in (compose, container["args"]):
        assert command[:2] == ["dask", "worker"]
        assert "--nthreads=1" in command
        assert "--memory-limit=0.9" in command


def test_compose_waits_for_services_that_can_say_that_they_are_ready():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    waited_for = {name for each in services.values() for name in each.get("depends_on", ())}
    assert waited_for
    for name in waited_for:
        assert "test" in services[name]["healthcheck"], name


def test_passwords_are_random_private_and_made_once(tmp_path):
    script = tmp_path / "make-secrets.sh"
    shutil.copy(DEPLOY / "compose/make-secrets.sh", script)
    subprocess.run([script], check=True)
    folder = tmp_path / "secrets"
    first = {path.name: path.read_text() for path in folder.iterdir()}
    (folder / "postgres_password").unlink()
    subprocess.run([script], check=True)
    second = {path.name: path.read_text() for path in folder.iterdir()}

    declared = yaml.safe_load(COMPOSE.read_text())["secrets"]
    assert set(first) == {Path(each["file"]).name for each in declared.values()}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {name for name in first if first[name] != second[name]} == {"postgres_password"}
    (key,) = set(re.findall(r'"secretKey": "(\w+)"', first["s3_identities"]))
    assert f"aws_secret_access_key = {key}\n" in first["s3_credentials"]


def test_git_ignores_passwords():
    for name in ("compose/secrets/postgres_password", ".env"):
        done = subprocess.run(
            ["git", "check-ignore", "--quiet", f"deploy/{name}"], cwd=ROOT, check=False
        )
        if done.returncode == 128:
            pytest.skip("this is no clone")
        assert done.returncode == 0, name


@pytest.mark.parametrize(
    "recipe",
    [DEPLOY / "compose/recipes/brightness.yaml", DEPLOY / "kubernetes/cronjob/recipe.yaml"],
    ids=lambda path: path.parent.name,
)
def test_recipes_are_complete(recipe):
    from maskloom.flows.recipes import run

    run.load(recipe)


def test_what_is_installed_gets_into_the_image_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {"pyproject.toml", "constraints.txt", project["project"]["readme"]}
    wanted |= set(project["project"]["license-files"])
    wanted |= set(project["tool"]["setuptools"]["package-dir"].values())
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines.index("*") < min(lines.index(f"!{name}") for name in wanted)
    assert {line[1:] for line in lines if line.startswith("!")} == wanted
