"""Checkpoints: longer and shorter plans, broken files, two processes, no room."""

from __future__ import annotations

import errno
from dataclasses import replace

import numpy as np
import pytest

from maskloom.segcore.errors import RecipeError, RunError, StoreError
from maskloom.segcore.storage.store import Store
from maskloom.segcore.training import checkpoint
from maskloom.segcore.training import export as outcome
from maskloom.segcore.training.checkpoint import TrainingState
from maskloom.segcore.training.loop import with_plan
from maskloom.segcore.training.recipe import Training


def trained(scores, steps_of_next=0, plan=40):
    return TrainingState(
        step=steps_of_next, history=tuple({"score": score} for score in scores), plans=((0, plan),)
    )


RISING = tuple(i / 100 for i in range(10))


@pytest.mark.parametrize(
    ("state", "changes", "plans"),
    [
        (trained(RISING), {}, ((0, 40),)),
        (trained(RISING), {"patience": 1}, ((0, 40),)),
        (trained(RISING), {"epochs": 60}, ((0, 40), (50, 60))),
        (trained(RISING, 3), {"epochs": 41}, ((0, 40), (53, 41))),
        # As if it had been planned so: the rate does not depend on the number of epochs, or has not
        # done so yet.
        (trained(RISING), {"epochs": 60, "schedule": "constant"}, ((0, 60),)),
        (trained(RISING, 3), {"epochs": 10, "schedule": "constant"}, ((0, 10),)),
        (trained(RISING), {"epochs": 20, "warmup": 50}, ((0, 20),)),
        (trained(RISING, 1), {"epochs": 60, "warmup": 50}, ((0, 40), (51, 60))),
        (trained((0.5, 0.4, 0.4)), {"patience": 1}, None),
        (trained((0.5, 0.4, 0.4)), {"patience": 2}, ((0, 40),)),
        (trained((0.5, 0.4, 0.4)), {"patience": 1, "epochs": 60}, None),
        (trained(RISING), {"epochs": 9, "schedule": "constant"}, None),
        (trained(RISING), {"epochs": 39}, None),
        (trained(RISING), {"epochs": 10}, None),
        (trained((0.5, 0.4, 0.4)), {"patience": 2, "epochs": 60}, ((0, 40),)),
    ],
)
def test_a_training_may_grow_longer_and_says_where_its_rates_changed(state, changes, plans):
    wanted = Training(**{"epochs": 40, **changes})
    if plans is None:
        with pytest.raises(RecipeError, match=r"another folder in `output`"):
            with_plan(state, wanted, 5)
    else:
        found = with_plan(state, wanted, 5)
        assert found == replace(state, plans=plans)
        again = with_plan(found, wanted, 5)
        assert again == found


def test_one_training_at_a_time_has_a_folder(tmp_path):
    store = Store(str(tmp_path / "out"))
    with (
        checkpoint.alone(store),
        pytest.raises(RunError, match="Another process is training into"),
        checkpoint.alone(store),
    ):
        pass
    with checkpoint.alone(store):
        assert list((tmp_path / "out").iterdir()) == []


def test_broken_checkpoints_are_named(tmp_path):
    store = Store(str(tmp_path))
    state = TrainingState(
        step=2,
        losses=(0.5, 0.25),
        history=({"epoch": 1, "score": 0.5, "iou": [0.5, None]},),
        plans=((0, 3),),
    )
    values = [np.arange(6.0).reshape(2, 3), np.array(7)]
    checkpoint.write_best(store, 1, values)
    checkpoint.write(store, state, values)
    found, read = checkpoint.read(store)
    assert found == state
    assert [value.tolist() for value in read] == [value.tolist() for value in values]
    for name in ("last", "best-1"):
        path = tmp_path / "checkpoint" / f"{name}.npz"
        whole = path.read_bytes()
        for broken in (
            b"",
            whole[:40],
            whole[:-1],
            whole[: len(whole) // 2],
            whole[:200] + b"\xff" + whole[201:],
            b"[]",
        ):
            path.write_bytes(broken)
            with pytest.raises(RunError, match=rf"{name}\.npz is broken.*remove the folder"):
                checkpoint.read(store)
        path.unlink()
        if name == "best-1":
            with pytest.raises(RunError, match="best-1"):
                checkpoint.read(store)
        path.write_bytes(whole)


def test_no_room_for_the_network_is_said(tmp_path):
    class Full:
        def save(self, path):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match=r"No space left.*TMPDIR.*same command"):
        outcome._saved(Full())
