"""Attention between the pixels of feature maps."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


@keras.saving.register_keras_serializable(package="maskloom")
class PixelAttention(keras.layers.Layer):  # type: ignore[misc]  # keras is untyped
    """Attention of every pixel to all pixels of a coarser map, without weights of its own.

    It takes queries (image, y, x, channel), and keys and values (image, v, u, channel), and gives
    (image, y, x, channel). Every pixel sees the whole image.
    """

    def __init__(self, heads: int, **options: Any) -> None:
        super().__init__(**options)
        self.heads = heads

    def call(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the values that each query attends to."""
        channels = queries.shape[-1]

        def in_heads(pixels: Tensor) -> Tensor:
            images = ops.shape(pixels)[0]
            return ops.reshape(pixels, (images, -1, self.heads, channels // self.heads))

        found = ops.dot_product_attention(*map(in_heads, (queries, keys, values)))
        return ops.reshape(found, ops.shape(queries))

    def compute_output_shape(self, queries: Any, *_: Any) -> Any:
        """The shape of the queries."""
        return queries

    def get_config(self) -> dict[str, Any]:
        """The configuration, for saving."""
        return {**super().get_config(), "heads": self.heads}
