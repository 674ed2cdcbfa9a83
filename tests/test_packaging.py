"""The installed packages are those of the folders, under one import name."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("flows", "tasks", "segcore")


def test_pyproject_names_every_package_of_the_folders() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]
    door = {f"maskloom.{each.parent.name}" for each in (ROOT / "maskloom").glob("*/__init__.py")}
    folders = {
        f"maskloom.{'.'.join(init.parent.relative_to(ROOT).parts)}"
        for part in PARTS
        for init in (ROOT / part).rglob("__init__.py")
    }
    assert packages == sorted({"maskloom"} | door | folders)


def test_every_folder_with_modules_is_a_package_with_a_sentence() -> None:
    modules = [module for part in PARTS for module in (ROOT / part).rglob("*.py")]
    for folder in {module.parent for module in modules}:
        first = (folder / "__init__.py").read_text().partition("\n")[0]
        assert first.startswith('"""'), f"{folder}: __init__.py begins with no docstring"


def test_data_files_of_packages_are_installed() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    for name, patterns in data.items():
        parts = name.split(".")
        folder = ROOT.joinpath(*(parts if len(parts) == 1 else parts[1:]))
        for pattern in patterns:
            assert any(folder.glob(pattern)), f"{name}: nothing matches {pattern}"


def test_child_processes_import_nothing_of_the_current_folder() -> None:
    """The README's first command is run in a checkout, whose folder `maskloom` is not the whole."""
    modules = [module for part in PARTS for module in (ROOT / part).rglob("*.py")]
    texts = [module.read_text(encoding="utf-8") for module in modules]
    started = sum(text.count('"-m"') for text in texts)
    assert started > 0
    assert sum(len(re.findall(r'"-P",\s*"-m"', text)) for text in texts) == started


def test_benchmarks_import_what_there_is() -> None:
    """Nothing runs them with the tests, and their imports stand inside functions, where a name that
    has moved is found only by running them.
    """
    taken = {
        (node.module, alias.name)
        for script in (ROOT / "tests" / "benchmarks").glob("*.py")
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maskloom.")
        for alias in node.names
    }
    assert taken
    assert [(module, name) for module, name in sorted(taken) if name not in _names_in(module)] == []


@functools.cache
def _names_in(module: str) -> set[str]:
    """What a module defines and imports, and the modules of a package. Read, not imported: some
    would import TensorFlow.
    """
    place = ROOT.joinpath(*module.split(".")[1:])
    source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not source.exists():
        return set()
    names = {name for node in ast.parse(source.read_text()).body for name in _names(node)}
    return names | {each.stem for each in place.glob("*")}


def _names(node: ast.stmt) -> set[str]:
    """What a statement of a module defines or imports."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    inner = list(ast.walk(node))
    taken = [each for each in inner if isinstance(each, ast.alias)]
    stored = [each for each in inner if isinstance(each, ast.Name)]
    return {each.asname or each.name for each in taken} | {
        each.id for each in stored if isinstance(each.ctx, ast.Store)
    }
