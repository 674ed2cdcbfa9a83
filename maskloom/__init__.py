"""Segment large image collections in batch: seamless masks, true areas, Parquet tables.

`maskloom.flows` decides what is done, `maskloom.tasks` decides where, `maskloom.segcore` does it.
"""

from pathlib import Path

__version__ = "0.2.0"

# Installed, the three are folders in this one. In a checkout they are beside it, where Python looks
# too when it is started there.
_ROOT = Path(__file__).parent.parent
if (_ROOT / "segcore" / "__init__.py").exists():
    __path__.append(str(_ROOT))
