"""What the thread of a SQLite ledger works with: the file, the steps over it, and the other processes on it."""

from __future__ import annotations

import os
import socket
import sqlite3
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from attrs import frozen

from bide.errors import LedgerError
from bide.ledgers._lanes import portion
from bide.ledgers._state_machine import StateMachine
from bide.ledgers.sqlite.database import Database, explained
from bide.ledgers.sqlite.processes import Presence
from bide.ledgers.sqlite.store import SQLiteStore
from bide.ledgers.sqlite.worker import Backend

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from bide.ledgers._records import Record

TURN_MESSAGE, NEWS_MESSAGE, OWNERS_MESSAGE = b"t", b"n", b"o"
"""The words that processes wake each other with: it may be your turn, there are news, owners have come or gone."""


@frozen
class Peers:
    """Who uses the ledger besides this process.

    Attributes:
        dead: those who have died.
        has_changed: whether others have come or gone since this was looked at last.
        is_left: whether there are open records that nobody drives.
        has_company: whether others live.
        was_presumed_dead: whether this process is on record as dead.
    """

    dead: list[str]
    has_changed: bool
    is_left: bool
    has_company: bool
    was_presumed_dead: bool


class SQLiteBackend(Backend):
    """What the ledger's thread works with: the file, the state machine over it, and the other processes on it."""

    def __init__(self, path: Path, *, full: bool, store_prompts: bool, keep: float) -> None:
        folder = path.with_name(path.name + "-bide")
        self.database = Database(path, folder, full=full)
        try:
            self.salt = self.database.salt()
            self.presence = Presence(folder)
            self.store = SQLiteStore(
                self.database, self.presence.instance, store_prompts=store_prompts, keep=keep
            )
            self.machine = StateMachine(self.store, can_be_sent=self.store.has_request)
            self._clients: dict[str, tuple[str, str, str, str]] = {}
            self._words: set[tuple[str, bytes]] = set()
            self._others: frozenset[str] = frozenset()
            self._begin()
        except BaseException as fault:
            self.database.close()
            if isinstance(fault, sqlite3.Error | OSError):
                raise explained(fault, path) from fault
            raise

    def _begin(self) -> None:
        with self.database.transaction(writes=True):
            self.store.begin()
            self.presence.lock()
            self.presence.listen()
            self._write_down()
            self._release_orphans()
            # Who died between making its files and being on record has left them.
            for orphan in self.presence.seen() - set(self.store.others):
                if not self.presence.is_alive(orphan):
                    self.presence.remove_files(orphan)

    def _write_down(self) -> None:
        row = (self.presence.instance, os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat())
        self.database.connection.execute("INSERT OR REPLACE INTO owners VALUES (?, ?, ?, ?)", row)

    # For the worker -----------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, *, writes: bool, vital: bool) -> Iterator[None]:
        with self.database.transaction(writes=writes, vital=vital):
            self.store.begin()
            yield
            self._note_whom_to_wake()

    def _note_whom_to_wake(self) -> None:
        """Whose turn it may be now, and who must hear of what has changed."""
        me = self.presence.instance
        for owner in self.store.turns():
            instance = _instance_of(owner)
            if instance != me:
                self._words.add((instance, TURN_MESSAGE))
        if self.store.has_news or self.store.has_unowned:
            word = OWNERS_MESSAGE if self.store.has_unowned else NEWS_MESSAGE
            self._words.update((each, word) for each in self.store.others)
            self.store.has_news = self.store.has_unowned = False

    def take_changed(self) -> list[Record]:
        changed, self.store.changed = self.store.changed, []
        return changed

    def undone(self) -> None:
        self.store.undone()
        self._words.clear()

    def done(self) -> None:
        words, self._words = self._words, set()
        for instance, word in words:
            self.presence.wake(instance, word)

    def explained(self, fault: Exception) -> Exception:
        if isinstance(fault, sqlite3.Error | OSError):
            return explained(fault, self.database.path)
        if isinstance(fault, LedgerError):
            return fault
        return LedgerError(f"the ledger {self.database.path} failed: {type(fault).__name__}: {fault}")

    def close(self) -> None:
        with suppress(Exception), self.database.transaction(writes=True) as connection:
            me = self.presence.instance
            self._release(me)
            connection.execute("DELETE FROM owners WHERE instance = ?", (me,))
        self.presence.end()
        self.database.close()

    # Owners -------------------------------------------------------------------------------------------------

    def enter(self, owner: str, origin: str, keys: Collection[str]) -> None:
        """A client of this process begins."""
        row = self._clients[owner] = (owner, self.presence.instance, origin, ",".join(sorted(keys)))
        self.database.connection.execute("INSERT INTO clients VALUES (?, ?, ?, ?)", row)
        self.store.has_unowned = True

    def leave(self, owner: str, *, waiting: bool = False) -> list[Record]:
        """A client of this process ends, or submits nothing more."""
        if waiting:
            return self.machine.leave(owner, waiting=True)
        self._clients.pop(owner, None)
        self.database.connection.execute("DELETE FROM clients WHERE owner = ?", (owner,))
        self.store.has_unowned = True
        return self.machine.leave(owner)

    def _release_orphans(self) -> None:
        """Open records of processes that are not on record: taken for dead while they lived, they are by now."""
        present = {self.presence.instance, *self.store.others}
        owners = self.database.connection.execute(
            "SELECT DISTINCT owner FROM records WHERE is_open = 1 AND owner NOT NULL"
        )
        for instance in {_instance_of(owner) for (owner,) in owners.fetchall()} - present:
            self._release(instance)

    def register_again(self) -> None:
        """Others have taken this process for dead, since its lock file was removed: be on record again."""
        self.presence.lock()
        self._write_down()
        for row in self._clients.values():
            self.database.connection.execute("INSERT OR REPLACE INTO clients VALUES (?, ?, ?, ?)", row)
        self.store.has_unowned = True

    def read_peers(self) -> Peers:
        """See who is here."""
        instances = self.store.others
        dead = [each for each in instances if not self.presence.is_alive(each)]
        before, self._others = self._others, frozenset(instances).difference(dead)
        (unowned,) = self.database.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM records WHERE is_open = 1 AND owner IS NULL)"
        ).fetchone()
        (present,) = self.database.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM owners WHERE instance = ?)", (self.presence.instance,)
        ).fetchone()
        return Peers(
            dead=dead,
            has_changed=before != self._others,
            is_left=bool(unowned),
            has_company=bool(self._others),
            was_presumed_dead=not present,
        )

    def remove_dead(self, dead: list[str]) -> None:
        """What dead processes have left belongs to nobody now."""
        dead = [each for each in dead if not self.presence.is_alive(each)]
        for instance in dead:
            self._release(instance)
            self.database.connection.execute("DELETE FROM owners WHERE instance = ?", (instance,))
            self.presence.remove_files(instance)
        self.store.others = [each for each in self.store.others if each not in dead]
        self.store.has_unowned = True

    def _lives(self, instance: str) -> bool:
        return instance == self.presence.instance or self.presence.is_alive(instance)

    def _release(self, instance: str) -> None:
        clients = self.database.connection.execute(
            "SELECT DISTINCT owner FROM records WHERE is_open = 1 AND owner >= ? AND owner < ?",
            (f"{instance}.", f"{instance}/"),
        ).fetchall()
        for (owner,) in clients:
            self.machine.leave(owner)
        self.database.connection.execute("DELETE FROM clients WHERE instance = ?", (instance,))

    def share(self, owner: str, rate: float) -> float:
        """The part of an account's query *rate* that this process may use: by open tasks, and one for each process."""
        clients = self.database.connection.execute(
            "SELECT owner, instance, origin, keys FROM clients"
        ).fetchall()
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


def _instance_of(owner: str) -> str:
    return owner.partition(".")[0]
