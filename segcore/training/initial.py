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
    from maskloom.segcore.deep.inference.card import Scaling

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Initial:
    """A network of maskloom that a training starts from."""

    weights: Weights
    scaling: Scaling
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
                "`maskloom train` wrote, with the .json beside it."
            )
        if card.kind != kind:
            raise RecipeError(
                f"initial: {name} is a {card.kind}, and the recipe trains a {kind}. Give weights "
                "of the same kind of network."
            )
        return cls(weights, card.scaling)

    def give(self, model: Any) -> str:
        """Give a network the weights of layers that fit it, in place; a sentence about it for the
        user. Raises `RecipeError` if none fits.
        """
        from maskloom.segcore.deep.inference.files.keras_files import load_keras

        name, others = file_name(self.weights.location), []
        given = {layer.name: layer.get_weights() for layer in load_keras(self.weights).layers}
        layers = [layer for layer in model.layers if layer.weights]
        for layer in layers:
            values = given.get(layer.name, [])
            if [value.shape for value in values] == [tuple(each.shape) for each in layer.weights]:
                layer.set_weights(values)
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
            f"Starting from {name}, but for {', '.join(others[:_SHOWN])}{more}, which have other "
            "shapes."
        )
