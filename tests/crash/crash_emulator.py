"""The service of the crash test, in a process of its own: what it knows is the truth that everything is held against.

It prints its base URL, serves until its standard input ends, and prints what it has seen as one JSON object. Of the
creates that it accepts it cuts those whose prompt says "lot 0": the task is made, and the connection dies without an
answer. The others are answered a moment later, so that many a worker dies between the sending and the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from bide.emulator import Emulator, ServiceLimits

FAILURES = 0.05
"""The share of tasks that the service fails: an error is an end like any other."""
CREATE_SECONDS = 0.12
ALWAYS = 10**9


async def serve(service: str, *, seed: int, slots: int, seconds: tuple[float, float]) -> None:
    limits = ServiceLimits(concurrency=slots, queries_per_second=20)
    async with Emulator(
        video_seconds=seconds,
        queue_seconds=0.2,
        failure_share=FAILURES,
        seed=seed,
        dashscope_limits=limits,
        dieyuyun_limits=limits,
    ) as emulator:
        emulator.fault(on="create", match="lot 0,", drop="after", delay=CREATE_SECONDS, times=ALWAYS)
        emulator.fault(on="create", delay=CREATE_SECONDS, times=ALWAYS)
        url = emulator.dashscope_url if service == "dashscope" else emulator.dieyuyun_url
        print(json.dumps({"url": url}), flush=True)
        await _end_of_input()
        offset = emulator.wall_time() - asyncio.get_running_loop().time()
        print(json.dumps(_truth(emulator, service, offset)), flush=True)


async def _end_of_input() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    loop.remove_reader(sys.stdin.fileno())


def _truth(emulator: Emulator, service: str, offset: float) -> dict[str, Any]:
    """What the service has made. *offset* turns times of its loop into seconds since 1970."""
    return {
        "tasks": [
            {
                "id": task.id,
                "prompt": task.prompt,
                "created": task.created + offset,
                "ended": task.ended + offset,
                "failed": task.failure is not None,
                "was_cut": "lot 0," in task.prompt,
            }
            for task in emulator.tasks()
        ],
        "refused": [
            (request.time + offset, request.status)
            for request in emulator.requests()
            if request.on == "create" and (request.status or 0) >= 400
        ],
        "cut": sum(request.on == "create" and request.status is None for request in emulator.requests()),
        "stats": emulator.stats()["services"][service],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slots", type=int, default=3)
    parser.add_argument("--seconds", type=float, nargs=2, default=(0.5, 2.0), help="that tasks take")
    options = parser.parse_args()
    asyncio.run(
        serve(options.service, seed=options.seed, slots=options.slots, seconds=tuple(options.seconds))
    )
