"""Mask R-CNN: instance segmentation with a trained network.

The network runs on windows of one size on a lattice that starts at the image's first pixel,
whatever the tile (`segcore.deep.networks.mask_rcnn.lattice` defines them and how objects at their
edges are handled). A tile runs all windows that can detect objects touching its core, so every tile
that sees an object sees the same one, and `stitch` joins its parts. Where objects claim the same
pixel, the one with the higher score gets it.

Objects larger than the halo may be cut at the edges of windows: at the same places under any
tiling, but cut. So the halo is derived from the largest object in training, which the card
contains.

TensorFlow is loaded on workers only; the driver needs only the card of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.files.weights import Weights, WeightsLocation, file_name
from maskloom.segcore.deep.inference.image_scaling import ScalingFitter
from maskloom.segcore.deep.inference.runtime import LIBRARY_BYTES
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.mask_rcnn.lattice import WindowLattice, mirrored
from maskloom.segcore.errors import ModelMismatch, RecipeError, WeightsError
from maskloom.segcore.geometry import Box
from maskloom.segcore.methods.naming import check_names
from maskloom.segcore.models.planes import PLANAR, segment_by_plane
from maskloom.segcore.models.protocols import (
    MODELS,
    SEGMENTERS,
    Exactness,
    Fitter,
    Model,
    Requirements,
)
from maskloom.segcore.objects.stitching import SeamRule, Stitched, rules_of
from maskloom.segcore.objects.tile_overlap import cut_by
from maskloom.segcore.raster.spec import Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.networks.mask_rcnn.detections import Detections
    from maskloom.segcore.deep.networks.mask_rcnn.prediction import Detector
    from maskloom.segcore.models.typical import TypicalObjects
    from maskloom.segcore.raster.spec import Block, RasterSpec

_KIND = "mask_rcnn"
_RULE = SeamRule()
_LARGEST_HALO, _LARGEST_CORE = 512, 2048
_LEAST_OWN_HALO = 64
"""Minimum halo, also for small objects: the network should see some of their surroundings."""
# Labels of the block, their copy without small objects, and the counts.
_BYTES_PER_PIXEL = 24
_COST = 5000
_LEAST_SCORE = 0.5


@SEGMENTERS.register("mask_rcnn")
@dataclass(frozen=True, slots=True)
class MaskRcnnObjects:
    """Objects found by a Mask R-CNN that was trained with `maskloom train`."""

    weights: WeightsLocation
    """Name of weights that come with maskloom, or a .keras file with its card beside it."""
    bands: tuple[int, ...] | None = None
    """Input bands of the network in order, counted from 1; [1, 1, 1] shows a grey image to a
    network trained on colour. None: all, if their number fits.
    """
    classes: tuple[str, ...] | None = None
    """Names of the classes, the background first. None: the network's own."""
    score: float = _LEAST_SCORE
    """Minimum score of an object, 0 to 1."""
    overlap: float = 0.5
    """Maximum overlap of the boxes of two objects of one class (intersection over union). Beyond
    it, the lower score is dropped.
    """
    core: int = 256
    """Side of a window's core in pixels; the network sees `core` + 2 `halo`."""
    halo: int | None = None
    """Side of the largest object in pixels. Objects up to this size come out whole and equal under
    any tiling; larger ones may be cut where windows end. None: that of the largest object in
    training, at least 64 and at most 512.
    """
    min_size: int = 1
    """Objects of fewer pixels become background."""
    stitch: SeamRule | Mapping[str, SeamRule] = _RULE
    """How objects are joined across tiles: `{by: ownership}`, `{by: overlap, iou: 0.5}`, or such a
    rule for each class by name.
    """
    trust: bool = False
    """Load a file that can run arbitrary code. Only for files whose maker you trust."""

    exactness: ClassVar[Exactness] = Exactness.EXACT_IF_SMALLER_THAN_HALO
    units: ClassVar[str] = "pixels must come in the units of training"
    volumes: ClassVar[str] = PLANAR
    use_when: ClassVar[str] = (
        "objects overlap or touch, have many sizes, and you have labelled some hundred of them"
    )
    not_when: ClassVar[str] = (
        "there are no labels to train with, or objects are larger than the `halo`"
    )
    reference: ClassVar[str] = "He et al. 2017, doi:10.1109/ICCV.2017.322"

    def __post_init__(self) -> None:
        if self.bands is not None and (not self.bands or min(self.bands) < 1):
            raise ValueError(f"bands: expected numbers from 1 on; got {list(self.bands)}")
        if self.classes is not None:
            check_names(self.classes)
        if not 0 < self.score < 1:
            raise ValueError(f"score: expected a number between 0 and 1; got {self.score}")
        if not 0 < self.overlap < 1:
            raise ValueError(f"overlap: expected a number between 0 and 1; got {self.overlap}")
        if not 32 <= self.core <= _LARGEST_CORE:
            raise ValueError(f"core: expected 32 to {_LARGEST_CORE} pixels; got {self.core}")
        if self.halo is not None and not 8 <= self.halo <= _LARGEST_HALO:
            raise ValueError(f"halo: expected 8 to {_LARGEST_HALO} pixels; got {self.halo}")
        if self.min_size < 1:
            raise ValueError(
                f"min_size: expected a number of pixels from 1 on; got {self.min_size}"
            )

    def start(self) -> Fitter | Model:
        """Return the model, or the fitter of its scaling if that is found in each image.

        Raises `WeightsError` if the weights are not those of a Mask R-CNN, `RecipeError` if other
        settings do not fit them.
        """
        weights = Weights.of(self.weights, self.trust)
        card = _card(weights)
        if self.bands is not None and len(self.bands) != card.channels:
            raise RecipeError(
                f"bands: {file_name(self.weights)} wants {card.channels} band(s); got "
                f"{list(self.bands)}. Name as many."
            )
        if self.classes is not None and len(self.classes) != len(card.classes):
            raise RecipeError(
                f"classes: {file_name(self.weights)} has {len(card.classes)} classes "
                f"({', '.join(card.classes)}); got {len(self.classes)} names. "
                "Name as many, the background first, or leave `classes` out."
            )
        classes = self.classes or card.classes
        try:
            rules = rules_of(self.stitch, classes)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        lattice = WindowLattice(self.core, _halo_of(card) if self.halo is None else self.halo)
        rule = DetectionRule(float(self.score), float(self.overlap), self.min_size, lattice)
        model = Stitched(MaskRcnnModel(weights, card, classes, rule, self.bands), rules)
        return model if card.image_scaling is None else ScalingFitter.of(model, card.image_scaling)


@dataclass(frozen=True, slots=True)
class DetectionRule:
    """Thresholds of an object, and the windows of the network."""

    score: float
    overlap: float
    min_size: int
    lattice: WindowLattice


@MODELS.register("mask_rcnn")
@dataclass(frozen=True, slots=True)
class MaskRcnnModel:
    """An instance segmenter that runs a Mask R-CNN on windows."""

    weights: Weights
    card: Card
    classes: tuple[str, ...]
    """The background, then the classes of objects."""
    rule: DetectionRule
    bands: tuple[int, ...] | None
    scaling: Scaling | None = None
    """What was found in the image, for a card with `image_scaling`."""

    exactness: ClassVar[Exactness] = Exactness.EXACT_IF_SMALLER_THAN_HALO

    @property
    def requirements(self) -> Requirements:
        """Halo for the objects of a tile: about three objects and a window's core."""
        lattice = self.rule.lattice
        network = (
            LIBRARY_BYTES + 4 * self.card.parameters + lattice.window**2 * self.card.bytes_per_pixel
        )
        return Requirements(
            lattice.tile_halo, _BYTES_PER_PIXEL, _COST, network, planar=True, device="gpu"
        )

    def select(self, spec: RasterSpec) -> RasterSpec:
        """Return the image with the network's bands. Raises `ModelMismatch` if it has others."""
        trained = self.card.bands
        known = trained is not None and max(trained) <= spec.file_bands
        selected = spec.select(self.bands or (trained if known else None))
        if selected.channels != self.card.channels:
            raise ModelMismatch(
                f"{spec.location} has {selected.channels} band(s); {self.weights.location} takes "
                f"{self.card.channels}. "
                "Choose them by `bands` of the segmenter, or leave this image out."
            )
        return selected

    def with_image_scaling(self, found: Scaling) -> Self:
        """Return the model with the scaling that was found in its image."""
        return replace(self, scaling=found)

    @segment_by_plane
    def segment(self, block: Block) -> Labels:
        """Return the objects of the block by descending score, each with its class.

        Complete for objects that touch the core.
        """
        rule, tile = self.rule, block.tile
        detector = _detector(self.weights, rule.score, rule.overlap)

        def find(window: Box) -> Detections:
            return detector.detect(self._window(block, window))

        detections = rule.lattice.detections(tile.core, block.spec.shape, find, rule.overlap)
        values = detections.paint(tile.read)
        values[~block.valid] = 0
        small = np.bincount(values.ravel(), minlength=len(detections) + 1) < rule.min_size
        # Objects cut by the read box may be large beyond it.
        small[cut_by(values, tile.read, block.spec.shape)] = False
        values[small[values]] = 0
        return Labels(values, (0, *detections.classes.tolist()), (0.0, *detections.scores.tolist()))

    def provenance(self) -> Mapping[str, Any]:
        """Return the weights and the rule of detection."""
        rule = self.rule
        return {
            "weights": self.weights.sha256,
            "score": rule.score,
            "overlap": rule.overlap,
            "min_size": rule.min_size,
            "core": rule.lattice.core,
            "halo": rule.lattice.halo,
            **({} if self.scaling is None else {"scaling": asdict(self.scaling)}),
        }

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:  # noqa: ARG002
        """Return a warning if the share of a class in the image was never seen in training."""
        return self.card.caution(file_name(self.weights.location), self.classes, shares)

    def caution_of_objects(self, spec: RasterSpec, typical: TypicalObjects) -> str | None:  # noqa: ARG002
        """Return a warning if objects have a size that was never seen in training, or scores lower
        than in validation.
        """
        name = file_name(self.weights.location)
        if self.rule.score < _LEAST_SCORE:
            typical = replace(typical, scores={})  # of more doubtful objects than in validation
        return self.card.caution_of_objects(name, self.classes, typical)

    def _window(self, block: Block, window: Box) -> NDArray[np.float32]:
        """The scaled pixels of a window (y, x, channel), 0 where there is no data."""
        inside = window & Box.whole(block.spec.shape)
        part = inside.relative_to(block.tile.read).slices
        scaled = self._scaled(block.pixels[part])
        scaled[~block.valid[part]] = 0
        return mirrored(scaled, inside, window)

    def _scaled(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        how = self.card.image_scaling
        if how is None:
            return self.card.scaling.apply(pixels)
        if self.scaling is None:
            raise TypeError("the scaling of the image has not been found")
        return how.apply(self.scaling, pixels)


def _card(weights: Weights) -> Card:
    card = weights.card()
    if card is None:
        raise WeightsError(
            f"{weights.location}: expected a card (.json) beside the weights of a Mask R-CNN; "
            "found none. Put the card that `maskloom train` wrote beside the weights."
        )
    if card.kind != _KIND:
        raise WeightsError(
            f"{weights.location}: expected the weights of a {_KIND}; its card says {card.kind}. "
            f"Use `kind: {card.kind}`, or other weights."
        )
    return card


def _halo_of(card: Card) -> int:
    """Halo for objects as large as those the network was trained with."""
    side = card.about.get("largest_object", 0)
    if not isinstance(side, int) or side < 0:
        raise WeightsError(
            "about.largest_object of the weights' card: expected a number of pixels; got "
            f"{side!r}. Set `halo`."
        )
    # On multiples of the stride, or the network would pad windows with zeros.
    stride = card.reach.along(0).stride
    return min(-(-max(side, _LEAST_OWN_HALO) // stride) * stride, _LARGEST_HALO)


@lru_cache(maxsize=2)
def _detector(weights: Weights, score: float, overlap: float) -> Detector:
    """Load the network once per process: weights are equal if their digests are."""
    network = _network(weights)
    # Import after loading the weights, when TensorFlow has been set up for this process.
    from maskloom.segcore.deep.networks.mask_rcnn.prediction import Detector

    return Detector(network, score, overlap)


@lru_cache(maxsize=1)
def _network(weights: Weights) -> Any:
    from maskloom.segcore.deep.inference.files.keras_files import load_keras

    network = load_keras(weights)
    # Import late, as in `_detector`.
    from maskloom.segcore.deep.networks.mask_rcnn.network import MaskRcnnNetwork

    if not isinstance(network, MaskRcnnNetwork):
        raise WeightsError(
            f"{weights.location}: expected a Mask R-CNN; got {type(network).__name__}. Use `kind: "
            "network` for it."
        )
    return network
