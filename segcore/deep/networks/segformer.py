"""SegFormer: a network of attention.

Xie et al. 2021, "SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers".

Four stages halve the resolution, from stride 4 to 32. Each consists of blocks in which every pixel
attends to all pixels of a reduced map, and a depthwise convolution tells pixels where they are. The
maps of all stages, brought to stride 4, are mixed by 1x1 convolutions to class scores. Height and
width must be multiples of 32. Layers have the names of the arrays in published weights, with `_`
for dots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskloom.segcore.deep.networks.recipe import NETWORKS, check_counts

if TYPE_CHECKING:
    import keras

Tensor = Any
_STAGES = 4
_STRIDES, _KERNELS = (4, 2, 2, 2), (7, 3, 3, 3)
_MOST = 4096
_EPSILON = 1e-5


@NETWORKS.register("segformer")
@dataclass(frozen=True, slots=True)
class Segformer:
    """SegFormer (Xie 2021). It sees the whole image, so tiles are blended. Start from converted
    weights (`initial`); from random ones it needs far more images than a U-Net. Height and width
    must be multiples of 32.
    """

    widths: tuple[int, ...] = (32, 64, 160, 256)
    """Channels of the four stages; the defaults here are those of B0."""
    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Blocks of the stages."""
    heads: tuple[int, ...] = (1, 2, 5, 8)
    """Heads of attention of the stages; each divides the channels."""
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    """Factors by which the maps are reduced that pixels attend to."""
    expansions: tuple[int, ...] = (4, 4, 4, 4)
    """Factors by which blocks widen between attentions."""
    decoder: int = 256
    """Channels in which the stages are mixed."""

    def __post_init__(self) -> None:
        for name in ("widths", "depths", "heads", "reductions", "expansions"):
            values = getattr(self, name)
            if len(values) != _STAGES or not all(1 <= value <= _MOST for value in values):
                raise ValueError(
                    f"{name}: expected {_STAGES} numbers from 1 to {_MOST}; got {list(values)}"
                )
        if any(width % heads for width, heads in zip(self.widths, self.heads, strict=True)):
            raise ValueError(
                f"heads: expected divisors of the widths {list(self.widths)}; got "
                f"{list(self.heads)}"
            )
        if not 1 <= self.decoder <= _MOST:
            raise ValueError(f"decoder: expected 1 to {_MOST} channels; got {self.decoder}")

    def build(self, channels: int, classes: int) -> keras.Model:
        """Build the model for `channels` bands and `classes` classes.

        The model maps (image, y, x, `channels`) float32 to class probabilities (image, y, x,
        `classes`) float32. Raises `ValueError` for fewer than one channel or two classes.
        """
        check_counts(channels, classes)
        return segformer(self, channels, classes)


def segformer(recipe: Segformer, channels: int, classes: int) -> keras.Model:
    """Return the model: (image, y, x, channel) float32 to probabilities (image, y, x, class)."""
    import keras
    from keras import layers

    from maskloom.segcore.deep.networks.layers.upsampling import Upsampling

    inputs = keras.Input((None, None, channels), name="image")
    x, maps = inputs, []
    for stage in range(_STAGES):
        x = _embedded(x, stage, recipe.widths[stage])
        for block in range(recipe.depths[stage]):
            x = _block(x, recipe, stage, f"encoder_block_{stage}_{block}")
        x = _norm(f"encoder_layer_norm_{stage}")(x)
        mixed = layers.Dense(recipe.decoder, name=f"decode_head_linear_c_{stage}_proj")(x)
        if stage:
            mixed = Upsampling(2**stage, "bilinear", name=f"up_{stage}")(mixed)
        maps.append(mixed)
    x = layers.Concatenate(name="stages")(maps[::-1])
    x = layers.Conv2D(recipe.decoder, 1, use_bias=False, name="decode_head_linear_fuse")(x)
    x = layers.BatchNormalization(epsilon=_EPSILON, name="decode_head_batch_norm")(x)
    x = layers.ReLU(name="decode_head_relu")(x)
    x = layers.Conv2D(classes, 1, name="decode_head_classifier")(x)
    x = Upsampling(_STRIDES[0], "bilinear", name="logits")(x)
    return keras.Model(inputs, layers.Softmax(dtype="float32", name="scores")(x), name="segformer")


def _embedded(x: Tensor, stage: int, width: int) -> Tensor:
    """A coarser map of overlapping patches."""
    from keras import layers

    name, kernel = f"encoder_patch_embeddings_{stage}", _KERNELS[stage]
    # Keras' own padding would shift the patches.
    x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    x = layers.Conv2D(width, kernel, strides=_STRIDES[stage], name=f"{name}_proj")(x)
    return _norm(f"{name}_layer_norm")(x)


def _block(x: Tensor, recipe: Segformer, stage: int, name: str) -> Tensor:
    from keras import layers

    width = recipe.widths[stage]
    x = layers.Add(name=f"{name}_add_1")(
        [x, _attention(_norm(f"{name}_layer_norm_1")(x), recipe, stage, f"{name}_attention")]
    )
    y = _norm(f"{name}_layer_norm_2")(x)
    y = layers.Dense(width * recipe.expansions[stage], name=f"{name}_mlp_dense1")(y)
    y = layers.DepthwiseConv2D(3, padding="same", name=f"{name}_mlp_dwconv_dwconv")(y)
    y = layers.Activation("gelu", name=f"{name}_mlp_gelu")(y)
    y = layers.Dense(width, name=f"{name}_mlp_dense2")(y)
    return layers.Add(name=f"{name}_add_2")([x, y])


def _attention(x: Tensor, recipe: Segformer, stage: int, name: str) -> Tensor:
    from keras import layers

    from maskloom.segcore.deep.networks.layers.attention import PixelAttention

    width, reduction, seen = recipe.widths[stage], recipe.reductions[stage], x
    if reduction > 1:
        seen = layers.Conv2D(width, reduction, strides=reduction, name=f"{name}_self_sr")(x)
        seen = _norm(f"{name}_self_layer_norm")(seen)
    query = layers.Dense(width, name=f"{name}_self_query")(x)
    key, value = (
        layers.Dense(width, name=f"{name}_self_{part}")(seen) for part in ("key", "value")
    )
    found = PixelAttention(recipe.heads[stage], name=f"{name}_pixels")(query, key, value)
    return layers.Dense(width, name=f"{name}_output_dense")(found)


def _norm(name: str) -> Any:
    from keras import layers

    return layers.LayerNormalization(epsilon=_EPSILON, name=name)
