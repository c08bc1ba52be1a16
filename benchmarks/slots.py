"""Twelve tasks behind a key that allows three at a time, on both services, over real sockets and by the real clock.

Durations are drawn from 8 to 12 s; a create beyond the limit is answered 429 with `Retry-After: 5`. Takes a minute or
more. The ideal wall time is that of a scheduler that knows everything: each task starts at the moment a slot is free.

Beside bide, on the same loop, the peers do the same job, each with its own way to run and wait and its own defaults,
all twelve at once: `dashscope` against emulators of its own, the others against stubs of their protocols with the same
limit. Their rows show what was paid for and what was finished; the modules in `peers` say why. A task that a client
gave up is not tried again. `genblaze-core` and `comfy-sdk` are the strongest, and run with their best settings instead
of the defaults. The first lines name the clients that finished all, and say which of them are as good as bide.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from contextlib import AsyncExitStack

from bide import Client, DashScope, Dieyuyun, Limits, Provider, VideoRequest
from bide.emulator import EmulatedTask, Emulator, ServiceLimits
from goals import Row, arguments, show
from peers import comfy, dashscope, fal, genblaze, openai, replicate, runway
from peers.race import Outcome, Peer
from peers.stubs import Terms

TASKS, SLOTS, SECONDS, RETRY_AFTER = 12, 3, (8.0, 12.0), 5
OURS = ("bide, dashscope", "bide, dieyuyun")
EVERY = 5.0
"""Seconds: a poll so often and two more, and a lag of four fifths of it, are the most that bide may take."""


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
    polls = (stats["queries"] + stats["lists"]) / TASKS
    most_polls = 2 + sum(task.ended - task.created for task in tasks) / TASKS / EVERY
    case = f"bide, {provider.name}"
    return [
        Row(case, "finished, of 12", len(known), "12", len(known) == TASKS),
        Row(case, "creates", stats["creates"], "12", stats["creates"] == TASKS),
        Row(case, "creates answered 429", stats["creates_429"], "0", stats["creates_429"] == 0),
        Row(case, "polls and lists a task", polls, f"at most {most_polls:.2f}", polls <= most_polls),
        Row(
            case,
            "mean lag from end to known, s",
            lag,
            f"at most {0.8 * EVERY:.2f}",
            lag <= 0.8 * EVERY,
        ),
        Row(case, "wall time, s", wall, f"ideal {ideal(tasks):.2f}"),
    ]


def peer_rows(name: str, outcome: Outcome) -> list[Row]:
    """What a peer made of the job. Peers have no goals."""
    counts = outcome.counts
    return [
        Row(name, "finished, of 12", outcome.finished),
        Row(name, "creates accepted (paid)", counts.paid),
        Row(name, "creates answered 429", counts.refused),
        Row(name, "polls a task", counts.polls / max(1, counts.paid)),
        Row(name, "wall time, s", outcome.seconds),
    ]


def emulated() -> Emulator:
    """Both services with the limit of three, to be entered."""
    limits = ServiceLimits(concurrency=SLOTS, queries_per_second=20)
    return Emulator(
        video_seconds=SECONDS, retry_after=RETRY_AFTER, dieyuyun_limits=limits, dashscope_limits=limits
    )


async def main() -> list[Row]:
    """All at once: they share nothing but the loop."""
    terms = Terms(SLOTS, SECONDS, RETRY_AFTER)
    peers = [
        Peer("genblaze-core, 3 at once", genblaze.batched(terms)),
        Peer("comfy-sdk, patient", comfy.subscribed(terms)),
        Peer("dashscope, threads", dashscope.in_threads(emulated(), "video", TASKS)),
        Peer("dashscope, asyncio", dashscope.in_asyncio(emulated(), "video")),
        Peer("dashscope, client", dashscope.in_client(emulated())),
        Peer("fal-client", fal.subscribed(terms)),
        Peer("runwayml", runway.waited_for(terms)),
        Peer("openai", openai.polled(terms)),
        Peer("replicate", replicate.ran(terms)),
    ]
    async with AsyncExitStack() as stack, emulated() as emulator:
        for peer in peers:
            await peer.prepare(stack)
        tables = await asyncio.gather(
            run(Dieyuyun(base_url=emulator.dieyuyun_url), emulator),
            run(DashScope(base_url=emulator.dashscope_url), emulator),
            *(peer.run(TASKS, peer_rows) for peer in peers),
        )
    return [row for rows in tables for row in rows]


def equals(rows: list[Row]) -> list[str]:
    """Which other clients have finished all, in how many seconds, and with how many refusals and polls, beside bide."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row.case, {})[row.figure] = row.value
    lines = []
    for case, figures in found.items():
        if figures.get("finished, of 12") != TASKS:
            continue
        refused, seconds = figures["creates answered 429"], figures["wall time, s"]
        polls = figures["polls and lists a task" if case in OURS else "polls a task"]
        best = min(found[ours]["creates answered 429"] for ours in OURS)
        words = "finished all" + (", as good as bide" if case not in OURS and refused <= best else "")
        lines.append(f"{case}: {words}; {refused} refusals, {polls:.1f} polls a task, {seconds:.0f} s")
    return lines


if __name__ == "__main__":
    options = arguments(__doc__)
    found = asyncio.run(main())
    if not options.json:
        print(*equals(found), "", sep="\n")
    show("12 tasks behind 3 slots", found, options)
