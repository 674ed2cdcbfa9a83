"""The start of a training: the weights of a network that was trained before.

Layers of the same name and shape take over their weights. The others, such as the last one where
classes differ, or the first one where bands do, begin as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskloom.segcore.deep.inference.files.weights import Weights, file_name
from maskloom.segcore.errors import RecipeError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Initial:
    """A network of maskloom that a training starts from."""

    weights: Weights
    scaling: Scaling | ImageScaling
    """That of its training, which a recipe without its own follows."""

    @classmethod
    def of(cls, location: str, kind: str) -> Initial:
        """The network at a location, or of a name in the box, for a training of this kind. Raises
        `RecipeError`.
        """
        try:
            weights = Weights.of(location)
            card = weights.card()
        except WeightsError as error:
            raise RecipeError(f"initial: {str(error).removeprefix('weights: ')}") from error
        name = file_name(location)
        if card is None or card.network is None:
            raise RecipeError(
                f"initial: {name} has no card that says how it is built. Give a file that "
                "`maskloom train` or `maskloom convert` wrote, with the .json beside it."
            )
        if card.kind != kind:
            raise RecipeError(
                f"initial: {name} is a {card.kind}, and the recipe trains a {kind}. Give weights "
                "of the same kind of network."
            )
        return cls(weights, card.image_scaling or card.scaling)

    @property
    def identity(self) -> str:
        """SHA-256 of the file."""
        return self.weights.sha256

    def scaling_for(self, channels: int, factor: float | None) -> Scaling | ImageScaling:  # noqa: ARG002
        """The scaling of its training."""
        return self.scaling

    def prepare(self, model: Any) -> None:
        """Nothing: all layers learn."""

    def stages(self, model: Any) -> list[list[Any]]:
        """The layers that fit, as one stage."""
        given = self._arrays()
        return [[layer for layer in model.layers if layer.weights and _fits(layer, given)]]

    def check(self) -> None:
        """Nothing more: `of` has read the file."""

    def give(self, model: Any) -> str:
        """Give a network the weights of layers that fit it, in place; a sentence about it for the
        user. Raises `RecipeError` if none fits.
        """
        name, others, given = file_name(self.weights.location), [], self._arrays()
        layers = [layer for layer in model.layers if layer.weights]
        for layer in layers:
            if _fits(layer, given):
                layer.set_weights(given[layer.name])
            else:
                others.append(layer.name)
        if len(others) == len(layers):
            raise RecipeError(
                f"initial: no layer of {name} has the shape of one in this network. Its card says "
                "how it is built: set `network` alike."
            )
        if not others:
            return f"Starting from {name}."
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        return (
            f"Starting from {name}, but for layers of other shapes: "
            f"{', '.join(others[:_SHOWN])}{more}."
        )

    def _arrays(self) -> dict[str, list[NDArray[Any]]]:
        from maskloom.segcore.deep.inference.files.keras_files import load_keras

        return {layer.name: layer.get_weights() for layer in load_keras(self.weights).layers}


def _fits(layer: Any, given: Mapping[str, Sequence[NDArray[Any]]]) -> bool:
    """Whether there are weights of the same shapes for a layer."""
    shapes = [value.shape for value in given.get(layer.name, ())]
    return shapes == [tuple(each.shape) for each in layer.weights]
