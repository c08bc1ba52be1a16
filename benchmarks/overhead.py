"""CPU of one poll, end to end and back to back: `handle.refresh()` beside `httpx.AsyncClient.get` and a floor.

The floor is asyncio's streams with h11, one connection, the answer parsed as JSON: the price of any client of h11. It
is CPU time, not wall time, and the rounds of all three alternate, so a noisy machine is noisy for all of them.
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import time
from typing import TYPE_CHECKING

import h11
import httpx

from bide import Client, DashScope
from goals import Row, arguments, show
from service import Service, service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROUNDS, POLLS, WARM = 15, 200, 50


class Floor:
    """One connection, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._connection = h11.Connection(h11.CLIENT)

    async def get(self) -> object:
        """One poll."""
        headers = [
            ("Host", "127.0.0.1"),
            ("Accept", "application/json"),
            ("User-Agent", "floor"),
            ("Authorization", "Bearer sk-bench"),
        ]
        request = h11.Request(method="GET", target="/api/v1/tasks/task-1", headers=headers)
        self._writer.write(self._connection.send(request) or b"")
        self._writer.write(self._connection.send(h11.EndOfMessage()) or b"")
        body = bytearray()
        while True:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                self._connection.receive_data(await self._reader.read(65536))
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._connection.start_next_cycle()
                return json.loads(body)


async def cpu(poll: Callable[[], Awaitable[object]]) -> float:
    """Microseconds of CPU for one *poll*, of many in a row."""
    before = time.process_time()
    for _ in range(POLLS):
        await poll()
    return (time.process_time() - before) / POLLS * 1e6


async def main(there: Service) -> list[Row]:
    """All three, in turns."""
    tiny = 1e-6  # no floor between two polls, which would be waited for
    provider = DashScope(base_url=there.base_url, image_floor=tiny, video_floor=tiny)
    address = f"{there.base_url}/tasks/task-1"
    headers = {"Authorization": "Bearer sk-bench"}
    floor = Floor(*await asyncio.open_connection("127.0.0.1", int(there.origin.rpartition(":")[2])))
    async with (
        Client(provider, api_key="sk-bench", queries_per_second=math.inf) as client,
        httpx.AsyncClient(headers=headers) as plain,
    ):
        handle = await client.attach("task-1")

        async def get() -> object:
            return (await plain.get(address)).json()

        ways = {"floor": floor.get, "httpx": get, "bide": handle.refresh}
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for poll in ways.values():
            for _ in range(WARM):
                await poll()
        for _ in range(ROUNDS):
            for name, poll in ways.items():
                spent[name].append(await cpu(poll))
    median = {name: statistics.median(each) for name, each in spent.items()}
    ratio = statistics.median(
        ours / theirs for ours, theirs in zip(spent["bide"], spent["httpx"], strict=True)
    )
    return [
        Row("asyncio+h11", "CPU a poll, us", median["floor"]),
        Row("httpx", "CPU of AsyncClient.get, us", median["httpx"]),
        Row("bide", "CPU of handle.refresh, us", median["bide"]),
        Row("bide", "to the floor", median["bide"] / median["floor"]),
        Row("bide", "to AsyncClient.get", ratio, "at most 1.20", ratio <= 1.2),
    ]


if __name__ == "__main__":
    options = arguments(__doc__)
    with service() as there:
        show("CPU of one poll", asyncio.run(main(there)), options)
