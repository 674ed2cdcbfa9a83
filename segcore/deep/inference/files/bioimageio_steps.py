"""Steps before and behind the network in descriptions of bioimage.io.

Before it, lines (value - offset) * factor for all images become one such line. One step may take
its numbers from the pixels of an image (`zero_mean_unit_variance`, `scale_range`); it becomes an
`ImageScaling`, whose numbers are found in the whole image. Lines before it drop out, since it
undoes them; behind it there may be a `clip`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.files.bioimageio_tensors import LETTERS, as_list
from maskloom.segcore.deep.inference.scaling import AS_THEY_ARE, GREATEST, ImageScaling, Scaling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maskloom.segcore.deep.inference.card import Output
    from maskloom.segcore.deep.inference.files.bioimageio_tensors import Step, Tensor

_BY_IMAGE = {"zero_mean_unit_variance": "deviation", "scale_range": "range"}
_PERCENTILES = ("min_percentile", "max_percentile")


def scaling_of(image: Tensor) -> tuple[Scaling | ImageScaling, dict[str, str]]:
    """The scaling of the input, and what is left to the recipe.

    Raises `ValueError` for steps that no scaling can express.
    """
    gain, shift = np.ones(1), np.zeros(1)
    for number, (step, options) in enumerate(image.steps):
        if step == "ensure_dtype" and str(options.get("dtype", "")).startswith("float"):
            continue
        if step == "clip" and _clips_nothing(options, image.dtype, gain, shift):
            continue
        line = _line(step, options)
        if line is None and step in (*_BY_IMAGE, "scale_mean_variance"):
            reason = _why_not(step, options, image, (gain, shift))
            if reason is not None:
                return AS_THEY_ARE, {"scaling": f"its step {step} {reason}"}
            rest = image.steps[number + 1 :]
            return _by_image(step, options, image, (float(gain[0]), rest)), {}
        if line is None:
            raise _no_scaling(step)
        gain, shift = gain * line[0], shift * line[0] + line[1]
    if not np.isfinite(gain).all() or not gain.all() or not np.isfinite(shift).all():
        raise ValueError(
            f"preprocessing: expected finite numbers and gains other than 0; got {gain}"
        )
    if image.channels is not None and max(gain.size, shift.size) not in (1, image.channels):
        raise ValueError(
            f"preprocessing: {max(gain.size, shift.size)} numbers for {image.channels} bands"
        )
    offset = -shift / gain + 0.0
    return Scaling(tuple(offset.tolist()), tuple(gain.tolist())), {}


def _no_scaling(step: str) -> ValueError:
    return ValueError(
        f"preprocessing: {step[:50]!r} cannot be expressed as one scaling of all pixels, "
        "(value - offset) * factor. Export the network with this step inside."
    )


def _by_image(
    step: str, options: Mapping[str, Any], image: Tensor, around: tuple[float, Sequence[Step]]
) -> ImageScaling:
    """The scaling by the pixels of an image; `around` is the gain of the lines before it, and the
    steps behind it.
    """
    gain, rest = around
    clip: tuple[float, float] | None = None
    for name, what in rest:
        if name == "ensure_dtype" and str(what.get("dtype", "")).startswith("float"):
            continue
        if name != "clip" or clip is not None or any(what.get(key) for key in _PERCENTILES):
            raise ValueError(
                f"preprocessing: {name[:50]!r} after {step} cannot be expressed as one scaling. "
                "Export the network with this step inside."
            )
        low, high = what.get("min"), what.get("max")
        clip = -GREATEST if low is None else float(low), GREATEST if high is None else float(high)
    axes = _joined(options, image)
    low, high = (
        float(options.get(key, default))
        for key, default in zip(_PERCENTILES, (0.0, 100.0), strict=True)
    )
    of_fit = options.get("mode") == "per_dataset" or "batch" in axes
    return ImageScaling(
        by="deviation" if _BY_IMAGE[step] == "deviation" else "range",
        percentiles=(0.0, 100.0) if _BY_IMAGE[step] == "deviation" else (low, high),
        bands="together" if "channel" in axes else "each",
        of="fit" if of_fit else "image",
        # In the units of the pixels.
        eps=float(options.get("eps", 1e-6)) / gain,
        clip=clip,
    )


def _joined(options: Mapping[str, Any], image: Tensor) -> set[str]:
    """The axes along which a step takes its numbers. All are joined where it names none; in version
    0.4 `mode` says what the batch does.
    """
    said = options.get("axes")
    if isinstance(said, str):
        return {LETTERS.get(letter, letter) for letter in said}
    axes = set(image.axes) if said is None else set(map(str, as_list(said)))
    return axes - {"batch"} if "mode" in options else axes


def _why_not(
    step: str, options: Mapping[str, Any], image: Tensor, before: tuple[Any, Any]
) -> str | None:
    """Why a step that takes its numbers from the pixels must be left to the recipe. None: it need
    not.
    """
    values = (
        "{offset: [lower end], factor: [1 / (upper end - lower end)]}"
        if step == "scale_range"
        else "{offset: [mean], factor: [1 / deviation]}"
    )
    ask = f"Set it for your images, scaling: {values}"
    reference = options.get("reference_tensor")
    if step not in _BY_IMAGE or reference not in (None, image.name):
        return f"takes its numbers from another tensor. {ask}"
    space = set(image.axes) & {"z", "y", "x"}
    if not space <= _joined(options, image):
        return f"takes its numbers from parts of an image, not from all of it. {ask}"
    gain, shift = before
    if max(gain.size, shift.size) > 1 or not 0 < gain[0] < GREATEST:
        return f"follows a step that it does not undo. {ask}"
    return None


def _line(step: str, options: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """A step as gain and shift; None if it is no such line."""
    if step == "scale_linear":
        return _numbers(options.get("gain", 1.0)), _numbers(options.get("offset", 0.0))
    fixed = step == "fixed_zero_mean_unit_variance"
    if fixed or (step == "zero_mean_unit_variance" and options.get("mode") == "fixed"):
        # Version 0.4 adds a small number to the deviation, 0.5 does not.
        spread = _numbers(options["std"]) + (0.0 if fixed else float(options.get("eps", 1e-6)))
        if not spread.all():
            raise ValueError("preprocessing: a standard deviation of 0")
        return 1 / spread, -_numbers(options["mean"]) / spread
    return None


def _clips_nothing(options: Mapping[str, Any], dtype: str, gain: Any, shift: Any) -> bool:
    """Whether no pixel of this type has a value that is cut off."""
    if not dtype.startswith(("uint", "int")) or any("percentile" in key for key in options):
        return False
    limits = np.iinfo(dtype)
    ends = np.array([limits.min, limits.max], float)[:, None] * gain + shift
    low, high = options.get("min"), options.get("max")
    return bool((low is None or low <= ends.min()) and (high is None or high >= ends.max()))


def output_of(answer: Tensor) -> tuple[Output | None, tuple[float, ...]]:
    """What the network gives before the steps that follow it, and thresholds of these.

    Raises `ValueError` for steps that make something else than classes of scores.
    """
    output: Output | None = None
    thresholds: list[float] = []
    for step, options in answer.steps:
        if step in ("sigmoid", "softmax") and output is None and not thresholds:
            output = "logits"
        elif step == "binarize" and not thresholds:
            thresholds.append(float(options["threshold"]))
        elif step != "ensure_dtype":
            raise ValueError(
                f"postprocessing: {step[:50]!r} makes something else than classes of the scores; "
                "expected sigmoid, softmax or binarize"
            )
    return output, tuple(thresholds)


def _numbers(value: Any) -> Any:
    numbers = np.atleast_1d(np.asarray(value, float))
    if numbers.ndim != 1 or not numbers.size:
        raise ValueError(f"preprocessing: expected numbers; got {value!r:.50}")
    return numbers
