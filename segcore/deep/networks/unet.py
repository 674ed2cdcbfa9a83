"""U-Net, an encoder-decoder network with skip connections.

Ronneberger, Fischer and Brox 2015, "U-Net: Convolutional Networks for Biomedical Image
Segmentation".

The contracting path has `depth` levels, each with two 3x3 convolutions and a 2x2 max pooling, and
doubles the channels from level to level. The expanding path doubles height and width, concatenates
the map of the same level, and convolves twice again.

With `padding="valid"` every 3x3 convolution removes one pixel on each side. The maps of the
contracting path are then cropped at their centre by what the levels below have removed. This
follows from the depth alone, so the network is built without knowing the size of the image. Valid
heights and widths are those where every pooling meets an even size (572 gives 388 at depth 4). Only
bilinear upsampling then still depends on where an image is cut: in the outermost 2 ** depth - 1
pixels of the output, for lack of neighbours. With `padding="same"`, output and input have the same
size, a multiple of 2 ** depth.

With `dimensions=3` all of this is done along z, y and x (Cicek et al. 2016, "3D U-Net: Learning
Dense Volumetric Segmentation from Sparse Annotation"). Slices of scans are often farther apart
than the pixels in them. `pooling` then leaves z out at the first levels, until voxels are about
cubes, as Isensee et al. 2021 (nnU-Net) plan it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from maskloom.segcore.deep.networks.recipe import (
    NETWORKS,
    Normalisation,
    check_choice,
    check_counts,
    check_width,
)
from maskloom.segcore.geometry import by_axis

if TYPE_CHECKING:
    import keras

Tensor = Any
Padding = Literal["same", "valid"]
Factors = tuple[int, ...]
"""Of a pooling, along each axis."""
UnetEncoder = Literal[
    "plain",
    "vgg16",
    "vgg19",
    "resnet50v1",
    "convnext_tiny",
    "efficientnetv2b0",
    "efficientnetv2s",
    "mobilenetv3small",
    "mobilenetv3large",
]
UnetUpsampling = Literal["transposed", "nearest", "bilinear", "unpooling", "bed_of_nails"]


@NETWORKS.register("unet")
@dataclass(frozen=True, slots=True)
class Unet:
    """U-Net (Ronneberger 2015).

    The paper uses width 64, depth 4, valid padding and no normalisation; tutorials that follow it
    often add `output_kernel: 3`.
    """

    width: int = 32
    """Channels of the first level; each level has twice as many as the level above. 8 trains in
    minutes on two cores.
    """
    depth: int = 4
    """Number of poolings. Height and width must be multiples of 2 ** depth; each level doubles the
    receptive field.
    """
    padding: Padding = "same"
    """`same`: the output has the size of the input. `valid`: no padded pixels; the output lacks a
    margin (572 gives 388 at depth 4).
    """
    normalisation: Normalisation = "none"
    """`batch` trains faster. `group` also works with small batches, but its means span the whole
    image, so the result depends on the tiling.
    """
    upsampling: UnetUpsampling = "transposed"
    """How the expanding path upsamples: the paper's transposed convolution; or a fixed method after
    a 1x1 convolution. nearest repeats pixels, bilinear interpolates, bed_of_nails puts zeros around
    each, unpooling puts each back where the maximum was.
    """
    output_kernel: int = 1
    """Side of the last convolution's kernel in pixels, odd."""
    dropout: float = 0.0
    """Fraction of the deepest features dropped at random during training."""
    dimensions: Literal[2, 3] = 2
    """2: a network of images, which labels volumes slice by slice. 3: a network of volumes, which
    looks along z too.
    """
    encoder: UnetEncoder = "plain"
    """Contracting path: the paper's, or a backbone of keras.applications, with weights for
    `initial: imagenet`. Of such a backbone the first `depth` halvings are used, 2 to 5 (5: all of
    it), and `width` is that of the expanding path.
    """
    pooling: tuple[Factors, ...] | None = None
    """Factors of each pooling along the axes, 1 or 2, the first level first. For slices two to four
    times as far apart as pixels, at depth 3: [[1, 2, 2], [2, 2, 2], [2, 2, 2]]. Default: all 2.
    """

    def __post_init__(self) -> None:
        check_width(self.width)
        if not 1 <= self.depth <= 8:
            raise ValueError(f"depth: expected 1 to 8 poolings; got {self.depth}")
        if self.dimensions not in (2, 3):
            raise ValueError(f"dimensions: expected 2 or 3; got {self.dimensions}")
        check_choice("padding", self.padding, get_args(Padding))
        if self.padding == "valid" and (self.dimensions == 3 or self.pooling is not None):
            raise ValueError("padding: `dimensions: 3` and `pooling` need `same`; got 'valid'")
        if self.pooling is not None:
            self._check_pooling(self.pooling)
        check_choice("normalisation", self.normalisation, get_args(Normalisation))
        check_choice("upsampling", self.upsampling, get_args(UnetUpsampling))
        check_choice("encoder", self.encoder, get_args(UnetEncoder))
        if self.encoder != "plain":
            self._check_encoder()
        if not 1 <= self.output_kernel <= 15 or self.output_kernel % 2 == 0:
            raise ValueError(
                "output_kernel: expected an odd number of pixels from 1 to 15; got "
                f"{self.output_kernel}"
            )
        if not (math.isfinite(self.dropout) and 0 <= self.dropout < 1):
            raise ValueError(
                f"dropout: expected a fraction from 0 to less than 1; got {self.dropout}"
            )

    def _check_encoder(self) -> None:
        if not 2 <= self.depth <= 5:
            raise ValueError(
                f"depth: `encoder: {self.encoder}` halves its maps five times: expected 2 to 5; "
                f"got {self.depth}"
            )
        for name, value, needed in (
            ("dimensions", self.dimensions, 2),
            ("padding", self.padding, "same"),
            ("pooling", self.pooling, None),
        ):
            if value != needed:
                raise ValueError(
                    f"{name}: `encoder: {self.encoder}` needs {needed or 'the default'}; got "
                    f"{value}"
                )
        if self.upsampling == "unpooling":
            raise ValueError(f"upsampling: unpooling needs `encoder: plain`; got {self.encoder!r}")

    @property
    def application(self) -> str | None:
        """The backbone of keras.applications that it has. None: it has none."""
        return None if self.encoder == "plain" else self.encoder

    @property
    def poolings(self) -> tuple[Factors, ...]:
        """The factors of each pooling along the axes."""
        return self.pooling or ((2,) * self.dimensions,) * self.depth

    def _check_pooling(self, pooling: tuple[Factors, ...]) -> None:
        if len(pooling) != self.depth or any(
            len(factors) != self.dimensions or not set(factors) <= {1, 2} or max(factors) < 2
            for factors in pooling
        ):
            example = [[1] * (self.dimensions - 2) + [2, 2]] * self.depth
            raise ValueError(
                f"pooling: expected {self.depth} (`depth`) lists of {self.dimensions} factors, 1 "
                f"or 2 and at least one of them 2, for example {example}; got "
                f"{[list(factors) for factors in pooling]}"
            )

    def build(self, channels: int, classes: int) -> keras.Model:
        """Build the model for `channels` bands and `classes` classes.

        The model maps (image, y, x, `channels`) float32 to class probabilities (image, y, x,
        `classes`) float32; volumes have an axis z before y. Raises `ValueError` for fewer than one
        channel or two classes.
        """
        check_counts(channels, classes)
        return unet(self, channels, classes)


def unet(recipe: Unet, channels: int, classes: int) -> keras.Model:
    """Return the model: (image, y, x, channel) float32 to probabilities (image, y, x, class)."""
    import keras
    from keras import layers

    from maskloom.segcore.deep.networks.layers.upsampling import MaxPoolingWithPositions

    # Layers of images and of volumes differ by the end of their names.
    convolution = layers.Conv2D if recipe.dimensions == 2 else layers.Conv3D
    pool = layers.MaxPooling2D if recipe.dimensions == 2 else layers.MaxPooling3D
    inputs = keras.Input((*(None,) * recipe.dimensions, channels), name="image")
    skips: list[Tensor | None] = []
    positions: list[Tensor] = []
    x = inputs
    if recipe.application is not None:
        *skips, x = _encoded(inputs, recipe.application, recipe.depth)
    for level in range(recipe.depth - len(skips)):
        x = _block(x, recipe, level, f"down{level}")
        skips.append(x)
        if recipe.upsampling == "unpooling":
            size_of = by_axis(recipe.poolings[level])
            x, places = MaxPoolingWithPositions(size_of, name=f"down{level}_pool")(x)
            positions.append(places)
        else:
            x = pool(recipe.poolings[level], name=f"down{level}_pool")(x)
    if recipe.application is None:
        x = _block(x, recipe, recipe.depth, "bottom")
    if recipe.dropout > 0:
        # Drawn as Keras does. Without one, Keras on PyTorch takes PyTorch's own generator, whose
        # state is in no checkpoint.
        seed = random.randint(1, 10**9)  # noqa: S311
        x = layers.Dropout(recipe.dropout, seed=seed, name="bottom_dropout")(x)
    for level in reversed(range(recipe.depth)):
        x = _upsampled(x, recipe, level, positions)
        skip = skips[level]
        if skip is not None:
            x = layers.Concatenate(name=f"up{level}_join")(
                [_cropped(skip, _crop(recipe, level), f"up{level}_crop"), x]
            )
        x = _block(x, recipe, level, f"up{level}")
    x = convolution(classes, recipe.output_kernel, padding=recipe.padding, name="logits")(x)
    # Probabilities stay float32 under mixed precision: losses need their small differences.
    return keras.Model(inputs, layers.Softmax(dtype="float32", name="scores")(x), name="unet")


def _encoded(inputs: Tensor, application: str, depth: int) -> list[Tensor | None]:
    """Maps of a backbone with the strides 1, 2, 4 ... 2 ** depth. None: it has no such map."""
    from maskloom.segcore.deep.networks.layers.applications import feature_maps
    from maskloom.segcore.deep.networks.layers.backbones import vgg

    if application.startswith("vgg"):
        skips: list[Tensor | None] = []
        maps = vgg(inputs, application, unpooled=skips)
        return [*skips[:depth], maps[depth - 1]]
    return [None, *feature_maps(inputs, application)[:depth]]


def skip_crop(level: int, depth: int) -> int:
    """Pixels cropped on each side of a level's skip connection without padding; level 0 is the top.

    >>> [skip_crop(level, 4) for level in range(4)]  # 568 to 392, 280 to 200, 136 to 104, 64 to 56
    [88, 40, 16, 4]
    """
    # In pixels of the level: the two convolutions of the deepest level take 2 off each side there;
    # each level in between takes 2 more going down and 2 more going up.
    crop = 4
    for _ in range(depth - 1 - level):
        crop = 2 * (2 + crop + 2)
    return crop


def _block(x: Tensor, recipe: Unet, level: int, name: str) -> Tensor:
    """Two 3x3 convolutions, each with its normalisation and ReLU."""
    from keras import layers

    convolution = layers.Conv2D if recipe.dimensions == 2 else layers.Conv3D
    filters = recipe.width << level
    for number in (1, 2):
        plain = recipe.normalisation == "none"
        x = convolution(
            filters,
            3,
            padding=recipe.padding,
            use_bias=plain,
            kernel_initializer="he_normal",
            name=f"{name}_conv{number}",
        )(x)
        if recipe.normalisation == "batch":
            x = layers.BatchNormalization(name=f"{name}_norm{number}")(x)
        elif recipe.normalisation == "group":
            x = layers.GroupNormalization(math.gcd(8, filters), name=f"{name}_norm{number}")(x)
        x = layers.ReLU(name=f"{name}_relu{number}")(x)
    return x


def _upsampled(x: Tensor, recipe: Unet, level: int, positions: list[Tensor]) -> Tensor:
    """Undo the level's pooling of sizes and set its channels.

    `positions` are those of each level's pooling, for unpooling.
    """
    from keras import layers

    from maskloom.segcore.deep.networks.layers.upsampling import MaxUnpooling, Upsampling

    images = recipe.dimensions == 2
    filters, factors = recipe.width << level, recipe.poolings[level]
    if recipe.upsampling == "transposed":
        transposed = layers.Conv2DTranspose if images else layers.Conv3DTranspose
        return transposed(
            filters,
            factors,
            strides=factors,
            kernel_initializer="he_normal",
            name=f"up{level}_transposed",
        )(x)
    # The 1x1 convolution comes first because it costs a quarter on the smaller map.
    convolution = layers.Conv2D if images else layers.Conv3D
    x = convolution(filters, 1, kernel_initializer="he_normal", name=f"up{level}_halve")(x)
    factor = by_axis(factors)
    if recipe.upsampling == "unpooling":
        places = _cropped(positions[level], _crop(recipe, level) // 2, f"up{level}_crop_positions")
        return MaxUnpooling(factor, name=f"up{level}_unpooling")(x, places)
    return Upsampling(factor, recipe.upsampling, name=f"up{level}_{recipe.upsampling}")(x)


def _crop(recipe: Unet, level: int) -> int:
    return skip_crop(level, recipe.depth) if recipe.padding == "valid" else 0


def _cropped(x: Tensor, pixels: int, name: str) -> Tensor:
    from keras import layers

    return layers.Cropping2D(pixels, name=name)(x) if pixels else x
