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
without a card is examined in a separate process. What segments is a
`segcore.deep.inference.network_model.NetworkModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.engines.protocol import EngineName, Precision
from maskloom.segcore.deep.inference.files.weights import Weights, WeightsLocation, file_name
from maskloom.segcore.deep.inference.flips import Flips
from maskloom.segcore.deep.inference.image_scaling import ScalingFitter
from maskloom.segcore.deep.inference.network_cache import kept_card
from maskloom.segcore.deep.inference.network_model import NetworkModel, scaled_by_image
from maskloom.segcore.deep.inference.patches import Patching
from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.errors import RecipeError, WeightsError
from maskloom.segcore.ground.space import MILLIMETRES, PixelSize
from maskloom.segcore.methods.naming import check_names
from maskloom.segcore.models.planes import PLANAR
from maskloom.segcore.models.protocols import SEGMENTERS, Exactness
from maskloom.segcore.models.rescaled import Rescaled

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape

Windows = Literal["auto", "exact", "blended"]
_PATCH, _LARGE_PATCH = 512, 1024
"""Sides of patches, in pixels. Both divide the default tile."""
_LARGE_HALO = 64
"""Halo beyond which a patch of 512 pixels computes more than half of its pixels for nothing."""
_LARGE_PATCH_BYTES = 1_000_000_000
_KINDS = {2: "image", 3: "volume"}
"""What networks take, by their axes."""
_FARTHEST_EXACT = {2: 512, 3: 64}
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
