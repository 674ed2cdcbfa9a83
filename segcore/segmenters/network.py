"""Networks: any trained network that gives every pixel a class.

`unet`, `fcn` and `deeplab` are those that maskloom trains, `network` is any `.keras`, `.onnx` or
`.tflite` file.

A network sees patches of the image that lie on a lattice of the image, not of the tile, so each
patch is computed from the same pixels in the same shape under any tiling, and the labels are the
same to the last pixel (`segcore.deep.inference.patches`). Where the network looks no farther than a
patch can be grown, the labels are also those of the network on the whole image, and it is EXACT. A
network that looks farther (global pooling, say) sees overlapping windows that are blended
(`segcore.deep.inference.blended_windows`), and is APPROXIMATE.

What is known of the network stands in the card beside its file (`segcore.deep.inference.card`); a
file without one is examined in a process of its own. Which engine runs it, and in which precision,
is chosen once for a run, on a worker and on pixels of the collection (`choose`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from maskloom.segcore.deep.inference import blended_windows as windows
from maskloom.segcore.deep.inference import patches
from maskloom.segcore.deep.inference.blended_windows import Windowing
from maskloom.segcore.deep.inference.card import Card, Scaling
from maskloom.segcore.deep.inference.engines.protocol import Choice, EngineName, Precision
from maskloom.segcore.deep.inference.files.weights import Weights, WeightsLocation, file_name
from maskloom.segcore.deep.inference.patches import Patching
from maskloom.segcore.deep.inference.runtime import LIBRARY_BYTES
from maskloom.segcore.errors import ModelMismatch, RecipeError, WeightsError
from maskloom.segcore.methods.naming import check_names
from maskloom.segcore.models.planes import PLANAR, planes_of, score_by_plane, segment_by_plane
from maskloom.segcore.models.protocols import MODELS, SEGMENTERS, Exactness, Requirements
from maskloom.segcore.raster.spec import Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.engines.protocol import Engine
    from maskloom.segcore.raster.spec import Block, RasterSpec

Windows = Literal["auto", "exact", "blended"]
_LARGEST_PROBE = 1024
"""Side of the largest patch that engines are tried on, in pixels."""
_FARTHEST_EXACT = 512
"""Pixels of halo beyond which exact patches cost more than most people want to pay, and `windows:
auto` blends.
"""


@SEGMENTERS.register("network")
@dataclass(frozen=True, slots=True)
class Network:
    """Any trained network: a `.keras`, `.onnx` or `.tflite` file that gives every pixel a class."""

    weights: WeightsLocation
    """The file, relative to the recipe, or the name of weights that come with maskloom: `nuclei`,
    for fluorescence micrographs; on stained tissue (H&E and the like) it finds tissue, not nuclei.
    """
    bands: tuple[int, ...] | None = None
    """Bands that the network sees, counted from 1, in its order. None: those of its training; grey
    pictures are grey colours to those of colours.
    """
    classes: tuple[str, ...] | None = None
    """Names by class id. None: those of the card beside the file, else class_0, class_1 ..."""
    scaling: Scaling | None = None
    """How pixels become input: {offset: [...], factor: [...]}, (value - offset) * factor. None: as
    the card says, else factor 1/255.
    """
    engine: EngineName | Literal["auto"] = "auto"
    """What computes: tensorflow, openvino, onnxruntime, litert. auto: the fastest that is
    installed.
    """
    precision: Precision | Literal["auto"] = "auto"
    """float32, bfloat16. auto: the faster one that keeps at least 99.9 % of the labels of float32
    on a probe of the collection.
    """
    windows: Windows = "auto"
    """exact: patches with all that the network looks at. blended: overlapping windows. auto: exact
    where the network looks at most 512 pixels far.
    """
    halo: int | None = None
    """Pixels that the network looks at to each side, confirmed by a trial before work begins. None:
    as the card or the measurement of a `.keras` file says; other files are run in blended windows.
    """
    patch: int = 512
    """Side of what a patch labels, without what it looks at around, in pixels. More of it is faster
    up to a point, and takes more memory.
    """
    trust: bool = False
    """Load a file that could run code of its own (Lambda layers, .h5). Only for files whose maker
    you trust.
    """

    exactness: ClassVar[Exactness] = Exactness.EXACT
    units: ClassVar[str] = (
        "pixels must come in the units of training; `scaling` brings others to these"
    )
    volumes: ClassVar[str] = PLANAR
    kind: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        if self.bands is not None and (not self.bands or min(self.bands) < 1):
            raise ValueError(f"bands: expected numbers from 1 on; got {list(self.bands)}")
        if self.halo is not None and self.halo < 0:
            raise ValueError(f"halo: expected 0 or more pixels; got {self.halo}")
        if not 32 <= self.patch <= 8192:
            raise ValueError(f"patch: expected 32 to 8192 pixels; got {self.patch}")
        if self.classes is not None:
            check_names(self.classes)

    def start(self) -> NetworkModel:
        """The model, ready to run. Raises `WeightsError` where the file is not such a network,
        `RecipeError` where the rest does not suit it.
        """
        weights = Weights.of(self.weights, self.trust)
        card = weights.card() or _examined(weights)
        if self.halo is not None:
            card = self._with_halo(card, self.halo)
        self._check(card)
        channels = card.channels
        scaling = self.scaling or card.scaling
        for name, values in (("offset", scaling.offset), ("factor", scaling.factor)):
            if len(values) not in (1, channels):
                raise RecipeError(
                    f"scaling.{name}: the network has {channels} bands; expected 1 or {channels} "
                    f"numbers, got {len(values)}."
                )
        if self.windows == "exact" and not Patching.suits(card.reach):
            raise RecipeError(
                f"windows: {file_name(self.weights)} looks farther than patches can be grown "
                "(global pooling, or one small size of input). "
                "Use auto or blended."
            )
        return NetworkModel(
            weights=weights,
            card=card if self.scaling is None else replace(card, scaling=self.scaling, dtype=""),
            classes=self.classes or card.classes,
            bands=self.bands,
            engine=self.engine,
            precision=self.precision,
            blended=self.windows == "blended" or _looks_too_far(self.windows, card),
            patch=self.patch,
        )

    def _with_halo(self, card: Card, halo: int) -> Card:
        if card.reach.fixed is not None:
            raise RecipeError(
                f"halo: {file_name(self.weights)} takes images of one size only, "
                f"{' x '.join(map(str, card.reach.fixed))} pixels, so the halo cannot be "
                "confirmed. Leave it out (windows are then blended), or write a card with `reach`."
            )
        return replace(card, reach=replace(card.reach, halo=halo))

    def _check(self, card: Card) -> None:
        from maskloom.segcore.deep.inference.files.examine import MOST_LABELS

        name = file_name(self.weights)
        if card.output == "objects" and card.kind != "mask_rcnn":
            raise WeightsError(
                f"weights: {name} finds objects; kind {self.kind} wants a network that gives every "
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
    """A U-Net (Ronneberger et al. 2015) trained with `maskloom train`, or one that comes with
    maskloom.
    """

    kind: ClassVar[str] = "unet"


@SEGMENTERS.register("fcn")
@dataclass(frozen=True, slots=True)
class Fcn(Network):
    """A fully convolutional network (Long et al. 2015) trained with `maskloom train`."""

    kind: ClassVar[str] = "fcn"


@SEGMENTERS.register("deeplab")
@dataclass(frozen=True, slots=True)
class Deeplab(Network):
    """A network of dilated convolutions, DeepLab v3+ (Chen et al. 2018), trained with `maskloom
    train`.
    """

    kind: ClassVar[str] = "deeplab"


@MODELS.register("network")
@dataclass(frozen=True, slots=True)
class NetworkModel:
    """A network that is ready to run; its weights are loaded once in each process that segments."""

    weights: Weights
    card: Card
    classes: tuple[str, ...]
    bands: tuple[int, ...] | None = None
    engine: EngineName | Literal["auto"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    blended: bool = False
    patch: int = 512
    choice: Choice | None = None
    """None: float32 in the engine that reads such files."""

    @property
    def exactness(self) -> Exactness:
        """Exact unless windows are blended."""
        return Exactness.APPROXIMATE if self.blended else Exactness.EXACT

    @property
    def layout(self) -> Patching | Windowing:
        """How patches or windows lie over an image."""
        if self.blended:
            return Windowing(
                self.card.reach, self.patch, "cut" if self.card.output == "labels" else "blended"
            )
        return Patching(self.card.reach, self.patch)

    @property
    def footprint(self) -> Requirements:
        """What patches look at around a tile; beside the tile, memory for libraries, weights and
        one patch.
        """
        layout = self.layout
        # Weights lie in memory as they were read, in the engine, and in a second precision.
        rows, columns = (_length(layout, axis) for axis in (0, 1))
        fixed = (
            LIBRARY_BYTES + 12 * self.card.parameters + self.card.bytes_per_pixel * rows * columns
        )
        return Requirements(layout.halo, 16 + 8 * self.card.channels, 200, fixed, planar=True)

    @property
    def open_choice(self) -> str | None:
        """The weights, what is asked of engine and precision, and how patches lie; None once they
        are chosen.
        """
        if self.choice is not None:
            return None
        windows, (height, width) = "blended" if self.blended else "exact", self.layout.sides
        return (
            f"{self.weights.sha256[:16]} {self.engine} {self.precision} {windows} {height} x "
            f"{width}"
        )

    def choose(self, block: Block) -> Mapping[str, Any]:
        """The fastest engine and precision for one patch in the middle of the block, and what was
        tried.
        """
        from maskloom.segcore.deep.inference.engines.selection import choose

        card, plane = replace(self.card, classes=self.classes), next(planes_of(block))
        choice = choose(self.weights, card, self._probe(plane), self.engine, self.precision)
        if not self.blended and self.card.reach.fixed is None:
            self._confirm_reach(choice)
        return asdict(choice)

    def chosen(self, choice: Mapping[str, Any]) -> Self:
        """The model that runs as was chosen."""
        return replace(self, choice=Choice(**choice))

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the network's bands. Raises `ModelMismatch` where it has others, or pixels
        of a type that scaling is not made for.
        """
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
                f"{self._told_bands}. Choose them with `bands`, such as {hint}."
            )
        if self.card.dtype and spec.dtype != self.card.dtype:
            raise ModelMismatch(
                f"{spec.location} has pixels of {spec.dtype}; {name} was trained on "
                f"{self.card.dtype}. "
                "If it suits them all the same, say how they are to be scaled: `scaling: {offset: "
                "..., factor: ...}`."
            )
        return spec.select(bands)

    @segment_by_plane
    def segment(self, block: Block) -> Labels:
        """The class with the greatest score for every pixel of the core."""
        from maskloom.segcore.kernels.scores import likelier, likeliest

        labels = np.zeros(block.valid.shape, np.uint8 if len(self.classes) <= 256 else np.uint16)
        core = labels[block.tile.core.relative_to(block.tile.read).slices]
        for place, scores in self._pieces(block):
            if self.card.output == "labels":
                core[place] = self._ids(scores)
            elif scores.shape[-1] == 1:
                # One number for the second of two classes: its probability, or the logarithm of its
                # odds.
                likelier(scores, 0.5 if self.card.output == "sigmoid" else 0.0, core[place])
            else:
                likeliest(scores, core[place])
        return Labels(labels)

    @score_by_plane
    def scores(self, block: Block) -> NDArray[np.float32]:
        """Probabilities of the classes; 1 for one of them where the network gives labels only."""
        whole = np.zeros((*block.valid.shape, len(self.classes)), np.float32)
        whole[..., 0] = 1
        core = whole[block.tile.core.relative_to(block.tile.read).slices]
        for place, scores in self._pieces(block):
            core[place] = self._probabilities(scores)
        return whole

    def provenance(self) -> Mapping[str, Any]:
        """The weights, and what runs them."""
        running = self.running
        return {
            "weights": file_name(self.weights.location),
            "sha256": self.weights.sha256,
            "engine": running.engine,
            "precision": running.precision,
            "windows": "blended" if self.blended else "exact",
            "halo": self.layout.halo,
        }

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:  # noqa: ARG002  shares say it all
        """What to look at where a class has a share of the image that training never saw."""
        return self.card.caution(file_name(self.weights.location), self.classes, shares)

    @property
    def running(self) -> Choice:
        """The engine and precision that were chosen, or that all machines have."""
        if self.choice is not None:
            return self.choice
        reference: EngineName = {".onnx": "onnxruntime", ".tflite": "litert"}.get(
            self.weights.suffix, "tensorflow"
        )  # type: ignore[assignment]
        return Choice(
            reference if self.engine == "auto" else self.engine,
            "float32" if self.precision == "auto" else self.precision,
        )

    def _confirm_reach(self, choice: Choice) -> None:
        """Raises `WeightsError` where the network looks farther than its card says: tiles would
        show.
        """
        from maskloom.segcore.deep.inference.engines.opening import open_engine
        from maskloom.segcore.deep.inference.receptive_field.measure import confirmed

        said, engine = self.card.reach, open_engine(self.weights, self.card, choice)
        # Copies: what an engine gives is valid until the next patch only.
        found = confirmed(said, lambda pixels: np.array(engine(pixels)), self.card.channels)
        if found.halo != said.halo:
            farther = "the whole image" if found.halo is None else f"at least {found.halo} pixels"
            raise WeightsError(
                f"{file_name(self.weights.location)} looks {farther} far; `halo` or its "
                f"card says {said.halo}. Set another halo; remove a card that was changed or is "
                "another network's; or set windows: blended."
            )

    @property
    def _told_bands(self) -> str:
        return (
            str(self.card.channels)
            if self.card.bands is None
            else f"the bands {list(self.card.bands)}"
        )

    def _trained_bands(self, spec: RasterSpec) -> tuple[int, ...] | None:
        """The bands that the network was trained on, where the file has them."""
        bands = self.card.bands
        return bands if bands is not None and max(bands) <= spec.file_bands else None

    def _colours(self, spec: RasterSpec) -> tuple[int, ...] | None:
        """The bands of a picture that a network of colours sees as red, green and blue; None where
        either is something else.
        """
        if self.card.interpretation != "rgb":
            return None
        return (
            (1, 2, 3)
            if spec.interpretation == "rgb"
            else (1, 1, 1)
            if spec.file_bands == 1
            else None
        )

    def _pieces(self, block: Block) -> Iterator[tuple[tuple[slice, ...], NDArray[np.float32]]]:
        """Pieces of the core, and the network's output for them."""
        from maskloom.segcore.deep.inference.engines.opening import open_engine

        engine: Engine = open_engine(self.weights, self.card, self.running)
        seen, prepare, layout = self._without_gaps(block), self.card.scaling.apply, self.layout
        if isinstance(layout, Windowing):
            return windows.core_scores(seen, layout, prepare, engine)
        return patches.core_scores(seen, layout, prepare, engine)

    def _without_gaps(self, block: Block) -> Block:
        """The block with its invalid pixels at the value that becomes 0: what lies there (nodata,
        NaN) must not reach its neighbours.
        """
        if block.valid.all():
            return block
        # As float32, as scaling takes them: an offset of 103.9 is no value of eight bits.
        pixels = block.pixels.astype(np.float32)
        pixels[~block.valid] = np.array(self.card.scaling.offset, np.float32)
        return replace(block, pixels=pixels)

    def _probe(self, block: Block) -> NDArray[np.float32]:
        """The scaled middle of the block, as large as a patch inside an image and mirrored where
        the block is smaller.
        """
        pixels = self._without_gaps(block).pixels
        # What is fastest there is so on larger patches too.
        layout = replace(self, patch=min(self.patch, _LARGEST_PROBE)).layout
        for axis in (0, 1):
            size, length = pixels.shape[axis], _length(layout, axis)
            first = (size - length) // 2
            pixels = np.take(pixels, patches.mirrored(np.arange(first, first + length), size), axis)
        return self.card.scaling.apply(pixels)

    def _ids(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class ids (y, x) that a network gives by itself. Raises `WeightsError` where there are no
        such classes.
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
        if self.card.output == "labels":
            return np.asarray(
                self._ids(scores)[..., None] == np.arange(len(self.classes)), np.float32
            )
        if self.card.output == "logits" and scores.shape[-1] == 1:
            scores = np.asarray(1 / (1 + np.exp(-scores)), np.float32)
        if scores.shape[-1] == 1:
            return np.concatenate([1 - scores, scores], axis=-1)
        if self.card.output == "logits":
            powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
        return scores


def _looks_too_far(wanted: Windows, card: Card) -> bool:
    return wanted == "auto" and (
        not Patching.suits(card.reach) or (card.reach.halo or 0) > _FARTHEST_EXACT
    )


def _length(layout: Patching | Windowing, axis: int) -> int:
    """Pixels of a patch or window that lies inside an image, along an axis."""
    side = layout.sides[axis]
    if isinstance(layout, Windowing):
        return layout.windows(axis, 4 * side)[1].length
    first = (layout.halo // side + 2) * side
    return layout.spans(axis, 2 * first + side, (first, first + 1))[0].length


def _examined(weights: Weights) -> Card:
    from maskloom.segcore.deep.inference.files.examine import examine

    return examine(weights)
