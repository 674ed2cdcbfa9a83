"""The complete check: style, types, import contracts, tests. `python tests/check.py`, from the root
of the checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from links import link

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent
CONFIG = ROOT / "pyproject.toml"

PROCESSES = str(min(os.cpu_count() or 1, 4))
"""Test processes in parallel. Each starts with its share of the files in order; a process without
work takes half of what another has left. With TensorFlow each needs about 3 GB.
"""
STEPS = (
    (TOOLS / "ruff", "check", "."),
    (TOOLS / "ruff", "format", "--check", "."),
    # These two search folders for packages, so they run on the installed layout.
    (TOOLS / "mypy", "--config-file", CONFIG),
    (TOOLS / "lint-imports", "--config", CONFIG),
    (sys.executable, "-m", "pytest", "-n", PROCESSES, "--dist", "worksteal", *sys.argv[1:]),
)


def run(step: Sequence[str | Path], folder: Path) -> int:
    """Run one step in `folder`; return its exit code."""
    environment = {**os.environ, "PYTHONPATH": str(folder)} if folder != ROOT else None
    command = [str(part) for part in step]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def main() -> int:
    """Run all steps, even after a failure; return 1 if any step failed."""
    tree = link()
    failed = [step for step in STEPS if run(step, tree if CONFIG in step else ROOT)]
    for step in failed:
        sys.stderr.write(f"check: failed: {' '.join(str(part) for part in step)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
