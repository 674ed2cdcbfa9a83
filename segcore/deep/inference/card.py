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
from typing import TYPE_CHECKING, Any, Literal, get_args

from maskloom.segcore.deep.inference.receptive_field.field import (
    LARGEST,
    ReceptiveField,
    check_count,
)
from maskloom.segcore.deep.inference.scaling import (
    AS_THEY_ARE,
    GREATEST,
    ImageScaling,
    Scaling,
)
from maskloom.segcore.errors import WeightsError
from maskloom.segcore.raster.classes import BACKGROUND_NAMES
from maskloom.segcore.raster.colours import parse_colour
from maskloom.segcore.storage.canonical import with_tuples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from maskloom.segcore.models.typical import TypicalObjects

Output = Literal["scores", "logits", "sigmoid", "labels", "objects"]
"""Output of a network per pixel.

`scores` are probabilities, `logits` their logarithms up to a constant, `sigmoid` one probability of
the second class, `labels` a class id; `objects` are the detections of a Mask R-CNN.
"""
_SUFFIX = ".json"
_LEAST_SHARE, _MOST_SLACK = 1e-6, 2.0
"""Below this share a class counts as equally rare; a range of few images is widened by at most this
factor.
"""


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
    """Beside `image_scaling`, that of no change."""
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
    image_scaling: ImageScaling | None = None
    """How the values of each image scale it. None: `scaling` does."""
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
        self._check_scaling()
        if not isinstance(self.about, Mapping):
            raise ValueError(f"about: expected names and values; got {self.about!r}")
        if not isinstance(self.network, Mapping | None):
            raise ValueError(f"network: expected names and values; got {self.network!r}")
        size = self.pixel_size
        if size is not None and not (isinstance(size, int | float) and 0 < size < GREATEST):
            raise ValueError(f"pixel_size: expected um above 0, or null; got {size!r}")
        if not (isinstance(self.temperature, int | float) and 0 < self.temperature < GREATEST):
            raise ValueError(f"temperature: expected a number above 0; got {self.temperature!r}")
        check_count("channels", self.channels, 1, LARGEST)
        check_count("dimensions", self.dimensions, 2, 3)
        self._check_vectors()
        if not self.reach.lengths <= {self.dimensions}:
            raise ValueError(
                f"reach: expected numbers for {self.dimensions} axes; got "
                f"{sorted(self.reach.lengths)}"
            )
        check_count("parameters", self.parameters, 0, 10**12)
        check_count("bytes_per_pixel", self.bytes_per_pixel, 1, 10**8)

    def _check_vectors(self) -> None:
        if self.vectors not in (0, self.dimensions) or (
            self.vectors and (self.dimensions > 2 or self.output in ("labels", "objects"))
        ):
            raise ValueError(
                "vectors: expected 2, beside scores of classes in a network of images, or 0; got "
                f"{self.vectors!r}"
            )

    def _check_scaling(self) -> None:
        if self.image_scaling is not None and self.scaling != AS_THEY_ARE:
            raise ValueError(
                "scaling: expected offset 0 and factor 1 beside image_scaling; got "
                f"{list(self.scaling.offset)} and {list(self.scaling.factor)}"
            )

    def _check_colours(self) -> None:
        if not isinstance(self.colours, Mapping):
            raise ValueError(f"colours: expected names and colours; got {self.colours!r}")
        for name, colour in self.colours.items():
            if name not in self.classes:
                raise ValueError(f"colours: expected names of `classes`; got {name!r}")
            parse_colour(colour)

    def scaled_by(self, scaling: Scaling | ImageScaling) -> Card:
        """The card with another scaling, which is meant for pixels of any type."""
        if isinstance(scaling, ImageScaling):
            return dataclasses.replace(self, scaling=AS_THEY_ARE, image_scaling=scaling, dtype="")
        return dataclasses.replace(self, scaling=scaling, image_scaling=None, dtype="")

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
        return self._ranges("sizes", GREATEST)

    def _ranges(self, of: str, most: float) -> tuple[tuple[float, float] | None, ...]:
        recorded = self.about.get(of)
        known = recorded if isinstance(recorded, Mapping) else {}
        return tuple(_range(known.get(name), most) for name in self.classes)

    @property
    def scores(self) -> tuple[tuple[float, float] | None, ...]:
        """Of the median scores of the objects of each class in a validation image, by class id: the
        least and the median. None: unknown.
        """
        return self._ranges("scores", 1.0)

    def _is_unusual(self, value: float, seen: tuple[float, float]) -> bool:
        """Whether a share or size lies outside a range of training."""
        least, greatest = seen
        slack = self._slack(seen, "training_images")
        return not least / slack <= value <= greatest * slack

    def _slack(self, seen: tuple[float, float], of: str) -> float:
        """The factor by which a range of some images is widened.

        Of 2 in n + 1 images of the same kind a value lies outside the range of n others. So the
        factor is soon 1 (1.03 for the training images of `nuclei`) and at most 2.
        """
        data = self.about.get("data")
        images = data.get(of) if isinstance(data, Mapping) else None
        if not isinstance(images, int):
            return 1.0
        least, greatest = seen
        ratio = max(greatest, _LEAST_SHARE) / max(least, _LEAST_SHARE)
        # ratio ** (3 / (images - 1)), which may be too large for a number.
        power = 3 * math.log(ratio) / (images - 1) if images > 2 else math.inf
        return math.exp(min(power, math.log(_MOST_SLACK)))

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

    def caution_of_objects(
        self, weights: str, classes: Sequence[str], typical: TypicalObjects
    ) -> str | None:
        """Warn if the median size of the objects of a class in an image lies outside the range seen
        in training, or if their median score is lower than in any validation image.

        `weights` is the name shown to the user. Returns None if there is nothing unusual, or if the
        card has no ranges.
        """
        cautions = (
            self._caution_of_sizes(weights, classes, typical.sizes),
            self._caution_of_scores(weights, classes, typical.scores),
        )
        return "; ".join(filter(None, cautions)) or None

    def _caution_of_sizes(
        self, weights: str, classes: Sequence[str], sizes: Mapping[str, float]
    ) -> str | None:
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

    def _caution_of_scores(
        self, weights: str, classes: Sequence[str], scores: Mapping[str, float]
    ) -> str | None:
        unusual = []
        for name, seen in zip(classes, self.scores, strict=False):
            if name not in scores or seen is None:
                continue
            # What lacks to 1 is of the kind of a size: twice as much is twice as doubtful.
            doubts = 1 - seen[1], 1 - seen[0]
            if 1 - scores[name] > doubts[1] * self._slack(doubts, "validation_images"):
                unusual.append(
                    f"{name} {scores[name]:.3f} (in validation {seen[0]:.3f} or more, mostly "
                    f"{seen[1]:.3f})"
                )
        if not unusual:
            return None
        return (
            f"{weights} is unsure of these objects and may not suit this kind of image: the median "
            f"score is {', '.join(unusual)}. Look at the preview"
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
        if self.image_scaling is None:
            del fields["image_scaling"]
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
            if record.get("image_scaling") is not None:
                record["image_scaling"] = ImageScaling(
                    **{name: with_tuples(value) for name, value in record["image_scaling"].items()}
                )
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
