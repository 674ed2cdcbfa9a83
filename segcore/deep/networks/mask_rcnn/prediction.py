"""Detection with a trained network: from scaled pixels to `Detections`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from maskloom.segcore.deep.networks.mask_rcnn.detections import Detections

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from maskloom.segcore.deep.networks.mask_rcnn.network import MaskRcnnNetwork


class Detector(keras.Model):  # type: ignore[misc]  # keras is untyped
    """A network with its detection thresholds, compiled by keras for the current backend."""

    def __init__(
        self, network: MaskRcnnNetwork, least_score: float, greatest_overlap: float
    ) -> None:
        super().__init__(name="detector")
        self.network = network
        self.least_score, self.greatest_overlap = least_score, greatest_overlap
        self.supports_jit = network.supports_jit
        self.built = True

    def build(self, input_shape: Any = None) -> None:
        """Do nothing: the network is already built."""

    def call(self, images: Any) -> dict[str, Any]:
        """Return padded detections of images (image, y, x, channel); see `MaskRcnnNetwork`."""
        return self.network.detect(images, self.least_score, self.greatest_overlap)

    def detect(self, image: NDArray[np.float32]) -> Detections:
        """Return the objects of one image (y, x, channel) by descending score.

        Images are processed one at a time, because results can differ in the last bit with the
        batch size.
        """
        return _detections(self.predict_on_batch(image[None]))


def detect(
    model: MaskRcnnNetwork,
    image: NDArray[np.float32],
    least_score: float = 0.5,
    greatest_overlap: float = 0.5,
) -> Detections:
    """Detect the objects of one scaled image (y, x, channel) float32, by descending score.

    The network is not compiled; for many images use a `Detector`. Raises `ValueError` if the image
    has a different number of bands than the network.
    """
    if image.ndim != 3 or image.shape[2] != model.channels:
        raise ValueError(
            f"expected an image (y, x, {model.channels}) for this network; got shape {image.shape}"
        )
    found = model.detect(keras.ops.convert_to_tensor(image[None]), least_score, greatest_overlap)
    return _detections({name: keras.ops.convert_to_numpy(value) for name, value in found.items()})


def _detections(found: Mapping[str, NDArray[Any]]) -> Detections:
    """Detections of the first image, without padding."""
    present = found["classes"][0] > 0
    boxes, classes, scores, masks = (
        found[name][0][present] for name in ("boxes", "classes", "scores", "masks")
    )
    return Detections(boxes.astype(np.float64), classes.astype(np.int64), scores, masks)
