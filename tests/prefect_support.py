"""The server of a `Prefect`, asked what it holds."""

from __future__ import annotations

from typing import Any

from maskloom.flows.orchestration.prefect import Prefect


def url(prefect: Prefect) -> str:
    """The address of its API."""
    assert prefect._api is not None
    return prefect._api.result()


def ask(prefect: Prefect, path: str, **filters: Any) -> Any:
    """What the server answers."""
    import httpx

    return httpx.post(f"{url(prefect)}/{path}", json=filters).json()
