"""Instances: objects that touch, from a network that gives each pixel a class and a vector.

The vector points away from the middle of the pixel's object; pixels walk against it, and those that
end together are one object (`segcore.objects.flow`). This is exact under tiling for objects of any
size: walks are short, the network is exact (`segcore.segmenters.network`), and the places where
pixels end are joined over tiles as connected parts (`segcore.objects.arrivals`).

`maskloom train` makes such networks with `labels: {kind: instances, target: flow}`; `nuclei` is
one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from maskloom.segcore.deep.inference.files.weights import file_name
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box, wider
from maskloom.segcore.models.planes import PLANAR, fragment_by_plane, join_by_plane
from maskloom.segcore.models.protocols import MODELS, SEGMENTERS, Exactness, caution_of
from maskloom.segcore.models.rescaled import Rescaled
from maskloom.segcore.objects.flow import DEFAULT_STEPS, FlowRule, Maps
from maskloom.segcore.segmenters.network import Network, NetworkModel

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.geometry import Grid
    from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
    from maskloom.segcore.models.protocols import Requirements
    from maskloom.segcore.raster.spec import Block, RasterSpec

_MOST_STEPS, _MOST_OWN_STEPS = 1000, 200
# Classes, vectors, foreground, ends, counts, sinks and parts.
_BYTES_PER_PIXEL = 48


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
    largest object is pixels wide. Tiles read one and a half pixels more around them for each. None:
    enough for the largest object in training, 40 to 200.
    """
    min_size: int = 20
    """Objects with fewer pixels become background."""

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

    def __post_init__(self) -> None:
        Network.__post_init__(self)
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold: expected a number between 0 and 1; got {self.threshold}")
        if self.steps is not None and not 1 <= self.steps <= _MOST_STEPS:
            raise ValueError(f"steps: expected 1 to {_MOST_STEPS}; got {self.steps}")
        if self.min_size < 1:
            raise ValueError(
                f"min_size: expected a number of pixels from 1 on; got {self.min_size}"
            )

    def start(self) -> InstancesModel:  # type: ignore[override]
        """The model. Raises `WeightsError` if the file is not such a network, `RecipeError` if
        other settings do not fit it.
        """
        network = Network.start(self)
        model = network.model if isinstance(network, Rescaled) else network
        assert isinstance(model, NetworkModel)
        if model.card.vectors == 0:
            raise RecipeError(
                f"weights: {file_name(self.weights)} gives classes only; instances needs a network "
                "with vectors, trained with labels: {kind: instances, target: flow}. Put "
                f"`watershed` around {model.card.kind}, or give other weights."
            )
        rule = FlowRule(float(self.threshold), self._steps(model.card), self.min_size)
        return InstancesModel(model, rule)

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
    """A network of classes and vectors, and how its pixels become objects."""

    network: NetworkModel
    rule: FlowRule

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the network; the first is the background."""
        return self.network.classes

    @property
    def exactness(self) -> Exactness:
        """That of the network: objects of any size are joined exactly."""
        return self.network.exactness

    @property
    def requirements(self) -> Requirements:
        """Those of the network, with the margin of the walk."""
        inner = self.network.requirements
        return replace(
            inner,
            halo=wider(inner.halo, self.rule.margin),
            bytes_per_pixel=inner.bytes_per_pixel + _BYTES_PER_PIXEL + 4 * len(self.classes),
            cost=inner.cost + 10,
        )

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the bands of the network."""
        return self.network.select(spec)

    @fragment_by_plane
    def fragment(self, block: Block) -> Fragments:
        """The objects of the block's core, as far as the block alone determines them."""
        tile, shape = block.tile, block.spec.shape
        seen = tile.core.grow((self.rule.margin,) * 2) & Box.whole(shape)
        classes, vectors = self.network.maps(replace(block, tile=replace(tile, core=seen)))
        valid = block.valid[seen.relative_to(tile.read).slices]
        return self.rule.fragment(Maps(seen, classes, vectors, valid), tile, shape)

    @join_by_plane
    def join(self, grid: Grid, boundaries: Sequence[TileBoundary]) -> list[Equivalences]:
        """Which fragments are one object: those whose pixels end in one part."""
        return self.rule.join(grid, boundaries)

    def provenance(self) -> Mapping[str, Any]:
        """The network's, and how pixels become objects."""
        return {
            **self.network.provenance(),
            "threshold": self.rule.threshold,
            "steps": self.rule.steps,
            "min_size": self.rule.min_size,
        }

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:
        """The warning of the network."""
        return caution_of([self.network], spec, shares)
