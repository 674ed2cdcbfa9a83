"""From what a network gives for each pixel to labels and probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.files.weights import file_name
from maskloom.segcore.deep.inference.flips import probabilities
from maskloom.segcore.errors import WeightsError
from maskloom.segcore.models.calibration import tempered

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card


@dataclass(frozen=True, slots=True)
class OutputReader:
    """Reads the output (y, x, k) of a network, or (z, y, x, k), as its card says: classes first,
    then the parts of vectors.
    """

    card: Card
    location: str
    """Of the weights, for messages."""
    classes: int
    averaged: bool = False
    """Whether outputs are means over flips: logits have then become probabilities."""

    @property
    def has_logits(self) -> bool:
        """Whether the values of classes are logits."""
        return self.card.output == "logits" and not self.averaged

    def write_labels(self, output: NDArray[np.float32], labels: NDArray[Any]) -> None:
        """Write the class with the greatest score of each pixel into `labels` (y, x), or (z, y, x).

        Raises `WeightsError` if the network gives ids of classes that it does not have.
        """
        scores = self.card.class_part(output)
        if self.card.output == "labels":
            labels[...] = self._ids(scores)
        elif scores.shape[-1] <= 2:
            # One comparison needs no compiled loop, whose library takes half a second to load. A
            # single score is that of the second class: its probability or its log-odds.
            single = scores.shape[-1] == 1
            first = (0.0 if self.has_logits else 0.5) if single else scores[..., 0]
            np.greater(scores[..., -1], first, out=labels)
        else:
            from maskloom.segcore.kernels.scores import argmax_labels

            for plane, part in zip(_planes(scores, 3), _planes(labels, 2), strict=True):
                argmax_labels(plane, part)

    def probabilities(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """The probabilities (y, x, class), or (z, y, x, class), at the temperature of the card; 0
        and 1 if the network gives class ids. Raises as `write_labels`.
        """
        scores = self.card.class_part(output)
        if self.card.output == "labels":
            return np.asarray(self._ids(scores)[..., None] == np.arange(self.classes), np.float32)
        if self.has_logits:
            scores = probabilities(scores)
        if scores.shape[-1] == 1:
            scores = np.concatenate([1 - scores, scores], axis=-1)
        return tempered(scores, self.card.temperature)

    def write_probabilities(self, output: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        """Write what `probabilities` returns into `found` (y, x, class). Of an image with several
        logits by compiled code, which may differ from `probabilities` in the last bits.
        """
        from maskloom.segcore.kernels.scores import softmax

        scores = self.card.class_part(output)
        if self.has_logits and scores.shape[-1] > 1:
            softmax(scores, 1 / self.card.temperature, found)
        else:
            found[...] = self.probabilities(output)

    def vectors(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """The vectors (y, x, 2: x and y), a view."""
        return output[..., output.shape[-1] - self.card.vectors :]

    def _ids(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The class ids (y, x), or (z, y, x), that a network outputs directly."""
        if not 0 <= scores.min() <= scores.max() < self.classes:
            raise WeightsError(
                f"{file_name(self.location)} gives class ids {scores.min():g} to "
                f"{scores.max():g}, but has {self.classes} classes. "
                "Name all of them with `classes`."
            )
        ids: NDArray[np.float32] = scores[..., 0]
        return ids


def _planes(array: NDArray[Any], axes: int) -> Iterable[NDArray[Any]]:
    """The planes of a volume, each with `axes` axes; an image is one."""
    return array if array.ndim > axes else (array,)
