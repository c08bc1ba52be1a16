"""`LedgerReport`: the state of a SQLite ledger, as `bide doctor` shows it."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from bide.ledgers._records import LaneView, Record
    from bide.ledgers.sqlite.backend import SQLiteBackend


@frozen
class OwnerView:
    """A process that has the ledger open, or that died while it had it open.

    Attributes:
        instance: its name, with which the names of its clients, its lock file and its socket start.
        pid: its process id on *host*.
        host: the machine that it runs on.
        started: when it opened the ledger, UTC.
        is_alive: whether it holds its lock. The next client with the key adopts the records of a dead process.
        clients: the number of its clients.
        open: the number of open records that they drive.
    """

    instance: str
    pid: int
    host: str
    started: datetime
    is_alive: bool
    clients: int
    open: int


@frozen
class LedgerReport:
    """The state of a ledger.

    Attributes:
        path: the file.
        size: its size in bytes.
        mode: its permissions, such as 0o600.
        sqlite_version: of the library that this process uses.
        journal_mode: "wal", unless the file system does not support it.
        problems: what SQLite's check of the whole file has found; empty if the file is sound.
        owners: the processes that have it open, this one included.
        lanes: the lanes that have been used.
        unknown: submissions whose create has an unknown outcome.
        counts: the number of records of each status.
        unowned: the number of open records without an owner.
        now: the time by the ledger's clock, to compare with the pauses of lanes.
    """

    path: str
    size: int
    mode: int
    sqlite_version: str
    journal_mode: str
    problems: tuple[str, ...]
    owners: tuple[OwnerView, ...]
    lanes: tuple[LaneView, ...]
    unknown: tuple[Record, ...]
    counts: dict[str, int]
    unowned: int
    now: float


def report_of(backend: SQLiteBackend) -> LedgerReport:
    """Read the whole ledger, in its thread."""
    connection, store = backend.database.connection, backend.store
    status = backend.database.path.stat()
    checked = [row[0] for row in connection.execute("PRAGMA integrity_check(10)")]
    lanes = [
        view
        for origin in store.origins()
        for view in backend.machine.lanes(origin, {key for _, key, _ in store.lanes(origin)})
    ]
    (unowned,) = connection.execute(
        "SELECT count(*) FROM records WHERE is_open = 1 AND owner IS NULL"
    ).fetchone()
    return LedgerReport(
        path=str(backend.database.path),
        size=status.st_size,
        mode=status.st_mode & 0o777,
        sqlite_version=sqlite3.sqlite_version,
        journal_mode=connection.execute("PRAGMA journal_mode").fetchone()[0],
        problems=() if checked == ["ok"] else tuple(checked),
        owners=tuple(_owners(backend)),
        lanes=tuple(lanes),
        unknown=tuple(each for each in store.list_records(is_open=True) if each.task.status.is_final),
        counts=dict(connection.execute("SELECT status, count(*) FROM records GROUP BY status").fetchall()),
        unowned=unowned,
        now=store.now(),
    )


def _owners(backend: SQLiteBackend) -> list[OwnerView]:
    rows = backend.database.connection.execute(
        "SELECT instance, pid, host, started, (SELECT count(*) FROM clients WHERE clients.instance = owners.instance), "
        "(SELECT count(*) FROM records WHERE is_open = 1 AND owner >= instance || '.' AND owner < instance || '/') "
        "FROM owners ORDER BY started"
    ).fetchall()
    me = backend.presence.instance
    return [
        OwnerView(
            instance,
            pid,
            host,
            datetime.fromisoformat(started),
            instance == me or backend.presence.is_alive(instance),
            clients,
            count,
        )
        for instance, pid, host, started, clients, count in rows
    ]
