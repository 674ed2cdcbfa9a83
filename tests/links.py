"""The installed layout as a tree of links, for tools that do not follow an editable install.

`flows`, `tasks` and `segcore` are installed as parts of `maskloom`. mypy and import-linter search
folders for packages, so they run on `.links/maskloom`, which links to those folders.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / ".links"


def link() -> Path:
    """Rebuild the tree of links; return the folder to put on PYTHONPATH."""
    package = TREE / "maskloom"
    package.mkdir(parents=True, exist_ok=True)
    for old in package.iterdir():
        if old.is_symlink():
            old.unlink()
    parts = [
        *(ROOT / "maskloom").iterdir(),
        *(ROOT / name for name in ("flows", "tasks", "segcore")),
    ]
    for part in parts:
        if part.name != "__pycache__":
            (package / part.name).symlink_to(part)
    return TREE


if __name__ == "__main__":
    link()
