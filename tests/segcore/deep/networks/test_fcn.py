"""FCN: numbers of weights as published, keras' own VGG as oracle, and scores that start as bilinear
up-sampling.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

from maskloom.segcore.deep.networks.fcn import Fcn
from maskloom.segcore.deep.networks.layers.backbones import resnet, vgg
from maskloom.segcore.deep.networks.layers.upsampling import bilinear


def plain(tensor: object) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


def test_the_tutorial_form() -> None:
    """Of 224 x 224 pixels, VGG19 leaves 7 x 7; the kernel of 7 pixels fills a corner of each."""
    model = Fcn("tutorial", "vgg19", normalisation="none").build(3, 21)
    assert model.compute_output_shape((None, 224, 224, 3)) == (None, 224, 224, 21)
    assert model.get_layer("stage5_pool").output.shape[-1] == 512
    assert model.count_params() == 20_056_787
    scores = plain(model(np.random.default_rng(0).random((1, 64, 64, 3), np.float32)))
    differs = (scores != scores[:, -1:, -1:]).any(-1)[0]
    filled = np.arange(64) % 32 < 7
    assert np.array_equal(differs, filled[:, None] & filled)


@pytest.mark.parametrize(("kind", "count"), [("vgg16", 14_714_688), ("vgg19", 20_024_384)])
def test_vgg_has_the_weights_of_keras_own(kind: str, count: int) -> None:
    inputs = keras.Input((None, None, 3))
    maps = vgg(inputs, kind)
    assert [each.shape[-1] for each in maps] == [64, 128, 256, 512, 512]
    assert keras.Model(inputs, maps[-1]).count_params() == count


def test_vgg_computes_what_keras_own_does() -> None:
    inputs = keras.Input((32, 64, 3))
    ours = keras.Model(inputs, vgg(inputs, "vgg16")[-1])
    theirs = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 64, 3))
    theirs.set_weights(ours.get_weights())
    pixels = np.random.default_rng(0).random((1, 32, 64, 3), np.float32)
    np.testing.assert_allclose(plain(ours(pixels)), plain(theirs(pixels)), rtol=1e-4, atol=1e-5)


# Published: 25,557,032 and 11,689,512 with the dense layer of 1,000 classes.
@pytest.mark.parametrize(
    ("kind", "count"), [("resnet50", 25_557_032 - 2_049_000), ("resnet18", 11_689_512 - 513_000)]
)
def test_resnet_has_the_weights_of_the_paper(kind: str, count: int) -> None:
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, resnet(inputs, kind, 64, "batch"))
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == count


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_dilated_stages_keep_size_and_weights(output_stride: int) -> None:
    inputs = keras.Input((64, 128, 3))
    maps = resnet(inputs, "resnet18", 4, "batch", output_stride)
    strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    assert [each.shape for each in maps] == [
        (None, 64 // stride, 128 // stride, 4 << stage) for stage, stride in enumerate(strides)
    ]
    undilated = keras.Model(inputs, resnet(inputs, "resnet18", 4, "batch"))
    assert keras.Model(inputs, maps).count_params() == undilated.count_params()


def test_maps_lie_where_up_sampling_takes_them_to_be() -> None:
    """The pixels that a map's pixel depends on have their middle within a fifth of its size of the
    block that it stands for.
    """
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, resnet(inputs, "resnet18", 2, "batch"))
    # One pixel lit in turn: on the way from image to map all weights are positive, so that nothing
    # cancels.
    for weight in model.trainable_weights:
        weight.assign(
            np.full(weight.shape, 0.1 if len(weight.shape) == 4 else float("gamma" in weight.path))
        )
    size, middle = 512, 256
    line = np.zeros((32, size, size, 1), np.float32)
    line[np.arange(32), middle, middle + np.arange(32)] = 1
    maps = [plain(each) for each in model.predict(line, batch_size=4, verbose=0)]
    for stride, each in zip((4, 8, 16, 32), maps, strict=True):
        # A map's pixel depends on a lit pixel the more, the nearer; over a period of lit pixels,
        # distances average out.
        lit = each[:stride].sum(-1).sum(1)
        centre = (lit * np.arange(size // stride)).sum(1) / lit.sum(1)
        offset = (stride * centre + (stride - 1) / 2 - middle - np.arange(stride)).mean()
        assert abs(offset) < stride / 5


@pytest.mark.parametrize(
    ("variant", "strides"), [("32s", [32]), ("16s", [32, 16]), ("8s", [32, 16, 8])]
)
def test_scores_start_as_bilinear_up_sampling_of_sums(variant: str, strides: list[int]) -> None:
    # Some weights of so few channels leave next to nothing behind 16 layers.
    keras.utils.set_random_seed(3)
    model = Fcn(variant, width=2).build(1, 3)  # type: ignore[arg-type]
    parts = [
        *(model.get_layer(f"score{stride}").output for stride in strides),
        model.get_layer("logits").output,
    ]
    pixels = np.random.default_rng(1).random((1, 256, 256, 1), np.float32)
    *each, logits = (plain(part) for part in keras.Model(model.input, parts)(pixels))
    total = each[0]
    for score in each[1:]:
        total = plain(bilinear(total, 2)) + score
    inside = slice(96, -96)
    expected = plain(bilinear(total, strides[-1]))
    assert expected[:, inside, inside].std() > 1e-3
    np.testing.assert_allclose(
        logits[:, inside, inside], expected[:, inside, inside], atol=1e-4 * np.abs(expected).max()
    )


def test_no_dense_layers() -> None:
    assert not [layer for layer in Fcn().build(3, 2).layers if isinstance(layer, layers.Dense)]
