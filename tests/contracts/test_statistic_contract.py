"""Every statistic of the registry keeps the contract of `segcore.statistics.protocol`: exact,
order-free, every pixel once.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.statistics.protocol import STATISTICS
from maskloom.segcore.testing import statistics as contract

CHECKS = [contract.check_merge, contract.check_json, contract.check_sums, contract.check_schema]
FOLDS = [name for name, kind in STATISTICS.items() if hasattr(kind, "observe")]
"""Statistics that the pipeline fills tile by tile; that of objects takes two passes."""
IMAGES = st.one_of(contract.labelled_images(24), contract.labelled_volumes(9))
TILES = st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 20))


def test_the_contract_is_checked_on_something() -> None:
    assert "area" in FOLDS


@pytest.mark.parametrize("name", FOLDS)
@given(image=IMAGES, tile=TILES, halo=st.integers(0, 5))
def test_any_tiling_gives_the_same_table(
    name: str, image: contract.MaskedImage, tile: tuple[int, ...], halo: int
) -> None:
    contract.check_any_tiling(STATISTICS[name](), image, tile[-len(image.spec.shape) :], halo)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", FOLDS)
@given(image=IMAGES, tile=TILES)
def test_contract(name: str, check, image: contract.MaskedImage, tile: tuple[int, ...]) -> None:
    check(STATISTICS[name](), image, tile[-len(image.spec.shape) :])
