"""Cards: metadata of a trained network, read without loading the network.

A card is stored beside the weights under the same name with the suffix `.json`. `maskloom train`
writes it; for a file without a card, `segcore.deep.inference.files.examine` determines its
contents. The card holds everything the driver needs to know of a network (classes, bands,
requirements on tiling), so that TensorFlow is loaded on workers only.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from maskloom.segcore.errors import WeightsError
from maskloom.segcore.geometry import by_axis
from maskloom.segcore.raster.classes import BACKGROUND_NAMES
from maskloom.segcore.raster.colours import parse_colour
from maskloom.segcore.storage.canonical import with_tuples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape

Output = Literal["scores", "logits", "sigmoid", "labels", "objects"]
"""Output of a network per pixel.

`scores` are probabilities, `logits` their logarithms up to a constant, `sigmoid` one probability of
the second class, `labels` a class id; `objects` are the detections of a Mask R-CNN.
"""
_SUFFIX = ".json"
_GREATEST = 1e30
_LEAST_SHARE, _MOST_SLACK = 1e-6, 2.0
"""Beyond this value, the product with a pixel may be infinite in float32."""
_LARGEST = 2**16
"""Maximum plausible number of pixels or bands in a card."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Scaling of pixels to network input, equal for all pixels and images.

    The input is (value - offset) * factor. Scaling never uses the extremes or the mean of a tile or
    an image, because the result would depend on the tiling.
    """

    offset: tuple[float, ...] = (0.0,)
    """One number per band, or one for all bands."""
    factor: tuple[float, ...] = (1 / 255,)
    """One number per band, or one for all bands."""

    # Read by pydantic, which otherwise ignores unknown keys of a dataclass inside a section.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, values in (("offset", self.offset), ("factor", self.factor)):
            if not values or not all(abs(value) < _GREATEST for value in values):
                raise ValueError(
                    f"scaling.{name}: expected finite numbers, one for all bands or one a band; "
                    f"got {list(values)}"
                )
        if not all(self.factor):
            raise ValueError(
                "scaling.factor: expected numbers other than 0, which would hide the image; got "
                f"{list(self.factor)}"
            )

    def apply(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return scaled pixels (..., band) as a new float32 array."""
        scaled = pixels.astype(np.float32, order="C")
        # Row by row of pixels: numpy is ten times slower on rows of three numbers.
        *others, width, bands = (1, *scaled.shape) if scaled.ndim == 1 else scaled.shape
        rows = scaled.reshape(*others, width * bands)
        if any(self.offset):
            rows -= _along(self.offset, width)
        if any(factor != 1 for factor in self.factor):
            rows *= _along(self.factor, width)
        return scaled


def _along(values: Sequence[float], pixels: int) -> NDArray[np.float32]:
    """Numbers of bands for a row of pixels; one number for all bands stays one."""
    numbers = np.array(values, np.float32)
    return numbers if len(numbers) == 1 else np.tile(numbers, pixels)


@dataclass(frozen=True, slots=True)
class AxisReach:
    """A receptive field along one axis, in pixels; the fields are those of `ReceptiveField`."""

    halo: int | None
    stride: int
    margin: int
    residue: int
    fixed: int | None = None

    def fitting(self, least: int) -> int:
        """The smallest size from `least` on that the network takes along this axis; a fixed size
        is always itself.
        """
        return self.fixed or least + (self.residue - least) % self.stride


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """Receptive field and valid sizes of a network, as measured.

    A value is one number for all axes, or one per axis, in the order of the axes: a network of
    volumes often looks less far across planes than in them.
    """

    halo: int | Shape | None
    """Maximum distance in pixels over which an output pixel depends on the input. None: it may
    depend on the whole image.
    """
    stride: int | Shape = 1
    """Shifting the input by multiples of this many pixels shifts the output by as many. Height and
    width must be multiples of it, or have the form that `residue` defines.
    """
    margin: int | Shape = 0
    """Pixels by which the output is smaller than the input on each side (unpadded convolutions). 0:
    input and output have the same size.
    """
    residue: int | Shape = 0
    """Height and width modulo `stride`; nonzero only with a margin (572 = 12 modulo 16)."""
    fixed: Shape | None = None
    """The only (height, width), or (depth, height, width), that the file accepts. None: any size
    that fits the stride.
    """

    @classmethod
    def of_axes(cls, axes: Sequence[AxisReach]) -> ReceptiveField:
        """The field of some axes; without a finite halo if one of them has none."""
        halos = [each.halo for each in axes if each.halo is not None]
        fixed = tuple(each.fixed for each in axes if each.fixed is not None)
        return cls(
            by_axis(halos) if len(halos) == len(axes) else None,
            by_axis([each.stride for each in axes]),
            by_axis([each.margin for each in axes]),
            by_axis([each.residue for each in axes]),
            fixed or None,
        )

    def __post_init__(self) -> None:
        if len(self.lengths) > 1 or not self.lengths <= {2, 3}:
            raise ValueError(
                "reach: expected one number for all axes, or one for each of 2 or 3 axes; got "
                f"lists of {sorted(self.lengths)} numbers"
            )
        for axis in range(max(self.lengths, default=1)):
            along = self.along(axis)
            _check_count("reach.halo", along.halo or 0, 0, _LARGEST)
            _check_count("reach.stride", along.stride, 1, _LARGEST)
            _check_count("reach.margin", along.margin, 0, _LARGEST)
            _check_count("reach.residue", along.residue, 0, along.stride - 1)
            if self.fixed is not None:
                _check_count("reach.fixed", along.fixed, 1, _LARGEST)

    @property
    def lengths(self) -> set[int]:
        """How many axes have numbers of their own, as far as there are such."""
        values = (self.halo, self.stride, self.margin, self.residue, self.fixed)
        return {len(value) for value in values if isinstance(value, tuple)}

    def along(self, axis: int) -> AxisReach:
        """The field along an axis, counted from 0."""

        def of(value: int | Shape) -> int:
            return value[axis] if isinstance(value, tuple) else value

        return AxisReach(
            None if self.halo is None else of(self.halo),
            of(self.stride),
            of(self.margin),
            of(self.residue),
            None if self.fixed is None else self.fixed[axis],
        )

    def axes(self, dimensions: int) -> tuple[AxisReach, ...]:
        """The field along each axis."""
        return tuple(self.along(axis) for axis in range(dimensions))

    def output_sizes(self, sizes: Shape) -> Shape:
        """The sizes of the output for an input of these sizes."""
        axes = self.axes(len(sizes))
        return tuple(size - 2 * reach.margin for size, reach in zip(sizes, axes, strict=True))

    @property
    def farthest(self) -> int | None:
        """The largest halo of all axes. None: unbounded."""
        return max(self.halo) if isinstance(self.halo, tuple) else self.halo


@dataclass(frozen=True, slots=True)
class Card:
    """Metadata of a weights file."""

    kind: str
    """unet, fcn, deeplab, mask_rcnn, or network for any other."""
    sha256: str
    """Digest of the weights file that this card belongs to."""
    channels: int
    """Number of input bands."""
    classes: tuple[str, ...]
    """Names of the classes by class id; for objects, class 0 is the background."""
    scaling: Scaling
    reach: ReceptiveField
    output: Output = "scores"
    dimensions: int = 2
    """2: the network takes images, 3: volumes."""
    vectors: int = 0
    """2: behind the classes, each pixel has a vector x, y from the middle of its object, each
    divided by the object's reach to that side (-1 to 1). 0: the network gives classes only.
    """
    parameters: int = 0
    """Number of weights."""
    bytes_per_pixel: int = 2048
    """Peak memory per pixel or voxel of a patch in float32, as measured."""
    dtype: str = ""
    """NumPy name of the pixel type that `scaling` is meant for. Empty: unknown."""
    interpretation: str = "bands"
    """`rgb` if the bands are red, green and blue: the network then uses these bands of any colour
    image, and the band of a grey image for all three.
    """
    network: Mapping[str, Any] | None = None
    """Recipe of a network of ours (`segcore.deep.networks`): only arrays are then read from the
    file. None: the file describes its own graph.
    """
    pixel_size: float | None = None
    """Side of the pixels in training, in um. None: unknown, or of several sizes."""
    temperature: float = 1.0
    """What the logits are divided by for scores that can be believed, fitted to validation images
    (`segcore.models.calibration`). It changes no label. 1: as the network gives them.
    """
    colours: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Colours of classes in masks, by name, as `#rrggbb`. They decide no label."""
    about: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Provenance: data and their digest, licence, epochs, metrics, versions. Informative only,
    except for `bands`, for `largest_object`, which sets the halo of `mask_rcnn`, and for `shares`
    and `sizes`, of which warnings speak.
    """

    def __post_init__(self) -> None:
        for name in ("kind", "sha256", "output", "dtype", "interpretation"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: expected a text; got {getattr(self, name)!r}")
        if self.output not in get_args(Output):
            raise ValueError(
                f"output: expected one of {', '.join(get_args(Output))}; got {self.output!r}"
            )
        if not all(isinstance(name, str) and name for name in self.classes) or not 0 < len(
            set(self.classes)
        ) == len(self.classes):
            raise ValueError(f"classes: expected different names; got {list(self.classes)}")
        self._check_colours()
        if not isinstance(self.about, Mapping):
            raise ValueError(f"about: expected names and values; got {self.about!r}")
        if not isinstance(self.network, Mapping | None):
            raise ValueError(f"network: expected names and values; got {self.network!r}")
        size = self.pixel_size
        if size is not None and not (isinstance(size, int | float) and 0 < size < _GREATEST):
            raise ValueError(f"pixel_size: expected um above 0, or null; got {size!r}")
        if not (isinstance(self.temperature, int | float) and 0 < self.temperature < _GREATEST):
            raise ValueError(f"temperature: expected a number above 0; got {self.temperature!r}")
        _check_count("channels", self.channels, 1, _LARGEST)
        _check_count("dimensions", self.dimensions, 2, 3)
        self._check_vectors()
        if not self.reach.lengths <= {self.dimensions}:
            raise ValueError(
                f"reach: expected numbers for {self.dimensions} axes; got "
                f"{sorted(self.reach.lengths)}"
            )
        _check_count("parameters", self.parameters, 0, 10**12)
        _check_count("bytes_per_pixel", self.bytes_per_pixel, 1, 10**8)

    def _check_vectors(self) -> None:
        if self.vectors not in (0, self.dimensions) or (
            self.vectors and (self.dimensions > 2 or self.output in ("labels", "objects"))
        ):
            raise ValueError(
                "vectors: expected 2, beside scores of classes in a network of images, or 0; got "
                f"{self.vectors!r}"
            )

    def _check_colours(self) -> None:
        if not isinstance(self.colours, Mapping):
            raise ValueError(f"colours: expected names and colours; got {self.colours!r}")
        for name, colour in self.colours.items():
            if name not in self.classes:
                raise ValueError(f"colours: expected names of `classes`; got {name!r}")
            parse_colour(colour)

    @property
    def bands(self) -> tuple[int, ...] | None:
        """Bands of the training files, counted from 1. None: all in order, or unknown."""
        recorded = self.about.get("bands")
        if (
            not isinstance(recorded, list | tuple)
            or len(recorded) != self.channels
            or not all(isinstance(band, int) for band in recorded)
        ):
            return None
        return (
            None
            if list(recorded) == list(range(1, self.channels + 1)) or min(recorded) < 1
            else tuple(recorded)
        )

    @property
    def shares(self) -> tuple[tuple[float, float] | None, ...]:
        """Range of each class's share of an image's labelled pixels in training, by class id.

        A range is (least, greatest), as fractions. None: unknown.
        """
        return self._ranges("shares", 1.0)

    @property
    def sizes(self) -> tuple[tuple[float, float] | None, ...]:
        """Range of the median size of the objects of each class in a training image, by class id.

        A range is (least, greatest), in pixels. None: unknown.
        """
        return self._ranges("sizes", _GREATEST)

    def _ranges(self, of: str, most: float) -> tuple[tuple[float, float] | None, ...]:
        recorded = self.about.get(of)
        known = recorded if isinstance(recorded, Mapping) else {}
        return tuple(_range(known.get(name), most) for name in self.classes)

    def _is_unusual(self, value: float, seen: tuple[float, float]) -> bool:
        """Whether a share or size lies outside a range of training.

        Of 2 in n + 1 images of the same kind it lies outside the range of n others. So the range of
        n images is widened, by a factor that is soon 1 (1.03 for `nuclei`) and at most 2.
        """
        data = self.about.get("data")
        images = data.get("training_images") if isinstance(data, Mapping) else None
        least, greatest = seen
        slack = 1.0
        if isinstance(images, int):
            ratio = max(greatest, _LEAST_SHARE) / max(least, _LEAST_SHARE)
            # ratio ** (3 / (images - 1)), which may be too large for a number.
            power = 3 * math.log(ratio) / (images - 1) if images > 2 else math.inf
            slack = math.exp(min(power, math.log(_MOST_SLACK)))
        return not least / slack <= value <= greatest * slack

    def caution(
        self, weights: str, classes: Sequence[str], shares: Mapping[str, float]
    ) -> str | None:
        """Warn if the class shares of an image lie clearly outside the range seen in training.

        `weights` is the name shown to the user, `shares` maps class names to fractions of the
        image's pixels. Returns None if the shares were seen in training. The background is the
        remainder and is not checked.
        """
        unusual = []
        for name, seen in zip(classes, self.shares, strict=False):
            share = shares.get(name)
            if (
                share is not None
                and seen is not None
                and name.lower() not in BACKGROUND_NAMES
                and self._is_unusual(share, seen)
            ):
                unusual.append(
                    f"{name} {share:.2%} (in training {seen[0]:.2%} to {seen[1]:.2%} of an image)"
                )
        if not unusual:
            return None
        return (
            f"{weights} may not suit this kind of image: {', '.join(unusual)}. Look at the preview"
        )

    def caution_of_sizes(
        self, weights: str, classes: Sequence[str], sizes: Mapping[str, float]
    ) -> str | None:
        """Warn if the median size of the objects of a class in an image lies outside the range seen
        in training.

        `weights` is the name shown to the user, `sizes` maps class names to pixels. Returns None if
        the sizes were seen in training.
        """
        unusual = [
            f"{name} {sizes[name]:.6g} pixels (in training {seen[0]:.6g} to {seen[1]:.6g})"
            for name, seen in zip(classes, self.sizes, strict=False)
            if name in sizes and seen is not None and self._is_unusual(sizes[name], seen)
        ]
        if not unusual:
            return None
        return (
            f"{weights} may not suit objects of this size: the median is {', '.join(unusual)}. "
            "Look at the preview"
        )

    @property
    def output_channels(self) -> int:
        """Numbers per pixel in the output: one per class, or one probability or class id; then
        the vector.
        """
        return (1 if self.output in ("sigmoid", "labels") else len(self.classes)) + self.vectors

    def class_part(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output (..., class) without the vectors, as a view."""
        return output[..., : output.shape[-1] - self.vectors]

    def dump(self) -> bytes:
        """Return the card as the contents of a JSON file."""
        fields = dataclasses.asdict(self)
        # Earlier versions refuse keys that they do not know.
        if not self.colours:
            del fields["colours"]
        if self.temperature == 1.0:
            del fields["temperature"]
        if self.vectors == 0:
            del fields["vectors"]
        return (json.dumps({"card": 1, **fields}, indent=1) + "\n").encode()

    @classmethod
    def load(cls, content: bytes, where: str) -> Card:
        """Parse the JSON of a card found at `where`. Raises `WeightsError` if it is invalid."""
        try:
            record = json.loads(content)
            if record.pop("card") != 1:
                raise ValueError("it is of another version")
            scaling = Scaling(
                **{
                    name: tuple(map(float, values))
                    for name, values in record.pop("scaling").items()
                }
            )
            if not isinstance(record["classes"], list):
                raise ValueError("classes: expected a list of names")
            receptive_field = {
                name: with_tuples(value) for name, value in record.pop("reach").items()
            }
            if record.get("network") is not None:
                record["network"] = {
                    name: with_tuples(value) for name, value in record["network"].items()
                }
            card = cls(
                **{**record, "classes": tuple(record["classes"])},
                scaling=scaling,
                reach=ReceptiveField(**receptive_field),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WeightsError(
                f"{where} is not the card of a network: {error}. Train again, or remove it and "
                "name classes in the recipe."
            ) from error
        return card


def card_name(weights: str) -> str:
    """Return the location of the card of a weights file or folder.

    >>> card_name("s3://models/nuclei.keras")
    's3://models/nuclei.json'
    """
    weights = weights.rstrip("/")
    stem, dot, suffix = weights.rpartition(".")
    return (stem if dot and "/" not in suffix else weights) + _SUFFIX


def _range(recorded: object, most: float) -> tuple[float, float] | None:
    """Two ascending numbers from 0 to `most`; None for anything else."""
    if (
        not isinstance(recorded, list | tuple)
        or len(recorded) != 2
        or not all(isinstance(value, int | float) for value in recorded)
    ):
        return None
    least, greatest = map(float, recorded)
    return (least, greatest) if 0 <= least <= greatest <= most else None


def _check_count(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name}: expected a whole number from {least} to {most}; got {value!r}")
