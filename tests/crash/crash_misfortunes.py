"""What goes wrong in the crash test besides the service: which misfortunes there are, when each happens, and how."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import sqlite3
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KINDS = {
    "sigkill": "a worker is killed, and replaced",
    "sigstop": "a worker is stopped, and goes on later",
    "locked": "another program locks the ledger's file for writing",
    "cancelled": "callers are cancelled, or time out",
    "closed": "a worker closes its client, with or without withdrawing what waits, and opens a new one",
    "rotated": "the account gets a new key, the old one is refused, and workers with the new one take over",
    "deleted": "the ledger's file is deleted or replaced: a run of its own",
}
USUAL = ("sigkill", "sigstop", "locked", "cancelled", "closed", "rotated")
"""What happens unless other misfortunes are asked for."""


@dataclass(frozen=True)
class Rhythm:
    """How fast misfortunes follow each other, and how long they and the tasks last, in seconds.

    Attributes:
        handovers: between two workers that are replaced by ones with a new key.
        open: so many open records of all workers keep the slots contended: no worker starts callers then.
    """

    between: tuple[float, float] = (0.8, 2.0)
    stops: tuple[tuple[float, float], ...] = ((0.05, 3.0), (0.05, 3.0), (15.5, 25.0))
    locks: tuple[tuple[float, float], ...] = ((1.0, 2.0), (1.0, 2.0), (1.0, 2.0), (5.0, 12.0))
    handovers: tuple[float, float] = (0.0, 1.0)
    tasks: tuple[float, float] = (0.5, 2.0)
    open: int = 12


QUICK = Rhythm(
    between=(0.5, 0.8),
    stops=((0.05, 1.0),),
    locks=((0.3, 0.8),),
    handovers=(0.0, 0.1),
    tasks=(0.2, 0.8),
    open=6,
)
"""For the test suite."""


@dataclass(frozen=True)
class Misfortune:
    """One that has happened.

    Attributes:
        worker: whom it has met; empty if it has met all.
        until: when it was over.
        has_writer: whether the stopped worker held the lock of the ledger's writers.
    """

    kind: str
    at: float
    until: float
    worker: str = ""
    note: str = ""
    has_writer: bool = False

    @property
    def blocks_ledger(self) -> bool:
        """Whether no process could write while it lasted."""
        return self.kind == "locked" or self.has_writer

    def __str__(self) -> str:
        lasted = f" for {self.until - self.at:.2f} s" if self.until > self.at else ""
        return f"{self.kind} {self.worker or 'all'}{lasted}{f' ({self.note})' if self.note else ''}"


@dataclass
class Timeline:
    """What has happened, and what is to be undone at which moment."""

    happened: list[Misfortune] = field(default_factory=list)
    _undone_at: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def add(self, misfortune: Misfortune, undo: Callable[[], None] | None = None) -> None:
        """Note *misfortune*. *undo* ends it."""
        self.happened.append(misfortune)
        if undo is not None:
            self._undone_at.append((misfortune.until, undo))

    def sleep(self, seconds: float) -> None:
        """Sleep, and undo what is due meanwhile."""
        until = time.time() + seconds
        while True:
            self._undo(time.time())
            next_one = min((at for at, _ in self._undone_at), default=until)
            if time.time() >= until:
                return
            time.sleep(max(0.0, min(next_one, until) - time.time()))

    def undo_all(self) -> None:
        """End everything that lasts still."""
        self._undo(float("inf"))
        now = time.time()
        self.happened = [replace(each, until=min(each.until, now)) for each in self.happened]

    def _undo(self, now: float) -> None:
        due = [undo for at, undo in self._undone_at if at <= now]
        self._undone_at = [(at, undo) for at, undo in self._undone_at if at > now]
        for undo in due:
            undo()


def stop(pid: int, ledger: Path) -> bool:
    """Stop a process. Returns whether it holds the lock of the writers of *ledger*: then no process can write."""
    os.kill(pid, signal.SIGSTOP)
    lock = os.open(ledger.with_name(f"{ledger.name}-bide") / "write.lock", os.O_RDONLY)
    try:
        for _ in range(100):
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.003)
            else:
                return False
        return True
    finally:
        os.close(lock)


def lock(ledger: Path, word: str) -> Callable[[], None] | None:
    """Lock the file, as another program does. Returns what unlocks it; None if it could not be had."""
    connection = sqlite3.connect(ledger, isolation_level=None, timeout=1.0)
    try:
        connection.execute(f"BEGIN {word}")
    except sqlite3.OperationalError:  # a stopped worker holds it
        connection.close()
        return None
    return connection.close


def rotate(url: str, old: str, new: str) -> None:
    """Have the emulator replace the key of the account."""
    host = url.removesuffix("/api/v1")
    data = json.dumps({"old": old, "new": new}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(f"{host}/_emulator/keys", data=data, method="POST")) as answer:
        assert json.load(answer) == {"ok": True}


LOSSES = ("unlinked", "unlinked with its log", "replaced", "directory removed")


def lose(ledger: Path, how: str) -> None:
    """Take the file away from under the workers."""
    folder = ledger.with_name(f"{ledger.name}-bide")
    beside = [ledger.with_name(f"{ledger.name}{end}") for end in ("-wal", "-shm")]
    if how == "replaced":
        fresh = ledger.with_name("fresh.db")
        fresh.touch()
        fresh.replace(ledger)
        return
    ledger.unlink()
    if how != "unlinked":
        for each in beside:
            each.unlink(missing_ok=True)
    if how == "directory removed":
        folder.rename(folder.with_name("gone"))


def draw_seconds(chance: random.Random, ranges: Sequence[tuple[float, float]]) -> float:
    """How long a misfortune lasts."""
    return chance.uniform(*chance.choice(ranges))
