"""A network that is ready to run on images: a model made of its weights, its card and the settings
of a run.

It runs on exact patches or on blended windows of a tile (`patches`, `blended_windows`), in the
engine and precision that were selected once per run, on a worker and with pixels of the collection
(`select_engine`). What the network gives becomes labels and probabilities in `outputs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np

from maskloom.segcore.deep.inference import blended_windows as windows
from maskloom.segcore.deep.inference import patches
from maskloom.segcore.deep.inference.blended_windows import Windowing
from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.engines.protocol import (
    BatchEngine,
    Choice,
    EngineName,
    Precision,
)
from maskloom.segcore.deep.inference.files.weights import Weights, file_name
from maskloom.segcore.deep.inference.flips import Flipped, Flips, orientations
from maskloom.segcore.deep.inference.image_bands import BandSelection
from maskloom.segcore.deep.inference.image_scaling import ScalingFitter, scaling_of
from maskloom.segcore.deep.inference.network_cache import kept_choice
from maskloom.segcore.deep.inference.outputs import OutputReader
from maskloom.segcore.deep.inference.patches import Patching
from maskloom.segcore.deep.inference.runtime import BACKENDS, LIBRARY_BYTES, keras_backend
from maskloom.segcore.deep.inference.scaling import AS_THEY_ARE, ImageScaling, Scaling
from maskloom.segcore.errors import NothingToFit, WeightsError
from maskloom.segcore.geometry import DEFAULT_TILE, per_axis, sizes_text
from maskloom.segcore.models.planes import (
    planes_of,
    score_by_plane,
    segment_and_score_by_plane,
    segment_by_plane,
)
from maskloom.segcore.models.protocols import MODELS, Exactness, Requirements
from maskloom.segcore.models.rescaled import Rescaled, other_pixels
from maskloom.segcore.raster.spec import Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.engines.protocol import Engine
    from maskloom.segcore.models.protocols import Model
    from maskloom.segcore.models.typical import TypicalObjects
    from maskloom.segcore.raster.spec import Block, RasterSpec

T = TypeVar("T", bound="Model")
_LARGEST_PROBE = 512
"""Side of the largest patch for comparing engines, in pixels, without its halo."""
_LARGEST_CUBE_PROBE = 182
"""The same for networks of volumes: a cube of 32 voxels a side, to which the halo is added."""


@MODELS.register("network")
@dataclass(frozen=True, slots=True)
class NetworkModel:
    """A network that is ready to run; each process that segments loads its weights once."""

    weights: Weights
    card: Card
    classes: tuple[str, ...]
    """Names by class id."""
    bands: tuple[int, ...] | None = None
    """See `BandSelection.bands`."""
    engine: EngineName | Literal["auto"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    blended: bool = False
    """Whether it runs on overlapping windows instead of exact patches."""
    patch: int | tuple[int, ...] = 512
    """Side of a patch without its halo, or of a window, in pixels."""
    flips: Flips = "none"
    choice: Choice | None = None
    """None: float32 in the default engine of such files."""
    over_seams: bool = False
    """Whether pixels around tiles are labelled too, so that squares had better lie over seams."""
    scaling: Scaling | None = None
    """What was found in the image, for a card with `image_scaling`."""

    @property
    def exactness(self) -> Exactness:
        """EXACT, or APPROXIMATE for blended windows."""
        return Exactness.APPROXIMATE if self.blended else Exactness.EXACT

    @property
    def layout(self) -> Patching | Windowing:
        """Placement of patches or windows on an image."""
        if self.blended:
            return Windowing(
                self.card.reach,
                self.patch,
                "cut" if self.card.output == "labels" else "blended",
                self.card.dimensions,
            )
        # Images as large as a default tile have no seams, and fewer squares as they are.
        beyond = DEFAULT_TILE if self.over_seams else None
        return Patching(self.card.reach, self.patch, self.card.dimensions, beyond)

    @property
    def requirements(self) -> Requirements:
        """Halo of the patches; memory per pixel, and for libraries, weights and one patch; a GPU
        for TensorFlow, or while the engine is not selected.
        """
        layout = self.layout
        # Weights are in memory as read, in the engine, and in a second precision.
        pixels = math.prod(_length(layout, axis) for axis in range(self.card.dimensions))
        runs = len(self._orientations)
        # Mirrored pixels, their probabilities, and the sum.
        mirrored = 0 if runs == 1 else 4 * self.card.channels + 8 * self.card.output_channels
        patch = (self.card.bytes_per_pixel + mirrored) * pixels
        fixed = LIBRARY_BYTES + 12 * self.card.parameters + patch
        planar = self.card.dimensions == 2
        engine = self.engine if self.choice is None else self.choice.engine
        wants_gpu = engine in ("auto", *BACKENDS) or "device" in self.running.record
        device: Literal["any", "gpu"] = "gpu" if wants_gpu else "any"
        needed = 16 + (8 if self.card.image_scaling is None else 16) * self.card.channels
        return Requirements(layout.halo, needed, 200 * runs, fixed, planar, device)

    @property
    def pending_selection(self) -> str | None:
        """Key of the pending engine selection; None once it has been made.

        It names the weights, the requested engine and precision, and the placement of patches.
        """
        if self.choice is not None:
            return None
        windows, sides = "blended" if self.blended else "exact", sizes_text(self.layout.sides)
        return f"{self.weights.sha256[:16]} {self.engine} {self.precision} {windows} {sides}"

    def select_engine(self, block: Block) -> Mapping[str, Any]:
        """Select the fastest engine and precision for one patch in the middle of the block, unless
        that was done before on this machine.

        Raises `WeightsError` if the network cannot run, or its receptive field exceeds that of its
        card.
        """
        from maskloom.segcore.deep.inference.engines.selection import grounds, select_engine

        card = replace(self.card, classes=self.classes)
        seen = next(planes_of(block)) if self.card.dimensions == 2 else block
        if card.image_scaling is not None and self.scaling is None:
            # Engines are tried before images are read; the scaling of a block will do for that.
            found = _scaling_for_trial(seen, card.image_scaling)
            return self.with_image_scaling(found).select_engine(block)
        pixels = self._probe(seen)

        def select() -> Choice:
            choice = select_engine(
                self.weights, card, card.scaling.apply(pixels), self.engine, self.precision, pixels
            )
            if not self.blended and self.card.reach.fixed is None:
                self._verify_receptive_field(choice)
            return choice

        depends_on = [self.pending_selection, *grounds(card, self.precision, pixels)]
        return asdict(kept_choice(self.weights, depends_on, select))

    def with_selection(self, choice: Mapping[str, Any]) -> Self:
        """Return the model with the selected engine and precision."""
        return replace(self, choice=Choice(**choice))

    def with_image_scaling(self, found: Scaling) -> Self:
        """Return the model with the scaling that was found in its image."""
        return replace(self, scaling=found)

    def _scaled_by_image(self, block: Block) -> Block:
        """Return the block with the scaling of its image, where the card wants one."""
        how = self.card.image_scaling
        if how is None:
            return block
        if self.scaling is None:
            raise TypeError("the scaling of the image has not been found")
        return replace(block, pixels=how.apply(self.scaling, block.pixels))

    def select(self, spec: RasterSpec) -> RasterSpec:
        """Return the image with the network's bands.

        Raises `ModelMismatch` if it has other bands, pixels of a type that the scaling is not made
        for, or if it is an image and the network is one of volumes.
        """
        return BandSelection(self.card, self.weights.location, self.bands).select(spec)

    @segment_by_plane
    def segment(self, block: Block) -> Labels:
        """Return the class with the greatest score for every pixel of the core."""
        labels, core = self._without_labels(block)
        engine, layout = self._engine, self.layout
        # An engine of batches chooses the classes too, unless scores are averaged first.
        if (
            isinstance(engine, BatchEngine)
            and isinstance(layout, Patching)
            and self.gives_scores
            and len(self._orientations) == 1
        ):
            seen = self._without_gaps(block, as_stored=True)
            for place, found in patches.core_scores(seen, layout, engine.labels):
                core[place] = found
            return Labels(labels)
        outputs = self._outputs
        for place, output in self._scored_regions(block):
            outputs.write_labels(output, core[place])
        return Labels(labels)

    @score_by_plane
    def scores(self, block: Block) -> NDArray[np.float32]:
        """Return class probabilities (y, x, class), or (z, y, x, class); 0 and 1 if the network
        outputs class ids.
        """
        whole, core = self._without_scores(block)
        outputs = self._outputs
        for place, output in self._scored_regions(block):
            core[place] = outputs.probabilities(output)
        return whole

    @segment_and_score_by_plane
    def segment_and_score(self, block: Block) -> tuple[Labels, NDArray[np.float32]]:
        """Return what `segment` and `scores` return."""
        labels, core = self._without_labels(block)
        whole, core_scores = self._without_scores(block)
        outputs = self._outputs
        for place, output in self._scored_regions(block):
            outputs.write_labels(output, core[place])
            core_scores[place] = outputs.probabilities(output)
        return Labels(labels), whole

    def maps(self, block: Block) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The class probabilities (y, x, class) and the vectors (y, x, 2: x and y) of the core of a
        block of an image; 0 where there is no data.
        """
        shape, outputs = block.tile.core.shape, self._outputs
        classes = np.zeros((*shape, len(self.classes)), np.float32)
        vectors = np.zeros((*shape, self.card.vectors), np.float32)
        for place, output in self._scored_regions(block):
            outputs.write_probabilities(output, classes[place])
            vectors[place] = outputs.vectors(output)
        missing = ~block.tile.trim(block.valid)
        classes[missing], vectors[missing] = 0, 0
        return classes, vectors

    @property
    def gives_scores(self) -> bool:
        """Whether the network outputs more than class ids."""
        return self.card.output != "labels"

    def provenance(self) -> Mapping[str, Any]:
        """Return the weights and what runs them."""
        running = self.running
        return {
            "weights": file_name(self.weights.location),
            "sha256": self.weights.sha256,
            "engine": running.engine,
            "precision": running.precision,
            **({"device": running.record["device"]} if "device" in running.record else {}),
            "windows": "blended" if self.blended else "exact",
            "halo": self.layout.halo,
            **({} if self.flips == "none" else {"flips": self.flips}),
            **({} if self.scaling is None else {"scaling": asdict(self.scaling)}),
        }

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:
        """Return a warning if the share of a class in the image, or the size of its pixels, was
        never seen in training.
        """
        name = file_name(self.weights.location)
        cautions = (
            self.card.caution(name, self.classes, shares),
            other_pixels(spec, self.card.pixel_size, name),
        )
        return "; ".join(filter(None, cautions)) or None

    def caution_of_objects(self, spec: RasterSpec, typical: TypicalObjects) -> str | None:  # noqa: ARG002
        """Return a warning if objects have a size that was never seen in training, or scores lower
        than in validation.
        """
        name = file_name(self.weights.location)
        return self.card.caution_of_objects(name, self.classes, typical)

    @property
    def running(self) -> Choice:
        """The selected engine and precision, or the defaults."""
        if self.choice is not None:
            return self.choice
        reference: EngineName = {".onnx": "onnxruntime", ".tflite": "litert"}.get(
            self.weights.suffix, keras_backend() or "tensorflow"
        )  # type: ignore[assignment]
        return Choice(
            reference if self.engine == "auto" else self.engine,
            "float32" if self.precision == "auto" else self.precision,
        )

    def _verify_receptive_field(self, choice: Choice) -> None:
        """Raise `WeightsError` if the receptive field exceeds that of the card.

        The result would then depend on the tiling.
        """
        from maskloom.segcore.deep.inference.engines.opening import open_engine
        from maskloom.segcore.deep.inference.receptive_field.measure import verified

        expected, engine = self.card.reach, open_engine(self.weights, self.card, choice)
        # Copies, because an engine's output is valid only until the next patch.
        measured = verified(
            expected,
            lambda pixels: np.array(engine(pixels)),
            self.card.channels,
            self.card.dimensions,
        )
        if measured.axes(self.card.dimensions) != expected.axes(self.card.dimensions):
            size = (
                "the whole image"
                if measured.halo is None
                else f"at least {sizes_text(measured.halo)} pixels"
            )
            said = sizes_text(expected.halo or 0)
            raise WeightsError(
                f"{file_name(self.weights.location)} has a receptive field of {size}; `halo` or "
                f"its card says {said}. Set another halo; remove the card if it was "
                "changed or belongs to another network; or set windows: blended."
            )

    def _scored_regions(
        self, block: Block
    ) -> Iterator[tuple[tuple[slice, ...], NDArray[np.float32]]]:
        """Yield slices of the core and the network's output for them."""
        engine, layout, card = self._engine, self.layout, self.card
        if isinstance(engine, BatchEngine):
            run, scales = engine.scores, True
        else:
            run, scales = patches.one_by_one(engine, card.scaling.apply), False
        if len(self._orientations) > 1:
            run = Flipped(run, card.output, self.flips, card.dimensions, card.vectors)
        seen = self._without_gaps(block, as_stored=scales)
        if isinstance(layout, Windowing):
            return windows.core_scores(seen, layout, run)
        return patches.core_scores(seen, layout, run)

    @property
    def _engine(self) -> Engine:
        from maskloom.segcore.deep.inference.engines.opening import open_engine

        return open_engine(self.weights, self.card, self.running)

    @property
    def _orientations(self) -> list[tuple[int, ...]]:
        return orientations(self.flips, self.card.dimensions)

    @property
    def _outputs(self) -> OutputReader:
        averaged = len(self._orientations) > 1
        return OutputReader(self.card, self.weights.location, len(self.classes), averaged)

    def _without_gaps(self, block: Block, as_stored: bool = False) -> Block:
        """Replace invalid pixels by the value that is scaled to 0.

        Their original values (nodata, NaN) must not affect their neighbours. `as_stored`: in the
        type of the image, if it can hold that value; the type is the same for all blocks.

        Where the image scales its pixels, that is done first.
        """
        block = self._scaled_by_image(block)
        offset = np.array(self.card.scaling.offset, np.float32)
        # As float32 otherwise, because an offset of 103.9 does not fit into eight bits.
        dtype: np.dtype[Any] = np.dtype(np.float32)
        with np.errstate(invalid="ignore"):
            if as_stored and np.array_equal(offset.astype(block.pixels.dtype), offset):
                dtype = block.pixels.dtype
        if block.valid.all():
            if not as_stored:
                return block
            return replace(block, pixels=block.pixels.astype(dtype, copy=False))
        pixels = block.pixels.astype(dtype)
        pixels[~block.valid] = offset
        return replace(block, pixels=pixels)

    def _probe(self, block: Block) -> NDArray[np.generic]:
        """Return the middle of the block, of the size of a patch inside an image.

        It is mirrored if the block is smaller.
        """
        pixels = self._without_gaps(block, as_stored=True).pixels
        # The fastest engine on this patch is also the fastest on larger ones.
        axes = self.card.dimensions
        largest = patches.sides_of(_LARGEST_PROBE if axes == 2 else _LARGEST_CUBE_PROBE, axes)
        sides = patches.sides_of(self.patch, axes)
        layout = replace(self, patch=tuple(map(min, sides, largest))).layout
        for axis in range(axes):
            size, length = pixels.shape[axis], _length(layout, axis)
            first = (size - length) // 2
            pixels = np.take(pixels, patches.mirrored(np.arange(first, first + length), size), axis)
        return pixels

    def _without_labels(self, block: Block) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return empty labels of a block, and a view of its core."""
        labels = np.zeros(block.valid.shape, np.uint8 if len(self.classes) <= 256 else np.uint16)
        return labels, labels[block.tile.core.relative_to(block.tile.read).slices]

    def _without_scores(self, block: Block) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return scores of a block that are all those of the first class, and a view of its
        core.
        """
        whole = np.zeros((*block.valid.shape, len(self.classes)), np.float32)
        whole[..., 0] = 1
        return whole, whole[block.tile.core.relative_to(block.tile.read).slices]


def scaled_by_image(model: T, network: NetworkModel | Rescaled) -> T | ScalingFitter:
    """A model, or the fitter that finds the scaling of the network inside it, if it needs one."""
    inner = network.model if isinstance(network, Rescaled) else network
    how = inner.card.image_scaling if isinstance(inner, NetworkModel) else None
    return model if how is None else ScalingFitter.of(model, how)


def _scaling_for_trial(block: Block, how: ImageScaling) -> Scaling:
    """The scaling by one block; none where it has no valid pixel."""
    try:
        return scaling_of(block, how)
    except NothingToFit:
        return AS_THEY_ARE


def _length(layout: Patching | Windowing, axis: int) -> int:
    """Length of a patch or window inside an image along an axis, in pixels."""
    side = layout.sides[axis]
    if isinstance(layout, Windowing):
        return layout.windows(axis, 4 * side)[1].length
    halo = per_axis(layout.halo, layout.dimensions)[axis]
    first = (halo // side + 2) * side
    return layout.spans(axis, 2 * first + side, (first, first + 1))[0].length
