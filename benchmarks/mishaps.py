"""Twelve tasks behind three slots while something goes wrong, by the real clock: bide beside the clients of `slots.py`.

Tasks take 8 to 12 s; a create beyond the limit is answered 429 with `Retry-After: 5`. Time is not scaled (1 to 1), so
the intervals of each client are those that it was made for. One of three things happens:

- *cut create*: the answer to the second create that the service accepts is lost. The task is made and paid for.
- *outage of 20 s*: 15 s after the first request all connections are reset, and for 20 s none is accepted. The service
  itself goes on with its tasks.
- *shared key*: another user of the key holds two of the three slots for the first 30 s.

The service counts what it makes, and how often for the same prompt. *Lost* is a task that was paid for and whose result
its caller did not get. A job that a client gave up is not tried again.

`comfy-sdk` and `genblaze-core` are in the table twice. They can send idempotency keys; at a service that keeps the
keys, a create that is sent twice makes one task. DashScope and Dieyuyun keep none, and bide is measured at those. After
a cut create bide finds the task in DashScope's list of tasks. Dieyuyun has no such list, so the only goal there is not
to pay twice. The lines below the table name the clients that are as good as bide. Takes a minute and a half: the three
run at once, each in a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from bide.emulator import ServiceLimits
from goals import Row, arguments, show
from peers import comfy, dashscope, fal, genblaze, openai, ours, replicate, runway
from peers.emulated import Troubled
from peers.gate import Mishap
from peers.race import Peer
from peers.stubs import Terms

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from peers.race import Outcome

    Results: TypeAlias = Mapping[str, Sequence[float]]

TITLE = "12 tasks behind 3 slots, and something goes wrong"
TASKS, SLOTS, SECONDS, RETRY_AFTER = 12, 3, (8.0, 12.0), 5
MISHAPS = {
    "cut create": Mishap(cut=2),
    "outage of 20 s": Mishap(outage=(15.0, 20.0)),
    "shared key": Mishap(held=(2, 30.0)),
}
DONE, TWICE, LOST = "finished, of 12", "paid for twice", "paid for and lost"
FIGURES = (DONE, TWICE, LOST, "creates answered 429", "wall time, s")
HEADS = ("done", "twice", "lost", "429", "s")
BEST = {DONE: TASKS, TWICE: 0, LOST: 0}
DASHSCOPE, DIEYUYUN = OURS = ("bide, dashscope", "bide, dieyuyun")
KEYS, NO_KEYS = "at a service with keys", "without keys"


def peers_of(mishap: Mishap) -> list[Peer]:
    """All that run, each with a service of its own."""
    terms = Terms(SLOTS, SECONDS, RETRY_AFTER, mishap=mishap)
    keeping = Terms(SLOTS, SECONDS, RETRY_AFTER, mishap=mishap, keeps_keys=True)

    def emulated(service: str = "dashscope") -> Troubled:
        limits = ServiceLimits(concurrency=SLOTS, queries_per_second=20)
        return Troubled(
            mishap,
            service,
            video_seconds=SECONDS,
            retry_after=RETRY_AFTER,
            dieyuyun_limits=limits,
            dashscope_limits=limits,
        )

    return [
        Peer(DASHSCOPE, ours.ran(emulated(), "dashscope", SLOTS)),
        Peer(DIEYUYUN, ours.ran(emulated("dieyuyun"), "dieyuyun", SLOTS)),
        Peer(f"genblaze-core, {KEYS}", genblaze.batched(keeping)),
        Peer(f"genblaze-core, {NO_KEYS}", genblaze.batched(terms)),
        Peer(f"comfy-sdk, {KEYS}", comfy.subscribed(keeping)),
        Peer(f"comfy-sdk, {NO_KEYS}", comfy.subscribed(terms)),
        Peer("dashscope, threads", dashscope.in_threads(emulated(), "video", TASKS)),
        Peer("dashscope, asyncio", dashscope.in_asyncio(emulated(), "video")),
        Peer("dashscope, client", dashscope.in_client(emulated())),
        Peer("fal-client", fal.subscribed(terms)),
        Peer("runwayml", runway.waited_for(terms)),
        Peer("openai", openai.polled(terms)),
        Peer("replicate", replicate.ran(terms)),
    ]


def rows_of(name: str, outcome: Outcome) -> list[Row]:
    """What became of the twelve."""
    counts = outcome.counts
    values = (
        outcome.finished,
        counts.twice,
        counts.paid - counts.twice - outcome.finished,
        counts.refused,
        outcome.seconds,
    )
    return [Row(name, figure, value) for figure, value in zip(FIGURES, values, strict=True)]


def judged(name: str, row: Row) -> Row:
    """The row with its goal. Only bide has goals."""
    best = BEST.get(row.figure)
    if name == "cut create" and row.case == DIEYUYUN:
        best = best if row.figure == TWICE else None
    if best is not None and row.case in OURS:
        row = replace(row, goal=str(best), met=row.value == best)
    return replace(row, case=f"{name}: {row.case}")


async def played(mishap: Mishap) -> list[Row]:
    """All clients at once: they share nothing but the loop."""
    peers = peers_of(mishap)
    async with AsyncExitStack() as stack:
        for peer in peers:
            await peer.prepare(stack)
        tables = await asyncio.gather(*(peer.run(TASKS, rows_of) for peer in peers))
    return [row for table in tables for row in table]


def run(name: str) -> list[Row]:
    """One mishap, in a process of its own."""
    logging.getLogger("bide").setLevel(logging.ERROR)
    return asyncio.run(played(MISHAPS[name]))


def table(found: Mapping[str, Results]) -> str:
    """A line for each client, under each mishap its figures."""
    clients = list(next(iter(found.values())))
    width = max(map(len, clients))
    heads = "".join(f"{head:>6}" for head in HEADS)
    lines = [
        f"  {'':<{width}}" + "".join(f"  {name:^{len(heads)}}" for name in found),
        f"  {'':<{width}}" + f"  {heads}" * len(found),
    ]
    for client in clients:
        cells = ["".join(f"{_whole(value):>6}" for value in results[client]) for results in found.values()]
        lines.append("  ".join((f"  {client:<{width}}", *cells)).rstrip())
    return "\n".join(lines)


def _whole(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "-"


def equals(found: Mapping[str, Results]) -> list[str]:
    """Where another client has finished as many as bide, and paid twice for and lost no more."""
    lines = []
    for name, results in found.items():
        for case in OURS:
            done, twice, lost = results[case][:3]
            others = [
                client
                for client, (its_done, its_twice, its_lost, *_) in results.items()
                if client not in OURS and its_done >= done and its_twice <= twice and its_lost <= lost
            ]
            lines.append(f"{name}: as good as {case}: {'; '.join(others) or 'none'}")
    return lines


def results_of(rows: Sequence[Row]) -> Results:
    """The figures of each client. A client that is not installed has none."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.case, []).append(row.value)
    return {case: [*values, *[math.nan] * (len(FIGURES) - len(values))] for case, values in found.items()}


def main(options: argparse.Namespace) -> None:
    """Run, and show."""
    with ProcessPoolExecutor(len(MISHAPS), multiprocessing.get_context("spawn")) as pool:
        found = dict(zip(MISHAPS, pool.map(run, MISHAPS), strict=True))
    rows = [judged(name, row) for name, each in found.items() for row in each]
    if not options.json:
        results = {name: results_of(each) for name, each in found.items()}
        print(table(results), "", *equals(results), "", sep="\n")
        rows = [row for row in rows if row.goal]
    show(TITLE, rows, options)


if __name__ == "__main__":
    main(arguments(__doc__))
