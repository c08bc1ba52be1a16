"""Which processes are alive and active, and how they wake each other, on one machine.

Each open ledger is an instance, and holds a lock on a small file of its own. The kernel frees the lock when the process
ends, however it ends: a process that can take the lock knows that the instance is dead. Beside the file is a datagram
socket: a byte sent there wakes the instance.

A process can live and do nothing: it was stopped, or its event loop is blocked. So its loop changes the time of the
lock file every second, which costs no write to the database. An instance that does not is silent.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bide import _outside
from bide.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SILENT_SECONDS = 15.0
"""An instance that lives and gives no sign of its event loop for so long is silent: others take over its records."""
LONG_SILENT_SECONDS = 75.0
"""After so long, also its creates under way: each has ended by now. Until then the instance itself may still get the
answer, which says more than any other one can find out."""
LONGEST_STEP_SECONDS = 1.0
"""Time counts for the silence of another instance only as far as this process lived it."""
LATEST_BEAT = 10**9
"""Beats are counted from 1. The lock file of an earlier version, which gives no beats, has a real time."""
LONGEST_ADDRESS_BYTES = 100
"""The longest path of a socket that every system accepts."""


class Presence:
    """The lock and the socket of this process in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.instance: str = _outside.new_id(6)
        self._folder = folder
        self._directory = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        self._lock = -1
        self._beats = 0
        self.socket: socket.socket | None = None

    def lock(self) -> None:
        """Take the lock. The caller holds the ledger's write lock, so that no other process checks meanwhile."""
        if not self._has_lock():
            before = self._lock  # of a lock file that another process has removed
            self._lock = os.open(self._path(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            close_in_children(self._lock)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            os.write(self._lock, f"{os.getpid()}\n".encode())
            if before >= 0:
                close_descriptor(before)
        self.beat()

    def _has_lock(self) -> bool:
        with suppress(OSError):
            return self._lock >= 0 and os.path.samestat(os.fstat(self._lock), self._path().stat())
        return False

    def beat(self) -> None:
        """Show that the event loop of this process runs."""
        self._beats += 1
        with suppress(OSError):  # the next beat makes up for it
            os.utime(self._lock if os.utime in os.supports_fd else self._path(), (self._beats, self._beats))

    def beat_of(self, instance: str) -> int | None:
        """The number of the last beat of *instance*; None if it gives none."""
        with suppress(OSError):
            number = int((self._folder / f"{instance}.lock").stat().st_mtime)
            return number if number < LATEST_BEAT else None
        return None

    def _path(self) -> Path:
        return self._folder / f"{self.instance}.lock"

    def listen(self) -> None:
        """Open the socket on which other processes wake this one."""
        address = self._address(self.instance)
        if address is None:
            return
        try:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.setblocking(False)
            self.socket.bind(address)
            close_in_children(self.socket.fileno())
        except OSError:  # a file system without sockets: the timer of the session makes up for them
            if self.socket is not None:
                self.socket.close()
            self.socket = None

    def other_instances(self) -> set[str]:
        """The other instances that have files here, alive or dead."""
        names = {path.stem for path in self._folder.iterdir() if path.suffix in (".lock", ".sock")}
        return names - {self.instance, "write"}

    def is_alive(self, instance: str) -> bool:
        """Whether the process of *instance* lives."""
        try:
            lock = os.open(self._folder / f"{instance}.lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:  # no file descriptor left, or no permission: in doubt it is alive
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(lock)

    def remove_files(self, instance: str) -> None:
        """Remove the lock file and the socket of *instance*."""
        for name in (f"{instance}.lock", f"{instance}.sock"):
            with suppress(OSError):
                (self._folder / name).unlink()

    def wake(self, instance: str, message: bytes) -> None:
        """Wake another process. Its timer makes up for a lost message."""
        address = self._address(instance)
        if address is not None and self.socket is not None:
            with suppress(OSError):
                self.socket.sendto(message, address)

    def close(self) -> None:
        """Release the lock, close the socket, and remove their files."""
        self.remove_files(self.instance)
        if self.socket is not None:
            _CLOSED_IN_CHILDREN.discard(self.socket.fileno())
            self.socket.close()
        for number in (self._lock, self._directory):
            if number >= 0:
                close_descriptor(number)
        self._lock = self._directory = -1

    def _address(self, instance: str) -> str | None:
        """The path of a socket. A long path goes through the open directory, where the system supports that."""
        path = str(self._folder / f"{instance}.sock")
        if len(os.fsencode(path)) <= LONGEST_ADDRESS_BYTES:
            return path
        directory = Path(f"/proc/self/fd/{self._directory}")
        return f"{directory}/{instance}.sock" if directory.exists() else None


class Silence:
    """How long other instances have given no beat, while this process lived."""

    def __init__(self, presence: Presence, clock: Callable[[], float]) -> None:
        self._presence = presence
        self._clock = clock
        self._checked_at = clock()
        self._last: dict[str, tuple[int, float]] = {}

    def check(self, instances: Iterable[str]) -> list[str]:
        """Those of *instances*, all alive, that are silent. Call this at least every `LONGEST_STEP_SECONDS`."""
        now = self._clock()
        lived = max(0.0, min(now - self._checked_at, LONGEST_STEP_SECONDS))
        self._checked_at = now
        before, self._last = self._last, {}
        for instance in instances:
            beat = self._presence.beat_of(instance)
            if beat is not None:
                last, seconds = before.get(instance, (beat, 0.0))
                self._last[instance] = (beat, seconds + lived if beat == last else 0.0)
        return [instance for instance, (_, seconds) in self._last.items() if seconds >= SILENT_SECONDS]

    def seconds_of(self, instance: str) -> float:
        """How long *instance* has been silent, by the last check; 0 if it has given a beat since."""
        beat, seconds = self._last.get(instance, (None, 0.0))
        return seconds if beat == self._presence.beat_of(instance) else 0.0


def instance_of(owner: str) -> str:
    """The instance of a client: owners are named "instance.number"."""
    return owner.partition(".")[0]


_CLOSED_IN_CHILDREN: set[int] = set()


def close_in_children(number: int) -> None:
    """Close this file in a forked child at once: an inherited lock would hide the death of the parent."""
    _CLOSED_IN_CHILDREN.add(number)


def close_descriptor(number: int) -> None:
    """Close a file, also one that was passed to `close_in_children`."""
    _CLOSED_IN_CHILDREN.discard(number)
    with suppress(OSError):
        os.close(number)


FORK_WAIT_SECONDS = 1.0
"""The longest time that a fork waits for a thread inside SQLite, which can itself wait for another process."""
_THREAD_LOCKS: set[threading.Lock] = set()
_HELD_FOR_FORK: list[threading.Lock] = []


@contextmanager
def prevent_forks() -> Iterator[threading.Lock]:
    """Give a thread a lock to hold while it is inside SQLite, so that no fork happens meanwhile.

    SQLite's own locks do not know of forks. A lock that a thread held would stay locked in the child, and the child's
    first use of SQLite, for any purpose, would wait for ever.
    """
    lock = threading.Lock()
    _THREAD_LOCKS.add(lock)
    try:
        yield lock
    finally:
        _THREAD_LOCKS.discard(lock)


def _before_fork() -> None:
    _HELD_FOR_FORK.extend(lock for lock in tuple(_THREAD_LOCKS) if lock.acquire(timeout=FORK_WAIT_SECONDS))


def _after_fork_in_parent() -> None:
    while _HELD_FOR_FORK:
        _HELD_FOR_FORK.pop().release()


_OPEN: dict[tuple[int, int], int] = {}
"""How often each database file (by device and number) is open in this process."""
_INHERITED: set[tuple[int, int]] = set()


def note_opened(path: Path) -> tuple[int, int]:
    """Note that a database is open in this process. Returns its name for `note_closed`.

    Raises:
        LedgerError: the file has several names; or it was open when this process was forked. SQLite would take the
            parent's locks for its own then, and write to files that the parent can remove.
    """
    status = path.stat()
    name = (status.st_dev, status.st_ino)
    if name in _INHERITED:
        raise LedgerError(
            f"the ledger {path} was open when this process was forked, so SQLite cannot open it here: fork "
            f"before the ledger is first used, or start processes with `spawn`"
        )
    if status.st_nlink > 1:  # each name would have its own folder of locks
        raise LedgerError(f"the ledger {path} has {status.st_nlink} names (hard links); it must have one")
    _OPEN[name] = _OPEN.get(name, 0) + 1
    return name


def note_closed(name: tuple[int, int]) -> None:
    """Note that a database was closed in this process once."""
    _OPEN[name] -= 1
    if not _OPEN[name]:
        del _OPEN[name]


def _after_fork_in_child() -> None:
    _INHERITED.update(_OPEN)
    _OPEN.clear()
    for number in tuple(_CLOSED_IN_CHILDREN):
        close_descriptor(number)
    _THREAD_LOCKS.clear()  # of threads that do not exist in the child
    _HELD_FOR_FORK.clear()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
