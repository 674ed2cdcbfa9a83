"""Other distributions add segmenters, formats and the like by entry points."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NETWORK = """
from dataclasses import dataclass
from maskloom.segcore.deep.networks.recipe import NETWORKS

@NETWORKS.register("nothing")
@dataclass(frozen=True)
class Nothing:
    width: int = 1
"""


def installed(folder: Path, module: str) -> None:
    """A distribution with one module and one entry point, as pip would leave it in `folder`."""
    (folder / "plugin_of_mine.py").write_text(module)
    meta = folder / "plugin_of_mine-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-mine\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text("[maskloom.networks]\nnothing = plugin_of_mine\n")


def networks(folder: Path) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); "
        "from maskloom.segcore.deep.networks.recipe import NETWORKS; print(*NETWORKS)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_an_entry_point_adds_a_network_beside_ours(tmp_path: Path) -> None:
    installed(tmp_path, NETWORK)
    found = networks(tmp_path)
    assert found.returncode == 0, found.stderr
    assert {"unet", "fcn", "deeplab", "mask_rcnn", "segformer", "nothing"} == set(
        found.stdout.split()
    )


@pytest.mark.parametrize(
    "module", ["import no_such_library", NETWORK.replace('"nothing"', '"unet"')]
)
def test_a_plugin_that_cannot_be_imported_is_named(tmp_path: Path, module: str) -> None:
    installed(tmp_path, module)
    found = networks(tmp_path)
    assert found.returncode != 0
    assert "The plug-in 'nothing' (plugin_of_mine, group maskloom.networks)" in found.stderr


def test_commands_say_in_a_line_that_a_plugin_fails(tmp_path: Path) -> None:
    installed(tmp_path, "import no_such_library")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "sys.argv = ['maskloom', 'list', 'networks']; "
        "from maskloom.flows.cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("maskloom: The plug-in 'nothing'")
