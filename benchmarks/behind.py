"""The learned pace over real sockets: httpx on the loopback, the emulator with drawn durations, in virtual time.

Requests are queries and lists together. Lag is the time from the end at the emulator, which knows the true state of
each task, to the moment that the waiter has the result. Each answer comes 0.15 s after the service has read its state.

- 12 images (lognormal, median 16 s, sigma 0.3) are submitted at once behind 3 slots, round after round, after 50 tasks
  have been seen. Beside it runs the simple pace of earlier versions: the first poll comes one to two floors after the
  create, the next one a floor later if status or progress are new, else after 1.2 times the gap before, 10 s at most;
  each gap is up to 5 % longer by chance. On DashScope the first poll finds the task running, which is new, and after
  that nothing is new until the end. The floor of the simple pace was 3 s. bide runs with today's floor (2 s on
  DashScope, whose documents say "every few seconds") and with the earlier one. On Dieyuyun each poll reports a new
  progress and the floor is 3 s: there only the requests can fall, and there is no goal.
- 500 DashScope videos (lognormal, 110 s, 0.3) are submitted at once, or attached by a client that knows only their ids.
  20 queries a second are allowed, more are refused. It runs with lists and without.
- A fixed number of DashScope tasks is alive at any time: when one ends, the next starts. Figures are taken after the
  first 30, with lists and without.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bide import Client, DashScope, Dieyuyun, ImageRequest, Limits, Pace, VideoRequest, _outside
from bide.emulator import Emulator, ServiceLimits
from goals import Row, arguments, percentile, show

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.virtual_time import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from bide import Request, TaskHandle
    from bide.emulator import RequestRecord

SECONDS = {"image": "lognormal:16:0.3", "video": "lognormal:110:0.3"}
ANSWER = 0.15
"""Seconds from the service's reading of its state to the answer."""
RATE = 20
ASKED = ("query", "list")

TASKS, SLOTS, WARM, ROUNDS = 12, 3, 50, 8
SEEDS = 2
BEFORE = 3.0
"""Seconds: the floor of the simple pace."""
PLACES = (("dashscope", None), ("dashscope", BEFORE), ("dieyuyun", None))
"""Services and floors; None is the floor that bide has for it."""
MANY = 500
MADE = {"submitted": False, "attached": True}
WAYS = {"lists": True, "single polls": False}
LIVE = (("video", 3), ("video", 10), ("video", 50), ("image", 10))
LIVE_WARM, LIVE_EACH, LIVE_LEAST = 30, 4, 100
"""Tasks before the measured ones, and how many are measured: so many for each live one, and at least so many."""


@dataclass
class Measured:
    """What came of one run, or of several together."""

    tasks: int = 0
    ends: int = 0
    asked: int = 0
    lists: int = 0
    refused: int = 0
    most_in_a_second: int = 0
    lags: list[float] = field(default_factory=list)
    wall: float = 0.0

    @property
    def each(self) -> float:
        """Requests a task."""
        return self.asked / self.tasks

    @property
    def lag(self) -> float:
        """The mean one."""
        return statistics.fmean(self.lags)

    def with_(self, other: Measured) -> Measured:
        """Both together."""
        return Measured(
            tasks=self.tasks + other.tasks,
            ends=self.ends + other.ends,
            asked=self.asked + other.asked,
            lists=self.lists + other.lists,
            refused=self.refused + other.refused,
            most_in_a_second=max(self.most_in_a_second, other.most_in_a_second),
            lags=[*self.lags, *other.lags],
            wall=self.wall + other.wall,
        )


Run: TypeAlias = "partial[Coroutine[Any, Any, Measured]]"


# The runs ------------------------------------------------------------------------------------------------------


def emulated(seed: int, rate: int | None = None) -> Emulator:
    """Both services, to be entered."""
    limits = ServiceLimits(concurrency={"image": None, "video": None}, queries_per_second=rate)
    return Emulator(
        image_seconds=SECONDS["image"],
        video_seconds=SECONDS["video"],
        seed=seed,
        dieyuyun_limits=limits,
        dashscope_limits=limits,
    )


def simple(floor: float, *, news: bool) -> Pace:
    """The simple pace, with the means of its chances; *news* is whether each poll reports something new."""
    first, chance, most = 1.5 * floor, 1.025, 10.0
    gaps = [floor * chance]
    while not news and gaps[-1] < most * chance:
        gaps.append(min(1.2 * gaps[-1], most) * chance)
    return Pace.fixed(first, *gaps)


def requests_of(kind: str, count: int) -> list[Request]:
    """So many different requests."""
    if kind == "image":
        return [ImageRequest(f"number {n}", model="wan2.5-t2i-preview") for n in range(count)]
    return [VideoRequest(f"number {n}", model="wan2.6-t2v") for n in range(count)]


def answer_late(emulator: Emulator) -> None:
    """Each answer takes its time to come."""
    for on in ("create", *ASKED):
        emulator.fault(on=on, times=10**9, delay=ANSWER)  # type: ignore[arg-type]  # these are names of operations


async def known(wait: TaskHandle) -> tuple[str, float]:
    """The task's id, and when its end is known here."""
    task = await wait.result()
    return task.task_id or "", asyncio.get_running_loop().time()


def counted(emulator: Emulator, ends: dict[str, float], since: float) -> Measured:
    """What the emulator saw, and how late the *ends* were; of what came after the moment *since*."""
    asked = [each for each in emulator.requests() if each.on in ASKED and each.time >= since]
    tasks = {task.id: task for task in emulator.tasks() if task.created >= since}
    return Measured(
        tasks=len(tasks),
        ends=sum(task_id in ends for task_id in tasks),
        asked=len(asked),
        lists=sum(each.on == "list" for each in asked),
        refused=sum(each.status == 429 for each in emulator.requests()),
        most_in_a_second=most_in_a_second(asked),
        lags=[ends[task.id] - task.ended for task in tasks.values() if task.id in ends],
        wall=asyncio.get_running_loop().time() - since,
    )


def most_in_a_second(asked: list[RequestRecord]) -> int:
    """The most of them that the service got in any one second."""
    most = first = 0
    for number, each in enumerate(asked, 1):
        while asked[first].time <= each.time - 1:
            first += 1
        most = max(most, number - first)
    return most


async def behind(service: str, floor: float | None, pace: Pace, seed: int) -> Measured:
    """Rounds of 12 images behind 3 slots, after the warm-up."""
    loop = asyncio.get_running_loop()
    ends: dict[str, float] = {}
    floors = {} if floor is None else {"image_floor": floor}
    async with (
        emulated(seed) as emulator,
        Client(
            Dieyuyun(base_url=emulator.dieyuyun_url, **floors)
            if service == "dieyuyun"
            else DashScope(base_url=emulator.dashscope_url, **floors),
            api_key="sk-bench",
            limits={"image": Limits(SLOTS, math.inf)},
            pace=pace,
        ) as client,
    ):
        answer_late(emulator)
        await client.gather(*requests_of("image", WARM))
        since = loop.time()
        for _ in range(ROUNDS):
            handles = [await client.submit(request) for request in requests_of("image", TASKS)]
            ends |= dict(await asyncio.gather(*map(known, handles)))
        return counted(emulator, ends, since)


async def many(*, attached: bool, lists: bool, seed: int) -> Measured:
    """500 videos at once, by a client that has seen none before; *attached* ones were made by another client."""
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(emulated(seed, RATE))
        answer_late(emulator)
        since = asyncio.get_running_loop().time()
        limits = Limits(MANY, math.inf)

        def new_client() -> Client:
            provider = DashScope(base_url=emulator.dashscope_url, lists=lists)
            return Client(provider, api_key="sk-bench", limits=limits)

        client = await stack.enter_async_context(new_client())
        if attached:
            # The client that makes them is closed before its first poll, so that none of its requests counts.
            async with new_client() as other:
                made = [await other.submit(request) for request in requests_of("video", MANY)]
                names = [(await handle.accepted()).task_id for handle in made]
            handles = [await client.attach(name or "", kind="video") for name in names]
        else:
            handles = [await client.submit(request) for request in requests_of("video", MANY)]
        ends = dict(await asyncio.gather(*map(known, handles)))
        return counted(emulator, ends, since)


async def live(kind: str, number: int, *, lists: bool, seed: int) -> Measured:
    """So many tasks at any time, the first of which begin at different moments."""
    requests = iter(requests_of(kind, LIVE_WARM + max(LIVE_LEAST, LIVE_EACH * number)))
    dice = random.Random(f"{kind} {number} {seed}")
    ends: dict[str, float] = {}
    async with (
        emulated(seed, RATE) as emulator,
        Client(
            DashScope(base_url=emulator.dashscope_url, lists=lists),
            api_key="sk-bench",
            limits=Limits(2 * number, math.inf),
        ) as client,
    ):
        answer_late(emulator)

        async def one_after_the_other() -> None:
            await asyncio.sleep(dice.uniform(0, 16 if kind == "image" else 110))
            for request in requests:
                handle = await client.submit(request)
                task_id, moment = await known(handle)
                ends[task_id] = moment

        await asyncio.gather(*(one_after_the_other() for _ in range(number)))
        since = sorted(ends.values())[LIVE_WARM - 1]
        found = counted(emulator, ends, since)
        # Requests of the measured time are of all tasks that ended in it, whenever they began.
        measured = [task for task in emulator.tasks() if ends[task.id] >= since]
        found.tasks = found.ends = len(measured)
        found.lags = [ends[task.id] - task.ended for task in measured]
        return found


# The rows ------------------------------------------------------------------------------------------------------


def played(run: Run) -> Measured:
    """*run* in a loop of its own, in virtual time."""
    logging.getLogger("bide").setLevel(logging.ERROR)
    _outside.chance.seed("bide")  # the scheduler's jitter
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


def runs() -> dict[str, list[Run]]:
    """All that is run, by its name; the longest first."""
    found: dict[str, list[Run]] = {}
    for words, lists in WAYS.items():
        for made, attached in MADE.items():
            found[f"500 {made}, {words}"] = [partial(many, attached=attached, lists=lists, seed=0)]
        for kind, number in LIVE:
            found[f"{number} {kind}s live, {words}"] = [partial(live, kind, number, lists=lists, seed=0)]
    for service in ("dashscope", "dieyuyun"):
        before = simple(BEFORE, news=service == "dieyuyun")
        found[f"{service}, simple pace"] = [
            partial(behind, service, BEFORE, before, seed) for seed in range(SEEDS)
        ]
    for service, floor in PLACES:
        found[named(service, floor)] = [
            partial(behind, service, floor, Pace(), seed) for seed in range(SEEDS)
        ]
    return found


def named(service: str, floor: float | None) -> str:
    """What the learned pace with this floor is called."""
    return f"{service}, bide" + ("" if floor is None else f" with a floor of {floor:g} s")


def measured() -> dict[str, Measured]:
    """All runs, those of one name together."""
    each = [(name, run) for name, runs_of_it in runs().items() for run in runs_of_it]
    found: dict[str, Measured] = {}
    # Virtual time waits a little for the sockets at each of its jumps: a core has room for several runs.
    with ProcessPoolExecutor(4 * (os.cpu_count() or 1)) as pool:
        for (name, _), one in zip(each, pool.map(played, [run for _, run in each]), strict=True):
            found[name] = found[name].with_(one) if name in found else one
    return found


def figures(case: str, of: Measured) -> list[Row]:
    """What is shown of every run."""
    return [
        Row(case, "ends known", of.ends, f"{of.tasks}", of.ends == of.tasks),
        Row(case, "answered 429", of.refused, "0", of.refused == 0),
        Row(case, "requests a task", of.each),
        Row(case, "of them lists", of.lists / of.tasks),
        Row(case, "mean lag, s", of.lag),
        Row(case, "lag p95, s", percentile(of.lags, 95)),
    ]


def rows_behind(found: Mapping[str, Measured]) -> list[Row]:
    """12 behind 3: ours beside the simple pace."""
    rows = []
    for case, of in found.items():
        if case.startswith(("dashscope", "dieyuyun")):
            rows += [
                *figures(f"12 behind 3, {case}", of),
                Row(f"12 behind 3, {case}", "a round, s", of.wall / ROUNDS / SEEDS),
            ]
    for service, floor in PLACES:
        ours, before = found[named(service, floor)], found[f"{service}, simple pace"]
        rows += ratios(named(service, floor), ours, before, has_goal=service == "dashscope")
    return rows


def ratios(case: str, ours: Measured, before: Measured, *, has_goal: bool = False) -> list[Row]:
    """*ours* in parts of the simple pace."""
    asked, late = ours.each / before.each, ours.lag / before.lag
    case = f"{case}, to simple"
    return [
        Row(case, "requests a task", asked, *(("under 1", asked < 1) if has_goal else ())),
        Row(case, "mean lag", late, *(("at most 0.7", late <= 0.7) if has_goal else ())),
    ]


def rows_many(found: Mapping[str, Measured]) -> list[Row]:
    """500 at once: beyond the query rate, and late, only without lists."""
    rows = []
    for made in MADE:
        for words, lists in WAYS.items():
            case = f"500 {made}, {words}"
            of = found[case]
            most = of.most_in_a_second
            rows += [row for row in figures(case, of) if row.figure != "mean lag, s"]
            rows.append(Row(case, "most in a second", most, f"at most {RATE}", most <= RATE))
            goal = ("at most 5", of.lag <= 5) if lists else ()
            rows.append(Row(case, "mean lag, s", of.lag, *goal))
    return rows


def rows_live(found: Mapping[str, Measured]) -> list[Row]:
    """A few live tasks: what lists save."""
    rows = []
    for kind, number in LIVE:
        lists, single = (found[f"{number} {kind}s live, {words}"] for words in WAYS)
        for words, of in zip(WAYS, (lists, single), strict=True):
            rows += figures(f"{number} {kind}s live, {words}", of)
        case = f"{number} {kind}s live, lists to single polls"
        share, later = lists.each / single.each, lists.lag - single.lag
        rows.append(Row(case, "requests a task", share, "at most 0.75", share <= 0.75))
        # What a list shows as ended is fetched: one answer more.
        rows.append(Row(case, "mean lag, s more", later, f"at most {ANSWER}", later <= ANSWER))
    return rows


if __name__ == "__main__":
    options = arguments(__doc__)
    everything = measured()
    rows = [*rows_behind(everything), *rows_many(everything), *rows_live(everything)]
    show("The learned pace through the real transport, in virtual time", rows, options)
