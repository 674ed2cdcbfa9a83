"""Instances: objects that touch, from a network that gives each pixel a class and a vector.

The vector points away from the middle of the pixel's object; pixels walk against it, and those that
end together are one object (`segcore.objects.flow`). This is exact under tiling for objects of any
size: walks are short, the network is exact (`segcore.segmenters.network`), and the places where
pixels end are joined over tiles as connected parts (`segcore.objects.arrivals`).

A network without vectors may have a class for the border around objects instead: the parts inside
are the objects, and grow back into it (`segcore.objects.borders`).

`maskloom train` makes such networks with `labels: {kind: instances, target: flow}`, or with
`border` and `outline` in place of `target`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from maskloom.segcore.deep.inference.files.weights import file_name
from maskloom.segcore.deep.inference.network_model import NetworkModel, scaled_by_image
from maskloom.segcore.errors import ModelMismatch, RecipeError
from maskloom.segcore.geometry import Box, wider
from maskloom.segcore.models.planes import PLANAR, fragment_by_plane, join_by_plane
from maskloom.segcore.models.protocols import (
    MODELS,
    SEGMENTERS,
    Exactness,
    caution_of,
    caution_of_objects,
)
from maskloom.segcore.models.rescaled import FARTHEST, Rescaled, pixel_sides
from maskloom.segcore.objects.arrivals import Maps, Shown
from maskloom.segcore.objects.borders import BorderRule
from maskloom.segcore.objects.flow import DEFAULT_STEPS, FlowRule
from maskloom.segcore.segmenters.network import Network

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.deep.inference.image_scaling import ScalingFitter
    from maskloom.segcore.geometry import Grid
    from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
    from maskloom.segcore.models.protocols import Requirements
    from maskloom.segcore.models.typical import TypicalObjects
    from maskloom.segcore.raster.spec import Block, RasterSpec

_BORDER, _MOST_GROWTH = "border", 50
_LEAST_STEPS, _MOST_STEPS, _MOST_OWN_STEPS = 8, 1000, 200
# Classes, vectors, foreground, ends, counts, sinks and parts.
_BYTES_PER_PIXEL = 48
_COARSEST = 2.0
"""In coarser pixels, relative to those of training, objects are not told apart."""


@SEGMENTERS.register("instances")
@dataclass(frozen=True, slots=True)
class Instances(Network):
    """Objects, also touching ones, by a network that shows each pixel the way to the middle of its
    object.
    """

    threshold: float = 0.5
    """Least probability of all classes but the background, of a pixel that belongs to an object."""
    steps: int | None = None
    """Steps of half a pixel that pixels walk to the middle of their object: about as many as the
    largest object is pixels wide. Tiles read one pixel more around them for each. None:
    enough for the largest object in training, 40 to 200.
    """
    min_size: int = 20
    """Objects with fewer pixels become background."""
    border: str | None = None
    """Of a network without vectors: name of the class around objects. None: `border`."""
    grow: int = 3
    """Of a network without vectors: pixels by which objects grow back into their border."""

    units: ClassVar[str] = Network.units
    volumes: ClassVar[str] = PLANAR
    use_when: ClassVar[str] = (
        "things touch, of any size and number, such as cells, nuclei, grains or trees; `weights: "
        "nuclei` for nuclei, or your own of `maskloom train`"
    )
    not_when: ClassVar[str] = "things overlap (use mask_rcnn), or have no middle: roads, vessels"
    reference: ClassVar[str] = (
        "Graham et al. 2019, doi:10.1016/j.media.2019.101563, and Stringer et al. 2021, "
        "doi:10.1038/s41592-020-01018-x"
    )
    kind: ClassVar[str] = "network"
    gives_scores: ClassVar[bool] = False
    cores_are_tiles: ClassVar[bool] = False

    def __post_init__(self) -> None:
        Network.__post_init__(self)
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold: expected a number between 0 and 1; got {self.threshold}")
        if self.steps is not None and not _LEAST_STEPS <= self.steps <= _MOST_STEPS:
            raise ValueError(f"steps: expected {_LEAST_STEPS} to {_MOST_STEPS}; got {self.steps}")
        if self.min_size < 1:
            raise ValueError(
                f"min_size: expected a number of pixels from 1 on; got {self.min_size}"
            )
        if not 1 <= self.grow <= _MOST_GROWTH:
            raise ValueError(f"grow: expected 1 to {_MOST_GROWTH} pixels; got {self.grow}")

    def start(self) -> InstancesModel | ScalingFitter:  # type: ignore[override]
        """The model, or the fitter of its scaling. Raises `WeightsError` if the file is not such a
        network, `RecipeError` if other settings do not fit it.
        """
        network = self.unscaled()
        return scaled_by_image(self._model_of(network), network)

    def _model_of(self, network: NetworkModel | Rescaled) -> InstancesModel:
        card = _inner_of(network).card
        if card.vectors == 0:
            return InstancesModel(network, None, self._borders(network.classes, card))
        if self.border is not None:
            raise RecipeError(
                f"border: {file_name(self.weights)} has vectors, which need no border. Leave "
                "it out."
            )
        return InstancesModel(
            network, FlowRule(float(self.threshold), self._steps(card), self.min_size), None
        )

    def _borders(self, classes: tuple[str, ...], card: Card) -> BorderRule:
        name, others = self.border or _BORDER, classes[1:]
        if name not in others or len(others) < 2:
            raise RecipeError(
                f"weights: {file_name(self.weights)} has neither vectors nor a class {name!r} "
                f"beside objects; its classes are {', '.join(classes)}. Train it with labels: "
                "{kind: instances, target: flow}, name the class around objects in `border`, or "
                f"put `watershed` around {card.kind}."
            )
        return BorderRule(classes.index(name), self.grow, self.min_size)

    def _steps(self, card: Card) -> int:
        """The steps of the recipe, or those that the largest object of training needs."""
        if self.steps is not None:
            return self.steps
        side = card.about.get("largest_object", 0)
        return (
            max(DEFAULT_STEPS, min(side, _MOST_OWN_STEPS))
            if isinstance(side, int)
            else DEFAULT_STEPS
        )


@MODELS.register("instances")
@dataclass(frozen=True, slots=True)
class InstancesModel:
    """A network of classes, and how its pixels become objects: by vectors, or by a border."""

    network: NetworkModel | Rescaled
    flow: FlowRule | None
    borders: BorderRule | None

    @property
    def rule(self) -> FlowRule | BorderRule:
        """How pixels become objects."""
        rule = self.flow or self.borders
        assert rule is not None
        return rule

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the network but the border; the first is the background."""
        names = self.network.classes
        border = None if self.borders is None else self.borders.border
        return tuple(name for i, name in enumerate(names) if i != border)

    @property
    def exactness(self) -> Exactness:
        """That of the network: objects of any size are joined exactly."""
        return self.network.exactness

    @property
    def requirements(self) -> Requirements:
        """Those of the network, with the margin of the walk, in the finest pixels that it may
        get.
        """
        inner, margin = self.network.requirements, self.rule.margin
        if isinstance(self.network, Rescaled):
            margin = math.ceil(FARTHEST * margin)
        return replace(
            inner,
            halo=wider(inner.halo, margin),
            bytes_per_pixel=inner.bytes_per_pixel + _BYTES_PER_PIXEL + 4 * len(self.classes),
            cost=inner.cost + 10,
        )

    def requirements_of(self, spec: RasterSpec) -> Requirements:
        """As `requirements`, with the halo for such an image, and memory for its resampled
        pixels.
        """
        most = self.requirements
        if not isinstance(self.network, Rescaled):
            return most
        # Of coarse pixels there are more resampled ones, all of a tile at once.
        density = min(_COARSEST**2, max(1.0, self.network.density_of(spec)))
        return replace(
            most,
            halo=self.network.halo_of(spec, self.rule.margin),
            bytes_per_pixel=math.ceil(density * most.bytes_per_pixel),
        )

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the bands of the network. Raises `ModelMismatch` if it does not suit, or
        if its pixels are much coarser than those of training.
        """
        selected = self.network.select(spec)
        sides = pixel_sides(spec)
        if isinstance(self.network, Rescaled) and sides is not None:
            wanted = self.network.pixel_size
            if max(sides) > _COARSEST * wanted:
                raise ModelMismatch(
                    f"{spec.location} has pixels of {max(sides):.4g} um; the network was trained "
                    f"on {wanted:g} um, and does not tell objects apart in pixels more than "
                    f"{_COARSEST:g} times as large. Choose a finer `level` of a slide, correct "
                    "`pixel_size` of the recipe, or set `pixel_size: any` of the segmenter."
                )
        return selected

    @fragment_by_plane
    def fragment(self, block: Block) -> Fragments:
        """The objects of the block's core, as far as the block alone determines them."""
        shown = None
        if isinstance(self.network, Rescaled):
            other = self.network.resampled(block, self.rule.margin)
            if other is not None:
                shown = Shown(other.nearest, block.tile.trim(block.valid))
                block = other.block
        tile, shape = block.tile, block.spec.shape
        seen = tile.core.grow((self.rule.margin,) * 2) & Box.whole(shape)
        classes, vectors = self._inner.maps(replace(block, tile=replace(tile, core=seen)))
        valid = block.valid[seen.relative_to(tile.read).slices]
        return self.rule.fragment(Maps(seen, classes, vectors, valid), tile.core, shape, shown)

    @join_by_plane
    def join(self, grid: Grid, boundaries: Sequence[TileBoundary]) -> list[Equivalences]:
        """Which fragments are one object: those whose pixels end in one part."""
        return self.rule.join(grid, boundaries)

    def provenance(self) -> Mapping[str, Any]:
        """The network's, and how pixels become objects."""
        return {**self.network.provenance(), **asdict(self.rule)}

    @property
    def _inner(self) -> NetworkModel:
        return _inner_of(self.network)

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:
        """The warning of the network."""
        return caution_of([self.network], spec, shares)

    def caution_of_objects(self, spec: RasterSpec, typical: TypicalObjects) -> str | None:
        """The warning of the network."""
        if self.flow is not None and self.flow.threshold < FlowRule().threshold:
            typical = replace(typical, scores={})  # of more doubtful pixels than in validation
        return caution_of_objects(self.network, spec, typical)


def _inner_of(network: NetworkModel | Rescaled) -> NetworkModel:
    model = network.model if isinstance(network, Rescaled) else network
    assert isinstance(model, NetworkModel)
    return model
