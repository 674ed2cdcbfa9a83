"""Models in the format of bioimage.io: their card says what their description says, and what a
card cannot say, or what they contradict, is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.engines.opening import open_engine
from maskloom.segcore.deep.inference.engines.protocol import Choice
from maskloom.segcore.deep.inference.engines.selection import select_engine
from maskloom.segcore.deep.inference.files import bioimageio
from maskloom.segcore.deep.inference.files import examine as examination
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.errors import RecipeError, WeightsError
from maskloom.segcore.models.protocols import Exactness
from maskloom.segcore.segmenters.network import Network
from maskloom.segcore.testing import segmenters as check

onnx = pytest.importorskip("onnx")
make, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
GAIN = np.float32([[0.5, -0.25], [0.125, 1.0]])


def network(scores: int = 2, end: str | None = "Softmax") -> bytes:
    """A 1 x 1 convolution of two bands."""
    kernel = GAIN[:scores].reshape(scores, 2, 1, 1)
    nodes = [make.make_node("Conv", ["image", "kernel"], ["raw" if end else "scores"])]
    if end:
        axis = {"axis": 1} if end == "Softmax" else {}
        nodes.append(make.make_node(end, ["raw"], ["scores"], **axis))
    graph = make.make_graph(
        nodes,
        "network",
        [make.make_tensor_value_info("image", FLOAT, [1, 2, "y", "x"])],
        [make.make_tensor_value_info("scores", FLOAT, [1, scores, "y", "x"])],
        [onnx.numpy_helper.from_array(kernel, "kernel")],
    )
    opset = [make.make_opsetid("", 17)]
    content: bytes = make.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    return content


def version_5(steps: list[Any] | None = None, after: list[Any] | None = None) -> dict[str, Any]:
    """A description of version 0.5."""
    space = [
        {"type": "space", "id": axis, "size": {"min": 32, "step": 1}, "scale": 0.5,
         "unit": "micrometer"}
        for axis in "yx"
    ]  # fmt: skip
    same = [
        {"type": "space", "id": axis, "size": {"tensor_id": "raw", "axis_id": axis}, "halo": 8,
         "scale": 0.5, "unit": "micrometer"}
        for axis in "yx"
    ]  # fmt: skip
    return {
        "type": "model",
        "format_version": "0.5.4",
        "name": "roads and fields",
        "description": "Roads in photographs from the air",
        "license": "CC-BY-4.0",
        "authors": [{"name": "A. Author"}],
        "cite": [{"text": "Author 2026", "doi": "10.1000/182"}],
        "inputs": [
            {
                "id": "raw",
                "axes": [
                    {"type": "batch"},
                    {"type": "channel", "channel_names": ["near", "far"]},
                    *space,
                ],
                "data": {"type": "uint8"},
                "preprocessing": steps or [],
            }
        ],
        "outputs": [
            {
                "id": "out",
                "axes": [
                    {"type": "batch"},
                    {"type": "channel", "channel_names": ["field", "road"]},
                    *same,
                ],
                "postprocessing": after or [],
            }
        ],
        "weights": {"onnx": {"source": "net.onnx", "opset_version": 17}},
    }


def version_4(steps: list[Any] | None = None, after: list[Any] | None = None) -> dict[str, Any]:
    """A description of the same model in version 0.4."""
    said = version_5()
    said["format_version"] = "0.4.10"
    said["inputs"] = [
        {
            "name": "raw",
            "axes": "bcyx",
            "data_type": "uint8",
            "shape": {"min": [1, 2, 32, 32], "step": [0, 0, 1, 1]},
            "preprocessing": steps or [],
        }
    ]
    said["outputs"] = [
        {
            "name": "out",
            "axes": "bcyx",
            "data_type": "float32",
            "shape": {"reference_tensor": "raw", "scale": [1, 0, 1, 1], "offset": [0, 1, 0, 0]},
            "halo": [0, 0, 8, 8],
            "postprocessing": after or [],
        }
    ]
    return said


def model(folder: Path, said: Any, content: bytes | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "net.onnx").write_bytes(network() if content is None else content)
    (folder / "rdf.yaml").write_text(said if isinstance(said, str) else yaml.safe_dump(said))
    return folder


def card(path: Path) -> Card:
    """The card of a model, examined in this process."""
    return examination._card_of(Weights.of(str(path)))


def described(said: Any) -> bioimageio.Description:
    text = said if isinstance(said, str) else yaml.safe_dump(said)
    return bioimageio.read(text.encode(), "model: rdf.yaml")


def test_the_card_says_what_the_description_says(tmp_path: Path) -> None:
    steps = [{"id": "scale_linear", "kwargs": {"gain": 0.5, "offset": -1.0}}]
    found = card(model(tmp_path / "m", version_5(steps)))
    assert (found.classes, found.channels, found.output) == (("field", "road"), 2, "scores")
    assert (found.pixel_size, found.dtype) == (0.5, "uint8")
    # A halo that a trial confirms makes the network exact.
    assert found.reach == ReceptiveField(8)
    assert found.about["licence"] == "CC-BY-4.0"
    assert found.about["cite"] == ["Author 2026, 10.1000/182"]
    assert np.array_equal(found.scaling.apply(np.array([2, 10], np.uint8)), [0, 4])


LINES: dict[str, tuple[Any, list[Any], Callable[[Any], Any]]] = {
    "0.5 linear along bands": (
        version_5,
        [{"id": "scale_linear",
          "kwargs": {"axis": "channel", "gain": [2.0, 4.0], "offset": [1.0, 0.0]}}],
        lambda x: x * [2, 4] + [1, 0],
    ),
    "0.5 fixed mean": (
        version_5,
        [{"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 100.0, "std": 50.0}}],
        lambda x: (x - 100) / 50,
    ),
    "0.5 fixed means along bands after a gain": (
        version_5,
        [
            {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
            {"id": "scale_linear", "kwargs": {"gain": 1 / 255}},
            {"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}},
            {"id": "fixed_zero_mean_unit_variance",
             "kwargs": {"axis": "channel", "mean": [0.4, 0.5], "std": [0.2, 0.25]}},
        ],
        lambda x: (x / 255 - [0.4, 0.5]) / [0.2, 0.25],
    ),
    "0.4 fixed mean": (
        version_4,
        [{"name": "zero_mean_unit_variance",
          "kwargs": {"mode": "fixed", "axes": "yx", "mean": [100.0, 90.0], "std": [50.0, 40.0]}}],
        lambda x: (x - [100, 90]) / np.add([50, 40], 1e-6),
    ),
    "nothing": (version_5, [], lambda x: x),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_steps_before_the_network_become_one_scaling(name: str) -> None:
    said, steps, expected = LINES[name]
    pixels = np.arange(0, 256, 5, np.uint8)[:, None].repeat(2, 1)
    found = described(said(steps)).scaling.apply(pixels)
    np.testing.assert_allclose(found, expected(pixels.astype(float)), rtol=2e-5, atol=2e-5)


def test_both_versions_and_a_zip_say_the_same(tmp_path: Path) -> None:
    five = described(version_5())
    four = described(version_4())
    for name in ("channels", "dimensions", "scores", "halo", "dtype", "scaling", "output"):
        assert getattr(four, name) == getattr(five, name), name
    folder = model(tmp_path / "m", version_5())
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    above = shutil.make_archive(str(tmp_path / "above"), "zip", tmp_path, "m")
    digests = {Weights.of(str(path)).sha256 for path in (folder, packed, above)}
    assert len(digests) == 1
    assert Weights.of(packed).suffix == ".onnx"
    assert Weights.of(packed).read() == network()


BY_IMAGE: dict[str, tuple[Any, list[Any], ImageScaling]] = {
    "0.5 mean of each band": (
        version_5,
        [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["y", "x"]}}],
        ImageScaling("deviation"),
    ),
    "0.5 percentiles, cut": (
        version_5,
        [
            {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
            {"id": "scale_range",
             "kwargs": {"axes": ["channel", "y", "x"], "min_percentile": 1.0,
                        "max_percentile": 99.8, "eps": 1e-4}},
            {"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}},
        ],
        ImageScaling("range", (1.0, 99.8), "together", eps=1e-4, clip=(0.0, 1.0)),
    ),
    "0.5 of all images": (
        version_5, [{"id": "scale_range"}], ImageScaling("range", bands="together", of="fit")
    ),
    "0.5 after a gain": (
        version_5,
        [
            {"id": "scale_linear", "kwargs": {"gain": 0.5, "offset": 3.0}},
            {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["x", "y"], "eps": 1e-3}},
        ],
        ImageScaling("deviation", eps=2e-3),
    ),
    "0.4 mean": (
        version_4,
        [{"name": "zero_mean_unit_variance", "kwargs": {"mode": "per_sample", "axes": "xyc"}}],
        ImageScaling("deviation", bands="together"),
    ),
    "0.4 data set": (
        version_4,
        [{"name": "scale_range", "kwargs": {"mode": "per_dataset", "axes": "xy"}}],
        ImageScaling("range", of="fit"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_IMAGE)
def test_steps_by_the_pixels_of_an_image_are_taken_over(name: str) -> None:
    said, steps, expected = BY_IMAGE[name]
    found = described(said(steps))
    assert (found.scaling, found.ask, found.dtype) == (expected, {}, "")


@pytest.mark.parametrize(
    "steps",
    [
        [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["channel", "x"]}}],
        [{"id": "scale_range", "kwargs": {"reference_tensor": "another"}}],
        [
            {"id": "scale_linear", "kwargs": {"axis": "channel", "gain": [1.0, 2.0]}},
            {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["x", "y"]}},
        ],
    ],
)
def test_what_no_scaling_can_express_is_asked_for(steps: list[Any]) -> None:
    assert f"its step {steps[-1]['id']}" in described(version_5(steps)).ask["scaling"]


def test_the_recipe_answers_what_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "examine", examination._card_of)
    step = {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["x"]}}
    said = version_5([step])
    path = str(model(tmp_path / "m", said, network(2, "Sigmoid")))
    with pytest.raises(RecipeError, match="scaling: m: its step zero_mean_unit_variance"):
        Network(path).start()
    scaling = Scaling((90.0,), (0.02,))
    with pytest.raises(
        RecipeError,
        match=r"classes: m: the network answers 2 independent questions \(field, road\)",
    ):
        Network(path, scaling=scaling).start()
    ready = Network(path, scaling=scaling, classes=("field", "road"), pixel_size="any").start()
    assert ready.card.scaling == scaling


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    said = version_5()
    change(said)
    return said


REFUSED: dict[str, tuple[Any, str]] = {
    "no description": ("just a text", "describes no model"),
    "broken": ("{a: [", "cannot be read"),
    "an object": ("!!python/object/apply:os.system ['true']", "cannot be read"),
    "without end": ("&a [*a]", "parts"),
    "billions": (
        "\n".join(
            ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
            + [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
        ),
        "parts",
    ),
    "another version": (changed(lambda said: said.update(format_version="0.3.2")), "0.4 or 0.5"),
    "a dataset": (changed(lambda said: said.update(type="dataset")), "describes no model"),
    "two inputs": (changed(lambda said: said.update(inputs=said["inputs"] * 2)), "one image"),
    "PyTorch": (
        changed(
            lambda said: said.update(weights={"pytorch_state_dict": {"source": "weights.pt"}})
        ),
        "torch.onnx.export",
    ),
    "weights elsewhere": (
        changed(lambda said: said["weights"]["onnx"].update(source="https://host/net.onnx")),
        "elsewhere",
    ),
    "a step of its own": (version_5([{"id": "binarize", "kwargs": {"threshold": 1}}]), "binarize"),
    "lines behind the image's own": (
        version_5([{"id": "scale_range"}, {"id": "scale_linear", "kwargs": {"gain": 2.0}}]),
        "after scale_range",
    ),
    "clipped": (version_5([{"id": "clip", "kwargs": {"min": 10}}]), "clip"),
    "three gains": (
        version_5([{"id": "scale_linear", "kwargs": {"gain": [1.0, 2.0, 3.0]}}]),
        "3 numbers for 2 bands",
    ),
    "larger pixels": (
        changed(lambda said: said["outputs"][0]["axes"][2].update(scale=1.0)),
        "other pixels than its input",
    ),
    "flows": (version_5(after=[{"id": "cellpose_flow_dynamics"}]), "cellpose_flow_dynamics"),
    "time": (
        changed(lambda said: said["inputs"][0]["axes"].append({"type": "time"})),
        "has the axes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_descriptions_are_refused(name: str) -> None:
    said, word = REFUSED[name]
    with pytest.raises(WeightsError, match=word) as caught:
        described(said)
    assert "model: rdf.yaml" in str(caught.value)


def test_what_contradicts_the_weights_is_refused(tmp_path: Path) -> None:
    def three_bands(said: dict[str, Any]) -> None:
        said["inputs"][0]["axes"][1]["channel_names"] = ["a", "b", "c"]

    def three_classes(said: dict[str, Any]) -> None:
        said["outputs"][0]["axes"][1]["channel_names"] = ["a", "b", "c"]

    def another_file(said: dict[str, Any]) -> None:
        said["weights"]["onnx"]["sha256"] = hashlib.sha256(b"another").hexdigest()

    def outside(said: dict[str, Any]) -> None:
        said["weights"]["onnx"]["source"] = "../net.onnx"

    for change, word in (
        (three_bands, "says 3 bands, they have 2"),
        (three_classes, "says 3 classes, they have 2"),
        (another_file, "not the file that the description names"),
        (outside, "names a file outside"),
        (lambda said: said["weights"]["onnx"].update(source="none.onnx"), "not there"),
    ):
        with pytest.raises(WeightsError, match=word):
            card(model(tmp_path / "m", changed(change)))


def test_a_card_beside_it_may_not_contradict_it(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", version_5())
    weights = Weights.of(str(folder))
    found = json.loads(card(folder).dump())
    (tmp_path / "m.json").write_text(json.dumps(found))
    assert weights.card() == card(folder)
    (tmp_path / "m.json").write_text(json.dumps({**found, "classes": ["a", "b", "c"]}))
    with pytest.raises(WeightsError, match="contradicts"):
        weights.card()


@pytest.mark.parametrize(
    ("scores", "end", "after", "output"),
    [
        (1, "Sigmoid", [], "sigmoid"),
        (1, None, [{"id": "sigmoid"}], "logits"),
        (1, None, [{"id": "sigmoid"}, {"id": "binarize", "kwargs": {"threshold": 0.5}}], "logits"),
        (2, None, [{"id": "softmax", "kwargs": {"axis": "channel"}}], "logits"),
        (1, "Sigmoid", [{"id": "binarize", "kwargs": {"threshold": 0.4}}], None),
    ],
)
def test_steps_after_the_network_say_what_its_numbers_are(
    tmp_path: Path, scores: int, end: str | None, after: list[Any], output: str | None
) -> None:
    said = version_5(after=after)
    if scores == 1:
        said["outputs"][0]["axes"][1]["channel_names"] = ["road"]
    folder = model(tmp_path / "m", said, network(scores, end))
    if output is None:
        with pytest.raises(WeightsError, match=r"above 0\.4; expected the middle, 0\.5"):
            card(folder)
        return
    found = card(folder)
    names = ("background", "road") if scores == 1 else ("field", "road")
    assert (found.output, found.classes) == (output, names)


def test_hostile_archives_are_refused(tmp_path: Path) -> None:
    def packed(entries: dict[str, bytes]) -> str:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, each in entries.items():
                archive.writestr(name, each)
        (tmp_path / "m.zip").write_bytes(content.getvalue())
        return str(tmp_path / "m.zip")

    document = yaml.safe_dump(version_5()).encode()
    whole = {"rdf.yaml": document, "net.onnx": network()}
    with pytest.raises(WeightsError, match="names a file outside"):
        Weights.of(packed({**whole, "../../evil": b""}))
    with pytest.raises(WeightsError, match="would unfold to"):
        Weights.of(packed({**whole, "zeros": bytes(80 << 20)}))
    with pytest.raises(WeightsError, match="truncated or damaged"):
        path = Path(packed(whole))
        path.write_bytes(path.read_bytes()[:-30])
        Weights.of(str(path))
    with pytest.raises(WeightsError, match="holds no network"):
        Weights.of(packed({"readme.md": b"hello"}))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "rdf.yaml").write_bytes(document)
    (tmp_path / "linked" / "net.onnx").symlink_to(tmp_path / "m.zip")
    with pytest.raises(WeightsError, match="link that leads out of the folder"):
        Weights.of(str(tmp_path / "linked"))


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its open files
@pytest.mark.parametrize("said", [version_4, version_5])
def test_the_descriptions_here_are_those_of_the_format(tmp_path: Path, said: Any) -> None:
    """The reader of the format itself takes what these tests write, and finds the same in it."""
    spec = pytest.importorskip("bioimageio.spec")
    folder = model(tmp_path / "m", complete(said(), tmp_path / "m"))
    found = spec.load_description(
        folder / "rdf.yaml", format_version="discover", perform_io_checks=False
    )
    assert not isinstance(found, spec.InvalidDescr), found.validation_summary.format()
    ours = described((folder / "rdf.yaml").read_text())
    assert str(found.weights.onnx.source.path) == ours.weights.source
    assert found.license == ours.about["licence"]
    if said is version_5:
        assert found.inputs[0].axes[1].channel_names == ["near", "far"]
        assert found.outputs[0].axes[1].channel_names == list(ours.classes)
        assert found.outputs[0].axes[2].halo == ours.halo
        assert found.inputs[0].axes[2].scale == ours.pixel_size
    else:
        assert len(found.inputs[0].shape.min) == 4
        assert max(found.outputs[0].halo) == ours.halo


def complete(said: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A description with all that the format demands and a card does not need."""
    folder.mkdir()
    (folder / "readme.md").write_text("# Roads\n")
    for name in ("in.npy", "out.npy"):
        np.save(folder / name, np.zeros((1, 2, 32, 32), np.float32))
    said["documentation"] = "readme.md"
    said["timestamp"] = "2026-11-27T12:00:00+00:00"
    if said["format_version"].startswith("0.5"):
        said["inputs"][0]["test_tensor"] = {"source": "in.npy"}
        said["outputs"][0]["test_tensor"] = {"source": "out.npy"}
    else:
        said |= {"test_inputs": ["in.npy"], "test_outputs": ["out.npy"]}
    return said


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"channels": 3}, r"its card says 3 bands"),
        ({"classes": ["a", "b", "c"]}, "3 classes"),
        ({"output": "scores"}, "its card says that they are probabilities"),
        ({"output": "sigmoid"}, "an output of"),
    ],
)
def test_a_card_of_a_file_may_not_contradict_it(
    tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    (tmp_path / "net.onnx").write_bytes(network(2, None))
    weights = Weights.of(str(tmp_path / "net.onnx"))
    card = json.loads(examination._card_of(weights).dump())
    (tmp_path / "net.json").write_text(json.dumps({**card, **change}))
    found = weights.card()
    assert found is not None
    patch = np.random.default_rng(0).uniform(-9, 9, (64, 64, found.channels)).astype(np.float32)
    with pytest.raises(WeightsError, match=word):
        select_engine(weights, found, patch)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["keras_v3", "tensorflow_saved_model_bundle"])
def test_weights_of_other_formats(tmp_path: Path, kind: str) -> None:
    keras = pytest.importorskip("keras")
    image = keras.Input((None, None, 2))
    net = keras.Model(image, keras.layers.Conv2D(2, 1, activation="softmax")(image))
    folder = model(tmp_path / "m", version_5())
    if kind == "keras_v3":
        sources = ["net.keras"]
        net.save(folder / "net.keras")
    else:
        sources = ["saved", "saved.zip"]
        net.export(str(folder / "saved"), verbose=False)
        shutil.make_archive(str(folder / "saved"), "zip", folder / "saved")
    for source in sources:
        said = version_5()
        # PyTorch's are passed over.
        said["weights"] = {"torchscript": {"source": "net.pt"}, kind: {"source": source}}
        (folder / "rdf.yaml").write_text(yaml.safe_dump(said))
        found = card(folder)
        assert (found.classes, found.about["weights"]) == (("field", "road"), kind)
        pixels = np.random.default_rng(0).random((1, 16, 16, 2), np.float32)
        engine = open_engine(Weights.of(str(folder)), found, Choice("tensorflow", "float32"))
        np.testing.assert_allclose(engine(pixels), np.asarray(net(pixels)), rtol=1e-5)


STEPS: dict[str, tuple[list[Any], Callable[[Any], Any]]] = {
    "by stated numbers": (
        [{"id": "scale_linear", "kwargs": {"gain": 0.02, "offset": -2.0}}],
        lambda pixels: pixels * 0.02 - 2,
    ),
    "by mean and deviation": (
        [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["y", "x"]}}],
        lambda pixels: (pixels - pixels.mean((0, 1))) / (pixels.std((0, 1)) + 1e-6),
    ),
    "by percentiles": (
        [
            {"id": "scale_range",
             "kwargs": {"axes": ["channel", "y", "x"], "min_percentile": 2, "max_percentile": 98}},
            {"id": "clip", "kwargs": {"min": 0.1, "max": 0.9}},
        ],
        lambda pixels: np.clip(
            (pixels - np.percentile(pixels, 2))
            / (np.percentile(pixels, 98) - np.percentile(pixels, 2) + 1e-6), 0.1, 0.9
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "dtype"),
    [
        pytest.param("by stated numbers", "uint8", marks=pytest.mark.nightly),
        ("by mean and deviation", "uint8"),
        ("by percentiles", "float32"),
    ],
)
def test_labels_are_those_worked_out_by_hand_whatever_the_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: str, dtype: str
) -> None:
    monkeypatch.setattr(examination, "examine", examination._card_of)
    said, scaled = STEPS[steps]
    recipe = Network(
        str(model(tmp_path / "m", version_5(said))), pixel_size="any", engine="onnxruntime"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (100, 140, 2)).astype(dtype)
    pixels[:50] //= 3  # so that no tile is like the whole
    picture = check.Picture(pixels, np.ones((100, 140), bool))
    ready = check.fitted(recipe, [picture])
    assert ready.exactness is Exactness.EXACT
    check.check_tiling(recipe, picture, (33, 40))
    check.check_merging(recipe, picture, (33, 40))
    check.check_values(recipe, picture)
    scores = scaled(pixels.astype(float)) @ GAIN.T
    clear = np.abs(scores[..., 0] - scores[..., 1]) > 1e-4  # elsewhere the rounding decides
    assert clear.mean() > 0.98
    assert np.array_equal(check.labelled(ready, picture)[clear], scores.argmax(-1)[clear])
    assert 0.02 < scores.argmax(-1).mean() < 0.98
