"""The comparison: the results of several segmenters on one image, side by side in one picture.

Each segmenter is fitted to and run on the image's own pixels (those in the middle if there are more
than a million), so it finds what a run with the same parameters finds there. Only the drawing
(`segcore.figures.comparison`) is reduced in size.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from maskloom.flows.progress.displays import display
from maskloom.flows.progress.run import ItemProgress
from maskloom.flows.recipes.sections import build
from maskloom.flows.stopping import BreakOff, stoppable
from maskloom.segcore import formats
from maskloom.segcore.errors import RecipeError, StoreError
from maskloom.segcore.figures.comparison import Cell, draw, label_cell, photo, photo_cell
from maskloom.segcore.figures.scale_bars import pixel_length
from maskloom.segcore.geometry import Tile
from maskloom.segcore.models.planes import planes_of
from maskloom.segcore.models.protocols import SEGMENTERS, ObjectSegmenter
from maskloom.segcore.pipeline.in_memory import Region
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.spec import Block, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions
from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.discovery.single import single_source
from maskloom.tasks.regions import RegionJob, segment_regions

if TYPE_CHECKING:
    from pathlib import Path

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.models.protocols import Fitter, Model
    from maskloom.tasks.clusters.protocol import Cluster
    from maskloom.tasks.regions import SegmentedRegion

Kind = str | Mapping[str, Any] | list[Any]
"""A segmenter as in a recipe: a kind, a section with `kind` and parameters, or a list of these,
which is an ensemble.
"""

CLASSICAL: tuple[Kind, ...] = (
    {"kind": "threshold", "method": "otsu"},
    {"kind": "threshold", "method": "local", "window": 51},
    {"kind": "kmeans", "clusters": 5},
    {"kind": "mixture", "components": 5},
    {"kind": "mean_shift", "space": "feature"},
    {
        "kind": "mean_shift",
        "space": "joint",
        "spatial_radius": 7,
        "range_radius": 20,
        "min_size": 50,
    },
    {"kind": "quickshift", "kernel_size": 3, "max_dist": 6, "ratio": 0.5},
)
"""All classical segmenters, with parameters that suit a photo."""

_MOST_PIXELS = 10**6
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class CachedRegion:
    """A region of an image file that each process reads once per choice of bands. Pickled without
    the pixels.
    """

    region: Region
    read: dict[tuple[int, ...], Block] = field(default_factory=dict)
    """The whole region by bands."""

    def __reduce__(self) -> tuple[type[CachedRegion], tuple[Region]]:
        return CachedRegion, (self.region,)

    @property
    def spec(self) -> RasterSpec:
        """The region's header."""
        return self.region.spec

    def block(self, tile: Tile, spec: RasterSpec) -> Block:
        """A copy of a tile of the region. Raises `ReadError`."""
        if spec.bands not in self.read:
            self.read[spec.bands] = self.region.block(Tile.whole(spec.shape), spec)
        kept, place = self.read[spec.bands], tile.read.slices
        return Block(tile, kept.pixels[place].copy(), kept.valid[place].copy(), spec)


def compare(
    image_path: str,
    kinds: Sequence[Kind] | None,
    out_png: Path,
    cluster: Cluster | None = None,
    *,
    quiet: bool = True,
    break_off: BreakOff | None = None,
) -> None:
    """Write a picture of an image and the results of these segmenters (None: all classical ones);
    of a volume, which they segment whole, the picture shows the middle plane.

    They run on `cluster`, one job each. None: in this process. `break_off`: see `stoppable`.

    Raises `RecipeError` for unknown kinds or parameters, `ImageError` if the image cannot be read,
    `FitError` if it allows no model, `ModelMismatch` if it does not suit a segmenter, and
    `StoreError` if the picture cannot be written.
    """
    if kinds is None:
        kinds = [
            kind for kind in CLASSICAL if isinstance(kind, Mapping) and kind["kind"] in SEGMENTERS
        ]
    sections = [_section(kind) for kind in kinds]
    starts = [_start(section, f"segmenter {number}") for number, section in enumerate(sections, 1)]
    image = header_of(image_path)
    region = CachedRegion(Region.middle(image, _MOST_PIXELS))
    jobs = [
        RegionJob(number, f"segmenter {number + 1} ({section['kind']})", start, region)
        for number, (section, start) in enumerate(zip(sections, starts, strict=True))
    ]
    results = _results(jobs, cluster or SerialCluster(), quiet, break_off)
    cells = _cells(image_path, image.shape, region, sections, results)
    try:
        out_png.write_bytes(draw(cells))
    except OSError as error:
        raise StoreError(
            f"Cannot write {out_png}: {error}. Check that its folder exists and can be written."
        ) from error


def _cells(
    image_path: str,
    image_shape: Shape,
    region: CachedRegion,
    sections: Sequence[Mapping[str, Any]],
    results: Sequence[SegmentedRegion],
) -> list[Cell]:
    """The photo and the result of each segmenter; of a volume, its middle plane."""
    spec = region.spec
    planes = list(planes_of(region.block(Tile.whole(spec.shape), spec)))
    block = planes[len(planes) // 2]
    picture = photo(block.pixels, block.valid, rgb=spec.interpretation == "rgb")
    part = "" if spec.shape == image_shape else f"middle {size_text(spec.shape)} of "
    if len(spec.shape) > len("yx"):
        part = f"middle plane of {part}"
    name = image_path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    cells = [
        photo_cell(name, f"{part}{size_text(image_shape)} pixels", picture, pixel_length(spec))
    ]
    plane = tuple(n // 2 for n in spec.shape[:-2])
    for section, result in zip(sections, results, strict=True):
        values, valid = result.mask.values[plane], result.mask.valid[plane]
        cells.append(label_cell(section["kind"], _text(section, result), values, valid, picture))
    return cells


def _results(
    jobs: Sequence[RegionJob], cluster: Cluster, quiet: bool, break_off: BreakOff | None
) -> list[SegmentedRegion]:
    stop = threading.Event()
    prepare = partial(prepare_process, threads=cluster.worker_threads)
    with ExitStack() as stack:
        shown_by = stack.enter_context(display(quiet))
        signals = stack.enter_context(stoppable(stop, shown_by, break_off))
        fanout = signals.works_on(stack.enter_context(cluster.opened(prepare, stop)))
        return segment_regions(
            fanout, jobs, ItemProgress(shown_by, "compare", "segmenters", len(jobs))
        )


def _section(kind: Kind) -> Mapping[str, Any]:
    if isinstance(kind, str):
        return {"kind": kind}
    return {"kind": "ensemble", "members": kind} if isinstance(kind, list) else kind


def _start(section: Mapping[str, Any], path: str) -> Fitter | Model:
    recipe = build(SEGMENTERS, section, path)
    try:
        started: Fitter | Model = recipe.start()
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    return started


def header_of(
    path: str,
    image_format: str | None = None,
    options: ReadOptions | None = None,
    source: Source | None = None,
) -> RasterSpec:
    """The header of an image; `source`: what is at that path, where known. Raises `RecipeError` if
    there is none, or no single one, there.
    """
    source = source or single_source(path)
    found = formats.describe_images(source, source.version, image_format, options or ReadOptions())
    headers = [header for _, header in found if isinstance(header, RasterSpec)]
    if not headers:
        raise RecipeError(f"None of the {len(found)} images in {path!r} can be read: {found[0][1]}")
    if len(found) > 1:
        log.warning(
            "%s holds %d images; the first, %s, is taken.", path, len(found), headers[0].part
        )
    return headers[0]


def _text(section: Mapping[str, Any], result: SegmentedRegion) -> str:
    """Parameters of a segmenter, and the number of classes or objects found."""
    parameters = [f"{name} {_in_words(value)}" for name, value in section.items() if name != "kind"]
    mask = result.mask
    found = (
        f"{mask.values[mask.valid].max(initial=0)} objects"
        if isinstance(result.model, ObjectSegmenter)
        else f"{len(result.model.classes)} classes"
    )
    return " · ".join([*parameters, found])


def _in_words(value: Any) -> str:
    """The value of a parameter; the kind of a segmenter inside a segmenter."""
    if isinstance(value, list):
        return ", ".join(map(_in_words, value))
    return str(value["kind"] if isinstance(value, Mapping) and "kind" in value else value)


def size_text(shape: Shape) -> str:
    """Width, height and depth in words."""
    return " x ".join(str(n) for n in reversed(shape))
