"""The choice of an engine: the fastest that keeps the labels, and networks that are not what they
should be are told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maskloom.segcore.deep.inference.card import Card, Output
from maskloom.segcore.deep.inference.engines import opening as engines
from maskloom.segcore.deep.inference.engines import selection as choosing
from maskloom.segcore.deep.inference.engines.protocol import Choice
from maskloom.segcore.deep.inference.engines.selection import (
    available_engines,
    labels_of,
    select_engine,
)
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.runtime import import_keras, set_threads
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.errors import WeightsError

set_threads(1)
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
PATCH = np.random.default_rng(0).random((50, 40, 1), np.float32)


def card(classes: int = 2, output: Output = "scores", margin: int = 0) -> Card:
    return Card(
        "network",
        "",
        1,
        tuple(f"class_{i}" for i in range(classes)),
        Scaling(),
        ReceptiveField(1 + margin, margin=margin),
        output,
    )


@dataclass
class House:
    """Engines that give scores of one pattern, each with some pixels changed, after a time on a
    clock of their own.
    """

    seconds: dict[tuple[str, str], float]
    changed: dict[tuple[str, str], int] = field(default_factory=dict)
    broken: set[tuple[str, str]] = field(default_factory=set)
    now: float = 0.0
    runs: dict[tuple[str, str], int] = field(default_factory=dict)

    def open(self, weights: Weights, form: Card, choice: Choice) -> Any:
        key = (choice.engine, choice.precision)

        def run(batch: np.ndarray) -> np.ndarray:
            if key in self.broken:
                raise WeightsError("an operator is missing")
            self.now += self.seconds[key]
            self.runs[key] = self.runs.get(key, 0) + 1
            second = batch > 0.5
            second.reshape(-1)[: self.changed.get(key, 0)] ^= True
            return np.concatenate([~second, second], axis=-1).astype(np.float32)

        return run


ALL = [
    ("tensorflow", "float32"),
    ("tensorflow", "bfloat16"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
]


def build(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], native: object = True, **others: Any
) -> Weights:
    return furnish(monkeypatch, House(dict(zip(ALL, seconds, strict=True)), **others), native)


def furnish(monkeypatch: pytest.MonkeyPatch, house: House, native: object = True) -> Weights:
    monkeypatch.setattr(choosing, "open_engine", house.open)
    clocks = SimpleNamespace(perf_counter=lambda: house.now, process_time=lambda: house.now)
    monkeypatch.setattr(choosing, "time", clocks)
    monkeypatch.setattr(choosing, "is_installed", lambda engine: True)
    monkeypatch.setattr(choosing, "check_engine", lambda weights, engine: None)
    monkeypatch.setattr(choosing, "native_bfloat16", lambda: native)
    return Weights("it.keras", "0" * 64)


def chosen(choice: Choice) -> tuple[str, str]:
    return choice.engine, choice.precision


def tried_of(choice: Choice) -> dict[tuple[str, str], Any]:
    return {(trial["engine"], trial["precision"]): trial for trial in choice.record["tried"]}


SLOW, FAST, FASTEST = 0.02, 0.01, 0.002


def test_the_fastest_that_keeps_the_labels_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = build(monkeypatch, [SLOW, SLOW, SLOW, FASTEST], changed={ALL[3]: 2})
    choice = select_engine(weights, card(), PATCH)
    assert chosen(choice) == ALL[3]
    tried = tried_of(choice)
    assert set(tried) == set(ALL)
    assert tried[ALL[3]]["agreement"] == 1 - 2 / 2000
    assert tried[ALL[3]]["megapixels_a_second"] > tried[ALL[0]]["megapixels_a_second"]


def test_one_label_too_many_and_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = build(monkeypatch, [SLOW, FAST, SLOW, FASTEST], changed={ALL[3]: 3})
    assert chosen(select_engine(weights, card(), PATCH)) == ALL[1]


def test_other_work_on_the_machine_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one thread: the clock runs on while the processor does something else."""
    weights = build(monkeypatch, [SLOW, SLOW, SLOW, FASTEST])
    busy = iter(range(10**6))
    monkeypatch.setattr(choosing.time, "perf_counter", lambda: next(busy) ** 2 % 7)
    monkeypatch.setattr(choosing, "threads", lambda: 1)
    choice = select_engine(weights, card(), PATCH)
    assert chosen(choice) == ALL[3]
    speed = tried_of(choice)[ALL[3]]["megapixels_a_second"]
    assert speed == pytest.approx(PATCH.shape[0] * PATCH.shape[1] / 1e6 / FASTEST, rel=1e-3)


def test_only_those_in_the_race_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(
        dict(zip(ALL, [SLOW, FAST, FASTEST * 5, FASTEST], strict=True)), changed={ALL[3]: 3}
    )
    choice = select_engine(furnish(monkeypatch, house), card(), PATCH)
    assert house.runs[ALL[3]] == 1  # it loses labels
    assert house.runs[ALL[0]] <= house.runs[ALL[1]] == house.runs[ALL[2]] > 2
    assert "megapixels_a_second" not in tried_of(choice)[ALL[3]]
    behind = House(dict(zip(ALL, [SLOW, SLOW, FAST, FASTEST], strict=True)))
    assert chosen(select_engine(furnish(monkeypatch, behind), card(), PATCH)) == ALL[3]
    assert [behind.runs[key] for key in ALL] == [2, 2, 2, 2]  # after one lap nobody else is near


def test_large_networks_run_no_more_than_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(dict(zip(ALL, [9.0, 8.0, 7.0, 6.0], strict=True)))
    select_engine(furnish(monkeypatch, house), card(), PATCH)
    assert set(house.runs.values()) == {2}


def test_float32_stays_where_bfloat16_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = build(monkeypatch, [SLOW, SLOW * 0.98, SLOW * 2, SLOW * 2])
    assert chosen(select_engine(weights, card(), PATCH)) == ALL[0]


def test_bfloat16_is_not_tried_where_the_processor_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = build(monkeypatch, [SLOW, FASTEST, FAST, FASTEST], native=False)
    choice = select_engine(weights, card(), PATCH)
    assert chosen(choice) == ALL[2]
    assert len(choice.record["tried"]) == 2
    assert select_engine(weights, card(), PATCH, precision="bfloat16").precision == "bfloat16"


def test_what_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = build(monkeypatch, [FASTEST, FAST, SLOW, SLOW])
    assert select_engine(weights, card(), PATCH, engine="openvino").engine == "openvino"
    assert chosen(select_engine(weights, card(), PATCH, precision="bfloat16")) == ALL[1]
    assert chosen(select_engine(weights, card(), PATCH, "openvino", "bfloat16")) == ALL[3]


def test_an_engine_that_cannot_run_it_is_passed_over_and_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = build(monkeypatch, [SLOW, FAST, FASTEST, FASTEST], broken={ALL[2], ALL[3]})
    choice = select_engine(weights, card(), PATCH)
    assert chosen(choice) == ALL[1]
    assert [trial["engine"] for trial in choice.record["tried"] if "error" in trial] == [
        "openvino",
        "openvino",
    ]
    with pytest.raises(WeightsError, match="operator"):
        select_engine(weights, card(), PATCH, engine="openvino")


def test_a_precision_that_keeps_no_labels_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = build(monkeypatch, [SLOW, FAST, SLOW, FASTEST], changed={ALL[1]: 500, ALL[3]: 500})
    with pytest.raises(WeightsError, match=r"75\.00% of the labels"):
        select_engine(weights, card(), PATCH, precision="bfloat16")


# Real networks


def saved(path: Path, classes: int, activation: str = "softmax", bias: float = 0.0) -> Weights:
    keras = import_keras()
    inputs = keras.Input((None, None, 1))
    outputs = keras.layers.Conv2D(
        classes,
        3,
        padding="same",
        activation=activation,
        bias_initializer=keras.initializers.Constant(bias),
    )(inputs)
    keras.Model(inputs, outputs).save(path)
    return Weights.of(str(path))


def test_a_real_network_is_tried_in_all_that_is_installed(tmp_path: Path) -> None:
    weights = saved(tmp_path / "it.keras", 3)
    choice = select_engine(weights, card(3), PATCH)
    assert available_engines(weights)[0] == "tensorflow"
    assert {trial["engine"] for trial in choice.record["tried"]} == set(available_engines(weights))
    assert all(trial["agreement"] >= 0.99 for trial in choice.record["tried"])
    # The others would take memory on the worker that chose, for as long as it lives.
    assert [request.choice for request in engines._loaded if request.weights == weights] == [choice]


GIVEN: dict[str, Any] = {"engine": "tensorflow", "precision": "float32"}


def test_what_the_network_gives_is_checked_before_any_image(tmp_path: Path) -> None:
    three = saved(tmp_path / "three.keras", 3)
    one = saved(tmp_path / "one.keras", 1, "sigmoid")
    select_engine(three, card(3), PATCH, **GIVEN)
    select_engine(one, card(2, "sigmoid"), PATCH, **GIVEN)
    with pytest.raises(WeightsError, match="2 classes"):
        select_engine(three, card(2), PATCH, **GIVEN)
    with pytest.raises(WeightsError, match="for two classes; 3"):
        select_engine(one, card(3, "sigmoid"), PATCH, **GIVEN)
    with pytest.raises(WeightsError, match=r"\(30, 20, 3\) was expected"):
        select_engine(three, card(3, margin=10), PATCH, **GIVEN)
    with pytest.raises(WeightsError, match="takes patches"):
        select_engine(three, card(3), PATCH.repeat(2, axis=-1), **GIVEN)
    with pytest.raises(WeightsError, match="NaN"):
        select_engine(saved(tmp_path / "nan.keras", 2, bias=float("nan")), card(2), PATCH, **GIVEN)
    with pytest.raises(WeightsError, match="class ids"):
        select_engine(
            saved(tmp_path / "ids.keras", 1, "linear", bias=9.0), card(3, "labels"), PATCH, **GIVEN
        )


def test_engines_for_other_files_are_told(tmp_path: Path) -> None:
    weights = saved(tmp_path / "it.keras", 2)
    with pytest.raises(WeightsError, match="openvino or onnxruntime, or auto"):
        select_engine(weights, card(), PATCH, engine="litert")
    (tmp_path / "it.pt").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"\.keras, \.onnx, \.tflite"):
        available_engines(Weights.of(str(tmp_path / "it.pt")))


def test_labels_are_the_greatest_scores() -> None:
    scores = np.array([[[0.2, 0.8], [0.5, 0.5]]], np.float32)
    assert labels_of(scores, "scores").tolist() == [[1, 0]]
    assert labels_of(scores[..., 1:], "sigmoid").tolist() == [[1, 0]]
    assert labels_of(np.array([[[7.0]]], np.float32), "labels").tolist() == [[7]]


def test_networks_of_objects_are_loaded_and_run_on_tensorflow(tmp_path: Path) -> None:
    weights = saved(tmp_path / "it.keras", 2)
    assert chosen(select_engine(weights, card(2, "objects"), PATCH)) == ALL[0]
    with pytest.raises(WeightsError, match="float32 only"):
        select_engine(weights, card(2, "objects"), PATCH, engine="openvino")
