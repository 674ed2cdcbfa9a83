"""Engine selection: the fastest engine that keeps a network's labels.

Each engine and precision runs one patch of real pixels. It is eligible if its labels match those of
the reference, the file's own library in float32, on at least 99.9 % of the pixels. The eligible
ones are then timed: they run the patch a few more times in turn and drop out when far slower than
the fastest. The selection is made once per run and stored with it, so that all workers compute the
same results; float32 is preferred unless bfloat16 is at least a tenth faster. For other outputs it
is kept in the user's cache (`network_cache.kept_choice`).
"""

from __future__ import annotations

import hashlib
import math
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskloom.segcore.deep.inference.engines.gpus import (
    CPU,
    has_gpu_provider,
    idle_gpu,
    nvidia_gpus,
)
from maskloom.segcore.deep.inference.engines.opening import (
    available_engines,
    check_engine,
    close_others,
    engines_of,
    hardware_of,
    is_installed,
    is_keras,
    open_engine,
)
from maskloom.segcore.deep.inference.engines.protocol import (
    BatchEngine,
    Choice,
    PatchesOfImage,
)
from maskloom.segcore.deep.inference.runtime import (
    BACKENDS,
    import_keras,
    keras_backend,
    threads,
    use_backend,
)
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card, Output
    from maskloom.segcore.deep.inference.engines.protocol import Engine, EngineName, Precision
    from maskloom.segcore.deep.inference.files.weights import Weights

_LEAST_AGREEMENT = 0.999
_LEAST_GAIN = 1.1
_SAME_VECTOR = 0.1
"""Difference of a vector's parts, which are from -1 to 1, that makes no other object."""
_ROUNDING = 0.01
"""By which probabilities may leave 0 ... 1 in bfloat16."""
_MOST_RUNS, _MOST_SECONDS = 5, 2.0
_FAR_BEHIND = 2.0
"""Multiple of the shortest time beyond which an engine is not run again: other work on the machine
does not explain so large a difference.
"""
_PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
_IN_BFLOAT16 = ("tensorflow", "openvino")
"""Engines that are faster in bfloat16 on processors that have it."""
_TIMED_BATCHES = 3


def select_engine(
    weights: Weights,
    card: Card,
    patch: NDArray[np.float32],
    engine: EngineName | Literal["auto"] = "auto",
    precision: Precision | Literal["auto"] = "auto",
    pixels: NDArray[np.generic] | None = None,
) -> Choice:
    """Select engine and precision by running a scaled patch (y, x, band), or (z, y, x, band), of a
    valid size.

    `pixels` are those of the patch as they are in the image; GPUs are timed with them. A single
    candidate is run too, so that a network that cannot run fails before the first image. Raises
    `WeightsError` if the network cannot run as requested or its output does not match its card.
    """
    if card.output == "objects":
        return _engine_for_objects(weights, engine, precision)
    candidates = _candidates(weights, engine, precision)
    if len(candidates) == 1:
        run_once(weights, card, patch, candidates[0])
        only = candidates[0]
        return replace(only, record=_where(only, open_engine(weights, card, only), engine))
    agreements, failures = _agreements(weights, card, patch, candidates)
    eligible = [choice for choice, agreement in agreements.items() if agreement >= _LEAST_AGREEMENT]
    if not eligible:
        reasons = "; ".join(
            f"{choice.engine} keeps {agreement:.2%} of the labels"
            for choice, agreement in agreements.items()
        )
        reasons = reasons or "; ".join(str(failure["error"]) for failure in failures)
        raise WeightsError(
            f"{weights.location}: no engine keeps the labels of float32 in {precision}: {reasons}. "
            "Set precision: auto."
        )
    seconds = _time_engines(
        {choice: open_engine(weights, card, choice) for choice in eligible},
        patch,
        patch if pixels is None else pixels,
    )
    best = min(
        eligible,
        key=lambda choice: seconds[choice] * (1 if choice.precision == "float32" else _LEAST_GAIN),
    )
    close_others(weights, best)
    megapixels = math.prod(patch.shape[:-1]) / 1e6
    tried = [
        {"engine": choice.engine, "precision": choice.precision, "agreement": round(agreement, 6)}
        | (
            {"megapixels_a_second": round(megapixels / seconds[choice], 4)}
            if choice in seconds
            else {}
        )
        for choice, agreement in agreements.items()
    ]
    where = _where(best, open_engine(weights, card, best), engine)
    record = {"patch": list(patch.shape), "tried": [*tried, *failures], **where}
    return Choice(best.engine, best.precision, record)


def _where(choice: Choice, opened: Engine, wanted: EngineName | Literal["auto"]) -> dict[str, str]:
    """For the record: the GPU that runs the network, or why one that is there does not."""
    hardware = getattr(opened, "hardware", CPU)
    if hardware.is_gpu:
        return {"device": hardware.name}
    # A GPU that stands idle because the user asked for OpenVINO needs no word.
    library = keras_backend() if choice.engine == "openvino" != wanted else choice.engine
    note = idle_gpu(library or "")
    return {} if note is None else {"note": note}


def _agreements(
    weights: Weights, card: Card, patch: NDArray[np.float32], candidates: list[Choice]
) -> tuple[dict[Choice, float], list[dict[str, str]]]:
    """Return each candidate's share of the reference's labels, and the failures of the others."""
    reference = Choice(available_engines(weights)[0], "float32")
    expected = run_once(weights, card, patch, reference)
    agreements = {reference: 1.0} if reference in candidates else {}
    failures = []
    for choice in candidates:
        if choice == reference:
            continue
        try:
            found = run_once(weights, card, patch, choice)
        except WeightsError as error:
            failures.append(
                {"engine": choice.engine, "precision": choice.precision, "error": str(error)}
            )
        else:
            agreements[choice] = agreement_of(found, expected, card)
    return agreements, failures


def agreement_of(found: NDArray[np.float32], expected: NDArray[np.float32], card: Card) -> float:
    """The share of pixels with the label and, in objects, about the vector of the reference."""
    labels, wanted = (labels_of(card.class_part(each), card.output) for each in (found, expected))
    same = labels == wanted
    if card.vectors:
        apart = np.abs(found[..., -card.vectors :] - expected[..., -card.vectors :]).max(axis=-1)
        same &= (wanted == 0) | (apart <= _SAME_VECTOR)
    return float(same.mean())


def run_once(
    weights: Weights, card: Card, patch: NDArray[np.float32], choice: Choice
) -> NDArray[np.float32]:
    """Run a patch (y, x, band) and return the output (y, x, class).

    Raises `WeightsError` if the output does not match the card.
    """
    scores = np.array(open_engine(weights, card, choice)(patch[None])[0])
    expected = (*card.reach.output_sizes(patch.shape[:-1]), card.output_channels)
    # Two classes may have a single score: the log-odds of the second.
    single = (
        card.output == "logits"
        and len(card.classes) == 2
        and scores.shape == (*expected[:-1], 1 + card.vectors)
    )
    if scores.shape != expected and not single:
        raise WeightsError(
            f"{weights.location}: for a patch of {patch.shape[:-1]} and {len(card.classes)} "
            f"classes ({', '.join(card.classes)[:200]}) an output of "
            f"{expected} was expected; the network gives {scores.shape}. Give as many classes as "
            "it has, or other weights."
        )
    if card.output == "sigmoid" and len(card.classes) != 2:
        raise WeightsError(
            f"{weights.location} gives one probability, for two classes; {len(card.classes)} were "
            "given."
        )
    if not np.isfinite(scores).all():
        why = "its weights or the scaling are wrong."
        if choice.precision == "float16":
            why = "numbers inside exceed 65504, the largest of float16. Set precision: auto."
        raise WeightsError(
            f"{weights.location} gives NaN or infinite scores ({choice.engine}, "
            f"{choice.precision}): {why}"
        )
    if card.output in ("scores", "sigmoid") and not (
        -_ROUNDING <= scores.min() <= scores.max() <= 1 + _ROUNDING
    ):
        raise WeightsError(
            f"{weights.location} gives numbers from {scores.min():.4g} to {scores.max():.4g}; its "
            f"card says that they are probabilities (output: {card.output}). Say `output: logits` "
            "there, or remove the card, so that the network is examined."
        )
    if card.output == "labels" and not 0 <= scores.min() <= scores.max() < len(card.classes):
        raise WeightsError(
            f"{weights.location} gives class ids {scores.min():g} to {scores.max():g}, but has "
            f"{len(card.classes)} classes."
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
    """Whether the processor supports bfloat16, or support is unknown."""
    if is_installed("openvino"):
        from maskloom.segcore.deep.inference.engines.openvino import native_bfloat16

        return native_bfloat16()
    flags = Path("/proc/cpuinfo")
    return not flags.exists() or any(
        flag in flags.read_text() for flag in ("avx512_bf16", "amx_bf16", " bf16")
    )


def grounds(
    card: Card, precision: Precision | Literal["auto"], pixels: NDArray[np.generic]
) -> list[Any]:
    """What a selection depends on beside the weights, as JSON values: the card, the patch of pixels
    as they are in the image, and the machine.

    Engines of float32 differ by rounding alone, so that the faster one on this patch is the faster
    one on any of its shape. Whether a lower precision keeps the labels depends on the pixels.
    """
    exactly = precision == "float32" or not (native_bfloat16() or nvidia_gpus())
    seen = None if exactly else hashlib.sha256(pixels.tobytes()).hexdigest()
    return [
        card.dump().decode(),
        [*pixels.shape, pixels.dtype.str, seen],
        [_processor(), threads(), *nvidia_gpus(), keras_backend()],
    ]


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line for line in lines if line.startswith("model name"))
    return next(names, "") or f"{platform.machine()} {platform.processor()}"


def _candidates(
    weights: Weights, engine: EngineName | Literal["auto"], precision: Precision | Literal["auto"]
) -> list[Choice]:
    if engine != "auto":
        check_engine(weights, engine)
    engines = available_engines(weights) if engine == "auto" else [engine]
    if not engines:
        if is_keras(weights):
            import_keras()  # says what to install
        check_engine(weights, engines_of(weights)[0])
    # By precision, because engines of one precision share the loaded network.
    candidates = [
        Choice(name, each)
        for each in _PRECISIONS
        for name in engines
        if precision in ("auto", each) and _can(weights, name, each, precision == each)
    ]
    if not candidates:
        raise WeightsError(
            f"precision: {' and '.join(engines)} cannot run {weights.location} in {precision}"
            f"{_why_not(engines, precision)}. Set precision: float32 or auto."
        )
    return candidates


def _why_not(engines: Sequence[EngineName], precision: Precision | Literal["auto"]) -> str:
    """Why none of the engines has a precision, as the end of a sentence."""
    if precision != "float16":
        return ""
    if not nvidia_gpus():
        return ": float16 is for NVIDIA GPUs, and this process has none"
    notes = (idle_gpu(engine) for engine in engines)
    return "".join(f": {note[0].lower()}{note[1:]}" for note in list(filter(None, notes))[:1])


def _can(weights: Weights, engine: EngineName, precision: Precision, asked: bool) -> bool:
    """Whether an engine is tried in a precision, which may be asked for."""
    if precision == "float32":
        return True
    if is_keras(weights) and engine in BACKENDS and hardware_of(engine).is_gpu:
        return True
    if precision == "float16":
        return engine == "onnxruntime" and has_gpu_provider()
    if asked:
        return engine in _IN_BFLOAT16 or (is_keras(weights) and engine in BACKENDS)
    return engine in _IN_BFLOAT16 and native_bfloat16()


def _engine_for_objects(
    weights: Weights, engine: EngineName | Literal["auto"], precision: Precision | Literal["auto"]
) -> Choice:
    from maskloom.segcore.deep.inference.files.keras_files import load_keras

    if engine in BACKENDS:
        use_backend(engine)
    backend = keras_backend()
    if engine not in ("auto", backend) or precision not in ("auto", "float32"):
        raise WeightsError(
            f"{weights.location} finds objects, on Keras in float32 only; got {engine}, "
            f"{precision}. Set both to auto."
        )
    load_keras(weights)
    return Choice(backend or "tensorflow", "float32")


def _time_engines(
    engines: Mapping[Choice, Engine], patch: NDArray[np.float32], pixels: NDArray[np.generic]
) -> dict[Choice, float]:
    """Shortest time of each engine for the patch, in seconds.

    Engines take turns, so that other work on the machine slows all of them equally. Of one thread
    the processor's time counts, which other work hardly changes: by the clock, a busy machine once
    chose an engine half as fast.
    """
    on_gpu = any(getattr(engine, "hardware", CPU).is_gpu for engine in engines.values())
    clock = time.process_time if threads() == 1 and not on_gpu else time.perf_counter
    seconds = dict.fromkeys(engines, math.inf)
    running, started = list(engines), time.perf_counter()
    for _ in range(_MOST_RUNS):
        for choice in running:
            begun = clock()
            patches = _run_patches(engines[choice], patch, pixels)
            seconds[choice] = min(seconds[choice], (clock() - begun) / patches)
        fastest = min(seconds.values())
        running = [choice for choice in running if seconds[choice] <= _FAR_BEHIND * fastest]
        if len(running) == 1 or time.perf_counter() - started > _MOST_SECONDS:
            break
    return seconds


def _run_patches(engine: Engine, patch: NDArray[np.float32], pixels: NDArray[np.generic]) -> int:
    """Run the patch once; on a GPU as often as fills some batches. Returns how often."""
    if not isinstance(engine, BatchEngine):
        engine(patch[None])
        return 1
    sizes = pixels.shape[:-1]
    count = engine.together(sizes) * (_TIMED_BATCHES if engine.together(sizes) > 1 else 1)
    patches = ((i, pixels) for i in range(count))
    return len(list(engine.labels(patches, PatchesOfImage(sizes, count))))
