"""SECURITY.md: each sentence is held by a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROWS = [
    row
    for row in re.findall(r"^\|.*\|$", PAGE, re.MULTILINE)
    if not row.endswith("| test |") and not row.startswith("|--")
]
CODE_ALLOWED_TO_PICKLE = (
    "tasks/fanout/",
    "segcore/processes/helpers.py",
    "segcore/training/feeding.py",
    "segcore/testing/",
)
"""Jobs between the driver and its workers; pipes to processes that this one started; contracts for
authors of plug-ins.
"""
UNSAFE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_each_sentence_is_held_by_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(\S+\.py)::(test_\w+)`", row.rpartition("| ")[2])
    assert named, row
    for file, test in named:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        tests = {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)}
        assert test in tests, f"{file} has no {test}"


def test_what_lies_in_a_store_is_never_unpickled() -> None:
    modules = [
        path for part in ("flows", "tasks", "segcore") for path in (ROOT / part).rglob("*.py")
    ]
    assert modules
    for path in modules:
        if path.relative_to(ROOT).as_posix().startswith(CODE_ALLOWED_TO_PICKLE):
            continue
        for each in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(each, ast.Import):
                assert not {name.name for name in each.names} & UNSAFE, path
            elif isinstance(each, ast.ImportFrom):
                assert each.module not in UNSAFE, path
            elif isinstance(each, ast.Call) and ast.unparse(each.func) in {"np.load", "numpy.load"}:
                # Its default today, said where it matters.
                assert "allow_pickle=False" in ast.unparse(each), path
