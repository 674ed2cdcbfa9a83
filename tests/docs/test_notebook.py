"""The notebook of the documentation runs in a real kernel, and shows what it says it shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs/notebook.ipynb"
nbformat = pytest.importorskip("nbformat")

EXECUTE = """
import sys
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

notebook, result, folder = sys.argv[1:]
book = nbformat.read(notebook, as_version=4)
manager = AsyncKernelManager()
manager.kernel_spec.argv[0] = sys.executable
NotebookClient(book, km=manager, resources={"metadata": {"path": folder}}).execute()
nbformat.write(book, result)
"""


def test_the_notebook_is_stored_without_results():
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    for cell in code:
        compile(cell.source, "cell", "exec")


@pytest.mark.nightly
def test_the_notebook_runs(tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    result = tmp_path / "run.ipynb"
    done = subprocess.run(
        [sys.executable, "-P", "-c", EXECUTE, NOTEBOOK, result, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    book = nbformat.read(result, as_version=4)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [each.data["text/html"] for each in outputs if "text/html" in each.get("data", {})]
    assert sum('aria-label="Left of here the source' in html for html in shown) == 3
    assert outputs[-1].data["text/plain"] == "(50, 75)"
    assert [each for each in outputs if each.output_type == "stream"] == []
