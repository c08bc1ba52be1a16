"""Very many open handles on one loop: bytes for each, CPU for each poll, and how late the loop is for other work.

A tenth of the handles are due within 10 s, evenly spread; the others are not polled. The transport is a stub in this
process that answers at once, without a socket: only bide is measured. Each size runs in a process of its own, and
memory is that process's resident set, less the tasks' raw answers. The query budget is off.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import multiprocessing
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from bide import Client, DashScope, Pace
from goals import Row, arguments, percentile, show

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bide import TaskHandle

SIZES = (1_000, 10_000, 100_000)
WINDOW = 10.0
"""Seconds within which a tenth of the handles falls due."""
TICK = 0.005
"""Seconds that the probe of the loop's lag sleeps."""
PAGE = 4096


class Stub(httpx.AsyncBaseTransport):
    """Answers each query: the task is running."""

    def __init__(self) -> None:
        self.polls = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.polls += 1
        task_id = request.url.path.rpartition("/")[2]
        output = {"task_id": task_id, "task_status": "RUNNING", "submit_time": "2026-01-05 10:00:00.000"}
        return httpx.Response(200, content=json.dumps({"request_id": f"r-{task_id}", "output": output}))


@dataclass(frozen=True)
class Measured:
    """What one size came to."""

    unawaited: float
    awaited: float
    tasks: int
    timers: int
    cpu: float
    lag: float
    polls: int


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def deep_size(value: object) -> int:
    """Bytes of a JSON value with all that it holds."""
    inside: Iterable[object] = ()
    if isinstance(value, dict):
        inside = [*value.keys(), *value.values()]
    elif isinstance(value, list):
        inside = value
    return sys.getsizeof(value) + sum(map(deep_size, inside))


async def lags(seconds: float) -> list[float]:
    """How late the loop woke a sleeper, again and again."""
    loop = asyncio.get_running_loop()
    end, late = loop.time() + seconds, []
    while (now := loop.time()) < end:
        await asyncio.sleep(TICK)
        late.append(loop.time() - now - TICK)
    return late


async def all_seen(handles: list[TaskHandle]) -> None:
    """Wait until each was polled once."""
    while any(handle.task.raw is None for handle in handles):  # noqa: ASYNC110 - a waiter each is what is measured later
        await asyncio.sleep(0.1)


async def measure(size: int) -> Measured:
    """Open *size* handles and let a tenth of them fall due."""
    stub = Stub()
    # Videos fall due every ten seconds, images once an hour.
    provider = DashScope(base_url="http://stub.test/api/v1", image_floor=3600.0, video_floor=WINDOW)
    # The tasks are old: without the cap each would be polled after half of its age.
    pace = Pace(cap=WINDOW)
    async with Client(
        provider, api_key="sk-bench", transport=stub, queries_per_second=math.inf, pace=pace
    ) as client:
        await (await client.attach("warm")).refresh()
        lively = size // 10
        before = resident()
        handles = [await client.attach(f"still-{n}", kind="image") for n in range(size - lively)]
        await all_seen(handles)
        for n in range(lively):
            handles.append(await client.attach(f"lively-{n}", kind="video"))
            await asyncio.sleep(WINDOW / lively * 0.9)
        await all_seen(handles)
        raw = sum(deep_size(handle.task.raw) for handle in handles)
        unawaited = (resident() - before - raw) / size
        loop = asyncio.get_running_loop()
        tasks = len(asyncio.all_tasks())
        timers = len(loop._scheduled)  # type: ignore[attr-defined]  # noqa: SLF001 - a loop has no public name for their number
        late = await lags(WINDOW)
        cpu, polls = time.process_time(), stub.polls
        await asyncio.sleep(WINDOW)  # without the probe, which costs more than a few polls
        cpu, polls = time.process_time() - cpu, stub.polls - polls
        before = resident()
        waiters = [asyncio.create_task(handle.result()) for handle in handles]
        await asyncio.sleep(0.1)
        awaited = unawaited + (resident() - before) / size
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters)
    return Measured(unawaited, awaited, tasks, timers, cpu / polls * 1e6, percentile(late, 99), polls)


def run(size: int) -> Measured:
    """One size, in this process."""
    import logging

    logging.getLogger("bide").setLevel(logging.ERROR)  # closing names the tasks left running: all of them
    return asyncio.run(measure(size))


def main() -> list[Row]:
    """All sizes."""
    rows = []
    for size in SIZES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(run, (size,))
        case, most = f"{size:,}", size == max(SIZES)
        of_idle = ("at most 2048", found.unawaited <= 2048)
        of_awaited = ("at most 6144", found.awaited <= 6144)
        rows += [
            Row(case, "bytes a handle, no waiter", found.unawaited, *(of_idle if most else ())),
            Row(case, "bytes a handle with a waiter", found.awaited, *(of_awaited if most else ())),
            Row(case, "asyncio tasks in all", found.tasks, "at most 100", found.tasks <= 100),
            Row(case, "timers of the loop in all", found.timers, "at most 100", found.timers <= 100),
            Row(case, f"polls within {WINDOW:.0f} s", found.polls),
            Row(case, "CPU a poll, us", found.cpu),
            Row(case, "lag of the loop p99, ms", found.lag * 1e3, "under 20", found.lag < 0.020),
        ]
    return rows


if __name__ == "__main__":
    options = arguments(__doc__)
    show("Open handles on one loop (the transport is a stub without sockets)", main(), options)
