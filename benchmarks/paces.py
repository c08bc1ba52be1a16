"""One pace on one workload, in virtual time through the real client; and many of them on all cores."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import statistics
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bide import BideError, Client, Deadlines, Limits, Pace, TaskFailedError, _outside
from goals import percentile
from wire import FLOOR, Imagined, Wire, request_for

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.virtual_time import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bide import TaskHandle
    from wire import Served
    from workloads import Life, Workload

FOR_EVER = Deadlines(waiting=None, queued=None, running=None)
PRICE = 0.1
LADDER = tuple(PRICE * 2.5**step for step in range(-4, 7))
"""Prices that are tried to have as many polls, or as much lag, as another pace."""


@dataclass(frozen=True)
class Policy:
    """A pace: bide's at a price, or gaps between polls from the create on.

    A first gap of 0 is a poll at once: the waiter polls, since no pace of a client polls before the floor.
    """

    name: str
    price: float | None = None
    gaps: tuple[float, ...] = ()

    def pace(self) -> Pace:
        """A new one, which has learned nothing."""
        return (
            Pace.fixed(*(gap or FLOOR for gap in self.gaps)) if self.price is None else Pace(price=self.price)
        )

    @property
    def at_once(self) -> bool:
        """Whether it begins with a poll at once."""
        return self.gaps[:1] == (0.0,)


def ours(price: float = PRICE) -> Policy:
    """The pace of a client's own, at *price*."""
    price = float(f"{price:.4g}")  # the same one, whichever way it was come by
    return Policy("bide" if price == PRICE else f"bide at {price:.3g}", price=price)


# A loop of "ask, stop if it has ended, sleep" asks at once for the first time.
EVERY_3 = Policy("every 3 s", gaps=(0.0, 3.0))
FIXED = (
    Policy("every 1 s", gaps=(0.0, 1.0)),
    EVERY_3,
    Policy("every 5 s", gaps=(0.0, 5.0)),
    Policy("every 15 s", gaps=(0.0, 15.0)),
)
SDKS = (
    Policy("DashScope 1.x", gaps=(0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 4.0, 4.0, 4.0, 5.0)),
    Policy("DashScope 2.0", gaps=(1.0, 2.0, 4.0, 8.0)),
)
OTHERS = (*FIXED, Policy("exponential", gaps=(1.0, 2.0, 4.0, 8.0, 16.0, 30.0)), *SDKS)


@dataclass(frozen=True)
class Figures:
    """What came of a run. Lags and gaps in seconds."""

    polls: float
    lag: float
    p50: float
    p95: float
    least_gap: float
    """Between two polls of one task."""
    use: float
    """Percent of the slots' time, from the first create to the last end, in which a task was at the service."""


def run(workload: Workload, policy: Policy, seed: int, count: int | None = None) -> Figures:
    """The workload's tasks under *policy*, from an empty ledger."""
    # The scheduler's jitter comes from here: the same seed gives the same figures.
    _outside.chance.seed(f"{workload.name} {seed}")
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(_run(workload, policy, seed, workload.lives(seed, count)))
    finally:
        loop.close()
        gc.collect()


async def _run(workload: Workload, policy: Policy, seed: int, lives: Sequence[Life]) -> Figures:
    loop = asyncio.get_running_loop()
    wire = Wire(workload, lives, seed)
    client = Client(
        Imagined(workload.documented),
        api_key="sk-bench",
        limits=Limits(workload.slots, math.inf),
        deadlines=FOR_EVER,
        pace=policy.pace(),
        transport=wire.unreachable,
    )
    client._transport = wire  # noqa: SLF001 - the service stands in the place of the wire: no HTTP is measured here
    waits = []
    async with client:
        begin = loop.time()
        for number, life in enumerate(lives):
            await asyncio.sleep(max(0.0, begin + life.arrives - loop.time()))
            handle = await client.submit(request_for(workload.kind, number, life.variant))
            waits.append(asyncio.create_task(_known(handle, at_once=policy.at_once)))
        known = dict([await wait for wait in waits])
    served = wire.tasks
    if not len(served) == len(lives) == wire.creates or set(known) != set(served):
        raise AssertionError(f"{len(lives)} tasks, {wire.creates} creates, {len(known)} ends")
    lags = [known[name] - task.ended for name, task in served.items()]
    return Figures(
        polls=wire.polls / len(lives),
        lag=statistics.fmean(lags),
        p50=percentile(lags, 50),
        p95=percentile(lags, 95),
        least_gap=wire.least_gap,
        use=_use(list(served.values()), workload.slots),
    )


async def _known(handle: TaskHandle, *, at_once: bool) -> tuple[str, float]:
    """The task's id, and when its end was known here. With *at_once* a poll comes as soon as it is accepted."""
    if at_once:
        async for task in handle.events():
            if task.status.is_accepted:
                break
        with suppress(BideError):
            await handle.refresh()
    with suppress(TaskFailedError):
        await handle.result()
    return handle.task_id or "", asyncio.get_running_loop().time()


def _use(served: Sequence[Served], slots: int | None) -> float:
    if slots is None:
        return math.nan
    span = max(task.ended for task in served) - min(task.created for task in served)
    return 100 * sum(task.ended - task.created for task in served) / (slots * span)


# Many runs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One seed of a workload under *policies*; with *search* at the prices, too, that lie around "every 3 s"."""

    workload: Workload
    seed: int
    policies: tuple[Policy, ...]
    search: bool = False

    @property
    def weight(self) -> float:
        """About how long it takes, for the order of the jobs."""
        return self.workload.count * sum(self.workload.documented) * (len(self.policies) + 3 * self.search)


def study(job: Job) -> dict[Policy, Figures]:
    """All runs of *job*."""
    done = {policy: run(job.workload, policy, job.seed) for policy in job.policies}
    if job.search:
        _search(job, done)
    return done


def _search(job: Job, done: dict[Policy, Figures]) -> None:
    """Run more prices of the ladder until they enclose the polls, and the lag, of "every 3 s"."""
    base = done[EVERY_3]

    def at(step: int) -> Figures:
        policy = ours(LADDER[step])
        if policy not in done:
            done[policy] = run(job.workload, policy, job.seed)
        return done[policy]

    middle = LADDER.index(PRICE)
    for is_dearer in (lambda f: f.polls < base.polls, lambda f: f.lag > base.lag):
        step = middle
        way = -1 if is_dearer(at(step)) else 1
        while 0 <= step + way < len(LADDER) and is_dearer(at(step)) == (way < 0):
            step += way
        at(step)


def measured(jobs: Sequence[Job]) -> dict[str, dict[Policy, dict[int, Figures]]]:
    """All of *jobs*, on all cores: by the workload's name, the policy and the seed."""
    found: dict[str, dict[Policy, dict[int, Figures]]] = defaultdict(lambda: defaultdict(dict))
    heaviest_first = sorted(jobs, key=lambda job: job.weight, reverse=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        waits = {pool.submit(study, job): job for job in heaviest_first}
        for number, done in enumerate(as_completed(waits), 1):
            job = waits[done]
            for policy, figures in done.result().items():
                found[job.workload.name][policy][job.seed] = figures
            if sys.stderr.isatty():
                print(f"\r{number} of {len(jobs)} parts ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    return found
