"""An open SQLite ledger in one event loop: what wakes it, and what it passes on."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from bide.errors import LedgerError
from bide.ledgers._records import Hint, Record
from bide.ledgers.sqlite.backend import NEWS_MESSAGE, OWNERS_MESSAGE, TURN_MESSAGE, Peers, SQLiteBackend
from bide.ledgers.sqlite.worker import Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

log = logging.getLogger("bide")

TICK_SECONDS = 0.5
"""Seconds between two looks at who is alive, which make up for lost wake-ups too."""
TICKS_PER_CLEANING = 60
"""So many of them are between two steps of retention; one that finds much is followed by the next at once."""


class Session:
    """An open ledger in one event loop: steps go to its thread, news come back."""

    def __init__(self, make: Callable[[], SQLiteBackend], notify: Callable[[Record | Hint], None]) -> None:
        self._notify = notify
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self.worker = Worker(make, self._changed)
        self._catching_up: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._reading: socket.socket | None = None
        self.not_left: set[str] = set()  # owners that have ended, which could not be recorded

    async def start(self) -> None:
        """Open the file.

        Raises:
            LedgerError: it cannot be opened; the thread has ended.
        """
        try:
            backend: SQLiteBackend = await self.worker.put(lambda backend: backend, writes=False)
        except BaseException:
            self.worker.stop()
            raise
        self.now, self.salt, self.instance = backend.database.now, backend.salt, backend.presence.instance
        if backend.presence.socket is not None:
            self._reading = backend.presence.socket
            self._loop.add_reader(self._reading.fileno(), self._woken)
        self._ticking = self._loop.create_task(self._tick(), name="bide ledger")

    def check(self) -> None:
        """Raise unless this is the process and the loop that it was opened in."""
        if self.is_inherited:
            raise RuntimeError(
                f"this ledger was opened in process {self._pid}, and this is {os.getpid()}: fork before a "
                f"ledger is first used, and give each process a SQLiteLedger of its own; they share the file"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                "this ledger is open in another event loop: make a SQLiteLedger for each loop; they share the file"
            )

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a fork of the one that it was opened in: it has no thread here."""
        return os.getpid() != self._pid

    @property
    def is_of_this_loop(self) -> bool:
        """Whether its loop may still run."""
        return not self._loop.is_closed()

    async def aclose(self) -> None:
        """Close the file, when the steps before this have been taken."""
        for task in (self._ticking, self._catching_up):
            if task is not None:
                task.cancel()
        if self._reading is not None:
            self._loop.remove_reader(self._reading.fileno())
            self._reading = None
        self.worker.stop()
        await asyncio.shield(self.worker.ended)

    def _changed(self, records: list[Record]) -> None:
        for record in records:
            self._notify(record)

    def _woken(self) -> None:
        """Another process has sent a word."""
        words = set()
        with suppress(BlockingIOError):
            while self._reading is not None:
                words.add(self._reading.recv(16))
        if NEWS_MESSAGE in words or OWNERS_MESSAGE in words:
            self._catch_up_soon()
        if OWNERS_MESSAGE in words:
            self._notify(Hint.OWNERS)
        if TURN_MESSAGE in words:
            self._notify(Hint.SLOTS)

    def _catch_up_soon(self) -> None:
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = self._loop.create_task(self._catch_up())

    async def _catch_up(self) -> None:
        with suppress(LedgerError):
            self._changed(await self.worker.put(lambda backend: backend.store.news(), writes=False))

    async def _tick(self) -> None:
        """Look around now and then: who has died, what was not heard, what is old."""
        number = 0
        while True:
            await asyncio.sleep(TICK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            number += 1
            try:
                await self._check_peers()
                if number % TICKS_PER_CLEANING == 1 and await self.worker.put(
                    lambda backend: backend.store.clean(), writes=True
                ):
                    number -= 1  # there may be more
            except LedgerError:
                continue  # whoever needs the file is told
            except Exception as fault:  # noqa: BLE001 - it must go on: nobody else sees who dies
                log.error("the ledger could not be looked after: %s: %s", type(fault).__name__, fault)

    async def _check_peers(self) -> None:
        peers: Peers = await self.worker.put(SQLiteBackend.read_peers, writes=False)
        if peers.was_presumed_dead:
            await self.worker.put(SQLiteBackend.register_again, writes=True)
        if peers.dead:
            await self.worker.put(partial(SQLiteBackend.remove_dead, dead=peers.dead), writes=True)
        for owner in tuple(self.not_left):
            await self.worker.put(partial(SQLiteBackend.leave, owner=owner), writes=True)
            self.not_left.discard(owner)
        await self._catch_up()
        if peers.dead or peers.has_changed or peers.is_left:
            self._notify(Hint.OWNERS)
        elif peers.has_company:
            self._notify(Hint.SHARES)
        self._notify(Hint.SLOTS)
