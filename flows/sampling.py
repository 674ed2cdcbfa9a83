"""Reference samples: drawn from an output, for people to label.

samples.csv     a row per pixel, with an empty column `label` for people to fill
design.json     strata and their sizes, and the stratum of each sample; not in the table, so
                that those who label do not see what the map says
pictures/       each pixel and its surroundings
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.flows.progress.displays import display
from maskloom.flows.progress.run import ItemProgress
from maskloom.segcore.errors import ImageError, RecipeError
from maskloom.segcore.evaluation.estimation import allocated, planned_size
from maskloom.segcore.figures.sample import draw_sample
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.lonlat import is_located, to_lonlat
from maskloom.segcore.storage.store import Store
from maskloom.tasks.output import Output
from maskloom.tasks.samples import DrawnPixel, draw, pixels_by_class

if TYPE_CHECKING:
    from maskloom.segcore.raster.spec import RasterSpec

FOLDER = "samples"
"""Folder of a sample below an output."""
TABLE, DESIGN = "samples.csv", "design.json"
_AROUND = 64
"""Pixels on each side of a sample that its picture shows."""
COLUMNS = (
    "sample_id",
    "image_id",
    "plane",
    "row",
    "column",
    "x",
    "y",
    "longitude",
    "latitude",
    "picture",
    "label",
)


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """How many samples users want."""

    per_class: int = 50
    """The least number in each class."""
    size: int | None = None
    """The number of all, in proportion to the classes. None: `per_class` in each."""
    half_interval: float | None = None
    """In place of `size`: half the width of the 95 % interval of the overall accuracy."""
    expected: Mapping[str, float] | None = None
    """User's accuracies that are expected, by class; 0.8 for others."""
    seed: int = 0
    out: str | None = None
    """Folder for the files. None: `samples` below the output."""
    pictures: bool = True
    """Whether each sample gets a picture."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sample that was drawn."""

    folder: str
    strata: dict[str, tuple[int, int]]
    """Pixels and samples of each class."""
    notes: tuple[str, ...]

    @property
    def table(self) -> str:
        """The strata as text with aligned columns."""
        wide = max(map(len, (*self.strata, "class")))
        return "\n".join(
            f"{name:{wide}}  {pixels:>15}  {samples:>7}"
            for name, pixels, samples in (
                ("class", "pixels", "samples"),
                *((name, f"{pixels:,}", number) for name, (pixels, number) in self.strata.items()),
            )
        )


def sample(location: str, request: SampleRequest, *, quiet: bool = True) -> Drawn:
    """Draw a sample of the pixels of an output, and write its files.

    Raises `RecipeError` if there is nothing to draw from or the folder holds a sample, `ReadError`
    if a mask cannot be read, and `StoreError`.
    """
    output = Output.open(location)
    store, folder = (
        (Store(location), f"{FOLDER}/") if request.out is None else (Store(request.out), "")
    )
    if store.exists(folder + TABLE):
        raise RecipeError(
            f"{store.uri(folder + TABLE)} exists, and may hold labels. Choose another folder with "
            "--out."
        )
    pixels = pixels_by_class(output)
    sizes = {name: sum(of_image.values()) for name, of_image in pixels.items()}
    if not sum(sizes.values()):
        raise RecipeError(f"{location} has no pixel with a class, so there is nothing to draw.")
    numbers = _numbers(sizes, request)
    drawn = draw(output, pixels, numbers, request.seed)
    width = len(str(len(drawn)))
    names = [f"{number:0{width}}" for number in range(1, len(drawn) + 1)]
    named = dict(zip(names, drawn, strict=True))
    rows, notes = _written(
        output, store, f"{folder}pictures/" if request.pictures else "", named, quiet
    )
    design = {
        "version": 1,
        "seed": request.seed,
        "strata": {name: sizes[name] for name in numbers},
        "stratum_of": {name: pixel.stratum for name, pixel in named.items()},
    }
    store.publish(folder + DESIGN, (json.dumps(design, indent=1) + "\n").encode())
    store.publish(folder + TABLE, rows)
    strata = {name: (sizes[name], number) for name, number in numbers.items()}
    return Drawn(store.uri(folder).rstrip("/"), strata, tuple(notes))


def _numbers(sizes: Mapping[str, int], request: SampleRequest) -> dict[str, int]:
    """The number of samples by class."""
    expected = dict(request.expected or {})
    strangers = sorted(set(expected) - set(sizes))
    if strangers:
        raise RecipeError(
            f"--expect: the masks have no class {strangers[0]!r}. They have {', '.join(sizes)}."
        )
    number = request.size
    if request.half_interval is not None:
        if number is not None:
            raise RecipeError("--size, --interval: expected one of them.")
        accuracies = {name: expected.get(name, 0.8) for name in sizes}
        number = planned_size(sizes, accuracies, request.half_interval)
    if number is None:
        number = request.per_class * sum(1 for size in sizes.values() if size)
        return {name: min(size, request.per_class) for name, size in sizes.items() if size}
    return allocated(sizes, number, request.per_class)


def _written(
    output: Output, store: Store, folder: str, drawn: Mapping[str, DrawnPixel], quiet: bool
) -> tuple[bytes, list[str]]:
    """The table of the samples, whose pictures are written into a folder on the way (empty: none
    are), and notes on those without one.
    """
    text, notes = io.StringIO(newline=""), []
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    with ExitStack() as stack:
        progress = ItemProgress(
            stack.enter_context(display(quiet)), "draw samples", "samples", len(drawn)
        )
        for image_id, of_image in _by_image(drawn):
            mask = output.mask_spec(image_id)
            try:
                for name, picture in _pictures(output, image_id, of_image) if folder else ():
                    store.publish(f"{folder}{name}.png", picture)
                shown = bool(folder)
            except ImageError as error:
                notes.append(f"{image_id}: no pictures, since {error}")
                shown = False
            for name, pixel in of_image.items():
                file = f"pictures/{name}.png" if shown else ""
                writer.writerow(_row(name, pixel, mask, file))
            progress(len(of_image))
    return text.getvalue().encode(), notes


def _by_image(drawn: Mapping[str, DrawnPixel]) -> Iterator[tuple[str, dict[str, DrawnPixel]]]:
    of_image: dict[str, dict[str, DrawnPixel]] = {}
    for name, pixel in drawn.items():
        of_image.setdefault(pixel.image_id, {})[name] = pixel
    yield from of_image.items()


def _row(name: str, pixel: DrawnPixel, mask: RasterSpec, picture: str) -> dict[str, Any]:
    *plane, row, column = pixel.index
    values: dict[str, Any] = {
        "sample_id": name,
        "image_id": pixel.image_id,
        "plane": plane[0] if plane else "",
        "row": row,
        "column": column,
        "picture": picture,
        "label": "",
    }
    space = mask.space
    if space.affine is not None and not plane:
        a, b, c, d, e, f = space.affine
        values["x"] = a * (column + 0.5) + b * (row + 0.5) + c
        values["y"] = d * (column + 0.5) + e * (row + 0.5) + f
        if is_located(space):
            longitude, latitude = to_lonlat(space, np.array([column + 0.5]), np.array([row + 0.5]))
            values["longitude"], values["latitude"] = f"{longitude[0]:.8f}", f"{latitude[0]:.8f}"
    return values


def _pictures(
    output: Output, image_id: str, samples: Mapping[str, DrawnPixel]
) -> list[tuple[str, bytes]]:
    found = []
    with output.source(image_id) as source:
        whole = Box.whole(source.spec.shape)
        rgb = source.spec.interpretation == "rgb"
        for name, pixel in samples.items():
            planes = len(pixel.index) - 2
            alone = Box(pixel.index, tuple(place + 1 for place in pixel.index))
            box = alone.grow((*(0,) * planes, _AROUND, _AROUND)) & whole
            pixels, valid = source.read(box)
            place = tuple(at - start for at, start in zip(pixel.index, box.start, strict=True))[-2:]
            pixels, valid = (
                pixels.reshape(-1, *pixels.shape[-2:]),
                valid.reshape(-1, valid.shape[-1]),
            )
            found.append((name, draw_sample(pixels, valid, (place[0], place[1]), rgb=rgb)))
    return found
