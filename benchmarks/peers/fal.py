"""`fal-client`: `subscribe` submits, polls every 0.1 s, and fetches the result.

It repeats a refused submit up to nine times, after 0.1 s and then twice as long each time, plus or minus a half;
`Retry-After` is not read. The client always uses https and a host name; one name in it is replaced for the stub.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from peers.race import Entry
from peers.stubs import FalQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peers.stubs import Terms


@asynccontextmanager
async def subscribed(terms: Terms) -> AsyncIterator[Entry]:
    """Its own way to run and wait."""
    import fal_client

    async with FalQueue(terms) as stub:
        fal_client.client.QUEUE_URL_FORMAT = f"{stub.origin}/"
        client = fal_client.AsyncClient(key="bench")

        async def make(prompt: str) -> None:
            await client.subscribe(FalQueue.APP, arguments={"prompt": prompt})

        yield Entry(make, stub.counts)
        await (await client._client).aclose()  # noqa: SLF001  # it has no public way to close
