"""The Python door in a kernel of Jupyter, where an event loop runs and interrupts are signals."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.nightly


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Runs code; `interrupt_at` interrupts it where it has printed this. Returns what it printed,
    and the name of its exception.
    """
    manager = pytest.importorskip("jupyter_client.manager", reason="needs jupyter_client")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    started, client = manager.start_new_kernel(cwd=str(tmp_path))

    def run(code: str, interrupt_at: str | None = None) -> tuple[str, str]:
        sent, printed, error = client.execute(code), "", ""
        while True:
            message = client.get_iopub_msg(timeout=300)
            if message["parent_header"].get("msg_id") != sent:
                continue
            content = message["content"]
            printed += content.get("text", "")
            error = content.get("ename", error)
            if interrupt_at is not None and interrupt_at in printed:
                interrupt_at = None
                started.interrupt_kernel()
            if content.get("execution_state") == "idle":
                return printed, error

    yield run
    client.stop_channels()
    started.shutdown_kernel()


RUN = """
import maskloom
out = maskloom.run({"inputs": "noise.png", "output": "out", "segmenter": "kmeans"}, workers=2)
print(*out)
"""


def test_an_interrupted_run_leaves_a_kernel_that_continues_it(kernel, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    for moment in ("Output", "to do"):  # while libraries are imported, and while workers start
        printed, error = kernel(RUN, interrupt_at=moment)
        assert error in ("KeyboardInterrupt", "Stopped"), printed
    workers = "import multiprocessing as m; print(len(m.active_children()), maskloom.RunError)"
    assert kernel(workers) == ("0 <class 'maskloom.segcore.errors.RunError'>\n", "")
    printed, error = kernel(RUN)
    assert (printed.split()[-1], error) == ("noise", "")


def test_a_recorded_run_ends_with_its_record(kernel, tmp_path):
    Image.fromarray(np.arange(2500, dtype=np.uint8).reshape(50, 50)).save(tmp_path / "noise.png")
    printed, error = kernel(RUN.replace("workers=2", "workers=1, prefect=True"))
    assert (printed.split()[-1], error) == ("noise", "")
    assert "never awaited" not in printed
