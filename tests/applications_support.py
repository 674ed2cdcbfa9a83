"""The applications of the documentation, for tests that run them."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "applications").glob("*.md"))
RECIPES = ROOT / "deploy" / "recipes"
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def prepare(name: str, folder: Path) -> Path:
    """Make the images of an application in this folder, by the first script of its page; its
    recipe, there.
    """
    page = (ROOT / "docs" / "applications" / f"{name}.md").read_text(encoding="utf-8")
    script = _PYTHON.search(page)
    assert script, f"{name}: the page makes no images"
    with contextlib.chdir(folder):
        exec(compile(script[1], f"{name}.md", "exec"), {"__name__": name})
    return Path(shutil.copy(RECIPES / f"{name}.yaml", folder))
