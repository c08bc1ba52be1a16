"""The ledgers that the common tests run over, and the short names those tests share.

A further ledger joins by a row in `WORLDS`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from bide.ledgers import Held, Hint, LaneTerms, Ledger, MemoryLedger, Record, SQLiteLedger, digest_of
from bide.models import ImageRequest, Limits, Task, TaskStatus
from support.virtual_time import VirtualTimeLoop
from support.waits import until

ORIGIN = "https://api.example"
CAT = ImageRequest("a cat", model="m")


class World:
    """A ledger, and the time that it goes by.

    Attributes:
        ledgers: faces of the same records. Where there are several, each sees at once what another one did.
        loop_factory: makes the loop that the world runs in; None is asyncio's own.
    """

    ledgers: tuple[Ledger, ...]
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None

    def __init__(self, directory: Path) -> None:
        raise NotImplementedError

    @property
    def ledger(self) -> Ledger:
        return self.ledgers[0]

    async def open(self) -> None:
        """Begin, and stay open though owners leave."""

    async def pass_time(self, seconds: float) -> None:
        """The ledger's clock goes on."""
        await asyncio.sleep(seconds)

    async def aclose(self) -> None:
        """End."""


class MemoryWorld(World):
    """A memory ledger in virtual time."""

    loop_factory = VirtualTimeLoop

    def __init__(self, directory: Path) -> None:
        self.ledgers = (MemoryLedger(),)


class SQLiteWorld(World):
    """A file, real threads, and a clock of the ledger that is set forward."""

    faces = 1

    def __init__(self, directory: Path) -> None:
        self.ledgers = tuple(SQLiteLedger(directory / "ledger.db") for _ in range(self.faces))

    async def open(self) -> None:
        for each in self._files():
            await each.__aenter__()

    async def pass_time(self, seconds: float) -> None:
        for each in self._files():
            await set_forward(each, seconds)

    async def aclose(self) -> None:
        for each in self._files():
            await each._close()

    def _files(self) -> list[SQLiteLedger]:
        return [each for each in self.ledgers if isinstance(each, SQLiteLedger)]


class SQLitePairWorld(SQLiteWorld):
    """Two ledgers on one file, as two processes have them."""

    faces = 2


WORLDS = [
    pytest.param(MemoryWorld, id="memory"),
    pytest.param(SQLiteWorld, id="sqlite", marks=pytest.mark.real_time),
]


async def in_thread(ledger: SQLiteLedger, look: Callable[[Any], Any], *, writes: bool = False) -> Any:
    """What *look* finds in the ledger's thread, where its connection is."""
    return await (await ledger._open_session()).worker.put(look, writes=writes)


async def set_forward(ledger: SQLiteLedger, seconds: float) -> None:
    def shift(backend: Any) -> None:
        backend.database._clock_offset += seconds

    await in_thread(ledger, shift)


async def ticks(ledger: Ledger, count: int = 3) -> None:
    """Wait until *ledger* has looked so many times at what others do."""
    hints: list[Record | Hint] = []
    unsubscribe = ledger.subscribe(hints.append)
    await until(lambda: hints.count(Hint.SLOTS) >= count)
    unsubscribe()


async def refuse_writes(ledger: SQLiteLedger) -> None:
    """As on a full disk, but for the smallest change too."""

    def authorize(action: int, *_: object) -> int:
        writes = (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE)
        return sqlite3.SQLITE_DENY if action in writes else sqlite3.SQLITE_OK

    await in_thread(ledger, lambda backend: backend.database.connection.set_authorizer(authorize))


async def allow_writes(ledger: SQLiteLedger) -> None:
    await in_thread(ledger, lambda backend: backend.database.connection.set_authorizer(None))


def record(ticket: str, **changes: Any) -> Record:
    plain = Record(
        ticket=ticket,
        origin=ORIGIN,
        kind="image",
        request=CAT,
        digest=digest_of(CAT),
        keys=frozenset({"k1"}),
        task=Task(ticket=ticket, model="m"),
        owner="me",
        wanted_by=(changes.get("owner") or "me",),
    )
    return evolve(plain, **changes)


def terms(*names: str, limits: Limits | None = None, slot_for: float = 1000.0) -> list[LaneTerms]:
    return [LaneTerms(name, limits or Limits(3), slot_for) for name in names or ("k1",)]


async def admit(ledger: Ledger, lanes: list[LaneTerms] | None = None, owner: str = "me") -> Record | Held:
    return await ledger.admit(ORIGIN, "image", owner, lanes or terms())


async def admitted(ledger: Ledger, lanes: list[LaneTerms] | None = None, owner: str = "me") -> Record:
    got = await admit(ledger, lanes, owner)
    assert isinstance(got, Record)
    return got


def state(got: Record, status: TaskStatus, **changes: Any) -> Task:
    return evolve(got.task, status=status, **changes)


async def running(ledger: Ledger, ticket: str, task_id: str, owner: str = "me", **changes: Any) -> Record:
    """The record of a task that goes on at the service."""
    await ledger.add(record(ticket, owner=owner, **changes))
    got = await admitted(ledger, owner=owner)
    assert got.ticket == ticket
    return await ledger.accept(ticket, state(got, TaskStatus.RUNNING, task_id=task_id), owner=owner)


async def put_back(ledger: Ledger, ticket: str, setback: Any = "slots", **changes: Any) -> Record:
    given: dict[str, Any] = {"limits": Limits(3), "owner": "me", "retry_after": None}
    if "admitted" not in changes:
        now = await ledger.get(ticket)
        changes["admitted"] = None if now is None else now.admitted
    return await ledger.put_back(ticket, setback, **{**given, **changes})


async def lane_of(ledger: Ledger, key: str = "k1") -> Any:
    (lane,) = await ledger.lanes(ORIGIN, {key})
    return lane
