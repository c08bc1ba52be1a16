"""A process that dies at any step of a submission: what it leaves, another one brings to the promised end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
from attrs import frozen

from bide import Client, Limits, MemoryLedger, SubmissionUnknownError, TaskHandle, TaskStatus
from bide._runtime import lost_creates
from bide._service import query_rate
from bide.emulator import Emulator
from bide.ledgers import Ledger, SQLiteLedger
from bide.ledgers.sqlite import session
from support import failpoints
from support.emulated import SERVICES, calls, emulator_with
from support.failpoints import DEAD, FIRST, KEY, SECOND, Doomed, DoomedTransport, live, provider_at
from support.waits import A_MINUTE


@frozen
class Promise:
    """What the death leaves of the first ticket, and how it ends.

    Attributes:
        left: its states that may be on record; none: it is not there.
        end: its last state where the service's list can be looked into; None: there is none.
        unlisted: the same where there is no list.
        made: tasks that the service has made of it.
    """

    left: frozenset[str]
    end: TaskStatus | None
    unlisted: TaskStatus | None
    made: int


def promise(*left: str, end: TaskStatus | None, made: int, unlisted: TaskStatus | None = None) -> Promise:
    return Promise(frozenset(left), end, unlisted or end, made)


NOTHING = promise(end=None, made=0)
WAITS = promise("waiting", end=TaskStatus.SUCCEEDED, made=1)
NEVER_SENT = promise("submitting", end=TaskStatus.UNKNOWN, made=0)
FOUND = promise("submitting", end=TaskStatus.SUCCEEDED, unlisted=TaskStatus.UNKNOWN, made=1)
GOES_ON = promise("queued", "running", end=TaskStatus.SUCCEEDED, made=1)
KNOWN = promise("succeeded", end=TaskStatus.SUCCEEDED, made=1)

POINTS = {
    "before add": NOTHING,
    "within add": NOTHING,
    "after add": WAITS,
    "before admit": WAITS,
    "within admit": WAITS,
    "after admit": NEVER_SENT,
    "before send": NEVER_SENT,
    "while send": FOUND,
    "after send": FOUND,
    "before put_back": NEVER_SENT,
    "within put_back": NEVER_SENT,
    "after put_back": WAITS,
    "before accept": FOUND,
    "within accept": FOUND,
    "after accept": GOES_ON,
    "before update": GOES_ON,
    "within update": GOES_ON,
    "after update": GOES_ON,
    "before finish": GOES_ON,
    "within finish": GOES_ON,
    "after finish": KNOWN,
    "before record_files": KNOWN,
    "within record_files": KNOWN,
    "after record_files": KNOWN,
    "before learn": KNOWN,
    "within learn": KNOWN,
    "before leave": GOES_ON,
    "within leave": GOES_ON,
    "after leave": GOES_ON,
    "before adopt": GOES_ON,
    "within adopt": GOES_ON,
    "after adopt": GOES_ON,
}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real seconds are dear: the dead are noticed, and lost creates looked up, sooner."""
    monkeypatch.setattr(session, "TICK_SECONDS", 0.1)
    monkeypatch.setattr(lost_creates, "LOOKUP_SECONDS", (0.05, 0.2, 0.4))
    monkeypatch.setattr(query_rate, "RAISE_AFTER_SECONDS", 0.1)


@asynccontextmanager
async def service_for(point: str) -> AsyncIterator[Emulator]:
    """An emulator that behaves as *point* demands."""
    async with emulator_with() as emulator:
        if point == "while send":
            emulator.fault(on="create", delay=600)
        if point.endswith("put_back"):
            emulator.fault(on="create", status=429, headers={"Retry-After": "0.3"})
        yield emulator


def url_of(emulator: Emulator, service: str) -> str:
    return emulator.dashscope_url if service == "dashscope" else emulator.dieyuyun_url


def next_client(emulator: Emulator, service: str, ledger: Ledger, **options: Any) -> Client:
    provider = provider_at(service, url_of(emulator, service))
    at: dict[str, Any] = {"limits": Limits(1), "queries_per_second": 40, "pace": failpoints.PACE, **options}
    return Client(provider, api_key=KEY, ledger=ledger, **at)


def made(emulator: Emulator, ticket: str) -> list[str]:
    """The ids of the tasks that the service has made of *ticket*."""
    return [task.id for task in emulator.tasks() if task.prompt == failpoints.PROMPTS[ticket]]


async def see_it_through(
    emulator: Emulator, service: str, client: Client, promised: Promise, left: dict[str, str]
) -> None:
    """Go on with what is on record, and hold its end against the promise."""
    end = promised.end if service == "dashscope" else promised.unlisted
    asked = len(calls(emulator, "query"))
    assert {left[FIRST]} <= promised.left if FIRST in left else not promised.left
    async with client:
        resumed = {handle.ticket for handle in await client.resume()}
        goes_on = {ticket for ticket, status in left.items() if not TaskStatus(status).is_final}
        # A lost create may have been found, or given up, by now.
        assert goes_on - {ticket for ticket in goes_on if left[ticket] == "submitting"} <= resumed <= goes_on
        if end is None:
            with pytest.raises(LookupError):
                await client.attach(ticket=FIRST)
        else:
            first = await client.attach(ticket=FIRST)
            if end is TaskStatus.UNKNOWN:
                with pytest.raises(SubmissionUnknownError):
                    await first.result(timeout=A_MINUTE)
            else:
                task = await first.result(timeout=A_MINUTE)
                assert [task.task_id] == made(emulator, FIRST)
                assert [output.url is not None for output in task.outputs] == [True]
            assert first.task.status is end
        if promised is KNOWN:
            asks = [
                each for each in calls(emulator, "query")[asked:] if made(emulator, FIRST)[0] in each.path
            ]
            assert not asks, "what is final on record needs no look"
        if SECOND in left:
            await second_goes_on(client, end, left[SECOND])
    assert len(made(emulator, FIRST)) == promised.made
    assert len(made(emulator, SECOND)) <= 1


async def second_goes_on(client: Client, end: TaskStatus | None, left: str) -> None:
    """The second request has its turn when the first one has left the slot, and ends as well."""
    second = await client.attach(ticket=SECOND)
    if end is TaskStatus.UNKNOWN:
        await asyncio.sleep(0.2)
        assert second.task.status is TaskStatus.WAITING, "what may be at the service holds its slot"
    elif left == "cancelled":  # it was closed properly, on a ledger that is not durable
        assert second.task.status is TaskStatus.CANCELLED
    elif left == "submitting":  # it died with the other one
        with suppress(SubmissionUnknownError):
            await second.result(timeout=A_MINUTE)
        assert second.task.status in (TaskStatus.SUCCEEDED, TaskStatus.UNKNOWN)
    else:
        assert (await second.result(timeout=A_MINUTE)).status is TaskStatus.SUCCEEDED


# Processes on a file --------------------------------------------------------------------------------------


def key_for(service: str) -> dict[str, str]:
    return {provider_at(service, "http://127.0.0.1").key_variables[0]: KEY}


def left_on(path: Path) -> dict[str, str]:
    """The state of each ticket, as the dead have left it."""
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT ticket, status FROM records").fetchall())


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    """A program that gives birth to those who die."""
    keys = {name: key for service in SERVICES for name, key in key_for(service).items()}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    with subprocess.Popen(
        [sys.executable, failpoints.__file__, "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **keys},
    ) as program:
        yield program
        program.kill()


async def die_at(
    point: str, service: str, emulator: Emulator, folder: Path, nursery: subprocess.Popen[str]
) -> None:
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(json.dumps([point, service, url_of(emulator, service), str(folder)]) + "\n")
    nursery.stdin.flush()
    child = int(await asyncio.to_thread(nursery.stdout.readline))
    ended = asyncio.create_task(asyncio.to_thread(nursery.stdout.readline))
    try:
        async with asyncio.timeout(A_MINUTE):
            if point == "while send":
                while not emulator.tasks():
                    await asyncio.sleep(0.01)
                os.kill(child, signal.SIGKILL)
            status = int(await asyncio.shield(ended))
    finally:
        if not ended.done():
            os.kill(child, signal.SIGKILL)
            await ended
    assert status in (DEAD, -9), f"{point} was never reached"


# Where a create can be lost it matters whether the service has a list to look into; elsewhere the two are alike.
DEATHS = [
    (point, service)
    for point, promised in POINTS.items()
    for service in (SERVICES if promised.end is not promised.unlisted else SERVICES[1:])
]


@pytest.mark.real_time
@pytest.mark.parametrize(("point", "service"), DEATHS)
async def test_what_a_process_leaves_that_dies_ends_as_promised(
    point: str, service: str, tmp_path: Path, nursery: subprocess.Popen[str]
) -> None:
    promised = POINTS[point]
    async with service_for(point) as emulator:
        await die_at(point, service, emulator, tmp_path, nursery)

        path = tmp_path / "tasks.db"
        client = next_client(emulator, service, SQLiteLedger(path))
        await see_it_through(emulator, service, client, promised, left_on(path))


# Clients in one loop --------------------------------------------------------------------------------------

_IS_DOOMED: ContextVar[bool] = ContextVar("is_doomed", default=False)


class Grave:
    """Where a client is put that reached its point: its tasks end with no clean-up that anybody hears of."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        asyncio.get_running_loop().set_task_factory(self._make)

    def _make(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **more: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **more)
        if _IS_DOOMED.get():
            self._tasks.add(task)
        return task

    async def die(self) -> NoReturn:
        self._reached.set()
        await asyncio.Event().wait()
        raise AssertionError("the dead go on")

    async def bury(
        self, life: Coroutine[Any, Any, None], client: Client, *, when: Callable[[], bool] | None = None
    ) -> None:
        """Run *life* until the point is reached (or it is so *when* asked), and end all that it has begun."""
        _IS_DOOMED.set(True)
        living = asyncio.create_task(life)
        _IS_DOOMED.set(False)
        until = asyncio.get_running_loop().time() + 100
        while not (self._reached.is_set() or (when is not None and when())):
            assert not living.done(), "the point was never reached"
            assert asyncio.get_running_loop().time() < until, "the point was never reached"
            await asyncio.sleep(0.01)
        engine = client._engine
        assert engine is not None
        engine._unsubscribe()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


IN_ONE_LOOP = [(point, service) for point, service in DEATHS if not point.startswith("within")]


@pytest.mark.parametrize(("point", "service"), IN_ONE_LOOP)
async def test_what_a_client_leaves_that_is_gone_ends_as_promised(
    point: str, service: str, tmp_path: Path
) -> None:
    """The same in one loop: as if a reaper had found its owner dead."""
    ledger = MemoryLedger()
    handles: list[TaskHandle] = []  # a finished record leaves with the last of them
    async with service_for(point) as emulator:
        if point.endswith("adopt"):
            await live(next_client(emulator, service, ledger), tmp_path, handles, only_accepted=True)
        grave = Grave()
        transport = DoomedTransport(httpx.AsyncHTTPTransport(), point, grave.die)
        client = next_client(emulator, service, Doomed(ledger, point, grave.die), transport=transport)
        life = live(client, tmp_path, handles, only_accepted=point.endswith("leave"))
        if point == "while send":
            await grave.bury(life, client, when=lambda: bool(emulator.tasks()))
        else:
            await grave.bury(life, client)
        await transport.aclose()
        records = [await ledger.get(ticket) for ticket in (FIRST, SECOND)]
        left = {each.ticket: str(each.task.status) for each in records if each is not None}
        for owner in {each.owner for each in records if each is not None and each.owner is not None}:
            await ledger.leave(owner)

        await see_it_through(emulator, service, next_client(emulator, service, ledger), POINTS[point], left)
