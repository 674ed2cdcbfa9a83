"""Records `digests.json` anew, in this process alone: `PYTHONPATH=. python tests/golden/record.py`,
from the root of the checkout.

To be run only where masks or tables are meant to change, or a golden run was added: then look at
the difference line by line, and say in the change log what changed and why. With `--show` it prints
what it would write.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from golden.cases import (  # noqa: E402  (found by the line above)
    CASES,
    DEPLOYED,
    ESTIMATED,
    ONE_ENGINE,
    STORES,
    TILES,
    Case,
    run,
    run_deployed,
)
from golden.digests import counts_of, digests_of, text_of  # noqa: E402
from golden.networks import write_networks  # noqa: E402
from golden.pictures import write_pictures  # noqa: E402


def main() -> None:
    """Run everything and write the file, or standard output."""
    os.environ.update(STORES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        write_pictures(images)
        networks = write_networks(folder / "networks")
        records: dict[str, Any] = {case.name: _of(case, folder, networks) for case in CASES}
        for recipe in DEPLOYED:
            records[f"deploy_{recipe}"] = digests_of(run_deployed(recipe, folder, images), "own")
        for recipe in ESTIMATED:
            output = run_deployed(recipe, folder, images, *ONE_ENGINE)
            records[f"deploy_{recipe}"] = counts_of(output)
    text = text_of(records)
    if "--show" in sys.argv:
        sys.stdout.write(text)
    else:
        (HERE / "digests.json").write_text(text)


def _of(case: Case, folder: Path, networks: dict[str, str]) -> dict[str, dict[str, str]]:
    """What a case gives with each tile, together; the tile may decide the file's bytes only."""
    together: dict[str, dict[str, str]] = {}
    for tile in TILES:
        recipe = folder / f"{case.name}_{tile}" / "golden.json"
        document = case.document(folder / "images", networks)
        output = run(recipe, document, f"tiling.tile={tile}", "cluster=serial")
        for image, found in digests_of(output, tile).items():
            known = together.setdefault(image, {})
            differing = [thing for thing in found if known.get(thing, found[thing]) != found[thing]]
            if differing:
                raise SystemExit(f"{case.name}, {image}: tiles of {tile} change {differing}")
            known.update(found)
    return together


if __name__ == "__main__":
    main()
