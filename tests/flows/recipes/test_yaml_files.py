"""Documents: hostile ones are refused at once, secrets never get in."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from maskloom.flows.recipes import yaml_files
from maskloom.flows.recipes.yaml_files import (
    completed,
    load_document,
    read_value,
    read_yaml,
    refuse_secrets,
    shown,
)
from maskloom.segcore.errors import RecipeError

BASE = "inputs: in\noutput: out\nsegmenter: threshold\n"
LEVELS = "bcdefghijk"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefghij", LEVELS, strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefghij", LEVELS, strict=True)
)
HOSTILE = {
    "anchors": (BOMB, "values"),
    "merge keys": (MERGED, "values"),
    "a chain of anchors": (
        "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(2000)),
        "nested too deeply",
    ),
    "nesting": (f"{BASE}x: {'[' * 3000}{']' * 3000}", "nested too deeply"),
    "an anchor in itself": (f"{BASE}x: &x [*x]", "nested too deeply"),
    "a whole in itself": ("&x {inputs: *x}", "nested too deeply"),
    "a number of 5,000 digits": (
        f"{BASE}tiling: {{tile: {'9' * 5000}}}",
        "number that cannot be read",
    ),
    "a day that is none": (f"{BASE}name: 2026-02-31", "in quotes"),
    "UTF-16": (BASE.encode("utf-16"), "is UTF-16"),
    "bad UTF-8": (BASE.encode() + b"name: \xe9", "not UTF-8"),
    "a zero": (f"{BASE}name: \0", "not YAML"),
    "a key twice": (f"{BASE}output: other", "given twice"),
    "a list as key": (f"{BASE}? [a, b]\n: c", "line 4"),
    "an object of Python": (f"{BASE}x: !!python/object/apply:os.system [ls]", "not YAML"),
    "too large": (f"{BASE}# {'x' * 2**22}", "larger than 4 MiB"),
    "nothing": ("", "got nothing"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_are_refused(tmp_path: Path, name: str) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError, match=message) as refusal:
        load_document(path, "inputs")
    assert len(str(refusal.value)) < 500


def test_a_document_without_end_is_read_to_its_limit_only() -> None:
    with pytest.raises(RecipeError, match="larger"):
        read_yaml(Path("/dev/zero"), "the recipe")


def test_anchors_end_in_exit_2_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(BOMB)
    code = f"from maskloom.flows.cli import app; app(['run', {str(path)!r}, '--no-prefect'])"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))

    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, preexec_fn=limit
    )

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("Reading ")
    assert ended.stderr.count("\n") == 2


def test_anchors_that_stay_small_are_welcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &a {kind: threshold, band: 1}\nsegmenter: [*a, {<<: *a, band: 2}]\n")
    document = load_document(path, "inputs")
    assert document["segmenter"] == [
        {"kind": "threshold", "band": 1},
        {"kind": "threshold", "band": 2},
    ]
    monkeypatch.setattr(yaml_files, "MOST_VALUES", 1000)
    path.write_text(yaml.safe_dump({"inputs": [f"{i}.tif" for i in range(990)]}))
    assert len(load_document(path, "inputs")["inputs"]) == 990
    path.write_text(yaml.safe_dump({"inputs": [f"{i}.tif" for i in range(1000)]}))
    with pytest.raises(RecipeError, match="more than 1000 values"):
        load_document(path, "inputs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 3000, "nested"),
        ("&a [*a]", "nested"),
        ("9" * 5000, "number"),
        ("2026-02-31", "in quotes"),
        ("[", "not YAML: line 1"),
    ],
)
def test_values_of_the_command_line_are_as_strict(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_value(text, "-p x")
    with pytest.raises(RecipeError, match=message) as refusal:
        completed({}, [f"key={text}"])
    assert len(str(refusal.value)) < 400
    with pytest.raises(RecipeError, match="keys have at most"):
        completed({}, [f"{'a.' * 3000}b=1"])


@pytest.mark.parametrize(
    "options",
    [
        {"s3": {"client_kwargs": {"aws_secret_access_key": "c0ffee"}}},
        {"s3": {"key": "AK", "secret": "c0ffee"}},
        {"az": {"account_key": "c0ffee"}},
        {"az": {"connection_string": "c0ffee"}},
        {"az": {"sas_token": "c0ffee"}},
        {"https": {"headers": {"Authorization": "c0ffee"}}},
        {"https": {"client_kwargs": {"headers": {"X-Api-Key": "c0ffee"}}}},
        {"https": {"client_kwargs": {"auth": ["me", "c0ffee"]}}},
        {"https": {"client_kwargs": {"cookies": {"id": "c0ffee"}}}},
        {"sftp": {"passphrase": "c0ffee"}},
        {"sftp": {"password": "c0ffee"}},
        {"github": {"pat": "c0ffee"}},
        {"gcs": {"token": {"private_key": "c0ffee"}}},
        {"s3": {"a": [{"b": {"secret": "c0ffee"}}]}},
    ],
)
def test_secrets_of_stores_are_refused_wherever_they_stand(
    options: dict[str, dict[str, object]],
) -> None:
    with pytest.raises(RecipeError, match="secrets are not allowed in recipes") as refusal:
        refuse_secrets(options)
    assert "c0ffee" not in str(refusal.value)


def test_options_that_are_no_secrets_are_accepted() -> None:
    refuse_secrets(
        {
            "s3": {
                "profile": "lab",
                "anon": True,
                "config_kwargs": {"signature_version": "s3v4"},
                "endpoint_url": "http://h:9000",
            },
            "gcs": {"token": "anon"},
            "https": {"client_kwargs": {"trust_env": True}},
            "az": {"account_name": "lab"},
        }
    )


@pytest.mark.parametrize("key", ["inputs", "output", "segmenter", "storage"])
def test_passwords_in_addresses_are_refused_wherever_they_stand(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S", "c0ffee")
    for value in ("https://me:${S}@host/a.tif", ["a.tif", {"proxy": "http://me:${S}@host:3128"}]):
        with pytest.raises(RecipeError, match=rf"{key}.*must not hold a password") as refusal:
            completed({key: value}, [])
        assert "c0ffee" not in str(refusal.value)


def test_only_inputs_may_be_signed() -> None:
    assert completed({"inputs": ["https://h/a.tif?sig=c0ffee"]}, []) == {
        "inputs": ["https://h/a.tif?sig=c0ffee"]
    }
    for key in ("output", "segmenter"):
        with pytest.raises(RecipeError, match=f"{key}: only inputs") as refusal:
            completed({key: "https://h/a.onnx?sig=c0ffee"}, [])
        assert "c0ffee" not in str(refusal.value)


def test_long_values_are_cut() -> None:
    assert len(shown(list(range(10_000)))) < 120
    assert shown("short") == "'short'"
