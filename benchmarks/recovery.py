"""How fast bide is back at full work after something was in its way, in virtual time.

The emulator makes the tasks. The rules of `rules.py` stand before it: they refuse and count by themselves, whatever
bide believes. Each case is measured beside the same run without what is in the way.

- *Outage*: 200 videos are at work. For 30 s no connection is made. Of the ends that fell into it, 95 % are to be known
  within 5 s after the service is back. While it is down it is called at most twice a second, on the average and in each
  single second; but not in the second after the first failed call, when the client learns of the outage. On DashScope,
  which allows 20 queries a second and has lists, and on Dieyuyun, which has neither.
- *Shared key*: 3 slots, tasks of 6 s. Another user takes two slots as they get free, and lets go of them a minute
  later. All slots are to be full 10 s after that, or after the end of a `Retry-After` that was still running. While the
  other user holds them, at most one create in 10 s may be refused.
- *Late release*: 3 slots; the service counts a task for 1 to 2 s longer than it takes. An ideal client knows each end
  and each delay, and sends its next create at that moment: bide is to finish 0.95 of its tasks in two minutes.
- *Unknown cap*: Dieyuyun, which documents no limit; the service has one, which is constant, and refuses with 429 and no
  word more, or with a code. At most 8 refusals for 24 tasks.

For the shared key and the unknown cap the worst of five seeds is shown and judged, for the late release all together.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
import math
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bide import Client, DashScope, Dieyuyun, Limits, VideoRequest, _outside
from bide.emulator import Emulator, ServiceLimits
from goals import Row, arguments, percentile, show
from rules import LATENCY, Held, Service, Terms

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.virtual_time import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from bide import Provider, TaskHandle

Run: TypeAlias = "partial[Coroutine[Any, Any, Any]]"

SEEDS = 5
MODEL = "wan2.6-t2v"
FULL = json.dumps({"code": "Throttling.Concurrency", "message": "Too many tasks at once."}).encode()
CODED = json.dumps({"error": {"code": "concurrency_limit_exceeded", "message": "Too many tasks."}}).encode()

MANY, DOWN, UNTIL, RATE = 200, 120.0, 150.0, 20
WORK = (60.0, 300.0)
"""Seconds of a video, as the documents name them: some end before the outage, some in it, some after it."""
AFTER = 15.0
"""Seconds after the outage until the run ends."""
PLACES: dict[str, tuple[Callable[[str], Provider], int]] = {
    "dashscope": (lambda url: DashScope(base_url=url), 2),
    "dieyuyun": (lambda url: Dieyuyun(base_url=url.removesuffix("/api/v1")), 1),
}
"""The services, and how many seeds each has: a run on Dieyuyun takes thousands of single polls."""

SLOTS, SHORT, MINUTE = 3, 6.0, 60.0
ADVICE = (None, 5, 20)
"""`Retry-After` of the refusals, each in runs of its own."""
LONG, LATE, SPAN = (8.0, 12.0), (1.0, 2.0), 120.0
CAPS, FEW = (3, 5), 24


# The outage ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What became of the ends that fell into the outage."""

    lags: list[float]
    """Seconds from the end, or from the end of the outage if there is one, until the end was known."""
    calls: list[float]
    """Those in the outage: the seconds since its begin."""

    @property
    def first(self) -> int:
        """How many were begun until a second after the first one had failed: the client learns of the outage."""
        return sum(call < self.calls[0] + LATENCY + 1 for call in self.calls)


async def outage(place: str, *, is_down: bool, seed: int) -> Seen:
    """200 tasks, an outage or none."""
    loop = asyncio.get_running_loop()
    limits = ServiceLimits(queries_per_second=RATE)
    terms = Terms(outage=(DOWN, UNTIL)) if is_down else Terms()
    async with Emulator(video_seconds=WORK, seed=seed, dashscope_limits=limits) as emulator:
        service = Service(emulator, terms)
        async with service, client_at(PLACES[place][0](emulator.dashscope_url), service, MANY) as client:
            handles = [await client.submit(VideoRequest(f"number {n}", model=MODEL)) for n in range(MANY)]
            ends = [asyncio.create_task(end_of(handle)) for handle in handles]
            done, others = await asyncio.wait(ends, timeout=service.begin + UNTIL + AFTER - loop.time())
            known = dict(end.result() for end in done)
            for end in others:
                end.cancel()
        begin, back = service.begin + DOWN, service.begin + UNTIL
        fell = [task for task in emulator.tasks() if begin <= task.ended < back]
        lags = [known.get(task.id, math.inf) - (back if is_down else task.ended) for task in fell]
        during = [call - DOWN for call in service.calls if DOWN <= call < UNTIL]
    return Seen(lags, during)


async def end_of(handle: TaskHandle) -> tuple[str, float]:
    """The task's id, and when its end is known here."""
    task = await handle.result()
    return task.task_id or "", asyncio.get_running_loop().time()


def outage_rows(place: str, runs: Sequence[Seen], calm: Sequence[Seen]) -> list[Row]:
    """The outage, beside the same without one."""
    lags = [lag for run in runs for lag in run.lags]
    soon = 100 * sum(lag <= 5 for lag in lags) / len(lags)
    mean = max(len(run.calls) for run in runs) / (UNTIL - DOWN)
    most = max(most_within(run.calls[run.first :], 1.0) for run in runs)
    case = f"outage, {place}"
    return [
        Row(case, "ends that fell into it", len(lags) // len(runs)),
        Row(case, "of them known 5 s after it, %", soon, "at least 95", soon >= 95),
        Row(case, "known after it p95, s", percentile(lags, 95)),
        Row(case, "calls a second of it", mean, "at most 2", mean <= 2),
        Row(case, "calls until 1 s after the first fault", max(run.first for run in runs)),
        Row(case, "most calls in a second after that", most, "at most 2", most <= 2),
        Row(case, "without it: lag p95, s", percentile([lag for run in calm for lag in run.lags], 95)),
    ]


# A shared key ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """What came of a shared key. Seconds."""

    full_after: float
    """From the release, or the end of the last `Retry-After`, until all slots are full."""
    refused: int
    bunched: int
    """The most refusals within 10 s."""


async def shared(retry_after: int | None, *, is_held: bool, seed: int) -> Shared:
    """Another user holds two of three slots for a minute."""
    begin = 20 + random.Random(f"shared {seed}").uniform(0, SHORT)
    held = Held(2, begin, begin + MINUTE)
    terms = Terms(SLOTS, held if is_held else None, refusal=FULL, retry_after=retry_after)
    async with Emulator(
        video_seconds=SHORT, queue_seconds=0.0, seed=seed, dashscope_limits=ServiceLimits()
    ) as it:
        service = Service(it, terms)
        async with service, client_at(DashScope(base_url=it.dashscope_url), service, SLOTS) as client:
            for number in range(200):
                await client.submit(VideoRequest(f"number {number}", model=MODEL))
            await asyncio.sleep(held.end + 60)
        moments = [held.end, *(task.created - service.begin for task in service.tasks())]
        full = min((at for at in moments if at >= held.end and service.used(at) == SLOTS), default=math.inf)
    during = [at for at in service.refusals if held.begin <= at < held.end]
    paused = max((at + 2 * LATENCY for at in during), default=0.0) + (retry_after or 0)
    return Shared(max(0.0, full - max(held.end, paused)), len(during), most_within(during, 10.0))


def shared_rows(retry_after: int | None, runs: Sequence[Shared], calm: Sequence[Shared]) -> list[Row]:
    """The shared key, beside one that is not."""
    late, refused = max(run.full_after for run in runs), max(run.refused for run in runs)
    most = math.floor(MINUTE / 10)
    case = "shared key, " + ("bare 429" if retry_after is None else f"Retry-After: {retry_after}")
    return [
        Row(case, "full so long after the release, s", late, "at most 10", late <= 10),
        Row(case, "refused in the minute", refused, f"at most {most}", refused <= most),
        Row(case, "most within 10 s", max(run.bunched for run in runs)),
        Row(case, "alone: full so long after that moment, s", max(run.full_after for run in calm)),
    ]


# A late release --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """How many tasks had ended after `SPAN`, for bide and for the ideal client, and what was refused."""

    finished: int
    ideal: int
    refused: int


async def late(*, is_late: bool, seed: int) -> Done:
    """Slots that are free 1 to 2 s after an end."""
    dice = random.Random(f"late {seed}")
    seconds = [round(dice.uniform(*LONG), 2) for _ in range(100)]
    delays = [dice.uniform(*LATE) if is_late else 0.0 for _ in seconds]
    terms = Terms(SLOTS, release=delays.__getitem__, refusal=FULL)
    async with Emulator(queue_seconds=0.0, dashscope_limits=ServiceLimits()) as it:
        service = Service(it, terms)
        async with service, client_at(DashScope(base_url=it.dashscope_url), service, SLOTS) as client:
            for number, length in enumerate(seconds):
                await client.submit(VideoRequest(f"number {number} [seconds {length}]", model=MODEL))
            await asyncio.sleep(SPAN)
        until = service.begin + SPAN
        finished = sum(task.ended <= until for task in it.tasks())
    return Done(finished, ideal(seconds, delays), len(service.refusals))


def ideal(seconds: Sequence[float], delays: Sequence[float]) -> int:
    """How many tasks end within `SPAN` if each create arrives at the moment at which a slot is free."""
    free, ends = [LATENCY] * SLOTS, []
    for length, delay in zip(seconds, delays, strict=True):
        ends.append(heapq.heappop(free) + length)
        heapq.heappush(free, ends[-1] + delay)
    return sum(end <= SPAN for end in ends)


def late_rows(runs: Sequence[Done], calm: Sequence[Done]) -> list[Row]:
    """Late releases, beside prompt ones."""
    share, prompt = (sum(r.finished for r in each) / sum(r.ideal for r in each) for each in (runs, calm))
    case = "late release"
    return [
        Row(case, "finished, of the ideal client's", share, "at least 0.95", share >= 0.95),
        Row(case, "refused in 2 minutes", max(run.refused for run in runs)),
        Row(case, "released at once: finished, of the ideal's", prompt),
    ]


# An unknown cap --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unknown:
    """What an unknown cap cost."""

    refused: int
    wall: float


async def unknown(cap: int | None, *, is_coded: bool, seed: int) -> Unknown:
    """24 tasks at a service that has a limit, and does not say so."""
    loop = asyncio.get_running_loop()
    terms = Terms(cap, refusal=CODED if is_coded else b"")
    async with Emulator(video_seconds=LONG, queue_seconds=0.0, seed=seed) as it:
        service = Service(it, terms)
        async with service, client_at(Dieyuyun(base_url=it.dieyuyun_url), service, None) as client:
            await client.gather(*(VideoRequest(f"number {n}", model=MODEL) for n in range(FEW)))
        return Unknown(len(service.refusals), loop.time() - service.begin)


def unknown_rows(cap: int, words: str, runs: Sequence[Unknown], calm: Sequence[Unknown]) -> list[Row]:
    """An unknown cap, beside none."""
    refused = max(run.refused for run in runs)
    case = f"unknown cap of {cap}, {words}"
    return [
        Row(case, "refused, for 24 tasks", refused, "at most 8", refused <= 8),
        Row(case, "wall time, s", max(run.wall for run in runs)),
        Row(case, "no cap: wall time, s", max(run.wall for run in calm)),
    ]


# All -------------------------------------------------------------------------------------------------------


def client_at(provider: Provider, service: Service, slots: int | None) -> Client:
    """A client whose calls go through the rules."""
    return Client(provider, api_key="sk-bench", limits=Limits(slots or math.inf, math.inf), transport=service)


def most_within(moments: Sequence[float], seconds: float) -> int:
    """The most of *moments*, which are in order, in any time of that length."""
    most = first = 0
    for number, at in enumerate(moments, 1):
        while moments[first] <= at - seconds:
            first += 1
        most = max(most, number - first)
    return most


def played(run: Run) -> Any:
    """*run* in a loop of its own, in virtual time."""
    logging.getLogger("bide").setLevel(logging.ERROR)
    _outside.chance.seed("bide")  # the scheduler's jitter
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


def runs() -> dict[tuple[Any, ...], list[Run]]:
    """All that is run, the longest first."""
    found: dict[tuple[Any, ...], list[Run]] = {}
    for place in PLACES:
        for is_down in (True, False):
            found["outage", place, is_down] = [
                partial(outage, place, is_down=is_down, seed=seed) for seed in range(PLACES[place][1])
            ]
    for advice in ADVICE:
        for is_held in (True, False):
            found["shared", advice, is_held] = [
                partial(shared, advice, is_held=is_held, seed=seed) for seed in range(SEEDS)
            ]
    for is_late in (True, False):
        found["late", is_late] = [partial(late, is_late=is_late, seed=seed) for seed in range(SEEDS)]
    for is_coded in (False, True):
        for cap in (*CAPS, None):
            found["unknown", cap, is_coded] = [
                partial(unknown, cap, is_coded=is_coded, seed=seed) for seed in range(SEEDS)
            ]
    return found


def measured() -> list[Row]:
    """All figures."""
    each = [(name, run) for name, its_runs in runs().items() for run in its_runs]
    found: dict[tuple[Any, ...], list[Any]] = {}
    # Virtual time waits a little for the sockets at each of its jumps: a core has room for several runs.
    with ProcessPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        for (name, _), one in zip(each, pool.map(played, [run for _, run in each]), strict=True):
            found.setdefault(name, []).append(one)
    rows = [
        row
        for place in PLACES
        for row in outage_rows(place, found["outage", place, True], found["outage", place, False])
    ]
    for advice in ADVICE:
        rows += shared_rows(advice, found["shared", advice, True], found["shared", advice, False])
    rows += late_rows(found["late", True], found["late", False])
    for cap in CAPS:
        for is_coded, words in ((False, "bare 429"), (True, "with a code")):
            calm = found["unknown", None, is_coded]
            rows += unknown_rows(cap, words, found["unknown", cap, is_coded], calm)
    return rows


if __name__ == "__main__":
    options = arguments(__doc__)
    show("Back at full work, in virtual time", measured(), options)
