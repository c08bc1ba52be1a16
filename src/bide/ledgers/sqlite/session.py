"""An open SQLite ledger in one event loop: steps go to its thread, changes and hints come back."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from bide import _outside
from bide.errors import LedgerError
from bide.ledgers._records import Hint, Record
from bide.ledgers.sqlite.backend import SQLiteBackend
from bide.ledgers.sqlite.news import NEWS_MESSAGE, OWNERS_MESSAGE, TURN_MESSAGE
from bide.ledgers.sqlite.worker import Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from bide.ledgers.sqlite.processes import Presence

_log = logging.getLogger("bide")

TICK_SECONDS = 0.5
"""How often the session checks which processes are alive. That makes up for lost wake-ups, too."""
BEAT_SECONDS = 1.0
"""How often the loop shows other processes that it runs."""
TICKS_PER_CLEANING = 60
"""One tick of so many cleans. If there is more to clean, the next tick cleans again."""


class Session:
    """An open ledger in one event loop.

    Args:
        make: makes the backend, in the session's thread.
        notify: called in the loop with each changed record and each hint.
    """

    def __init__(self, make: Callable[[], SQLiteBackend], notify: Callable[[Record | Hint], None]) -> None:
        self._notify = notify
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self.worker: Worker[SQLiteBackend] = Worker(make, self._notify_all, lambda: notify(Hint.FAULT))
        self._catching_up: asyncio.Task[None] | None = None
        self._has_unread_news = False
        self._ticking: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None
        self._beating: asyncio.TimerHandle | None = None
        self.unrecorded_leaves: set[str] = (
            set()
        )  # owners that have left while the ledger could not be written

    async def start(self) -> None:
        """Open the file.

        Raises:
            LedgerError: the file cannot be opened. The thread has ended.
        """
        try:
            backend = await self.worker.put(lambda backend: backend, writes=False)
        except BaseException:
            self.worker.stop()
            raise
        self.now: Callable[[], float] = backend.database.now
        self.salt: bytes = backend.salt
        self.instance: str = backend.presence.instance
        if backend.presence.socket is not None:
            self._socket = backend.presence.socket
            self._loop.add_reader(self._socket.fileno(), self._read_messages)
        self._presence: Presence = backend.presence
        self._beat()
        self._ticking = self._loop.create_task(self._tick(), name="bide ledger")

    def check(self) -> None:
        """Raise unless this is the process and the loop that opened it.

        Raises:
            RuntimeError: it is another process, or another loop.
        """
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
        """Whether this process is a fork of the one that opened it. The thread does not exist here then."""
        return os.getpid() != self._pid

    @property
    def has_open_loop(self) -> bool:
        """Whether its loop can still run."""
        return not self._loop.is_closed()

    async def aclose(self) -> None:
        """Close the file after the steps that were put before this call."""
        for task in (self._ticking, self._catching_up):
            if task is not None:
                task.cancel()
        if self._beating is not None:
            self._beating.cancel()
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket = None
        self.worker.stop()
        await asyncio.shield(self.worker.ended)

    def _beat(self) -> None:
        """Called in the loop: a thread would show that it runs while the loop is blocked."""
        self._presence.beat()
        self._beating = self._loop.call_later(BEAT_SECONDS, self._beat)

    def _notify_all(self, records: list[Record]) -> None:
        for record in records:
            self._notify(record)

    def _read_messages(self) -> None:
        messages = set()
        with suppress(BlockingIOError):
            while self._socket is not None:
                messages.add(self._socket.recv(16))
        if NEWS_MESSAGE in messages or OWNERS_MESSAGE in messages:
            self._start_catching_up()
        if OWNERS_MESSAGE in messages:
            self._notify(Hint.OWNERS)
        if TURN_MESSAGE in messages:
            self._notify(Hint.SLOTS)

    def _start_catching_up(self) -> None:
        self._has_unread_news = True
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = self._loop.create_task(self._catch_up())

    async def _catch_up(self) -> None:
        """Read the news until no message has come since the last read: a read under way may have missed its news."""
        while self._has_unread_news:
            self._has_unread_news = False
            await self._read_news()

    async def _read_news(self) -> None:
        with suppress(LedgerError):
            self._notify_all(await self.worker.put(SQLiteBackend.read_news, writes=False))

    async def _tick(self) -> None:
        """Check at intervals which processes have died, which news was missed, and what is old."""
        number = 0
        while True:
            await asyncio.sleep(TICK_SECONDS * _outside.chance.uniform(0.8, 1.2))
            number += 1
            try:
                await self._check_peers()
                if number % TICKS_PER_CLEANING == 1 and await self.worker.put(
                    lambda backend: backend.retention.clean(), writes=True
                ):
                    number -= 1  # there is more to clean
            except LedgerError:
                continue  # the callers that need the file get the error
            except Exception as fault:  # noqa: BLE001 - ticks must go on: nothing else notices dead processes
                _log.error("the periodic check of the ledger failed: %s: %s", type(fault).__name__, fault)

    async def _check_peers(self) -> None:
        peers = await self.worker.put(SQLiteBackend.read_peers, writes=False)
        if peers.was_presumed_dead:
            await self.worker.put(SQLiteBackend.register_again, writes=True)
            self._notify(Hint.FAULT)
        if peers.dead:
            await self.worker.put(partial(SQLiteBackend.remove_dead, instances=peers.dead), writes=True)
        if peers.silent:
            await self.worker.put(partial(SQLiteBackend.release_silent, instances=peers.silent), writes=True)
        for owner in tuple(self.unrecorded_leaves):
            await self.worker.put(partial(SQLiteBackend.leave, owner=owner), writes=True)
            self.unrecorded_leaves.discard(owner)
        await self._read_news()
        if peers.dead or peers.silent or peers.has_changed or peers.has_unowned:
            self._notify(Hint.OWNERS)
        elif peers.has_living:
            self._notify(Hint.SHARES)
        self._notify(Hint.SLOTS)
