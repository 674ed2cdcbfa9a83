"""What the features of a recipe mean for an image: their formulas in numbers of its bands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from maskloom.segcore.errors import FormatError
from maskloom.segcore.features import evaluation
from maskloom.segcore.features.indices import INDICES
from maskloom.segcore.features.sensors import SENSORS
from maskloom.segcore.formulas import (
    Binary,
    Call,
    Formula,
    FormulaError,
    Name,
    Unary,
    names_in,
    parse,
    write,
)
from maskloom.segcore.raster.spec import FeatureBands, RasterSpec

if TYPE_CHECKING:
    from maskloom.segcore.raster.stored import ReadOptions

MOST = 256
"""Greatest number of features."""
_RGB = ("red", "green", "blue")
_COMMON = {
    "near infrared": "nir",
    "red edge": "rededge",
    "swir 1": "swir1",
    "swir 2": "swir2",
    "swir16": "swir1",
    "swir22": "swir2",
}
"""Common names of bands by what descriptions call them."""


def check_features(features: Sequence[str], known: Sequence[str] = ()) -> None:
    """Raise `FormulaError` for features that no image has: wrong formulas, unknown functions, and
    names outside `known`, where these are all that the bands can have (empty: they are not known).
    """
    for text in features:
        for _, formula in _written(text, ("b1",)):
            evaluation.check(formula)
            if evaluation.reach_of(formula) > evaluation.LARGEST_WINDOW:
                raise FormulaError(
                    f"{text}: its nested windows look further than {evaluation.LARGEST_WINDOW} "
                    "pixels"
                )
            names = list(names_in(formula))
            if not names:
                raise FormulaError(f"{text}: expected a formula of bands; got a constant")
            strangers = [name for name in names if number_of(name) is None and name not in known]
            if known and strangers:
                raise FormulaError(
                    f"{text}: there is no band {strangers[0]!r}. The bands are {', '.join(known)}, "
                    f"or b1, b2, ... by number; the indices are {', '.join(INDICES)}"
                )


def names_of_sensor(sensor: str) -> tuple[str, ...]:
    """All names that bands of a sensor have."""
    bands = SENSORS[sensor].common
    return tuple(dict.fromkeys((*bands, *bands.values())))


def with_features(spec: RasterSpec, options: ReadOptions) -> RasterSpec:
    """The image whose bands are the features that the user wants; unchanged if none are wanted.

    Raises `FormatError` if the image lacks a band that they need, or does not state what
    `values: physical` needs.
    """
    if not options.features and options.values == "stored":
        return spec
    numbers = _numbers(spec, options)
    found: list[tuple[str, Formula]] = []
    for text in options.features or ("bands",):
        try:
            for name, formula in _written(text, tuple(f"b{band}" for band in spec.bands)):
                found.append((name, _in_numbers(formula, numbers, spec)))
        except FormulaError as error:
            raise FormatError(
                f"{spec.location} does not suit the recipe's features: {text}: {error}."
            ) from error
    return replace(
        spec,
        bands=tuple(range(1, len(found) + 1)),
        file_bands=len(found),
        dtype="float32",
        interpretation="bands",
        notes=tuple(
            note
            for note in spec.notes
            if options.values == "stored" or "values are taken as stored" not in note
        ),
        features=FeatureBands(
            names=tuple(name for name, _ in found),
            formulas=tuple(write(formula) for _, formula in found),
            bands=spec.bands,
            file_bands=spec.file_bands,
            dtype=spec.dtype,
            interpretation=spec.interpretation,
            scaling=_scaling(spec, options),
        ),
    )


def _written(text: str, bands: Sequence[str]) -> Iterator[tuple[str, Formula]]:
    """Name and formula of each feature that a text stands for: `bands` and filters without an
    operand stand for one a band, `lab` for three.
    """
    formula = parse(text)
    match formula:
        case Name("bands"):
            yield from ((band, Name(band)) for band in bands)
        case Name("lab"):
            for part in ("lab_l", "lab_a", "lab_b"):
                yield part, Call(part, tuple(Name(colour) for colour in _RGB))
        case Call(name, (size,)) if name in evaluation.WINDOWS:
            for band in bands:
                yield f"{name}({band}, {write(size)})", Call(name, (Name(band), size))
        case _:
            yield text.strip(), _expanded(formula)


def _expanded(formula: Formula) -> Formula:
    """The formula with those of indices in place of their names."""
    match formula:
        case Name(name) if name in INDICES:
            return parse(INDICES[name].formula)
        case Call(name, arguments):
            return Call(name, tuple(map(_expanded, arguments)))
        case Unary(operator, operand):
            return Unary(operator, _expanded(operand))
        case Binary(operator, left, right):
            return Binary(operator, _expanded(left), _expanded(right))
        case _:
            return formula


def _in_numbers(formula: Formula, numbers: dict[str, int], spec: RasterSpec) -> Formula:
    """The formula with numbers of bands, `b4`, in place of their names. Raises `FormulaError`."""
    match formula:
        case Name(name):
            number = numbers.get(name) or number_of(name)
            if number is None:
                held = ", ".join(numbers) or "no names"
                raise FormulaError(
                    f"there is no band {name!r}: the file has {spec.file_bands} band(s) with "
                    f"{held}. Name them by `band_names` or `sensor`, or write b1, b2, ..."
                )
            if not 1 <= number <= spec.file_bands:
                raise FormulaError(f"there is no band {number}: the file has {spec.file_bands}")
            return Name(f"b{number}")
        case Call(name, arguments):
            return Call(name, tuple(_in_numbers(each, numbers, spec) for each in arguments))
        case Unary(operator, operand):
            return Unary(operator, _in_numbers(operand, numbers, spec))
        case Binary(operator, left, right):
            return Binary(
                operator, _in_numbers(left, numbers, spec), _in_numbers(right, numbers, spec)
            )
        case _:
            return formula


def number_of(name: str) -> int | None:
    """The number of a band that is named by it: 4 for `b4`; `B04` is a name."""
    digits = name[1:]
    plain = name.startswith("b") and digits.isascii() and digits.isdigit()
    return int(digits) if plain and not digits.startswith("0") else None


def _numbers(spec: RasterSpec, options: ReadOptions) -> dict[str, int]:
    """The number of each band that has a name: by the recipe, or else by the file; the names of a
    sensor also mean what its bands show.
    """
    names = options.band_names or spec.band_names
    if options.band_names and len(names) != spec.file_bands:
        raise FormatError(
            f"{spec.location} has {spec.file_bands} band(s); `band_names` of the recipe names "
            f"{len(names)}."
        )
    numbers = _with_words(names)
    if spec.interpretation == "rgb":
        numbers = {**{colour: number for number, colour in enumerate(_RGB, 1)}, **numbers}
    if options.sensor is None:
        return numbers
    sensor = SENSORS[options.sensor]
    if not numbers.keys() & {*sensor.common, *sensor.common.values()}:
        numbers = _with_words(sensor.order(spec.file_bands))
    if not numbers:
        usual = ", ".join(str(len(order)) for order in sensor.orders)
        raise FormatError(
            f"{spec.location} has {spec.file_bands} bands without names; files of "
            f"{options.sensor} usually have {usual}. Name them by `band_names`."
        )
    for own, common in sensor.common.items():
        if own in numbers:
            numbers.setdefault(common, numbers[own])
    return numbers


def _with_words(names: Sequence[str]) -> dict[str, int]:
    """The number of each name, and of each word of a description such as `B04 red`, unless several
    bands have it.
    """
    found = {name: number for number, name in enumerate(names, 1) if name}
    bands_of: dict[str, set[int]] = {}
    for number, name in enumerate(names, 1):
        plain = name.lower().replace("-", " ")
        common = [short for long, short in _COMMON.items() if long in plain]
        words = re.findall(r"\w+", name)
        for word in (*words, *map(str.lower, words), *common):
            bands_of.setdefault(word, set()).add(number)
    for word, bands in bands_of.items():
        if len(bands) == 1:
            found.setdefault(word, *bands)
    return found


def _scaling(spec: RasterSpec, options: ReadOptions) -> tuple[tuple[float, float], ...]:
    """Scale and offset of each band of the file; empty: values are as stored."""
    if options.values == "stored":
        return ()
    if options.values != "physical":
        return (options.values,) * spec.file_bands
    if not spec.scaling:
        raise FormatError(
            f"{spec.location} states neither scale nor offset, so `values: physical` has no "
            "meaning for it. Set `values: {scale: ..., offset: ...}`, or leave the key out."
        )
    return spec.scaling
