"""Which processes are alive, and how they wake each other: on one machine, without heartbeats.

Each open ledger holds a lock on a small file of its own. The kernel frees it when the process ends, however it ends;
whoever can take the lock knows that the owner is gone. Beside it stands a datagram socket: a byte there wakes the
owner.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bide.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_ADDRESS_BYTES = 100
"""Bytes of a socket's path that every system takes."""


class Presence:
    """This process's lock and socket in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.instance = secrets.token_hex(6)
        self._folder = folder
        self._directory = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        self._lock = -1
        self.socket: socket.socket | None = None

    def lock(self) -> None:
        """Take the lock. Others must not look meanwhile: the ledger's write lock is held."""
        path = self._folder / f"{self.instance}.lock"
        if self._lock >= 0:  # it was, on a file that somebody has removed
            close(self._lock)
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        close_in_children(self._lock)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.write(self._lock, f"{os.getpid()}\n".encode())

    def listen(self) -> None:
        """Hear the words of others."""
        address = self._address(self.instance)
        if address is None:
            return
        try:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.setblocking(False)
            self.socket.bind(address)
            close_in_children(self.socket.fileno())
        except OSError:  # a file system without sockets: the timer behind them will do
            if self.socket is not None:
                self.socket.close()
            self.socket = None

    def seen(self) -> set[str]:
        """The others that have files here, alive or dead."""
        names = {path.stem for path in self._folder.iterdir() if path.suffix in (".lock", ".sock")}
        return names - {self.instance, "write"}

    def is_alive(self, instance: str) -> bool:
        """Whether the process of *instance* lives."""
        try:
            lock = os.open(self._folder / f"{instance}.lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:  # out of file descriptors, or not ours to open: in doubt it lives
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
        """Remove what a dead process has left."""
        for name in (f"{instance}.lock", f"{instance}.sock"):
            with suppress(OSError):
                (self._folder / name).unlink()

    def wake(self, instance: str, word: bytes) -> None:
        """Wake another process. A word that is lost is made up for by its timer."""
        address = self._address(instance)
        if address is not None and self.socket is not None:
            with suppress(OSError):
                self.socket.sendto(word, address)

    def end(self) -> None:
        """Let go of lock and socket, and remove them."""
        self.remove_files(self.instance)
        if self.socket is not None:
            _FOR_PARENTS_ONLY.discard(self.socket.fileno())
            self.socket.close()
        for number in (self._lock, self._directory):
            if number >= 0:
                close(number)
        self._lock = self._directory = -1

    def _address(self, instance: str) -> str | None:
        """The path of a socket. A long one goes by way of the open directory, where the system can do that."""
        path = str(self._folder / f"{instance}.sock")
        if len(os.fsencode(path)) <= LONGEST_ADDRESS_BYTES:
            return path
        directory = Path(f"/proc/self/fd/{self._directory}")
        return f"{directory}/{instance}.sock" if directory.exists() else None


_FOR_PARENTS_ONLY: set[int] = set()


def close_in_children(number: int) -> None:
    """Close this file in a forked child at once: a lock that it inherits would hide the parent's death."""
    _FOR_PARENTS_ONLY.add(number)


def close(number: int) -> None:
    """Close a file that may be one of those."""
    _FOR_PARENTS_ONLY.discard(number)
    with suppress(OSError):
        os.close(number)


FORK_WAIT_SECONDS = 1.0
"""Seconds that a fork waits at most for a thread that is at work: it may itself be waiting for another process."""
_AT_WORK: set[threading.Lock] = set()
_HELD: list[threading.Lock] = []


@contextmanager
def no_fork() -> Iterator[threading.Lock]:
    """Gives a thread a lock to hold whenever it is inside SQLite: no fork happens meanwhile.

    SQLite's own locks do not know of forks. What a thread held of them would stay locked in the child, and the child's
    first use of SQLite, for whatever it be, would wait for ever.
    """
    lock = threading.Lock()
    _AT_WORK.add(lock)
    try:
        yield lock
    finally:
        _AT_WORK.discard(lock)


def _before_fork() -> None:
    _HELD.extend(lock for lock in tuple(_AT_WORK) if lock.acquire(timeout=FORK_WAIT_SECONDS))


def _after_fork_in_parent() -> None:
    while _HELD:
        _HELD.pop().release()


_OPEN: dict[tuple[int, int], int] = {}
"""How often each database file (by device and number) is open in this process."""
_INHERITED: set[tuple[int, int]] = set()


def opened(path: Path) -> tuple[int, int]:
    """Note that a database is open in this process. Returns what `closed` takes.

    Raises:
        LedgerError: it was open when this process was forked: SQLite takes the locks of the parent for its own then,
            and would write to files that the parent may remove.
    """
    status = path.stat()
    name = (status.st_dev, status.st_ino)
    if name in _INHERITED:
        raise LedgerError(
            f"the ledger {path} was open when this process was forked, and SQLite cannot open it here any more: fork "
            f"before the ledger is first used, or start processes with `spawn`"
        )
    if status.st_nlink > 1:  # each name would have a folder of locks
        raise LedgerError(f"the ledger {path} has {status.st_nlink} names (hard links); it must have one")
    _OPEN[name] = _OPEN.get(name, 0) + 1
    return name


def closed(name: tuple[int, int]) -> None:
    """A database is open in this process once less."""
    _OPEN[name] -= 1
    if not _OPEN[name]:
        del _OPEN[name]


def _after_fork() -> None:
    _INHERITED.update(_OPEN)
    _OPEN.clear()
    for number in tuple(_FOR_PARENTS_ONLY):
        close(number)
    _AT_WORK.clear()  # of threads that are not here
    _HELD.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork)
