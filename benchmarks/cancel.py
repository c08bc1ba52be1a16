"""Three seconds of random cancels, then ten polls at once: is a connection or a slot lost?

Twenty callers submit, poll and wait, and cancel what they wait for at random moments, against the emulator. Ten tasks
stay open and five slots are left. Beside it, callers cancel requests of an `httpx.AsyncClient` with ten connections.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx

from bide import BideError, Client, DashScope, ImageRequest, Limits
from bide.emulator import Emulator, ServiceLimits
from goals import Row, arguments, show

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CALLERS, SECONDS, POLLS, SLOTS = 20, 3.0, 10, 15
LATENCY = 0.02
"""Seconds that each answer takes: so cancels meet requests under way."""


async def cancelled_at_random(work: Callable[[], Awaitable[object]]) -> int:
    """Begin *work* and cancel it after a moment, again and again, as so many callers; returns how often."""
    loop = asyncio.get_running_loop()
    end, times = loop.time() + SECONDS, 0

    async def caller() -> None:
        nonlocal times
        while loop.time() < end:
            task = asyncio.ensure_future(work())
            await asyncio.sleep(random.uniform(0, 3 * LATENCY))
            times += task.cancel()
            with suppress(asyncio.CancelledError, BideError, httpx.HTTPError):
                await task

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return times


async def all_at_once(polls: list[Callable[[], Awaitable[object]]]) -> tuple[int, float]:
    """Ten polls at once: how many were answered within 5 s, and after how many seconds the last of them."""
    before = time.perf_counter()
    tasks = [asyncio.ensure_future(poll()) for poll in polls]
    done, late = await asyncio.wait(tasks, timeout=5)
    took = time.perf_counter() - before
    for task in late:
        task.cancel()
    return sum(task.exception() is None for task in done), took


async def with_bide(emulator: Emulator) -> list[Row]:
    """A client of ours: submits, polls and waits are cancelled."""
    # A poll at once shows whether a connection is free: no floor between two polls may hold it back.
    provider = DashScope(base_url=emulator.dashscope_url, image_floor=1e-3)
    limits = Limits(SLOTS, math.inf)
    async with Client(provider, api_key="sk-bench", limits=limits, queries_per_second=1000) as client:
        open_ones = [
            await client.submit(ImageRequest(f"open {n} [seconds 600]", model="any")) for n in range(POLLS)
        ]
        await asyncio.gather(*(handle.accepted() for handle in open_ones))

        async def work() -> None:
            handle = random.choice(open_ones)
            match random.randrange(3):
                case 0:
                    await client.run(ImageRequest("short [seconds 0.05]", model="any"))
                case 1:
                    await handle.refresh()
                case _:
                    await handle.result()

        times = await cancelled_at_random(work)
        answered, took = await all_at_once([handle.refresh for handle in open_ones])
        # What was made goes on without its callers: wait until it has ended and is known.
        while (await client.statistics()).open > len(open_ones):  # noqa: ASYNC110 - no caller waits for them any more
            await asyncio.sleep(0.1)
        filled = [
            await client.submit(ImageRequest("fill [seconds 600]", model="any")) for _ in range(SLOTS - POLLS)
        ]
        await asyncio.wait_for(asyncio.gather(*(handle.accepted() for handle in filled)), 10)
        most = emulator.stats()["services"]["dashscope"]["max_in_flight"]
        now = await client.statistics()
    slots = now.lanes[0].slots
    return [
        Row("bide", "cancels", times),
        Row("bide", "polls answered after it, of 10", answered, "10", answered == POLLS),
        Row("bide", "until the last of them, s", took),
        Row("bide", "connections busy at the end", now.connections_busy, "0", now.connections_busy == 0),
        Row("bide", "slots that can be filled, of 15", slots, "15", slots == SLOTS),
        Row(
            "bide", "most in flight at the service", max(n for kinds in most.values() for n in kinds.values())
        ),
    ]


async def with_httpx(emulator: Emulator) -> list[Row]:
    """Plain requests, with a pool of as many connections."""
    limits = httpx.Limits(max_connections=POLLS)
    headers = {"Authorization": "Bearer sk-bench-too"}
    async with httpx.AsyncClient(base_url=emulator.dashscope_url, limits=limits, headers=headers) as client:

        async def poll() -> None:
            await client.get("/tasks/none")

        times = await cancelled_at_random(poll)
        answered, took = await all_at_once([poll] * POLLS)
    return [
        Row("httpx", "cancels", times),
        Row("httpx", "polls answered after it, of 10", answered),
        Row("httpx", "until the last of them, s", took),
    ]


async def main() -> list[Row]:
    """One after the other, on emulators of their own."""
    limits = ServiceLimits(concurrency=SLOTS)
    rows = []
    for way in (with_bide, with_httpx):
        async with Emulator(dashscope_limits=limits, queue_seconds=0) as emulator:
            emulator.fault(on="query", times=10**9, delay=LATENCY)
            rows += await way(emulator)
    return rows


if __name__ == "__main__":
    options = arguments(__doc__)
    show("Random cancels", asyncio.run(main()), options)
