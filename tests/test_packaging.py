"""The installed packages are those of the folders, under one import name."""

from __future__ import annotations

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
