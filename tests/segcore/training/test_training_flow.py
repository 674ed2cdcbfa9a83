"""Vectors to the middles of objects turn with the image, and their loss is that of NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.training.flow import flow_loss, vectors_of
from maskloom.segcore.training.loss_terms import SumOfLosses
from maskloom.segcore.training.losses import loss_of

VOID = 255


def drawn_ids(seed: int, shape: tuple[int, int] = (17, 23)) -> np.ndarray:
    """Objects of large and far numbers, also torn ones and single pixels."""
    random = np.random.default_rng(seed)
    blocks = random.choice([0, 3, 500, 70_000, 2**31], (5, 5))
    ids = np.kron(blocks, np.ones((4, 5), np.int64))[: shape[0], : shape[1]]
    ids[tuple(random.integers(0, shape))] = 9
    return ids.astype(np.uint32)


def test_vectors_reach_from_the_middle_of_each_object_to_its_sides():
    ids = drawn_ids(0)
    found = vectors_of(ids)
    assert found.shape == (*ids.shape, 2)
    assert not found[ids == 0].any()
    rows, columns = np.indices(ids.shape)
    for each in np.unique(ids[ids > 0]):
        for axis, places in enumerate((columns, rows)):
            away = places[ids == each] - places[ids == each].mean()
            reach = np.where(away < 0, -away.min(), away.max())
            expected = np.divide(away, reach, out=np.zeros_like(away), where=reach > 0)
            assert np.allclose(found[ids == each][:, axis], expected, atol=1e-6)


@given(seed=st.integers(0, 999), turn=st.sampled_from(["rows", "columns", "transposed"]))
def test_vectors_turn_with_the_objects(seed, turn):
    ids = drawn_ids(seed)
    if turn == "transposed":
        expected = vectors_of(ids).swapaxes(0, 1)[..., ::-1]
        assert np.allclose(vectors_of(np.ascontiguousarray(ids.T)), expected, atol=1e-6)
        return
    axis, part = (0, 1) if turn == "rows" else (1, 0)
    expected = np.flip(vectors_of(ids), axis).copy()
    expected[..., part] *= -1
    assert np.allclose(vectors_of(np.flip(ids, axis)), expected, atol=1e-6)


@pytest.fixture
def batch():
    random = np.random.default_rng(3)
    ids = np.stack([drawn_ids(1), drawn_ids(2)])
    classes = np.where(ids > 0, 1 + ids % 2, 0).astype(np.uint8)
    classes[0, :4] = VOID
    truth = np.concatenate([classes[..., None], [vectors_of(each) for each in ids]], axis=-1)
    output = random.normal(size=(*ids.shape, 5)).astype(np.float32)
    return truth.astype(np.float32), output


def loss(truth, output) -> float:
    return float(flow_loss(SumOfLosses().terms, np.ones(3, np.float32))(truth, output))


def test_the_loss_adds_vectors_in_objects_and_their_steps(batch):
    truth, output = batch
    inside = (truth[..., 0] > 0) & (truth[..., 0] < 3)
    error = (output[..., 3:] - truth[..., 1:]).astype(float)
    across = np.diff(error[..., 0], axis=2)[inside[:, :, 1:] & inside[:, :, :-1]]
    down = np.diff(error[..., 1], axis=1)[inside[:, 1:] & inside[:, :-1]]
    apart = (error[inside] ** 2).mean()
    by_class = float(
        loss_of(SumOfLosses().terms, np.ones(3, np.float32))(truth[..., 0], output[..., :3])
    )
    expected = by_class + 2 * apart + (across**2).mean() + (down**2).mean()
    assert loss(truth, output) == pytest.approx(expected, rel=1e-5)


def test_void_and_background_have_no_vectors_to_learn(batch):
    truth, output = batch
    changed = output.copy()
    outside = (truth[..., 0] == 0) | (truth[..., 0] == VOID)
    changed[outside, 3:] += 5
    changed[truth[..., 0] == VOID] += 7
    assert loss(truth, changed) == pytest.approx(loss(truth, output), rel=1e-6)
    changed[~outside, 3:] += 5
    assert loss(truth, changed) > 2 * loss(truth, output)
