"""A hundred tasks of 20 s at once, where the account may make 20 queries a second. On both services, real clock.

Beside bide, `dashscope` 2.0.2 does the same with `ImageSynthesis.call`, in threads and with asyncio, each against an
emulator of its own. Its polls are not paced; one that is answered 429 ends the wait for its task.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import AsyncExitStack

from bide import Client, DashScope, Dieyuyun, ImageRequest, Limits, TaskStatus
from bide.emulator import Emulator, ServiceLimits
from goals import Row, arguments, show
from peers import dashscope as sdk
from peers.race import Outcome, Peer

TASKS, RATE, SECONDS = 100, 20, 20.0


async def run(name: str) -> list[Row]:
    """The job on one service, with an emulator of its own."""
    async with emulated() as emulator:
        dashscope = DashScope(base_url=emulator.dashscope_url)
        provider = dashscope if name == "dashscope" else Dieyuyun(base_url=emulator.dieyuyun_url)
        started = time.perf_counter()
        async with Client(
            provider, api_key="sk-bench", limits=Limits(TASKS, math.inf), queries_per_second=RATE
        ) as client:
            requests = [ImageRequest(f"number {n}", model="wan2.5-t2i-preview") for n in range(TASKS)]
            tasks = await client.gather(*requests)
        wall = time.perf_counter() - started
        stats = emulator.stats()
    done = sum(task.status is TaskStatus.SUCCEEDED for task in tasks)
    case = f"bide, {name}"
    return [
        Row(case, "finished, of 100", done, "100", done == TASKS),
        Row(case, "queries answered 429", stats["queries_429"], "0", stats["queries_429"] == 0),
        Row(case, "queries and lists", stats["queries"] + stats["lists"]),
        Row(case, "wall time, s", wall, "at most 33", wall <= 33),
    ]


def peer_rows(name: str, outcome: Outcome) -> list[Row]:
    """What the SDK made of the job. Peers have no goals."""
    counts = outcome.counts
    return [
        Row(name, "finished, of 100", outcome.finished),
        Row(name, "creates accepted (paid)", counts.paid),
        Row(name, "queries answered 429", counts.polls_refused),
        Row(name, "queries and lists", counts.polls),
        Row(name, "wall time, s", outcome.seconds),
    ]


def emulated() -> Emulator:
    """Both services with the limit of queries, to be entered."""
    limits = ServiceLimits(queries_per_second=RATE)
    return Emulator(image_seconds=SECONDS, dieyuyun_limits=limits, dashscope_limits=limits)


async def main() -> list[Row]:
    """All at once: they share nothing but the loop."""
    peers = [
        Peer("dashscope, threads", sdk.in_threads(emulated(), "image", TASKS)),
        Peer("dashscope, asyncio", sdk.in_asyncio(emulated(), "image")),
    ]
    async with AsyncExitStack() as stack:
        for peer in peers:
            await peer.prepare(stack)
        tables = await asyncio.gather(
            run("dieyuyun"), run("dashscope"), *(peer.run(TASKS, peer_rows) for peer in peers)
        )
    return [row for rows in tables for row in rows]


if __name__ == "__main__":
    options = arguments(__doc__)
    show("100 tasks at 20 queries a second", asyncio.run(main()), options)
