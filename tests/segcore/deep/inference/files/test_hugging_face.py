"""Networks of Hugging Face, converted, give what they give where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from training_support import TINY, blocks

from maskloom.segcore.deep.inference.files.hugging_face import Converted, convert
from maskloom.segcore.deep.inference.files.keras_files import load_keras
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.errors import WeightsError

keras = pytest.importorskip("keras")
safetensors = pytest.importorskip("safetensors.numpy")

KEPT = np.s_[:, ::3, ::5]
"""The pixels that are recorded."""
RECORDED = Path(__file__).with_name("segformer.npz")
"""Class scores that transformers 5.24 gave in PyTorch 2.14 for `arrays` and `PIXELS`
(`test_the_record_is_that_of_the_original`).
"""
CONFIG = {
    "architectures": ["SegformerForSemanticSegmentation"],
    "model_type": "segformer",
    "num_channels": 3,
    "depths": [2, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 24],
    "num_attention_heads": [1, 2, 2, 3],
    "sr_ratios": [8, 4, 2, 1],
    "mlp_ratios": [4, 2, 2, 2],
    "decoder_hidden_size": 8,
    "hidden_act": "gelu",
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "id2label": {"0": "wall", "1": "road", "2": "sky"},
}
PIXELS = np.random.default_rng(0).random((1, 64, 96, 3), np.float32)


def arrays() -> dict[str, Any]:
    """Arrays of all names and shapes of the original, of random numbers."""
    shapes: dict[str, tuple[int, ...]] = {}

    def dense(name: str, out: int, *into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, *into), (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    before, decoder = 3, CONFIG["decoder_hidden_size"]
    for stage, width in enumerate(CONFIG["hidden_sizes"]):
        top, kernel = "segformer.encoder", CONFIG["patch_sizes"][stage]
        dense(f"{top}.patch_embeddings.{stage}.proj", width, before, kernel, kernel)
        norm(f"{top}.patch_embeddings.{stage}.layer_norm", width)
        for block in range(CONFIG["depths"][stage]):
            name, wide = f"{top}.block.{stage}.{block}", width * CONFIG["mlp_ratios"][stage]
            norm(f"{name}.layer_norm_1", width)
            norm(f"{name}.layer_norm_2", width)
            for part in ("query", "key", "value"):
                dense(f"{name}.attention.self.{part}", width, width)
            dense(f"{name}.attention.output.dense", width, width)
            if (reduction := CONFIG["sr_ratios"][stage]) > 1:
                dense(f"{name}.attention.self.sr", width, width, reduction, reduction)
                norm(f"{name}.attention.self.layer_norm", width)
            dense(f"{name}.mlp.dense1", wide, width)
            dense(f"{name}.mlp.dwconv.dwconv", wide, 1, 3, 3)
            dense(f"{name}.mlp.dense2", width, wide)
        norm(f"{top}.layer_norm.{stage}", width)
        dense(f"decode_head.linear_c.{stage}.proj", decoder, width)
        before = width
    shapes["decode_head.linear_fuse.weight"] = (decoder, 4 * decoder, 1, 1)
    for part in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"decode_head.batch_norm.{part}"] = (decoder,)
    dense("decode_head.classifier", 3, decoder, 1, 1)
    random = np.random.default_rng(1)
    found = {}
    for name in sorted(shapes):
        values = random.normal(0, 1, shapes[name])
        fan = max(1, int(np.prod(shapes[name][1:])))
        positive = name.endswith(("norm.weight", "norm_1.weight", "norm_2.weight", "var"))
        spread = 0.1 if name.endswith("bias") else fan**-0.5
        found[name] = (np.abs(values) + 0.3 if positive else spread * values).astype(np.float32)
    # Scores that differ from pixel to pixel.
    found["decode_head.classifier.weight"] *= 4
    found["decode_head.batch_norm.running_mean"] *= 0
    found["decode_head.batch_norm.running_mean"] += 0.5
    found["decode_head.batch_norm.num_batches_tracked"] = np.array(7)
    return found


def folder(
    path: Path, config: dict[str, Any] | None = None, stored: dict[str, Any] | None = None
) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    safetensors.save_file(arrays() if stored is None else stored, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    path = folder(tmp_path_factory.mktemp("hf") / "roads")
    (path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5], "size": 512})
    )
    (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Roads\n")
    return convert(str(path))


@pytest.mark.nightly
def test_it_gives_what_the_original_gives(converted: Converted, tmp_path: Path) -> None:
    (tmp_path / "roads.keras").write_bytes(converted.content)
    (tmp_path / "roads.json").write_bytes(converted.card.dump())
    model = load_keras(Weights.of(str(tmp_path / "roads.keras")))
    expected = np.load(RECORDED)["scores"]
    assert len(np.unique(expected.argmax(-1))) > 1
    scores = np.asarray(model(PIXELS))[KEPT]
    np.testing.assert_allclose(scores, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.nightly
def test_the_card_says_what_the_files_say(converted: Converted) -> None:
    card = converted.card
    assert (card.kind, card.classes) == ("segformer", ("wall", "road", "sky"))
    assert (card.interpretation, card.dtype, card.output) == ("rgb", "uint8", "scores")
    # Every pixel attends to the whole image.
    assert (card.reach.halo, card.reach.stride) == (None, 32)
    assert card.about["licence"] == "apache-2.0"
    pixels = np.array([[0, 100, 255]], np.uint8)
    expected = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.5]
    np.testing.assert_allclose(card.scaling.apply(pixels), expected, rtol=1e-5, atol=1e-5)
    assert "resized to 512" in converted.notes[0]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in arrays().items() if key != name}


def pickled(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another architecture": (
        lambda path: folder(path, {**CONFIG, "architectures": ["UperNetForSemanticSegmentation"]}),
        "torch.onnx.export",
    ),
    "another activation": (lambda path: folder(path, {**CONFIG, "hidden_act": "relu"}), "gelu"),
    "no labels": (lambda path: folder(path, {**CONFIG, "id2label": None}), "config.json"),
    "endless depth": (lambda path: folder(path, {**CONFIG, "depths": [10**9] * 4}), "depths"),
    "another width": (
        lambda path: folder(path, {**CONFIG, "hidden_sizes": [8, 8, 16, 48]}),
        "different networks",
    ),
    "half a reduction": (
        lambda path: folder(path, {**CONFIG, "sr_ratios": [8, 4, 2.5, 1]}),
        "sr_ratios",
    ),
    "no bands": (lambda path: folder(path, {**CONFIG, "num_channels": 0}), "num_channels"),
    "endless bands": (
        lambda path: folder(path, {**CONFIG, "num_channels": 10**9}),
        "different networks",
    ),
    "no classes": (lambda path: folder(path, {**CONFIG, "id2label": {}}), "two or more classes"),
    "another depth": (
        lambda path: folder(path, {**CONFIG, "depths": [2, 1, 4096, 1]}),
        "1 blocks in stage 3",
    ),
    "pickled": (lambda path: pickled(folder(path)), r"pickled \(pytorch_model.bin\)"),
    "numbers that are none": (
        lambda path: folder(
            path, None, {**arrays(), "decode_head.classifier.bias": np.float32([0, 1, np.nan])}
        ),
        "classifier.bias holds NaN",
    ),
    "a missing array": (
        lambda path: folder(path, None, without("decode_head.classifier.bias")),
        "1 arrays are missing",
    ),
    "an array too many": (
        lambda path: folder(path, None, {**arrays(), "more.weight": np.zeros(3, np.float32)}),
        "has no place",
    ),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_told(tmp_path: Path, name: str) -> None:
    make, word = REFUSED[name]
    make(tmp_path / "bad")
    with pytest.raises(WeightsError, match=word) as caught:
        convert(str(tmp_path / "bad"))
    assert "bad" in str(caught.value)


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "told"), [("none", "no folder"), ("saved", "another one")])
def test_what_needs_no_conversion_is_told(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(WeightsError, match=f"got {told}.*segment -s network"):
        convert(str(tmp_path / name))


def test_half_precision_and_damage(tmp_path: Path) -> None:
    half = {name: value.astype(np.float16) for name, value in arrays().items()}
    half["decode_head.batch_norm.num_batches_tracked"] = np.array(7)
    assert convert(str(folder(tmp_path / "half", None, half))).card.parameters > 0
    path = folder(tmp_path / "short") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="truncated or damaged"):
        convert(str(path.parent))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"with config\.json and arrays"):
        convert(str(tmp_path / "empty"))


@pytest.mark.nightly
def test_a_training_starts_from_a_converted_network(tmp_path: Path) -> None:
    """The keys that the command prints are those of a recipe. While its layers hold still, only
    the layer of other classes learns.
    """
    from typer.testing import CliRunner

    from maskloom.flows.cli import app

    path = folder(tmp_path / "hf")
    (path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    run = CliRunner().invoke
    done = run(app, ["convert", str(path), "-o", str(tmp_path / "roads.keras")])
    assert done.exit_code == 0, done.output
    assert sorted(each.name for each in tmp_path.iterdir()) == ["hf", "roads.json", "roads.keras"]
    printed = yaml.safe_load(done.stdout.partition("training recipe:\n")[2])
    assert printed["network"]["widths"] == CONFIG["hidden_sizes"]
    blocks(tmp_path)
    recipe = {
        **TINY,
        **printed,
        "name": "own",
        "bands": [1, 1, 1],
        "training": {"patch": 32, "batch": 2, "steps": 2, "epochs": 1, "unfreeze": [1]},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(recipe))
    trained = run(app, ["train", str(tmp_path / "train.yaml"), "--no-whole-images"])
    assert trained.exit_code == 0, trained.output
    assert "but for layers of other shapes: decode_head_classifier." in trained.stderr
    card = json.loads((tmp_path / "out" / "own.json").read_bytes())
    assert card["scaling"]["offset"] == [127.5] * 3
    before, after = (
        {each.path: np.asarray(each) for each in load_keras(Weights.of(str(file))).weights}
        for file in (tmp_path / "roads.keras", tmp_path / "out" / "own.keras")
    )
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert {name.partition("/")[0] for name in changed} == {"decode_head_classifier"}


@pytest.mark.nightly
def test_the_record_is_that_of_the_original(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    np.testing.assert_allclose(
        original(folder(tmp_path / "hf"))[KEPT], np.load(RECORDED)["scores"], rtol=1e-4, atol=1e-5
    )


def original(path: Path) -> Any:
    """The class scores that the original gives."""
    import torch
    from transformers import SegformerForSemanticSegmentation

    # Names of arrays in files are older than those in memory.
    model = SegformerForSemanticSegmentation.from_pretrained(path).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(PIXELS.transpose(0, 3, 1, 2))).logits
        whole = torch.nn.functional.interpolate(
            logits, size=PIXELS.shape[1:3], mode="bilinear", align_corners=False
        )
        return whole.softmax(1).numpy().transpose(0, 2, 3, 1)
