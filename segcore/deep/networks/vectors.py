"""Networks that give each pixel a vector beside its class: any network for pixels, with more
outputs.

The vectors are those of HoVer-Net (Graham et al. 2019, "Hover-Net: Simultaneous segmentation and
classification of nuclei in multi-tissue histology images"): the offset of a pixel from the middle
of its object, along x and y, each divided by the object's reach to that side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def build_with_vectors(recipe: Any, channels: int, classes: int, vectors: int) -> keras.Model:
    """The network of a recipe, with logits of its classes and `vectors` more numbers behind them:
    (image, y, x, class + vector). Raises `ValueError` as the recipe's `build` does, and if the
    network does not end with a softmax.
    """
    import keras

    model = recipe.build(channels, classes + vectors)
    if not isinstance(model.layers[-1], keras.layers.Softmax):
        raise ValueError(
            f"vectors: expected a network whose last layer is a softmax, so that vectors can stand "
            f"beside its logits; {model.name} ends with {type(model.layers[-1]).__name__}"
        )
    return keras.Model(model.inputs[0], logits_of(model), name=model.name)


def logits_of(model: Any) -> Any:
    """Input of the network's last softmax; without one, the logarithm of its probabilities, which
    has the same softmax.
    """
    import keras

    last = model.layers[-1]
    if isinstance(last, keras.layers.Softmax):
        return last.input
    return keras.ops.log(
        keras.ops.maximum(keras.ops.cast(model.outputs[0], "float32"), keras.backend.epsilon())
    )
