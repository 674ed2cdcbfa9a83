"""Segment large image collections in batch: seamless masks, true areas, Parquet tables.

`maskloom.flows` decides what is done, `maskloom.tasks` decides where, `maskloom.segcore` does it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

# Installed, the three are folders in this one. In a checkout they are beside it, where Python looks
# too when it is started there.
_ROOT = Path(__file__).parent.parent
if (_ROOT / "segcore" / "__init__.py").exists():
    __path__.append(str(_ROOT))

_DOOR = {
    "segment": "maskloom.door.segmentation",
    "Segmentation": "maskloom.door.segmentation",
    "open": "maskloom.door.outputs",
    "Output": "maskloom.door.outputs",
    "run": "maskloom.door.commands",
    "train": "maskloom.door.commands",
    "evaluate": "maskloom.door.commands",
    "Evaluation": "maskloom.door.comparisons",
    "change": "maskloom.door.commands",
    "Changes": "maskloom.door.comparisons",
    "MaskloomError": "maskloom.segcore.errors",
    "RecipeError": "maskloom.segcore.errors",
    "RunError": "maskloom.segcore.errors",
    "ImageError": "maskloom.segcore.errors",
    "FitError": "maskloom.segcore.errors",
}
"""What is imported when it is first used, and from where; `__init__.pyi` has the types."""


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module 'maskloom' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_DOOR[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_DOOR})
