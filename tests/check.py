"""The complete check: style, types, import contracts, tests. `python tests/check.py`, from the root
of the checkout.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from links import link

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent
CONFIG = ROOT / "pyproject.toml"

PROCESSES = str(min((os.cpu_count() or 1) + 1, 4))
"""Test processes in parallel: one more than processors, since tests wait for processes that they
start. Each starts with its share of the files in order; a process without work takes half of what
another has left. With TensorFlow each needs about 3 GB.
"""
STATIC = (
    (TOOLS / "ruff", "check", "."),
    (TOOLS / "ruff", "format", "--check", "."),
    # These two search folders for packages, so they run on the installed layout.
    (TOOLS / "mypy", "--config-file", CONFIG),
    (TOOLS / "lint-imports", "--config", CONFIG),
)
TESTS = (sys.executable, "-m", "pytest", "-n", PROCESSES, "--dist", "worksteal")


def failures_of(tree: Path) -> list[str]:
    """Run the static checks one after another, those of types and imports in `tree`; the commands
    that failed. What each said is printed at once when it has ended.
    """
    failed = []
    for step in STATIC:
        folder = tree if CONFIG in step else ROOT
        environment = {**os.environ, "PYTHONPATH": str(folder)} if folder != ROOT else None
        done = subprocess.run(
            step, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        command = " ".join(map(str, step))
        print(f"{command}\n{done.stdout}{done.stderr}", end="", flush=True)
        if done.returncode:
            failed.append(command)
    return failed


def is_new() -> bool:
    """Whether nothing was imported in this environment yet: without its compiled source."""
    spec = importlib.util.find_spec("tensorflow")
    return (
        spec is not None
        and spec.origin is not None
        and not Path(importlib.util.cache_from_source(spec.origin)).exists()
    )


def main() -> int:
    """Run all, even after a failure; return 1 if anything failed."""
    # Tests often wait for processes that they start, so the static checks run beside them.
    with ThreadPoolExecutor(1) as beside:
        static = beside.submit(failures_of, link())
        if is_new():
            subprocess.run((sys.executable, ROOT / "tests" / "warm_up.py"), cwd=ROOT, check=False)
        tests = subprocess.run([*TESTS, *sys.argv[1:]], cwd=ROOT, check=False)
        failed = static.result() + ["pytest"] * (tests.returncode != 0)
    for command in failed:
        sys.stderr.write(f"check: failed: {command}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
