"""The demo: photographs that scikit-image and scikit-learn install, and a recipe to try out."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from maskloom.segcore.errors import RunError

PHOTOGRAPHS = {
    ("skimage", "data"): (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "retina.jpg",
        "rocket.jpg",
    ),
    ("sklearn", "datasets", "images"): ("china.jpg", "flower.jpg"),
}
"""File names by package and folder."""

RECIPE = """\
# The demo's recipe. Change something and run `maskloom run` with this file again.
name: demo
inputs: photographs
output: ..
segmenter: {kind: kmeans, clusters: 5}
fit: image                  # try: collection
"""


def prepare(output: Path) -> Path:
    """Copy the photographs and write the recipe below the output. Returns the recipe's path."""
    folder = output / "demo"
    photographs = folder / "photographs"
    photographs.mkdir(parents=True, exist_ok=True)
    for (package, *folders), names in PHOTOGRAPHS.items():
        # The package is not imported, since that takes a second.
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise RunError(
                f"The demo needs the photographs of the package {package}, which is not installed. "
                "Install scikit-image and scikit-learn."
            )
        for name in names:
            target = photographs / name
            # Existing files stay untouched, so that a second demo finds nothing to do.
            if not target.exists():
                shutil.copyfile(Path(spec.origin).parent.joinpath(*folders, name), target)
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        recipe.write_text(RECIPE, encoding="utf-8")
    return recipe
