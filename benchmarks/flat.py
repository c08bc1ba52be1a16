"""Many polls due at the same moment: CPU for each, how late they are, connections opened.

A server in a process of its own answers after 50 ms. The scheduler of bide makes the first polls of tasks that were
just attached. A default `httpx.AsyncClient` and a default `aiohttp.ClientSession` get the same URLs in one `gather`.
Lateness is the time from the moment that all are due until the server has the request. The query budget is off.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import aiohttp
import httpx

from bide import BideError, Client, DashScope
from goals import Row, arguments, percentile, show
from service import Service, service

HEADERS = {"Authorization": "Bearer sk-bench"}
DELAY = 0.05
SIZES = {10: 30, 100: 10, 1000: 5, 5000: 2}
"""How many are due at once, and how many rounds of that are measured."""
HTTPX_SIZES = (10, 100, 1000)
"""A default httpx.AsyncClient ends most of 5,000 with a PoolTimeout, and takes minutes for it."""
INTERVAL = 10.0
"""Seconds between two rounds, for the connections that are kept meanwhile."""


Polls = Callable[[list[str]], Awaitable[int]]
"""Polls all of these tasks at once; returns how many polls failed."""


@asynccontextmanager
async def bide(there: Service) -> AsyncIterator[Polls]:
    """The scheduler of a client of ours."""
    provider = DashScope(base_url=there.base_url)
    async with Client(provider, api_key="sk-bench", queries_per_second=math.inf) as client:

        async def polls(names: list[str]) -> int:
            handles = [await client.attach(name) for name in names]
            failed = 0
            for handle in handles:
                try:
                    await handle.result(timeout=60)
                except BideError:
                    failed += 1
            return failed

        yield polls


@asynccontextmanager
async def httpx_client(there: Service) -> AsyncIterator[Polls]:
    """A default client of httpx."""
    async with httpx.AsyncClient(headers=HEADERS) as client:

        async def get(name: str) -> object:
            return (await client.get(f"{there.base_url}/tasks/{name}")).json()

        yield partial(all_at_once, get)


@asynccontextmanager
async def aiohttp_session(there: Service) -> AsyncIterator[Polls]:
    """A default session of aiohttp."""
    async with aiohttp.ClientSession(headers=HEADERS) as session:

        async def get(name: str) -> object:
            async with session.get(f"{there.base_url}/tasks/{name}") as answer:
                return await answer.json()

        yield partial(all_at_once, get)


async def all_at_once(get: Callable[[str], Awaitable[object]], names: list[str]) -> int:
    """Get all in one `gather`; returns how many failed."""
    answers = await asyncio.gather(*map(get, names), return_exceptions=True)
    return sum(isinstance(answer, BaseException) for answer in answers)


WAYS = {"bide": bide, "httpx": httpx_client, "aiohttp": aiohttp_session}


@dataclass
class Measured:
    """What one way did with so many at once."""

    cpu: float = 0.0
    late: float = 0.0
    errors: int = 0
    connections: list[int] = field(default_factory=list)


async def measure(polls: Polls, there: Service, size: int, rounds: int) -> Measured:
    """A round to warm up, then *rounds* of *size* polls at once."""
    found, spent, late = Measured(), [], []
    there.ask(delay=DELAY, polls=1)
    for number in range(rounds + 1):
        names = [f"task-{number}-{n}" for n in range(size)]
        cpu, due = time.process_time(), time.time()
        found.errors += await polls(names)
        spent.append((time.process_time() - cpu) / size * 1e6)
        counted = there.ask()
        found.connections.append(counted["connections"])
        late.append(percentile([moments[0] - due for moments in counted["moments"].values()], 99))
    found.cpu, found.late = statistics.median(spent[1:]), statistics.median(late[1:])
    return found


async def kept(there: Service) -> tuple[int, int]:
    """Connections that a thousand polls open, and a thousand more after a pause of the longest poll interval."""
    opened = []
    async with bide(there) as polls:
        there.ask(delay=DELAY, polls=1)
        for pause in (INTERVAL, 0.0):
            await polls([f"kept-{len(opened)}-{n}" for n in range(1000)])
            opened.append(there.ask()["connections"])
            await asyncio.sleep(pause)
    return opened[0], opened[1]


async def main(there: Service) -> list[Row]:
    """All sizes, each with the three beside each other."""
    found: dict[tuple[str, int], Measured] = {}
    for size, rounds in SIZES.items():
        for name, way in WAYS.items():
            if name == "httpx" and size not in HTTPX_SIZES:
                continue
            async with way(there) as polls:
                once = (name, size) == ("httpx", 1000)  # it takes half a minute, and fails
                found[name, size] = await measure(polls, there, size, 1 if once else rounds)
    rows = []
    for (name, size), each in found.items():
        case = f"{name}, {size}"
        ours = name == "bide"
        rows.append(Row(case, "CPU a poll, us", each.cpu))
        rows.append(Row(case, "lateness p99, s", each.late))
        rows.append(Row(case, "errors", each.errors, "0" if ours else "", each.errors == 0 if ours else None))
        rows.append(Row(case, "connections in the first round", each.connections[0]))
        fresh = sum(each.connections[1:])
        rows.append(
            Row(case, "new ones in later rounds", fresh, "0" if ours else "", fresh == 0 if ours else None)
        )
    for size, most in ((1000, 1.3), (5000, 1.6)):
        ratio = found["bide", size].cpu / found["bide", 10].cpu
        rows.append(Row("bide", f"CPU a poll, {size} to 10 at once", ratio, f"at most {most}", ratio <= most))
    ratio = found["bide", 1000].late / found["aiohttp", 1000].late
    rows.append(Row("bide", "lateness at 1000, to aiohttp", ratio, "at most 2.5", ratio <= 2.5))
    first, second = await kept(there)
    rows.append(Row("bide", "connections, 1000 at once", first, "at most 100", first <= 100))
    rows.append(Row("bide", f"new ones {INTERVAL:.0f} s later", second, "0", second == 0))
    return rows


if __name__ == "__main__":
    options = arguments(__doc__)
    with service() as there:
        show("Polls due at the same moment", asyncio.run(main(there)), options)
