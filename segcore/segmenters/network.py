"""Networks: any trained network that gives every pixel a class.

`unet`, `fcn` and `deeplab` are networks trained by maskloom; `network` is any `.keras`, `.onnx` or
`.tflite` file, a SavedModel, or a model in the format of bioimage.io.

A network runs on patches whose lattice belongs to the image, not to the tile. Each patch is
computed from the same pixels in the same shape under any tiling, so the labels are equal to the
last pixel (`segcore.deep.inference.patches`). If patches can hold the receptive field of the
network, the labels also equal those of a run on the whole image, and the network is EXACT. A
network with a larger receptive field (for example with global pooling) runs on overlapping windows
that are blended (`segcore.deep.inference.blended_windows`), and is APPROXIMATE.

A network of images labels volumes plane by plane. A network of volumes takes volumes only, in
patches with three axes.

Metadata of the network are in the card beside its file (`segcore.deep.inference.card`); a file
without a card is examined in a separate process. Engine and precision are selected once per run, on
a worker and with pixels of the collection (`select_engine`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

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
from maskloom.segcore.deep.inference.files.weights import Weights, WeightsLocation, file_name
from maskloom.segcore.deep.inference.flips import (
    Flipped,
    Flips,
    orientations,
    probabilities,
)
from maskloom.segcore.deep.inference.image_scaling import ScalingFitter, scaling_of
from maskloom.segcore.deep.inference.network_cache import kept_card, kept_choice
from maskloom.segcore.deep.inference.patches import Patching
from maskloom.segcore.deep.inference.runtime import BACKENDS, LIBRARY_BYTES, keras_backend
from maskloom.segcore.deep.inference.scaling import AS_THEY_ARE, ImageScaling, Scaling
from maskloom.segcore.errors import ModelMismatch, NothingToFit, RecipeError, WeightsError
from maskloom.segcore.geometry import DEFAULT_TILE, per_axis, sizes_text
from maskloom.segcore.ground.space import MILLIMETRES, PixelSize
from maskloom.segcore.methods.naming import check_names
from maskloom.segcore.models.calibration import tempered
from maskloom.segcore.models.planes import (
    PLANAR,
    planes_of,
    score_by_plane,
    segment_and_score_by_plane,
    segment_by_plane,
)
from maskloom.segcore.models.protocols import MODELS, SEGMENTERS, Exactness, Requirements
from maskloom.segcore.models.rescaled import Rescaled, other_pixels
from maskloom.segcore.raster.spec import Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.engines.protocol import Engine
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.models.protocols import Model
    from maskloom.segcore.raster.spec import Block, RasterSpec

T = TypeVar("T", bound="Model")
Windows = Literal["auto", "exact", "blended"]
_LARGEST_PROBE = 512
"""Side of the largest patch for comparing engines, in pixels, without its halo."""
_LARGEST_CUBE_PROBE = 182
"""The same for networks of volumes: a cube of 32 voxels a side, to which the halo is added."""
_PATCH, _LARGE_PATCH = 512, 1024
"""Sides of patches, in pixels. Both divide the default tile."""
_LARGE_HALO = 64
"""Halo beyond which a patch of 512 pixels computes more than half of its pixels for nothing."""
_LARGE_PATCH_BYTES = 1_000_000_000
_KINDS = {2: "image", 3: "volume"}
"""What networks take, by their axes."""
_FARTHEST_EXACT = {2: 512, 3: 64}
_EXAMPLE = 4095
"""Greatest value of 12 bits, which most cameras of microscopes have."""
"""Halo in pixels, by the axes of the network, beyond which exact patches are considered too
expensive and `windows: auto` blends.
"""


@SEGMENTERS.register("network")
@dataclass(frozen=True, slots=True)
class Network:
    """Any trained network that gives every pixel a class: a `.keras`, `.onnx` or `.tflite` file, or
    the folder of a SavedModel or of a model of bioimage.io.
    """

    weights: WeightsLocation
    """The file or folder, relative to the recipe, or the name of weights that come with maskloom:
    `nuclei`, for nuclei in micrographs. It is best on fluorescence; in stained tissue (H&E) it
    misses more.
    """
    bands: tuple[int, ...] | None = None
    """Input bands of the network in order, counted from 1. None: those of its training; a network
    trained on colour sees a grey image as grey colours.
    """
    classes: tuple[str, ...] | None = None
    """Names by class id. None: those of the card beside the file, else class_0, class_1 ..."""
    scaling: Scaling | ImageScaling | None = None
    """How pixels become input: {offset: [...], factor: [...]}, (value - offset) * factor; or by the
    values of each image, {by: deviation} to mean 0 and deviation 1, {by: range, percentiles: [1,
    99.8]} to 0 and 1. None: from the card, else factor 1/255 for 8 bits; images of other types are
    then refused.
    """
    engine: EngineName | Literal["auto"] = "auto"
    """Library that runs the network: tensorflow, jax or torch (Keras on it), openvino, onnxruntime,
    litert. auto: the fastest that is installed.
    """
    precision: Precision | Literal["auto"] = "auto"
    """float32, bfloat16, or on GPUs float16. auto: the fastest that keeps at least 99.9 % of the
    labels of float32 on a probe of the collection.
    """
    windows: Windows = "auto"
    """exact: patches with their full receptive field. blended: overlapping windows. auto: exact if
    the receptive field reaches at most 512 pixels to each side (64 voxels in a network of volumes).
    """
    halo: int | tuple[int, ...] | None = None
    """Receptive field of the network to each side in pixels, confirmed by a trial before work
    begins; of a network of volumes also [z, y, x]. None: from the card, or measured for a `.keras`
    file; other files run in blended windows.
    """
    patch: int | tuple[int, ...] | None = None
    """Side of the area that one patch labels, without its halo, in pixels. Of a network of volumes
    [z, y, x], or one number for a cube with about as many voxels (512: 64 x 64 x 64). Larger
    patches waste less on their halos and take more memory. None: 512; 1024 if the halo is larger
    than 64 and such a patch takes at most 1 GB.
    """
    flips: Flips = "none"
    """Test-time augmentation: the mean of the probabilities for the image and its mirror images.
    horizontal: left and right exchanged (2 runs of the network). both: also top and bottom (4
    runs). all: in networks of volumes, also along z (8 runs). For networks trained with such flips.
    """
    trust: bool = False
    """Load a file that can run arbitrary code (Lambda layers, .h5). Only for files whose maker
    you trust.
    """
    pixel_size: str | None = None
    """Size of the pixels that the network knows, such as 0.5 um. Images that state another size are
    resampled for it, and refused if it differs by more than a factor of 4. None: that of the card.
    any: pixels are shown as they are.
    """

    exactness: ClassVar[Exactness] = Exactness.EXACT
    units: ClassVar[str] = (
        "pixels must come in the units of training; `scaling` converts other units"
    )
    volumes: ClassVar[str] = f"a network of volumes: in three dimensions; of images: {PLANAR}"
    use_when: ClassVar[str] = "you have a trained model that labels pixels"
    not_when: ClassVar[str] = (
        "nothing like your images was among those that it was trained on: compare with truth by"
        " `maskloom evaluate` first"
    )
    kind: ClassVar[str] = "network"
    gives_scores: ClassVar[bool] = True
    cores_are_tiles: ClassVar[bool] = True
    """Whether pixels are labelled in the tile alone, and not also around it, where large patches
    would be computed for a few pixels.
    """

    def __post_init__(self) -> None:
        if self.bands is not None and (not self.bands or min(self.bands) < 1):
            raise ValueError(f"bands: expected numbers from 1 on; got {list(self.bands)}")
        if self.halo is not None and min(_numbers(self.halo)) < 0:
            raise ValueError(f"halo: expected 0 or more pixels; got {self.halo}")
        if isinstance(self.patch, int) and not 32 <= self.patch <= 8192:
            raise ValueError(f"patch: expected 32 to 8192 pixels; got {self.patch}")
        if self.patch is not None and not all(1 <= n <= 8192 for n in _numbers(self.patch)):
            raise ValueError(f"patch: expected 1 to 8192 pixels along each axis; got {self.patch}")
        if self.classes is not None:
            check_names(self.classes)
        _micrometres(self.pixel_size)

    def start(self) -> NetworkModel | Rescaled | ScalingFitter:
        """Return the model, or the fitter of its scaling if that is found in each image.

        Raises `WeightsError` if the file is not such a network, `RecipeError` if other settings do
        not fit it.
        """
        network = self.unscaled()
        return scaled_by_image(network, network)

    def unscaled(self) -> NetworkModel | Rescaled:
        """Return the model, without a scaling if that is found in each image. Raises as `start`."""
        weights = Weights.of(self.weights, self.trust)
        card = _card(weights)
        self._check_asked(card)
        self._check_axes(card)
        if self.halo is not None:
            card = self._with_halo(card, self.halo)
        self._check(card)
        if self.scaling is not None:
            card = card.scaled_by(self.scaling)
        channels, scaling = card.channels, card.scaling
        for name, values in (("offset", scaling.offset), ("factor", scaling.factor)):
            if len(values) not in (1, channels):
                raise RecipeError(
                    f"scaling.{name}: the network has {channels} bands; expected 1 or {channels} "
                    f"numbers, got {len(values)}."
                )
        if self.flips != "none" and card.output == "labels":
            raise RecipeError(
                f"flips: {file_name(self.weights)} gives class ids, which have no mean. Leave it "
                "out, or give a network that gives scores."
            )
        if self.windows == "exact" and not Patching.suits(card.reach):
            raise RecipeError(
                f"windows: {file_name(self.weights)} has too large a receptive field for exact "
                "patches (global pooling, or one small size of input). Use auto or blended."
            )
        blended = self.windows == "blended" or _looks_too_far(self.windows, card)
        model = NetworkModel(
            weights=weights,
            card=card,
            classes=self.classes or card.classes,
            bands=self.bands,
            engine=self.engine,
            precision=self.precision,
            blended=blended,
            patch=self._patch_for(card, blended) if self.patch is None else self.patch,
            flips=self.flips,
            over_seams=not self.cores_are_tiles,
        )
        size = card.pixel_size if self.pixel_size is None else _micrometres(self.pixel_size)
        if card.dimensions != len("yx") and self.pixel_size not in (None, "any"):
            raise RecipeError(
                f"pixel_size: {file_name(self.weights)} is a network of volumes, which are not "
                "resampled. Leave it out."
            )
        return model if size is None or card.dimensions != len("yx") else Rescaled(model, size)

    def _patch_for(self, card: Card, blended: bool) -> int:
        """The side of patches that suits a network. It depends on the network alone: if it depended
        on the machine or the tiles, so might the last digit of a score.
        """
        halo = card.reach.farthest or 0
        pixels = (_LARGE_PATCH + 2 * halo) ** 2
        large = (
            self.cores_are_tiles
            and not blended
            and card.dimensions == len("yx")
            and halo > _LARGE_HALO
            and card.bytes_per_pixel * pixels <= _LARGE_PATCH_BYTES
        )
        return _LARGE_PATCH if large else _PATCH

    def _check_asked(self, card: Card) -> None:
        """Raise `RecipeError` for a parameter that the makers of the network left open."""
        asked = card.about.get("ask")
        for name, reason in asked.items() if isinstance(asked, Mapping) else ():
            if getattr(self, name, None) is None:
                raise RecipeError(f"{name}: {file_name(self.weights)}: {reason}.")

    def _check_axes(self, card: Card) -> None:
        for name, value in (("halo", self.halo), ("patch", self.patch)):
            if isinstance(value, tuple) and len(value) != card.dimensions:
                axes = "[y, x]" if card.dimensions == 2 else "[z, y, x]"
                raise RecipeError(
                    f"{name}: {file_name(self.weights)} is a network of "
                    f"{_KINDS[card.dimensions]}s; expected one number or {axes}, got {list(value)}."
                )

    def _with_halo(self, card: Card, halo: int | Shape) -> Card:
        if card.reach.fixed is not None:
            raise RecipeError(
                f"halo: {file_name(self.weights)} takes images of one size only, "
                f"{' x '.join(map(str, card.reach.fixed))} pixels, so the halo cannot be "
                "confirmed. Leave it out (windows are then blended), or write a card with `reach`."
            )
        return replace(card, reach=replace(card.reach, halo=halo))

    def _check(self, card: Card) -> None:
        from maskloom.segcore.deep.inference.files.model_cards import MOST_LABELS

        name = file_name(self.weights)
        if card.output == "objects" and card.kind != "mask_rcnn":
            raise WeightsError(
                f"weights: {name} finds objects; kind {self.kind} needs a network that gives every "
                "pixel a class."
            )
        if card.output == "objects" or (
            card.kind not in (self.kind, "network") and self.kind != "network"
        ):
            raise WeightsError(
                f"weights: {name} is a {card.kind}, not a {self.kind}. Say `kind: {card.kind}`, or "
                "give other weights."
            )
        if self.bands is not None and len(self.bands) != card.channels:
            raise RecipeError(f"bands: {name} wants {card.channels} bands; got {list(self.bands)}.")
        uncounted = card.output == "labels" and len(card.classes) == MOST_LABELS
        if self.classes is not None and len(self.classes) != len(card.classes) and not uncounted:
            raise RecipeError(
                f"classes: {name} has {len(card.classes)} classes ({', '.join(card.classes)}); got "
                f"{list(self.classes)}."
            )


@SEGMENTERS.register("unet")
@dataclass(frozen=True, slots=True)
class Unet(Network):
    """A U-Net (Ronneberger et al. 2015) trained with `maskloom train` or that comes with it."""

    use_when: ClassVar[str] = (
        "classes are known by shape and texture, and you have labelled some images; `weights: "
        "nuclei` for the pixels of nuclei in micrographs"
    )
    not_when: ClassVar[str] = "there are no labels, or a threshold does"
    reference: ClassVar[str] = (
        "Ronneberger, Fischer and Brox 2015, doi:10.1007/978-3-319-24574-4_28"
    )
    kind: ClassVar[str] = "unet"


@SEGMENTERS.register("fcn")
@dataclass(frozen=True, slots=True)
class Fcn(Network):
    """A fully convolutional network (Long et al. 2015) trained with `maskloom train`."""

    volumes: ClassVar[str] = PLANAR
    use_when: ClassVar[str] = "as unet, where outlines need not be exact to the pixel"
    not_when: ClassVar[str] = "thin or small structures: use unet"
    reference: ClassVar[str] = "Long, Shelhamer and Darrell 2015, doi:10.1109/CVPR.2015.7298965"
    kind: ClassVar[str] = "fcn"


@SEGMENTERS.register("deeplab")
@dataclass(frozen=True, slots=True)
class Deeplab(Network):
    """DeepLab v3+ (Chen et al. 2018), a network with dilated convolutions.

    It is trained with `maskloom train`.
    """

    volumes: ClassVar[str] = PLANAR
    use_when: ClassVar[str] = "as unet, where a pixel's class depends on much of what is around it"
    not_when: ClassVar[str] = "thin or small structures: use unet"
    reference: ClassVar[str] = "Chen et al. 2018, doi:10.1007/978-3-030-01234-2_49"
    kind: ClassVar[str] = "deeplab"


@MODELS.register("network")
@dataclass(frozen=True, slots=True)
class NetworkModel:
    """A network that is ready to run; each process that segments loads its weights once."""

    weights: Weights
    card: Card
    classes: tuple[str, ...]
    bands: tuple[int, ...] | None = None
    engine: EngineName | Literal["auto"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    blended: bool = False
    patch: int | tuple[int, ...] = 512
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
        if len(spec.shape) < self.card.dimensions:
            raise ModelMismatch(
                f"{spec.location} is an image; {file_name(self.weights.location)} is a network of "
                "volumes. Give it volumes, or use a network that was trained with `dimensions: 2`."
            )
        name, bands = (
            file_name(self.weights.location),
            self.bands or self._trained_bands(spec) or self._colours(spec),
        )
        if bands is None and (spec.channels != self.card.channels or self.card.bands is not None):
            hint = (
                [1] * self.card.channels
                if spec.channels == 1
                else list(range(1, self.card.channels + 1))
            )
            raise ModelMismatch(
                f"{spec.location} has {spec.channels} band(s); {name} was trained on "
                f"{self._bands_in_words}. Choose them with `bands`, for example {hint}."
            )
        if self.card.dtype and spec.dtype != self.card.dtype:
            raise ModelMismatch(
                f"{spec.location} has pixels of {spec.dtype}; {name} is made for "
                f"{self.card.dtype}, or has no card, and 8 bits are assumed. If it suits them too, "
                f"set `scaling`{self._scaling_for(spec)}."
            )
        return spec.select(bands)

    def _scaling_for(self, spec: RasterSpec) -> str:
        """How whole numbers of another range are shown as those of training were, with an example.
        Micrographs of 16 bits are common, and seldom fill their range.
        """
        known = np.dtype(self.card.dtype or "float32")
        if known.kind != "u" or np.dtype(spec.dtype).kind not in "iu":
            return ": {offset: ..., factor: ...}, (value - offset) * factor"
        greatest = min(int(np.iinfo(spec.dtype).max), _EXAMPLE)
        times = greatest / int(np.iinfo(known).max)
        scaling = self.card.scaling
        offset = [float(f"{times * each:.6g}") for each in scaling.offset]
        factor = [float(f"{each / times:.6g}") for each in scaling.factor]
        return (
            f", for values of 0 to {greatest} for example {{offset: {offset}, factor: {factor}}}; "
            "where your images reach twice as far, twice the offset and half the factor"
        )

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
        for place, scores in self._scored_regions(block):
            self._write_labels(scores, core[place])
        return Labels(labels)

    @score_by_plane
    def scores(self, block: Block) -> NDArray[np.float32]:
        """Return class probabilities (y, x, class), or (z, y, x, class); 0 and 1 if the network
        outputs class ids.
        """
        whole, core = self._without_scores(block)
        for place, scores in self._scored_regions(block):
            core[place] = self._probabilities(scores)
        return whole

    @segment_and_score_by_plane
    def segment_and_score(self, block: Block) -> tuple[Labels, NDArray[np.float32]]:
        """Return what `segment` and `scores` return."""
        labels, core = self._without_labels(block)
        whole, core_scores = self._without_scores(block)
        for place, scores in self._scored_regions(block):
            self._write_labels(scores, core[place])
            core_scores[place] = self._probabilities(scores)
        return Labels(labels), whole

    def maps(self, block: Block) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The class probabilities (y, x, class) and the vectors (y, x, 2: x and y) of the core of a
        block of an image; 0 where there is no data.
        """
        from maskloom.segcore.kernels.scores import softmax

        shape = block.tile.core.shape
        classes = np.zeros((*shape, len(self.classes)), np.float32)
        vectors = np.zeros((*shape, self.card.vectors), np.float32)
        for place, output in self._scored_regions(block):
            scores = self.card.class_part(output)
            if self._gives_logits and scores.shape[-1] > 1:
                softmax(scores, 1 / self.card.temperature, classes[place])
            else:
                classes[place] = self._probabilities(output)
            vectors[place] = output[..., output.shape[-1] - self.card.vectors :]
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

    def caution_of_sizes(self, spec: RasterSpec, sizes: Mapping[str, float]) -> str | None:  # noqa: ARG002
        """Return a warning if objects have a size that was never seen in training."""
        return self.card.caution_of_sizes(file_name(self.weights.location), self.classes, sizes)

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

    @property
    def _bands_in_words(self) -> str:
        return (
            str(self.card.channels)
            if self.card.bands is None
            else f"the bands {list(self.card.bands)}"
        )

    def _trained_bands(self, spec: RasterSpec) -> tuple[int, ...] | None:
        """Bands that the network was trained on, if the file has them."""
        bands = self.card.bands
        return bands if bands is not None and max(bands) <= spec.file_bands else None

    def _colours(self, spec: RasterSpec) -> tuple[int, ...] | None:
        """Bands of an image to use as red, green and blue; None if either is not colour."""
        if self.card.interpretation != "rgb":
            return None
        return (
            (1, 2, 3)
            if spec.interpretation == "rgb"
            else (1, 1, 1)
            if spec.file_bands == 1
            else None
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
    def _gives_logits(self) -> bool:
        """Whether scores are logits; averages over flips are probabilities."""
        return self.card.output == "logits" and len(self._orientations) == 1

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

    def _write_labels(self, scores: NDArray[np.float32], labels: NDArray[Any]) -> None:
        """Write the labels of a region for the network's output."""
        scores = self.card.class_part(scores)
        if self.card.output == "labels":
            labels[...] = self._ids(scores)
        elif scores.shape[-1] <= 2:
            # One comparison needs no compiled loop, whose library takes half a second to load. A
            # single score is that of the second class: its probability or its log-odds.
            single = scores.shape[-1] == 1
            first = (0.0 if self._gives_logits else 0.5) if single else scores[..., 0]
            np.greater(scores[..., -1], first, out=labels)
        else:
            from maskloom.segcore.kernels.scores import argmax_labels

            for plane, part in zip(_planes(scores, 3), _planes(labels, 2), strict=True):
                argmax_labels(plane, part)

    def _ids(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return class ids (y, x), or (z, y, x), that a network outputs directly.

        Raises `WeightsError` if there are no such classes.
        """
        if not 0 <= scores.min() <= scores.max() < len(self.classes):
            raise WeightsError(
                f"{file_name(self.weights.location)} gives class ids {scores.min():g} to "
                f"{scores.max():g}, but has {len(self.classes)} classes. "
                "Name all of them with `classes`."
            )
        ids: NDArray[np.float32] = scores[..., 0]
        return ids

    def _probabilities(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probabilities of a region for the network's output, at the temperature of the
        card.
        """
        if self.card.output == "labels":
            return np.asarray(
                self._ids(scores)[..., None] == np.arange(len(self.classes)), np.float32
            )
        classes = self._raw_probabilities(self.card.class_part(scores))
        return tempered(classes, self.card.temperature)

    def _raw_probabilities(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._gives_logits:
            scores = probabilities(scores)
        if scores.shape[-1] == 1:
            return np.concatenate([1 - scores, scores], axis=-1)
        return scores


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


def _micrometres(size: str | None) -> float | None:
    """The side of a pixel in um; None for any. Raises `ValueError`."""
    if size in (None, "any"):
        return None
    try:
        metric = PixelSize.parse(str(size)).metric(("y",))
    except ValueError as error:
        raise ValueError(f"pixel_size: {error}; or say any") from error
    return metric.spacing[0] * MILLIMETRES[metric.unit] / MILLIMETRES["um"]


def _looks_too_far(wanted: Windows, card: Card) -> bool:
    return wanted == "auto" and (
        not Patching.suits(card.reach)
        or (card.reach.farthest or 0) > _FARTHEST_EXACT[card.dimensions]
    )


def _numbers(value: int | Shape) -> Shape:
    return (value,) if isinstance(value, int) else value


def _planes(array: NDArray[Any], axes: int) -> Iterable[NDArray[Any]]:
    """The planes of a volume, each with `axes` axes; an image is one."""
    return array if array.ndim > axes else (array,)


def _length(layout: Patching | Windowing, axis: int) -> int:
    """Length of a patch or window inside an image along an axis, in pixels."""
    side = layout.sides[axis]
    if isinstance(layout, Windowing):
        return layout.windows(axis, 4 * side)[1].length
    halo = per_axis(layout.halo, layout.dimensions)[axis]
    first = (halo // side + 2) * side
    return layout.spans(axis, 2 * first + side, (first, first + 1))[0].length


def _card(weights: Weights) -> Card:
    """The card beside the weights, or else one made by examination."""
    from maskloom.segcore.deep.inference.files.examine import check_end, examine

    card = weights.card()
    if card is None:
        found = kept_card(weights, lambda: examine(weights))
        # Divided by 255, pixels of more than 8 bits would be far outside of what a network knows.
        assumed = not found.dtype and found.scaling == Scaling() and not weights.is_described
        return replace(found, dtype="uint8") if assumed else found
    check_end(weights)
    return card
