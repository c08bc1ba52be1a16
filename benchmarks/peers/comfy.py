"""`comfy-sdk`: `models.subscribe`, the queued form of its model runs. It submits, polls, and fetches the result.

It is the strongest way that the package has: an `Idempotency-Key` goes with each submit, and the client's `RetryPolicy`
applies to submits and polls alike. (`run` of its workflows gives up when it has been refused for 60 s, and at the first
connection that fails.) The policy here goes on for ten minutes. Where the service keeps keys and answers a repeated one
with the task that it already has, as the documents of Comfy Router say, a submit without an answer is repeated, too. At
a service without keys the package's documents advise against that.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from peers.race import Entry
from peers.stubs import ComfyRouter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peers.stubs import Terms

PATIENCE = 600.0
"""Seconds that it goes on to repeat a call."""


@asynccontextmanager
async def subscribed(terms: Terms) -> AsyncIterator[Entry]:
    """Its own way to run and wait."""
    import comfy_sdk

    async with ComfyRouter(terms) as stub:
        # The addresses are read when a client is made, and from nowhere else.
        os.environ["COMFY_BASE_URL"] = os.environ["COMFY_ROUTER_BASE_URL"] = stub.origin
        policy = comfy_sdk.RetryPolicy(max_elapsed=PATIENCE, retry_possibly_in_flight=terms.keeps_keys)
        async with comfy_sdk.AsyncComfy(api_key="bench", retry=policy) as client:

            async def make(prompt: str) -> None:
                await client.models.subscribe(ComfyRouter.MODEL, {"prompt": prompt})

            yield Entry(make, stub.counts)
