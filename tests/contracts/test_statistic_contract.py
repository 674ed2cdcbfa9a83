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
TILES = st.tuples(st.integers(1, 20), st.integers(1, 20))


def test_the_contract_is_checked_on_something() -> None:
    assert "area" in STATISTICS


@pytest.mark.parametrize("name", STATISTICS)
@given(image=contract.labelled_images(24), tile=TILES, halo=st.integers(0, 5))
def test_any_tiling_gives_the_same_table(
    name: str, image: contract.LabelledImage, tile: tuple[int, int], halo: int
) -> None:
    contract.check_any_tiling(STATISTICS[name](), image, tile, (halo, halo))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", STATISTICS)
@given(image=contract.labelled_images(24), tile=TILES)
def test_contract(name: str, check, image: contract.LabelledImage, tile: tuple[int, int]) -> None:
    check(STATISTICS[name](), image, tile)
