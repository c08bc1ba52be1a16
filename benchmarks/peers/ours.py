"""bide against its emulator, which imports nothing else of it: `run` for each job, and the number of slots."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from bide import Client, DashScope, Dieyuyun, Limits, VideoRequest
from peers.emulated import KEY, MODEL, counts_of
from peers.race import Entry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bide.emulator import Emulator


@asynccontextmanager
async def ran(emulator: Emulator, service: str, slots: int) -> AsyncIterator[Entry]:
    """`Client.run`, all at once."""
    async with emulator:
        provider = (
            Dieyuyun(base_url=emulator.dieyuyun_url)
            if service == "dieyuyun"
            else DashScope(base_url=emulator.dashscope_url)
        )
        async with Client(provider, api_key=KEY, limits=Limits(concurrency=slots)) as client:

            async def make(prompt: str) -> None:
                await client.run(VideoRequest(prompt, model=MODEL))

            yield Entry(make, lambda: counts_of(emulator, service))
