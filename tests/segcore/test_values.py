"""Quick pickling of values, and protocols that are checked once a class."""

from __future__ import annotations

import pickle
from typing import Protocol, runtime_checkable

import pytest

from maskloom.segcore.ground.space import Metric, Space
from maskloom.segcore.models.protocols import SEGMENTERS, Fitter, ObjectSegmenter, Segmenter
from maskloom.segcore.pipeline.records import ImageResult, PlannedImage
from maskloom.segcore.raster.source import Member, Source
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.values import CheckedOnce


def test_what_is_pickled_by_fields_comes_back_whole_with_its_address():
    source = Source("a.tif", "a", "1", 3, "https://host/a?sig=1", (Member("b", "2", 4, "c"),))
    space = Space(metric=Metric((0.5, 0.5), "um"))
    spec = RasterSpec("a.tif", "tiff", (4, 4), (1,), "uint8", (4, 4), "1", 1, space=space)
    result = ImageResult(source, spec, None, {"area": [{"class_id": 0}]}, warning="dark")
    for value in (PlannedImage(source, spec), result):
        again = pickle.loads(pickle.dumps(value))
        assert again == value
        assert again.source.address == source.address
        assert again.source.members[0].address == "c"


def test_a_protocol_asks_for_its_own_members_and_no_more():
    class Plain(Protocol):
        @property
        def tasks(self) -> int: ...

        def work(self) -> None: ...

    class Quick(Protocol, metaclass=CheckedOnce):
        @property
        def tasks(self) -> int: ...

        def work(self) -> None: ...

    class Whole:
        __slots__ = ("tasks",)

        def work(self) -> None: ...

    class Half:
        def work(self) -> None: ...

    whole, half = Whole(), Half()
    whole.tasks = 1
    late = Half()
    late.tasks = 1  # type: ignore[attr-defined]
    for _ in range(2):
        for value in (whole, half, late, 1):
            quick = isinstance(value, runtime_checkable(Quick))
            assert quick == isinstance(value, runtime_checkable(Plain)), value


def test_models_are_what_they_are():
    assert isinstance(Threshold(), Fitter)
    assert not isinstance(Threshold(), Segmenter)
    assert isinstance(Threshold(value=3).start(), Segmenter)
    assert not isinstance(Threshold(value=3).start(), Fitter | ObjectSegmenter)


@pytest.mark.parametrize("name", ["kmeans", "mixture", "mean_shift"])
def test_segmenters_that_fit_are_fitters(name):
    assert isinstance(SEGMENTERS[name]().start(), Fitter)
