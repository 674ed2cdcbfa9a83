"""The one check: style, types, direction of imports, tests. `python tests/check.py`, from the root
of the checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent

PROCESSES = str(min(os.cpu_count() or 1, 4))
"""Processes that share the tests: each begins with its part in the order of the files, and one that
is through takes half of what another has left. With TensorFlow each takes some 3 GB.
"""
STEPS = (
    (TOOLS / "ruff", "check", "."),
    (TOOLS / "ruff", "format", "--check", "."),
    (TOOLS / "mypy",),
    (TOOLS / "lint-imports",),
    (sys.executable, "-m", "pytest", "-n", PROCESSES, "--dist", "worksteal", *sys.argv[1:]),
)


def main() -> int:
    """Run all steps, also after one has failed; 1 where any failed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    failed = [
        step
        for step in STEPS
        if subprocess.run(
            [str(part) for part in step], cwd=ROOT, env=environment, check=False
        ).returncode
    ]
    for step in failed:
        sys.stderr.write(f"check: failed: {' '.join(str(part) for part in step)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
