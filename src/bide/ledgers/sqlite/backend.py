"""What the thread of a SQLite ledger works with: the file, the state machine over it, and the other processes on it."""

from __future__ import annotations

import os
import socket
import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from attrs import frozen

from bide import _outside
from bide.errors import LedgerError
from bide.ledgers._lanes import portion
from bide.ledgers._state_machine import StateMachine
from bide.ledgers.sqlite.database import Database, explain
from bide.ledgers.sqlite.news import News
from bide.ledgers.sqlite.processes import (
    LONG_SILENT_SECONDS,
    SILENT_SECONDS,
    Presence,
    Silence,
    instance_of,
)
from bide.ledgers.sqlite.retention import Retention
from bide.ledgers.sqlite.store import SQLiteStore
from bide.ledgers.sqlite.worker import Backend

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from bide.ledgers._records import Record


@frozen
class Peers:
    """The other processes that use the ledger.

    Attributes:
        dead: those that have died.
        silent: those that live and do nothing: stopped, or with a blocked event loop.
        has_changed: whether processes have come or gone since the last call.
        has_unowned: whether an open record has no owner.
        has_living: whether another process lives.
        was_presumed_dead: whether another process has removed this one from the record.
    """

    dead: list[str]
    silent: list[str]
    has_changed: bool
    has_unowned: bool
    has_living: bool
    was_presumed_dead: bool


class SQLiteBackend(Backend):
    """The file, the state machine over it, and the other processes on it.

    Raises:
        LedgerError: the file cannot be used. Nothing is open then.
    """

    def __init__(self, path: Path, *, full: bool, store_prompts: bool, keep: float) -> None:
        folder = path.with_name(path.name + "-bide")
        self.database: Database = Database(path, folder, full=full)
        try:
            self.salt: bytes = self.database.salt()
            self.presence: Presence = Presence(folder)
            self._silence = Silence(self.presence, self.database.now)
            self.news: News = News(self.database, self.presence.instance)
            self.store: SQLiteStore = SQLiteStore(self.database, self.news, store_prompts=store_prompts)
            self.retention: Retention = Retention(self.database, self.store, keep=keep)
            self.machine: StateMachine = StateMachine(self.store, can_be_sent=self.store.has_request)
            self._clients: dict[str, tuple[str, str, str, str]] = {}
            self._messages: set[tuple[str, bytes]] = set()
            self._living: frozenset[str] = frozenset()
            self._partly_released: set[str] = set()  # silent processes that have kept their creates under way
            self._join()
        except BaseException as fault:
            self.database.close()
            if isinstance(fault, sqlite3.Error | OSError):
                raise explain(fault, path) from fault
            raise

    def _join(self) -> None:
        with self.database.transaction(writes=True):
            self.store.begin()
            self.presence.lock()
            self.presence.listen()
            self._register()
            self._release_orphans()
            # A process that died after it made its files and before it registered has left them.
            for instance in self.presence.other_instances() - set(self.news.peers):
                if not self.presence.is_alive(instance):
                    self.presence.remove_files(instance)

    def _register(self) -> None:
        row = (self.presence.instance, os.getpid(), socket.gethostname(), _outside.utc_now().isoformat())
        self.database.connection.execute("INSERT OR REPLACE INTO owners VALUES (?, ?, ?, ?)", row)

    # For the worker -----------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, *, writes: bool, vital: bool) -> Iterator[None]:
        with self.database.transaction(writes=writes, vital=vital):
            self.store.begin()
            yield
            self._messages |= self.news.take_messages()

    def take_changed(self) -> list[Record]:
        return self.news.take_changed()

    def on_rollback(self) -> None:
        self.store.on_rollback()
        self._messages.clear()

    def on_commit(self) -> None:
        messages, self._messages = self._messages, set()
        for instance, message in messages:
            self.presence.wake(instance, message)

    def explain(self, fault: Exception) -> Exception:
        if isinstance(fault, sqlite3.Error | OSError):
            return explain(fault, self.database.path)
        if isinstance(fault, LedgerError):
            return fault
        return LedgerError(f"the ledger {self.database.path} failed: {type(fault).__name__}: {fault}")

    def close(self) -> None:
        with suppress(Exception), self.database.transaction(writes=True):
            self._release(self.presence.instance)
        self.presence.close()
        self.database.close()

    # Clients of this process --------------------------------------------------------------------------------

    def enter(self, owner: str, origin: str, keys: Collection[str]) -> None:
        """Register a client of this process."""
        row = self._clients[owner] = (owner, self.presence.instance, origin, ",".join(sorted(keys)))
        self.database.connection.execute("INSERT INTO clients VALUES (?, ?, ?, ?)", row)
        self.news.has_unowned = True

    def leave(self, owner: str, *, waiting: bool = False) -> list[Record]:
        """See `Ledger.leave`."""
        if waiting:
            return self.machine.leave(owner, waiting=True)
        self._clients.pop(owner, None)
        self.database.connection.execute("DELETE FROM clients WHERE owner = ?", (owner,))
        self.news.has_unowned = True
        return self.machine.leave(owner)

    def share(self, owner: str, rate: float) -> float:
        """See `Ledger.share`. A process weighs as many as its open tasks, plus one."""
        rows = self.database.connection.execute("SELECT owner, instance, origin, keys FROM clients")
        clients = rows.fetchall()
        mine = next(
            ((origin, set(keys.split(","))) for each, _, origin, keys in clients if each == owner), None
        )
        if mine is None:
            return rate
        of_account = {
            each: instance
            for each, instance, origin, keys in clients
            if origin == mine[0] and not mine[1].isdisjoint(keys.split(",")) and self._lives(instance)
        }
        weights = dict.fromkeys(sorted(of_account.values()), 1)
        if len(weights) > 1:
            for each, instance in of_account.items():
                (count,) = self.database.connection.execute(
                    "SELECT count(*) FROM records WHERE is_open = 1 AND owner = ? AND task_id IS NOT NULL",
                    (each,),
                ).fetchone()
                weights[instance] += count
        instances = list(weights)
        return portion(rate, list(weights.values()), instances.index(self.presence.instance))

    def _lives(self, instance: str) -> bool:
        return instance == self.presence.instance or self.presence.is_alive(instance)

    # Other processes ----------------------------------------------------------------------------------------

    def read_news(self) -> list[Record]:
        """The records that other processes have changed since the last call."""
        return [record for ticket in self.news.read() if (record := self.store.record(ticket)) is not None]

    def read_peers(self) -> Peers:
        """Which other processes live, have died, are silent, or have presumed this one dead."""
        others = {*self.news.peers, *self._partly_released}
        dead = sorted(each for each in others if not self.presence.is_alive(each))
        self._silence.check(others.difference(dead))
        silent = [each for each in sorted(others.difference(dead)) if self._is_to_release(each)]
        before, self._living = self._living, frozenset(self.news.peers).difference(dead)
        (unowned,) = self.database.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM records WHERE is_open = 1 AND owner IS NULL)"
        ).fetchone()
        (registered,) = self.database.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM owners WHERE instance = ?)", (self.presence.instance,)
        ).fetchone()
        return Peers(
            dead=dead,
            silent=silent,
            has_changed=before != self._living,
            has_unowned=bool(unowned),
            has_living=bool(self._living),
            was_presumed_dead=not registered,
        )

    def _is_to_release(self, instance: str) -> bool:
        """Whether *instance*, which lives, is silent, and has records to be released."""
        seconds = self._silence.seconds_of(instance)
        if seconds < SILENT_SECONDS:
            self._partly_released.discard(instance)
            return False
        return instance not in self._partly_released or seconds >= LONG_SILENT_SECONDS

    def register_again(self) -> None:
        """Register again: another process removed our lock file and presumed us dead."""
        self.presence.lock()
        self._register()
        for row in self._clients.values():
            self.database.connection.execute("INSERT OR REPLACE INTO clients VALUES (?, ?, ?, ?)", row)
        self.news.has_unowned = True

    def remove_dead(self, instances: list[str]) -> None:
        """Remove those of *instances* that are dead, and release their records."""
        dead = [each for each in instances if not self.presence.is_alive(each)]
        for instance in dead:
            self._release(instance)
            self._partly_released.discard(instance)
            self.presence.remove_files(instance)
        self.news.peers = [each for each in self.news.peers if each not in dead]
        self.news.has_unowned = True

    def release_silent(self, instances: list[str]) -> None:
        """Release the records of those of *instances* that are silent still. They notice it when they go on.

        At first each keeps its creates under way: only it can get their answers.
        """
        for instance in filter(self._is_to_release, instances):
            is_long = self._silence.seconds_of(instance) >= LONG_SILENT_SECONDS
            self._release(instance, sending=is_long)
            (self._partly_released.discard if is_long else self._partly_released.add)(instance)
            self.news.peers = [each for each in self.news.peers if each != instance]
            self.news.has_unowned = True

    def _release_orphans(self) -> None:
        """Release the open records of processes that are not registered.

        Such a process was presumed dead while it lived, and is dead now.
        """
        registered = {self.presence.instance, *self.news.peers}
        owners = self.database.connection.execute(
            "SELECT DISTINCT owner FROM records WHERE is_open = 1 AND owner NOT NULL"
        )
        for instance in {instance_of(owner) for (owner,) in owners.fetchall()} - registered:
            if not self.presence.is_alive(instance):
                self._release(instance)

    def _release(self, instance: str, *, sending: bool = True) -> None:
        """Release the records of *instance*, and with *sending* its creates under way."""
        owners = self.database.connection.execute(
            "SELECT DISTINCT owner FROM records WHERE is_open = 1 AND owner >= ? AND owner < ?",
            (f"{instance}.", f"{instance}/"),
        ).fetchall()
        for (owner,) in owners:
            self.machine.leave(owner, sending=sending)
        self.database.connection.execute("DELETE FROM clients WHERE instance = ?", (instance,))
        self.database.connection.execute("DELETE FROM owners WHERE instance = ?", (instance,))
