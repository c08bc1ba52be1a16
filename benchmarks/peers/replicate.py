"""`replicate`: `async_run`, which lets the service hold the create open until the result is there (at most 60 s).

So it need not poll while tasks are short. A refused create is an error at once: only GETs are repeated.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from peers.race import Entry
from peers.stubs import ReplicatePredictions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peers.stubs import Terms


@asynccontextmanager
async def ran(terms: Terms) -> AsyncIterator[Entry]:
    """Its own way to run and wait."""
    from replicate.client import Client

    async with ReplicatePredictions(terms) as stub:
        client = Client(api_token="bench", base_url=stub.origin)

        async def make(prompt: str) -> None:
            if not await client.async_run(ReplicatePredictions.MODEL, input={"prompt": prompt}):
                raise RuntimeError("the prediction has no output")

        yield Entry(make, stub.counts)
        await client._async_client.aclose()  # noqa: SLF001  # it has no public way to close
