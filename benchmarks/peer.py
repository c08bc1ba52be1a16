"""A thousand tasks that exist already, four polls of each: bide beside `dashscope` 2.0.2's `AioVideoSynthesis.wait`.

Both call the same server, which is in a process of its own, answers at once, and lets each task end with its fourth
poll. There are only polls, no creates. The query budget is off; bide's least interval is the SDK's first one, 1 s.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from typing import TYPE_CHECKING

from bide import Client, DashScope
from goals import Row, arguments, show
from service import Service, service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TASKS, POLLS, ROUNDS = 1000, 4, 2


async def with_bide(there: Service, names: list[str]) -> int:
    """Attach to all and wait; returns how many succeeded."""
    provider = DashScope(base_url=there.base_url, image_floor=1.0, video_floor=1.0)
    async with Client(provider, api_key="sk-bench", queries_per_second=math.inf) as client:
        handles = [await client.attach(name, kind="video") for name in names]
        tasks = await asyncio.gather(*(handle.result() for handle in handles))
    return sum(task.status == "succeeded" for task in tasks)


async def with_dashscope(there: Service, names: list[str]) -> int:
    """The official SDK's own way to wait for a task, once for each."""
    import dashscope
    from dashscope.aigc.video_synthesis import AioVideoSynthesis
    from dashscope.api_entities.aio_session import close_shared_aio_session

    dashscope.base_http_api_url = there.base_url

    async def wait(name: str) -> str:
        answer = await AioVideoSynthesis.wait(name, api_key="sk-bench")
        return str(answer.output.task_status)

    ended = await asyncio.gather(*map(wait, names), return_exceptions=True)
    await close_shared_aio_session()
    return ended.count("SUCCEEDED")


async def measure(
    way: Callable[[Service, list[str]], Awaitable[int]], there: Service, label: str
) -> tuple[float, int, float, int]:
    """CPU for a task in milliseconds, tasks that succeeded, polls a task, connections."""
    there.ask(delay=0.0, polls=POLLS)
    before = time.process_time()
    succeeded = await way(there, [f"{label}-{n}" for n in range(TASKS)])
    cpu = (time.process_time() - before) / TASKS * 1e3
    counted = there.ask()
    return cpu, succeeded, counted["polls"] / TASKS, counted["connections"]


async def main(there: Service) -> list[Row]:
    """Both in turns."""
    there.ask(polls=1)
    await with_bide(there, ["warm"])
    await with_dashscope(there, ["warm too"])
    ours = [await measure(with_bide, there, f"bide-{n}") for n in range(ROUNDS)]
    theirs = [await measure(with_dashscope, there, f"dashscope-{n}") for n in range(ROUNDS)]
    rows = []
    for name, runs in (("bide", ours), ("dashscope", theirs)):
        succeeded = min(run[1] for run in runs)
        goal, met = (str(TASKS), succeeded == TASKS) if name == "bide" else ("", None)
        rows.append(Row(name, "succeeded, of 1000", succeeded, goal, met))
        rows.append(Row(name, "polls a task", statistics.mean(run[2] for run in runs)))
        rows.append(Row(name, "connections opened", statistics.mean(run[3] for run in runs)))
        rows.append(Row(name, "CPU a task, ms", statistics.median(run[0] for run in runs)))
    ratio = statistics.median(run[0] for run in ours) / statistics.median(run[0] for run in theirs)
    return [*rows, Row("bide", "CPU a task, to dashscope", ratio, "at most 1.6", ratio <= 1.6)]


if __name__ == "__main__":
    options = arguments(__doc__)
    with service() as there:
        show("1,000 tasks, 4 polls each", asyncio.run(main(there)), options)
