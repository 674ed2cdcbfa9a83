"""The modes and basins of mean shift agree with scikit-learn and with a slow mean shift over all
pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage import data
from sklearn.cluster import MeanShift, estimate_bandwidth
from sklearn.metrics import adjusted_rand_score

from maskloom.segcore.methods import basins
from maskloom.segcore.methods.modes import FeatureMeanShift, ModesModel
from maskloom.segcore.testing.segmenters import Picture, fitted, labelled

SMALL = {
    "astronaut": (data.astronaut()[::20, ::20], 35.0),
    "coffee": (data.coffee()[::17, ::24], 30.0),
    "one band": (data.camera()[::20, ::20, None], 12.0),
    "16 bit": (data.chelsea()[::14, ::18].astype("uint16") * 200 + 3, 4000.0),
    "floats": (data.astronaut()[::20, ::20, :2].astype("float32") / 255, 0.1),
}
SLOW = ("16 bit", "floats", "coffee")
"""Those whose paths are long with the widest kernel."""


def full(pixels: np.ndarray, interpretation: Any = "bands") -> Picture:
    return Picture(np.ascontiguousarray(pixels), np.ones(pixels.shape[:2], bool), interpretation)


def fit(picture: Picture, tile: tuple[int, int] | None = None, **parameters: Any) -> ModesModel:
    model = fitted(FeatureMeanShift(**parameters), [picture], tile)
    assert isinstance(model, ModesModel)
    return model


def weights_of(squares: np.ndarray, kernel: str, bandwidth: float) -> np.ndarray:
    scaled = squares / bandwidth**2
    if kernel == "gaussian":
        return np.exp(-scaled / 2) * (scaled <= 9)
    return (1.0 if kernel == "flat" else 1 - scaled) * (scaled <= 1)


def slow_mean_shift(
    rows: np.ndarray, kernel: str, bandwidth: float
) -> tuple[np.ndarray, np.ndarray]:
    """Modes and the mode of each row, by paths from all rows at once over all rows: no table, no
    cell, no weight.
    """
    at, moving = rows.copy(), np.ones(len(rows), bool)
    strength = np.zeros(len(rows))
    for _ in range(300):
        squares = ((at[moving, None] - rows) ** 2).sum(axis=2)
        weights = weights_of(squares, kernel, bandwidth)
        means = weights @ rows / weights.sum(axis=1, keepdims=True)
        step = np.linalg.norm(means - at[moving], axis=1)
        at[moving], strength[moving] = means, weights.sum(axis=1)
        moving[np.flatnonzero(moving)[step <= 1e-3 * bandwidth]] = False
        if not moving.any():
            break
    modes: list[np.ndarray] = []
    for end in at[np.lexsort((*at.T[::-1], strength.round(9)))[::-1]]:
        if all(np.linalg.norm(end - mode) > bandwidth for mode in modes):
            modes.append(end)
    found = np.array(modes)
    return found, np.linalg.norm(at[:, None] - found, axis=2).argmin(axis=1)


def matched(model: ModesModel, modes: np.ndarray, within: float = 1e-6) -> np.ndarray:
    """Which of our classes each of the other modes is; all must be found again, to this part of the
    bandwidth.
    """
    assert len(modes) == len(model.modes)
    distances = np.linalg.norm(modes[:, None] - np.array(model.modes), axis=2)
    assert distances.min(axis=1).max() < within * model.bandwidth
    return distances.argmin(axis=1)


@pytest.mark.parametrize("name", ["astronaut", "one band"])
def test_modes_are_those_of_scikit_learn(name: str) -> None:
    pixels, bandwidth = SMALL[name]
    # scikit-learn takes hundredths of a second a pixel.
    pixels = pixels[::2, ::2] if name == "one band" else pixels[1::3]
    rows = pixels.reshape(-1, pixels.shape[-1]).astype(float)
    model = fit(full(pixels), kernel="flat", bandwidth=bandwidth)
    reference = MeanShift(bandwidth=bandwidth).fit(rows)
    classes = matched(model, reference.cluster_centers_)
    # scikit-learn labels by the nearest centre, which is what we do with values that the fit has
    # not seen.
    nearest = basins.nearest_mode(rows, np.array(model.modes))
    assert np.array_equal(nearest, classes[reference.labels_])
    # The basin is another answer for pixels between modes, and the same for those close to one.
    labels = labelled(model, full(pixels)).ravel()
    close = np.linalg.norm(rows - np.array(model.modes)[nearest], axis=1) < bandwidth / 4
    assert close.mean() > 0.2
    assert np.mean(labels[close] == nearest[close]) > 0.97


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        pytest.param(
            name,
            kernel,
            marks=pytest.mark.nightly if kernel == "gaussian" and name in SLOW else (),
        )
        for name in SMALL
        for kernel in ("flat", "epanechnikov", "gaussian")
    ],
)
def test_modes_and_basins_are_those_of_a_slow_mean_shift(name: str, kernel: Any) -> None:
    pixels, bandwidth = SMALL[name]
    if kernel == "gaussian":
        bandwidth /= 2
    rows = pixels.reshape(-1, pixels.shape[-1]).astype(float)
    model = fit(full(pixels), (13, 16), kernel=kernel, bandwidth=bandwidth)
    assert model.exact
    assert model.points == model.values == len(np.unique(rows, axis=0))
    modes, members = slow_mean_shift(rows, kernel, bandwidth)
    expected = matched(model, modes)[members]
    labels = labelled(model, full(pixels), (11, 9)).ravel()
    assert np.array_equal(labels, expected)
    assert model.fractions == pytest.approx(np.bincount(expected) / expected.size)


@given(
    st.integers(1, 5), st.integers(0, 2**31), st.sampled_from(["flat", "epanechnikov", "gaussian"])
)
def test_any_number_of_bands(channels: int, seed: int, kernel: Any) -> None:
    generator = np.random.default_rng(seed)
    centres = generator.uniform(-3, 3, (3, channels))
    pixels = centres[generator.integers(0, 3, (8, 9))] + 0.3 * generator.standard_normal(
        (8, 9, channels)
    )
    modes, members = slow_mean_shift(pixels.reshape(-1, channels), kernel, 0.9)
    model = fit(full(pixels), kernel=kernel, bandwidth=0.9)
    # Of the ends of the paths to one mode, all within their last step of it, either may be taken.
    expected = matched(model, modes, within=1e-3)[members]
    assert np.array_equal(labelled(model, full(pixels)).ravel(), expected)


@pytest.mark.parametrize(
    ("kernel", "least"), [("flat", 0.95), ("epanechnikov", 0.98), ("gaussian", 0.98)]
)
def test_cells_stand_for_their_values(
    kernel: Any, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = full(data.astronaut()[::7, ::7], "rgb")
    monkeypatch.setattr(basins, "FEW_VALUES", 2**13)
    exact = fit(picture, kernel=kernel)
    monkeypatch.setattr(basins, "FEW_VALUES", 2**8)
    cells = fit(picture, kernel=kernel)
    assert exact.points == exact.values == cells.values > cells.points
    assert cells.exact
    assert (
        adjusted_rand_score(labelled(exact, picture).ravel(), labelled(cells, picture).ravel())
        > least
    )


def test_values_beyond_the_cells_are_thinned_with_many_bands() -> None:
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 4, (200, 300))
    pixels = generator.uniform(0, 1, (4, 13))[truth] + 0.04 * generator.standard_normal(
        (200, 300, 13)
    )
    model = fit(full(pixels.astype("float32")))
    assert model.points < model.values == 60_000
    assert not model.exact
    assert (
        adjusted_rand_score(truth.ravel(), labelled(model, full(pixels.astype("float32"))).ravel())
        > 0.999
    )


# ---- bandwidth
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "quantile"), [("astronaut", 0.05), ("one band", 0.1)])
def test_auto_is_scikit_learns_rule(name: str, quantile: float) -> None:
    photo = {"astronaut": data.astronaut()[::4, ::4], "one band": data.camera()[::4, ::4, None]}[
        name
    ]
    rows = photo.reshape(-1, photo.shape[-1]).astype(float)
    reference = estimate_bandwidth(rows, quantile=quantile, n_samples=3000, random_state=0)
    assert fit(full(photo), kernel="flat").bandwidth == pytest.approx(reference, rel=0.1)


def test_kernels_get_windows_of_one_width() -> None:
    picture = full(data.coffee()[::6, ::6])
    flat, bump, bell = (
        fit(picture, kernel=kernel).bandwidth for kernel in ("flat", "epanechnikov", "gaussian")
    )
    # Standard deviation along an axis of a ball that is full, of one weighted by 1 - d²/h², of a
    # gaussian; by drawing.
    ball = np.random.default_rng(0).uniform(-1, 1, (400_000, 3))
    squares = (ball**2).sum(axis=1)
    ball, squares = ball[squares <= 1], squares[squares <= 1]
    assert bell == pytest.approx(flat * ball[:, 0].std(), rel=0.01)
    assert bell == pytest.approx(
        bump * np.sqrt(np.average(ball[:, 0] ** 2, weights=1 - squares)), rel=0.01
    )


@pytest.mark.parametrize("kernel", ["flat", "epanechnikov", "gaussian"])
def test_a_grey_picture_kept_as_colour_is_clustered_as_a_grey_one(kernel: Any) -> None:
    grey = data.camera()[::5, ::5, None]
    opaque = np.full_like(grey, 255)
    alone, constant = (
        fit(full(grey), kernel=kernel),
        fit(full(np.concatenate([grey, opaque], axis=2)), kernel=kernel),
    )
    colour = fit(full(np.concatenate([grey] * 3, axis=2)), kernel=kernel)
    assert constant.bandwidth == pytest.approx(alone.bandwidth)
    # The diagonal of a cube is sqrt(3) times as long as its side.
    assert colour.bandwidth == pytest.approx(alone.bandwidth * 3**0.5)
    assert [mode[0] for mode in constant.modes] == pytest.approx(
        [mode[0] for mode in alone.modes], abs=0.1
    )
    assert [mode[0] for mode in colour.modes] == pytest.approx(
        [mode[0] for mode in alone.modes], abs=0.1
    )


def test_bands_that_hardly_vary_change_the_bandwidth_little() -> None:
    photo = data.astronaut()[::9, ::9].astype("float32")
    noise = np.random.default_rng(0).normal(0, 0.1, (*photo.shape[:2], 4)).astype("float32")
    once = fit(full(photo)).bandwidth
    assert fit(full(np.concatenate([photo, noise], axis=2))).bandwidth == pytest.approx(
        once, rel=0.02
    )


def test_auto_depends_on_the_shares_of_values_alone() -> None:
    photo = np.ascontiguousarray(data.astronaut()[::9, ::9])
    once = fit(full(photo)).bandwidth
    assert fit(full(np.concatenate([photo] * 3))).bandwidth == once
    assert fit(full(photo[::-1, ::-1])).bandwidth == once
    assert fit(full(photo), (10, 10)).bandwidth == once
    assert fit(full(photo), seed=1).bandwidth == pytest.approx(once, rel=0.1)


@pytest.mark.parametrize("levels", [(0, 255), (0, 85, 170, 255), (3, 4)])
def test_few_frequent_colours_are_classes_of_their_own(levels: tuple[int, ...]) -> None:
    truth = np.random.default_rng(0).integers(0, len(levels), (40, 40))
    picture = full(np.array(levels, "uint8")[truth][..., None])
    for kernel in ("flat", "epanechnikov", "gaussian"):
        model = fit(picture, kernel=kernel)
        assert [mode[0] for mode in model.modes] == pytest.approx(levels, abs=0.5)
        assert np.array_equal(labelled(model, picture), truth)


def test_a_rare_colour_does_not_hide_behind_a_frequent_one() -> None:
    pixels = np.zeros((100, 100, 3), "uint8")
    pixels[:4, :4] = 90
    assert fit(full(pixels)).modes == ((0.0, 0.0, 0.0), (90.0, 90.0, 90.0))
