"""Processes that work on one ledger, for `ledger.py`: what each of them does, and how they get their orders.

They are forked from a server that has imported everything and opened nothing, so a new process starts at once.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import random
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from bare import Bare
from bide import ImageRequest, Limits
from bide.ledgers import Held, Hint, LaneTerms, Record, SQLiteLedger
from bide.models import Billing, Output, Task, TaskStatus, request_to_dict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["crew"])
ORIGIN, KEY, KIND, MODEL = "dashscope@https://api.example", "key", "image", "wan2.5-t2i-preview"
IN_FLIGHT = 50
"""Lives that one process has under way at once."""
SLOT_FOR = 900.0

PATIENCE = 60.0
"""Seconds after which a job that has not ended never will."""
WARM = 50
"""Lives before those that count."""

QUEUED = {
    "request_id": "4a6e9a5c-7c2b-9e1b-8f5b-3f6f5f1d2c11",
    "output": {"task_status": "PENDING", "task_id": ""},
}
RUNNING = {
    "request_id": "7574ee8f-38a3-4b1e-9280-11c33ab46e51",
    "output": {
        "task_id": "",
        "task_status": "RUNNING",
        "submit_time": "2026-01-05 10:00:00.000",
        "scheduled_time": "2026-01-05 10:00:00.412",
    },
}
HOST = "https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com"
SIGNED = (
    "Expires=1767693600&OSSAccessKeyId=LTAI5tQZd8AEcZX6KZV4G8qL&Signature=vS2xV%2FyzFJh1aX9ntRXLq3ZKzk8%3D"
)
ENDED = {
    "request_id": "85eaba38-0185-99d7-8d16-4d9135238846",
    "output": {
        "task_id": "",
        "task_status": "SUCCEEDED",
        "submit_time": "2026-01-05 10:00:00.000",
        "scheduled_time": "2026-01-05 10:00:00.412",
        "end_time": "2026-01-05 10:00:11.903",
        "results": [{"orig_prompt": "a kitten runs in the moonlight", "url": ""}],
        "task_metrics": {"TOTAL": 1, "SUCCEEDED": 1, "FAILED": 0},
    },
    "usage": {"image_count": 1},
}
"""An answer with a result, of some 600 bytes with its names and its address."""
SENT = datetime(2026, 1, 5, 2, tzinfo=UTC)


class Life:
    """One task from its request to its result, all of it made beforehand: only what a ledger does is measured."""

    def __init__(self, number: int, *, owner: str, kind: str = KIND, process: int = 0) -> None:
        self.ticket = f"{process:02}-{number:06}-4d9135238846"
        asked = ImageRequest(f"number {number}: a kitten in the moonlight", model=MODEL, size="1024*1024")
        task = Task(ticket=self.ticket, model=MODEL, billing=Billing.NONE)
        self.record = Record(
            ticket=self.ticket,
            origin=ORIGIN,
            kind=kind,
            request=asked,
            keys=frozenset({KEY}),
            task=task,
            owner=owner,
            wanted_by=(owner,),
        )
        self.queued, self.running, self.ended = _snapshots(
            task, f"{process:08x}-35bd-4cbf-8acd-{number:012x}"
        )

    def plain(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The request and the snapshots as a ledger stores them."""
        tasks = [each.to_dict() for each in (self.queued, self.running, self.ended)]
        stored = [{k: v for k, v in each.items() if v not in (None, ())} for each in tasks]
        return request_to_dict(self.record.request), stored


def _snapshots(task: Task, task_id: str) -> tuple[Task, Task, Task]:
    """What a service reports of a task, poll by poll."""
    queued = evolve(
        task,
        task_id=task_id,
        status=TaskStatus.QUEUED,
        raw_status="PENDING",
        billing=Billing.NOT_YET,
        request_id=QUEUED["request_id"],
        raw={**QUEUED, "output": {**QUEUED["output"], "task_id": task_id}},
    )
    running = evolve(
        queued,
        status=TaskStatus.RUNNING,
        raw_status="RUNNING",
        billing=Billing.ON_SUCCESS,
        created_at=SENT,
        started_at=SENT,
        raw={**RUNNING, "output": {**RUNNING["output"], "task_id": task_id}},
    )
    url = f"{HOST}/1d/f4/20260105/{task_id}-1.png?{SIGNED}"
    expires = datetime.now(UTC) + timedelta(days=1)
    results = [{"orig_prompt": "a kitten in the moonlight", "url": url}]
    ended = evolve(
        running,
        status=TaskStatus.SUCCEEDED,
        raw_status="SUCCEEDED",
        billing=Billing.FULL,
        finished_at=SENT + timedelta(seconds=12),
        outputs=(Output(url=url, kind="image", media_type="image/png", expires_at=expires),),
        usage=ENDED["usage"],
        raw={**ENDED, "output": {**ENDED["output"], "task_id": task_id, "results": results}},
    )
    return queued, running, ended


# Lives ---------------------------------------------------------------------------------------------------


async def lives(start: Start, path: Path, process: int, count: int, kind: str) -> tuple[float, float]:
    """So many lives over a ledger, `IN_FLIGHT` at once. Returns when it began and when it ended."""
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.enter(ORIGIN, [KEY])
        terms = [LaneTerms(KEY, Limits(1000), SLOT_FOR)]
        made = [Life(n, owner=owner, kind=kind, process=process) for n in range(count + WARM)]
        by_ticket = {life.ticket: life for life in made}
        rest = iter(made)

        async def live(rest: Iterator[Life]) -> None:
            for life in rest:
                await ledger.add(life.record)
                admitted = await ledger.admit(ORIGIN, kind, owner, terms)
                if not isinstance(admitted, Record):
                    raise TypeError(f"nothing was admitted: {admitted}")
                ticket, mine = admitted.ticket, by_ticket[admitted.ticket]
                await ledger.accept(ticket, mine.queued, owner=owner)
                await ledger.update(ticket, mine.running, owner=owner)
                ended = await ledger.finish(ticket, mine.ended, owner=owner)
                if ended.task.status is not TaskStatus.SUCCEEDED:
                    raise ValueError(f"{ticket} did not end as it should: {ended.task.status}")

        await live(itertools.islice(rest, WARM))
        await start()
        began = time.monotonic()
        await asyncio.gather(*(live(rest) for _ in range(IN_FLIGHT)))
        ended = time.monotonic()
        await ledger.leave(owner)
    return began, ended


async def bare(start: Start, path: Path, count: int) -> tuple[float, float]:
    """The same by hand, one after the other."""
    made = [Life(n, owner="me") for n in range(count + WARM)]
    plain = [(life.ticket, *life.plain()) for life in made]
    floor = Bare(path)
    for ticket, asked, snapshots in plain[:WARM]:
        floor.live(ticket, asked, snapshots)
    await start()
    began = time.monotonic()
    for ticket, asked, snapshots in plain[WARM:]:
        floor.live(ticket, asked, snapshots)
    ended = time.monotonic()
    floor.close()
    return began, ended


# Waiting for a turn --------------------------------------------------------------------------------------


class Door:
    """Admits what one process has waiting, when it may be its turn: as the client does, woken and never polling.

    Args:
        admitted: called with each record that is admitted, and with the moments before and after.
    """

    def __init__(
        self,
        ledger: SQLiteLedger,
        owner: str,
        limits: Limits,
        admitted: Callable[[Record, float, float], None],
    ) -> None:
        self._ledger = ledger
        self._owner = owner
        self._terms = [LaneTerms(KEY, limits, SLOT_FOR)]
        self._admitted = admitted
        self._wake = asyncio.Event()
        self._waiting = 0  # how often something was heard that waits here
        self._end = ledger.subscribe(self._heard)
        self._loop = asyncio.create_task(self._run())

    def _heard(self, news: Record | Hint) -> None:
        if isinstance(news, Record) and news.owner == self._owner:
            self._waiting += news.task.status is TaskStatus.WAITING
        self._wake.set()

    def knock(self) -> None:
        """Something waits that was put on record before this."""
        self._waiting += 1
        self._wake.set()

    async def _run(self) -> None:
        idle_at = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (heard := self._waiting) != idle_at:
                began = time.monotonic()
                got = await self._ledger.admit(ORIGIN, KIND, self._owner, self._terms)
                if isinstance(got, Held):
                    idle_at = heard if got.is_idle else idle_at
                    break
                self._admitted(got, began, time.monotonic())

    async def close(self) -> None:
        """Admit nothing more."""
        self._end()
        self._loop.cancel()
        await asyncio.wait([self._loop])


async def arrivals(
    start: Start, path: Path, process: int, rate: float, seconds: float
) -> list[tuple[float, float]]:
    """Tasks that come when they like, so many in a second, to a lane without a cap that all processes share.

    Returns for each how long it took from its arrival until it was admitted, and how long the one call that admitted
    it. Each is then accepted and ended, as it would be.
    """
    chance = random.Random(process)
    times: list[tuple[float, float]] = []
    arrived: dict[str, float] = {}
    doing: set[asyncio.Task[None]] = set()
    all_done = asyncio.Event()
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.enter(ORIGIN, [KEY])
        count = int(rate * seconds)
        made = [Life(n, owner=owner, process=process) for n in range(count)]
        by_ticket = {life.ticket: life for life in made}

        async def go_on(life: Life) -> None:
            await ledger.accept(life.ticket, life.queued, owner=owner)
            await ledger.finish(life.ticket, life.ended, owner=owner)

        def spawn(work: Coroutine[Any, Any, None]) -> None:
            task = asyncio.create_task(work)
            doing.add(task)
            task.add_done_callback(done)

        def done(task: asyncio.Task[None]) -> None:
            doing.discard(task)
            if task.exception() is not None or (len(times) == count and not doing):
                all_done.set()

        def admitted(record: Record, began: float, ended: float) -> None:
            times.append((ended - arrived[record.ticket], ended - began))
            spawn(go_on(by_ticket[record.ticket]))

        async def add(life: Life) -> None:
            await ledger.add(life.record)

        door = Door(ledger, owner, Limits(1000), admitted)
        moment = await start()
        for life in made:
            moment += chance.expovariate(rate)
            await asyncio.sleep(moment - time.monotonic())
            arrived[life.ticket] = moment
            spawn(add(life))
        await all_done.wait()
        await door.close()
        await ledger.leave(owner)
    return times


@frozen
class Use:
    """One use of a slot. `began` and `ended` are the record's own times, by the ledger's clock; the other two the
    moments, by the monotonic clock, when this process knew that it had the slot and when it began to give it back."""

    began: float
    ended: float
    known: float
    given: float


async def holders(
    start: Start, path: Path, process: int, waiters: int, cap: int, hold: float, seconds: float
) -> list[Use]:
    """Holds a slot for a moment, gives it back and waits again: *waiters* times at once, for so many seconds."""
    uses: list[Use] = []
    numbers = itertools.count()
    doing: set[asyncio.Task[None]] = set()
    lives: dict[str, Life] = {}
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.enter(ORIGIN, [KEY])

        async def add() -> None:
            life = Life(next(numbers), owner=owner, process=process)
            lives[life.ticket] = life
            await ledger.add(life.record)

        async def use(record: Record, known: float) -> None:
            life = lives.pop(record.ticket)
            await ledger.accept(life.ticket, life.queued, owner=owner)
            await asyncio.sleep(hold)
            given = time.monotonic()
            ended = await ledger.finish(life.ticket, life.ended, owner=owner)
            if ended.admitted is not None:
                uses.append(Use(ended.admitted, ended.slot_until, known, given))
            await add()

        def admitted(record: Record, _began: float, known: float) -> None:
            task = asyncio.create_task(use(record, known))
            doing.add(task)
            task.add_done_callback(doing.discard)

        for _ in range(waiters):
            await add()
        until = await start() + seconds
        door = Door(ledger, owner, Limits(concurrency=cap), admitted)
        door.knock()
        await asyncio.sleep(until - time.monotonic())
        await door.close()
        await asyncio.gather(*doing)
        await ledger.leave(owner)
    return uses


# The processes -------------------------------------------------------------------------------------------


class Start:
    """Where the jobs of all processes wait until each of them is ready."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    async def __call__(self) -> float:
        """Wait. Returns the moment, by the monotonic clock, that is the same for all."""
        self._pipe.send("ready")
        moment: float = await asyncio.to_thread(self._pipe.recv)
        await asyncio.sleep(moment - time.monotonic())
        return moment


class Crew:
    """So many processes that take one job after the other."""

    def __init__(self, count: int) -> None:
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, job: Callable[..., Awaitable[Any]], orders: list[dict[str, Any]]) -> list[Any]:
        """*job* in as many processes as there are *orders*, begun at the same moment in all of them."""
        pipes = self._pipes[: len(orders)]
        for pipe, order in zip(pipes, orders, strict=True):
            pipe.send((job, order))
        for pipe in pipes:
            answer_of(pipe)
        moment = time.monotonic() + 0.05
        for pipe in pipes:
            pipe.send(moment)
        return [answer_of(pipe) for pipe in pipes]

    def end(self) -> None:
        """End them."""
        for process in self._processes:
            process.terminate()
            process.join()


def answer_of(pipe: Connection) -> Any:
    """What a process has sent; a fault is raised."""
    if not pipe.poll(PATIENCE):
        raise TimeoutError(f"no answer for {PATIENCE:g} s: a process has lost its way")
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _work(pipe: Connection) -> None:
    while True:
        job, order = pipe.recv()
        try:
            pipe.send(asyncio.run(job(Start(pipe), **order)))
        except Exception as fault:  # noqa: BLE001 - it is raised where the job was given
            pipe.send(fault)
