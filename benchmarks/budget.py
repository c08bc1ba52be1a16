"""A hundred tasks of 20 s at once, where the account may make 20 queries a second. On both services, real clock."""

from __future__ import annotations

import asyncio
import time

from bide import Client, DashScope, Dieyuyun, ImageRequest, Limits, TaskStatus
from bide.emulator import Emulator, ServiceLimits
from goals import Row, arguments, show

TASKS, RATE, SECONDS = 100, 20, 20.0


async def run(name: str) -> list[Row]:
    """The job on one service, with an emulator of its own."""
    limits = ServiceLimits(queries_per_second=RATE)
    async with Emulator(image_seconds=SECONDS, dieyuyun_limits=limits, dashscope_limits=limits) as emulator:
        dashscope = DashScope(base_url=emulator.dashscope_url)
        provider = dashscope if name == "dashscope" else Dieyuyun(base_url=emulator.dieyuyun_url)
        started = time.perf_counter()
        async with Client(
            provider, api_key="sk-bench", limits=Limits(concurrency=TASKS), queries_per_second=RATE
        ) as client:
            requests = [ImageRequest(f"number {n}", model="wan2.5-t2i-preview") for n in range(TASKS)]
            tasks = await client.gather(*requests)
        wall = time.perf_counter() - started
        stats = emulator.stats()
    done = sum(task.status is TaskStatus.SUCCEEDED for task in tasks)
    return [
        Row(name, "finished, of 100", done, "100", done == TASKS),
        Row(name, "queries answered 429", stats["queries_429"], "0", stats["queries_429"] == 0),
        Row(name, "queries and lists", stats["queries"] + stats["lists"]),
        Row(name, "wall time, s", wall, "at most 33", wall <= 33),
    ]


async def main() -> list[Row]:
    """Both services at once."""
    both = await asyncio.gather(run("dieyuyun"), run("dashscope"))
    return [row for rows in both for row in rows]


if __name__ == "__main__":
    options = arguments(__doc__)
    show("100 tasks at 20 queries a second", asyncio.run(main()), options)
