"""Twelve tasks behind a key that allows three at a time, on both services, over real sockets and by the real clock.

Durations are drawn from 8 to 12 s; a create beyond the limit is answered 429 with `Retry-After: 5`. Takes about a
minute. The ideal wall time is that of an all-knowing scheduler: each task starts the moment that a slot is free.
"""

from __future__ import annotations

import asyncio
import heapq
import time

from bide import Client, DashScope, Dieyuyun, Limits, Provider, VideoRequest
from bide.emulator import EmulatedTask, Emulator, ServiceLimits
from goals import Row, arguments, show

TASKS, SLOTS = 12, 3
FLOOR = 5.0
"""Seconds: the least time between two looks at a video, on both services."""


def ideal(tasks: list[EmulatedTask]) -> float:
    """Seconds that these tasks take on three slots without any lag, in their order of creation."""
    slots = [0.0] * SLOTS
    for task in sorted(tasks, key=lambda task: task.created):
        heapq.heappush(slots, heapq.heappop(slots) + task.ended - task.created)
    return max(slots)


async def run(provider: Provider, emulator: Emulator) -> list[Row]:
    """The job on one service."""
    loop = asyncio.get_running_loop()
    known: dict[str | None, float] = {}
    started = time.perf_counter()
    async with Client(provider, api_key="sk-bench", limits=Limits(concurrency=SLOTS)) as client:
        requests = [VideoRequest(f"number {number}", model="wan2.6-t2v") for number in range(TASKS)]
        async for handle in client.as_completed(requests):
            known[handle.task_id] = loop.time()
            await handle.result()
    wall = time.perf_counter() - started

    tasks = [task for task in emulator.tasks() if task.service == provider.name]
    stats = emulator.stats()["services"][provider.name]
    lag = sum(known[task.id] - task.ended for task in tasks) / len(tasks)
    looks = stats["queries"] / TASKS
    most_looks = 2 + sum(task.ended - task.created for task in tasks) / TASKS / FLOOR
    return [
        Row(provider.name, "finished, of 12", len(known), "12", len(known) == TASKS),
        Row(provider.name, "creates", stats["creates"], "12", stats["creates"] == TASKS),
        Row(provider.name, "creates answered 429", stats["creates_429"], "0", stats["creates_429"] == 0),
        Row(provider.name, "looks a task", looks, f"at most {most_looks:.2f}", looks <= most_looks),
        Row(
            provider.name,
            "mean lag from end to known, s",
            lag,
            f"at most {0.8 * FLOOR:.2f}",
            lag <= 0.8 * FLOOR,
        ),
        Row(provider.name, "wall time, s", wall, f"ideal {ideal(tasks):.2f}"),
    ]


async def main() -> list[Row]:
    """Both services at once: they share nothing."""
    limits = ServiceLimits(concurrency=SLOTS, queries_per_second=20)
    async with Emulator(
        video_seconds=(8, 12), retry_after=5, dieyuyun_limits=limits, dashscope_limits=limits
    ) as emulator:
        both = await asyncio.gather(
            run(Dieyuyun(base_url=emulator.dieyuyun_url), emulator),
            run(DashScope(base_url=emulator.dashscope_url), emulator),
        )
    return [row for rows in both for row in rows]


if __name__ == "__main__":
    options = arguments(__doc__)
    show("12 tasks behind 3 slots", asyncio.run(main()), options)
