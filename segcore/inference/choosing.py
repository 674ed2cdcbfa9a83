"""Choosing: which engine runs a network fastest here and still gives its labels.

Each engine and precision runs one patch of real pixels, once to warm up and then a few times, all in turns. It is eligible if its labels are
those of the reference, the file's own library in float32, on all but one pixel in a thousand. The choice is made once for a run and kept
with it, so that every worker computes alike; float32 is kept where bfloat16 gains less than a tenth.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from segcore.errors import WeightsError
from segcore.inference.engine import Choice
from segcore.inference.engines import check_engine, engines_of, is_installed, open_engine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segcore.inference.card import Card, Output
    from segcore.inference.engine import Engine, EngineName, Precision
    from segcore.inference.weights import Weights

_LEAST_AGREEMENT = 0.999
_LEAST_GAIN = 1.1
_MOST_RUNS, _MOST_SECONDS = 5, 10.0
_PRECISIONS: dict[str, tuple[Precision, ...]] = {"tensorflow": ("float32", "bfloat16"), "openvino": ("float32", "bfloat16")}


@dataclass(frozen=True, slots=True)
class _Trial:
    choice: Choice
    megapixels_a_second: float
    agreement: float

    def record(self) -> dict[str, object]:
        return {
            "engine": self.choice.engine,
            "precision": self.choice.precision,
            "megapixels_a_second": round(self.megapixels_a_second, 4),
            "agreement": round(self.agreement, 6),
        }

    @property
    def merit(self) -> float:
        return self.megapixels_a_second * (_LEAST_GAIN if self.choice.precision == "float32" else 1)


def available_engines(weights: Weights) -> list[EngineName]:
    """The engines that are installed and can run a file, the reference first. Raises `WeightsError` where nothing can run it."""
    return [engine for engine in engines_of(weights) if is_installed(engine)]


def choose(
    weights: Weights,
    card: Card,
    patch: NDArray[np.float32],
    engine: EngineName | Literal["auto"] = "auto",
    precision: Precision | Literal["auto"] = "auto",
) -> Choice:
    """How to run a network, tried on a scaled patch (y, x, band) that suits its sizes.

    Where only one way is left, it is tried too, so that a network that cannot be run is found before any image. Raises `WeightsError` where the
    network cannot be run so, or gives anything but what its card says.
    """
    if card.output == "objects":
        return _for_objects(weights, engine, precision)
    choices = _candidates(weights, engine, precision)
    if len(choices) == 1:
        run_once(weights, card, patch, choices[0])
        return choices[0]
    reference = Choice(available_engines(weights)[0], "float32")
    expected = labels_of(run_once(weights, card, patch, reference), card.output)
    agreements: dict[Choice, float] = {}
    running: dict[Choice, Engine] = {}
    failures = []
    for choice in sorted(choices, key=lambda choice: choice != reference):
        try:
            running[choice] = open_engine(weights, card, choice)
            labels = labels_of(run_once(weights, card, patch, choice), card.output)
        except WeightsError as error:
            failures.append({"engine": choice.engine, "precision": choice.precision, "error": str(error)})
        else:
            agreements[choice] = float((labels == expected).mean())
    seconds = _timed({choice: running[choice] for choice in agreements}, patch)
    megapixels = patch.shape[0] * patch.shape[1] / 1e6
    trials = [_Trial(choice, megapixels / seconds[choice], agreement) for choice, agreement in agreements.items()]
    eligible = [trial for trial in trials if trial.agreement >= _LEAST_AGREEMENT]
    if not eligible:
        told = "; ".join(f"{trial.choice.engine} keeps {trial.agreement:.2%} of the labels" for trial in trials)
        told = told or "; ".join(str(failure["error"]) for failure in failures)
        raise WeightsError(
            f"{weights.location}: no engine gives the labels of float32 in {precision}: {told}. Set precision: auto."
        )
    best = max(eligible, key=lambda trial: trial.merit).choice
    return Choice(
        best.engine, best.precision, {"patch": list(patch.shape), "tried": [*(trial.record() for trial in trials), *failures]}
    )


def run_once(weights: Weights, card: Card, patch: NDArray[np.float32], choice: Choice) -> NDArray[np.float32]:
    """What a network gives for a patch (y, x, band): (y, x, class). Raises `WeightsError` where that is not what its card says."""
    scores = np.array(open_engine(weights, card, choice)(patch[None])[0])
    count = 1 if card.output in ("sigmoid", "labels") else len(card.classes)
    expected = (*(size - 2 * card.reach.margin for size in patch.shape[:2]), count)
    # Of two classes one number may do: the logarithm of the second one's odds.
    single = card.output == "logits" and count == 2 and scores.shape == (*expected[:2], 1)
    if scores.shape != expected and not single:
        raise WeightsError(
            f"{weights.location}: for a patch of {patch.shape[:2]} and {len(card.classes)} classes ({', '.join(card.classes)[:200]}) an output of "
            f"{expected} was expected; the network gives {scores.shape}. Give as many classes as it has, or other weights."
        )
    if card.output == "sigmoid" and len(card.classes) != 2:
        raise WeightsError(f"{weights.location} gives one probability, for two classes; {len(card.classes)} were given.")
    if not np.isfinite(scores).all():
        raise WeightsError(
            f"{weights.location} gives NaN or infinite scores ({choice.engine}, {choice.precision}): its weights or the scaling are wrong."
        )
    if card.output == "labels" and not 0 <= scores.min() <= scores.max() < len(card.classes):
        raise WeightsError(
            f"{weights.location} gives class ids {scores.min():g} to {scores.max():g}, but has {len(card.classes)} classes."
        )
    return scores


def labels_of(scores: NDArray[np.float32], output: Output) -> NDArray[np.integer[Any]]:
    """Class ids (..., y, x) of a network's output (..., y, x, class)."""
    if output == "labels":
        return scores[..., 0].astype(np.intp)
    if scores.shape[-1] == 1:
        return (scores[..., 0] > (0.5 if output == "sigmoid" else 0.0)).astype(np.intp)
    labels: NDArray[np.integer[Any]] = scores.argmax(axis=-1)
    return labels


def native_bfloat16() -> bool:
    """Whether bfloat16 is worth a try: the processor computes in it, or does not say."""
    if is_installed("openvino"):
        from segcore.inference.openvino_engine import native_bfloat16

        return native_bfloat16()
    flags = Path("/proc/cpuinfo")
    return not flags.exists() or any(flag in flags.read_text() for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def _candidates(weights: Weights, engine: EngineName | Literal["auto"], precision: Precision | Literal["auto"]) -> list[Choice]:
    if engine != "auto":
        check_engine(weights, engine)
    engines = available_engines(weights) if engine == "auto" else [engine]
    if not engines:
        check_engine(weights, engines_of(weights)[0])
    choices = [
        Choice(name, each) for name in engines for each in _PRECISIONS.get(name, ("float32",)) if precision in ("auto", each)
    ]
    if precision == "auto" and not native_bfloat16():
        choices = [choice for choice in choices if choice.precision == "float32"]
    if not choices:
        raise WeightsError(
            f"precision: {' and '.join(engines)} cannot run {weights.location} in {precision}. Set precision: float32 or auto."
        )
    return choices


def _for_objects(weights: Weights, engine: EngineName | Literal["auto"], precision: Precision | Literal["auto"]) -> Choice:
    from segcore.inference.keras_files import load_keras

    if engine not in ("auto", "tensorflow") or precision not in ("auto", "float32"):
        raise WeightsError(
            f"{weights.location} finds objects, on TensorFlow in float32 only; got {engine}, {precision}. Set both to auto."
        )
    load_keras(weights)
    return Choice("tensorflow", "float32")


def _timed(engines: Mapping[Choice, Engine], patch: NDArray[np.float32]) -> dict[Choice, float]:
    """The shortest time of each engine for the patch, in seconds. They take turns, so that other work on the machine slows all alike."""
    seconds: dict[Choice, list[float]] = {choice: [] for choice in engines}
    started = time.perf_counter()
    for _ in range(_MOST_RUNS):
        for choice, engine in engines.items():
            begun = time.perf_counter()
            engine(patch[None])
            seconds[choice].append(time.perf_counter() - begun)
        if time.perf_counter() - started > _MOST_SECONDS:
            break
    return {choice: min(times) for choice, times in seconds.items()}
