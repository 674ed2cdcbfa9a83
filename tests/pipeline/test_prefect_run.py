"""The default way to run: with Prefect embedded, as a command of its own, recorded, and gone
without a trace.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys

import psutil
from tests_support import assert_same_results


def test_a_run_with_prefect_is_recorded_and_equals_one_without(collection, maskloom, tmp_path):
    recipe = collection.recipe(name="delta")
    home = tmp_path / "prefect"
    environment = {**os.environ, "PREFECT_HOME": str(home)}
    environment.pop("PREFECT_API_URL", None)
    command = [
        sys.executable,
        "-c",
        "from maskloom.flows.cli import main; main()",
        "run",
        str(recipe),
        "--set",
        "output=recorded",
    ]

    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=280, check=False
    )

    assert result.returncode == 0, result.stderr
    assert "6 images done, 0 failed" in result.stdout
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr
    left = [
        each
        for each in psutil.process_iter(["environ"])
        if (each.info["environ"] or {}).get("PREFECT_HOME") == str(home)
    ]
    assert psutil.wait_procs(left, timeout=60)[1] == []
    with sqlite3.connect(home / "prefect.db") as database:
        flows = database.execute("SELECT name, state_type FROM flow_run").fetchall()
        tasks = database.execute("SELECT name, state_type FROM task_run").fetchall()
    database.close()
    assert flows == [("delta", "COMPLETED")]
    assert {state for _, state in tasks} == {"COMPLETED"}
    assert {"plan", "fit", "publish"} <= {name for name, _ in tasks}
    assert len([name for name, _ in tasks if name.endswith(".parquet")]) == 1
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    assert_same_results(collection.output, collection.folder / "recorded")
