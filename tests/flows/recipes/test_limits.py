"""Limits on time: who begins a step is heard, and a step of many pixels may take longer."""

from __future__ import annotations

import threading

import pytest

from maskloom.flows.recipes.run import make
from maskloom.flows.recipes.run_file import schema
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.processes import limits
from maskloom.segcore.processes.limits import Limits

MINIMAL = {"inputs": ["a.png"], "output": "out", "segmenter": "threshold"}


@pytest.fixture(autouse=True)
def limits_of_the_process() -> object:
    before = limits.configured()
    yield
    limits.configure(before)


def test_steps_are_heard_by_the_watch_of_their_thread() -> None:
    heard: list[float] = []
    limits.configure(Limits(read=10, work=100))
    limits.begin_read()
    with limits.steps_reported_to(heard.append):
        limits.begin_read(2**24)
        limits.begin_read(2**26)
        limits.begin_work(2**10)
        limits.begin_work(3 * 2**20)
        stranger = threading.Thread(target=limits.begin_work)
        stranger.start()
        stranger.join()
    limits.begin_work()
    assert heard == [10, 40, 100, 300]


def test_the_recipe_sets_them(tmp_path) -> None:
    recipe = make({**MINIMAL, "limits": {"read": 7, "examine": 30}}, tmp_path, ["limits.work=90"])
    assert recipe.limits == limits.configured() == Limits(7, 90, 30)
    assert make({**MINIMAL}, tmp_path).limits == limits.configured() == Limits()
    assert set(schema()["properties"]["limits"]["properties"]) == {"read", "work", "examine"}


def test_they_decide_no_result(tmp_path) -> None:
    assert make({**MINIMAL}, tmp_path).work == make({**MINIMAL}, tmp_path, ["limits.work=90"]).work


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("limits.read=0", r"^limits\.read: expected a number of seconds above 0; got 0.0"),
        ("limits.work=.inf", r"^limits\.work: expected a number of seconds above 0; got inf"),
        ("limits.work=.nan", r"^limits\.work: expected a number of seconds above 0; got nan"),
        ("limits.work=soon", r"limits\.work: .*number.*'soon'"),
        ("limits.works=9", r"limits\.works: unknown key\. Did you mean `work`\?"),
        ("limits=9", r"limits: expected a mapping, got 9"),
    ],
)
def test_wrong_ones_are_refused(tmp_path, change: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make({**MINIMAL}, tmp_path, [change])
