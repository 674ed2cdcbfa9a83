"""The notebook of the documentation runs in a real kernel, and shows what it says it shows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs/notebook.ipynb"
nbformat = pytest.importorskip("nbformat")


def test_the_notebook_is_stored_without_results():
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    for cell in code:
        compile(cell.source, "cell", "exec")


@pytest.mark.nightly
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    book = nbformat.read(NOTEBOOK, as_version=4)
    manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager())
    manager.kernel_spec.argv[0] = sys.executable
    nbclient.NotebookClient(
        book, km=manager, timeout=240, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [
        output.data["text/html"]
        for cell in book.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output and "text/html" in output.data
    ]
    assert sum('aria-label="Left of here the source' in html for html in shown) == 3
    assert book.cells[-1].outputs[0].data["text/plain"] == "(50, 75)"
