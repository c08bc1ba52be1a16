"""The database file of a `SQLiteLedger`: opening and checking it, its schema, its transactions, its clock.

All of it runs in the ledger's thread. Faults of SQLite are raised as `LedgerError`s that say what to do.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bide import _outside
from bide.errors import LedgerError
from bide.ledgers.sqlite.processes import close_descriptor, close_in_children, note_closed, note_opened

if TYPE_CHECKING:
    from collections.abc import Iterator

APPLICATION_ID = 0x62696465
"""SQLite's `application_id` of our files: "bide"."""
BUSY_SECONDS = 5.0
"""How long another program can hold the file before it counts as locked."""
LONGEST_WRITE_SECONDS = 10.0
"""How long another process can hold the lock of writers before a step fails."""
CHECKPOINT_PAGES = 4000
"""The write-ahead log is written back after so many pages."""

SCHEMA = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE owners (instance TEXT PRIMARY KEY, pid INTEGER, host TEXT, started TEXT) WITHOUT ROWID;
    CREATE TABLE clients (owner TEXT PRIMARY KEY, instance TEXT, origin TEXT, keys TEXT) WITHOUT ROWID;
    CREATE TABLE lanes (
        origin TEXT, kind TEXT, key TEXT, paused_until REAL, learned INTEGER, learned_at REAL, setbacks INTEGER,
        setback_at REAL, probing INTEGER, window REAL, PRIMARY KEY (origin, kind, key)
    ) WITHOUT ROWID;
    CREATE TABLE creates (origin TEXT, kind TEXT, key TEXT, answered REAL);
    CREATE INDEX creates_of_lane ON creates (origin, kind, key, answered);
    CREATE TABLE records (
        sequence INTEGER PRIMARY KEY, ticket TEXT NOT NULL UNIQUE, origin TEXT NOT NULL, kind TEXT NOT NULL,
        keys TEXT NOT NULL, digest TEXT NOT NULL, model TEXT, owner TEXT, status TEXT NOT NULL, lane TEXT,
        task_id TEXT, added_at TEXT, admitted REAL, sent_at TEXT, slot_for REAL, slot_until REAL, held INTEGER,
        cancelling INTEGER, cancel_taken INTEGER, followed INTEGER, version INTEGER, files TEXT, task TEXT,
        is_open INTEGER, clean_at REAL, blanked INTEGER
    );
    CREATE TABLE requests (sequence INTEGER PRIMARY KEY, body TEXT NOT NULL);
    CREATE INDEX records_waiting ON records (origin, kind, keys, sequence)
        WHERE status = 'waiting' AND owner IS NOT NULL;
    CREATE INDEX records_held ON records (origin, kind, lane, slot_until) WHERE held = 1;
    CREATE INDEX records_submitting ON records (origin, kind, lane) WHERE status = 'submitting';
    CREATE INDEX records_of_task ON records (task_id) WHERE task_id IS NOT NULL;
    CREATE INDEX records_open ON records (owner) WHERE is_open = 1;
    CREATE INDEX records_to_clean ON records (clean_at) WHERE clean_at IS NOT NULL;
    CREATE TABLE removed (origin TEXT, task_id TEXT, ticket TEXT, at REAL, PRIMARY KEY (origin, task_id)) WITHOUT ROWID;
    CREATE TABLE news (id INTEGER PRIMARY KEY AUTOINCREMENT, ticket TEXT, instance TEXT, at REAL);
    """,
    """
    CREATE TABLE learned (name TEXT PRIMARY KEY, state TEXT NOT NULL, changed REAL NOT NULL) WITHOUT ROWID;
    CREATE INDEX learned_to_clean ON learned (changed);
    """,
    # When the first and the last unsaved result expire. Earlier versions noted all files of a task at once, and blanked
    # addresses at `clean_at`; results that came inline stay.
    """
    ALTER TABLE records ADD COLUMN first_loss REAL;
    ALTER TABLE records ADD COLUMN last_loss REAL;
    UPDATE records SET first_loss = clean_at, last_loss = clean_at
        WHERE status = 'succeeded' AND files IS NULL AND blanked IS NULL;
    UPDATE records SET first_loss = 9e999, last_loss = 9e999
        WHERE status = 'succeeded' AND files IS NULL AND task LIKE '%"data": "%';
    CREATE INDEX records_unsaved ON records (origin, first_loss, last_loss, lane) WHERE first_loss IS NOT NULL;
    """,
    # Who wants a record that an earlier version has added is not known: a client that cannot leave does.
    """
    ALTER TABLE records ADD COLUMN wanted_by TEXT NOT NULL DEFAULT 'earlier';
    ALTER TABLE records ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1;
    """,
    # A lane learns when a service gives slots back. An owner that does not take a free slot is passed over. The column
    # `learned_at` holds the moment of the next probe: a process of an earlier version may have the file open.
    """
    ALTER TABLE lanes ADD COLUMN probe_wait REAL NOT NULL DEFAULT 0;
    ALTER TABLE lanes ADD COLUMN raised_at REAL NOT NULL DEFAULT -9e999;
    ALTER TABLE lanes ADD COLUMN freed TEXT NOT NULL DEFAULT '';
    ALTER TABLE lanes ADD COLUMN late INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE lanes ADD COLUMN release_delay REAL NOT NULL DEFAULT 0;
    CREATE TABLE offers (origin TEXT, kind TEXT, owner TEXT, at REAL, PRIMARY KEY (origin, kind, owner)) WITHOUT ROWID;
    DROP INDEX records_waiting;
    CREATE INDEX records_waiting ON records (origin, kind, keys, owner, sequence)
        WHERE status = 'waiting' AND owner IS NOT NULL;
    DROP INDEX records_submitting;
    CREATE INDEX records_submitting ON records (origin, kind, lane, admitted) WHERE status = 'submitting';
    """,
    # Earlier versions did not note how they had found a task.
    """
    ALTER TABLE records ADD COLUMN guessed INTEGER;
    """,
)
"""Each step takes a file from one version of the schema to the next. Steps are only added, never changed."""


class Database:
    """One open connection to the file. `transaction` is the only way to write.

    Args:
        folder: the directory beside the file for locks and sockets.
        full: whether a vital transaction waits for the disk, so that it outlives a loss of power.

    Raises:
        LedgerError: the file cannot be used. Nothing is open then.
    """

    def __init__(self, path: Path, folder: Path, *, full: bool) -> None:
        self.path = path
        self._full = full
        self._is_full = False
        self._lock = -1
        self._open_file: tuple[int, int] | None = None
        self._places: dict[Path, tuple[int, int]] = {}
        try:
            if not path.parent.is_dir():
                raise LedgerError(
                    f"the ledger {path} cannot be made: there is no directory {path.parent}; make it first"
                )
            if path.is_dir():
                raise LedgerError(f"the ledger {path} is a directory: name a file in it")
            folder.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(folder / "write.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            close_in_children(self._lock)
            with self._write_lock():
                self.connection: sqlite3.Connection = self._open()
                self._places = {each: _identity(each.stat()) for each in (path, folder)}
            self._clock_offset = self._read_clock_offset()
        except BaseException as fault:
            self._close_lock()
            if isinstance(fault, sqlite3.Error | OSError):
                raise explain(fault, path) from fault
            raise

    def _open(self) -> sqlite3.Connection:
        if not self.path.exists():
            # Never open and close a file that exists: by the rules of POSIX, closing it would drop the locks of another
            # connection of this process.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        self._open_file = note_opened(self.path)
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, cached_statements=256
        )
        try:
            _check(connection, self.path)
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA secure_delete = FAST")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            _migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close the file. The rest of its log is written back under the lock."""
        try:
            with self._write_lock():
                self.connection.close()
        finally:
            self._close_lock()

    def _close_lock(self) -> None:
        if self._open_file is not None:
            note_closed(self._open_file)
            self._open_file = None
        if self._lock >= 0:
            close_descriptor(self._lock)
            self._lock = -1

    @contextmanager
    def transaction(self, *, writes: bool, vital: bool = False) -> Iterator[sqlite3.Connection]:
        """Everything done inside takes effect, or nothing does. No other process writes meanwhile.

        Raises:
            LedgerError: the file, or the folder of locks, is not at its place any more. Nothing was recorded.
        """
        if not writes:
            self._check_places()
            self.connection.execute("BEGIN")
            try:
                yield self.connection
            finally:
                if self.connection.in_transaction:
                    self.connection.execute("COMMIT")
            return
        with self._write_lock():
            full = vital and self._full
            if full != self._is_full:
                self.connection.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
                self._is_full = full
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self._check_places()
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def _check_places(self) -> None:
        """Raise LedgerError unless the paths lead to the open files: SQLite would go on with a file that no other
        process sees. A path that cannot be read for another reason proves nothing."""
        for path, identity in self._places.items():
            try:
                there = _identity(path.stat())
            except (FileNotFoundError, NotADirectoryError):
                there = None
            except OSError:
                continue
            if there != identity:
                raise _gone(self.path, path, is_replaced=there is not None)

    @contextmanager
    def _write_lock(self) -> Iterator[None]:
        """Hold the lock that all writers of the file share.

        SQLite before 3.51.3 can, rarely, corrupt a log that several connections write and write back at once. Later
        versions need no lock, but without it a writer that meets another sleeps for milliseconds, and some starve.
        """
        pause, until = 0.0001, time.monotonic() + LONGEST_WRITE_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise LedgerError(
                        f"the ledger {self.path} has been locked for {LONGEST_WRITE_SECONDS:g} s by another process: "
                        f"is one stopped while it writes? Continue or end it; nothing was recorded"
                    ) from None
                time.sleep(
                    pause * _outside.chance.random()
                )  # so that two writers do not collide again and again
                pause = min(pause * 2, 0.002)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    # The clock ----------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds by a clock that all processes on the file share, and that no change of the wall clock moves."""
        return _seconds_since_boot() + self._clock_offset

    def _read_clock_offset(self) -> float:
        """What to add to the seconds since boot: the same value in all processes of this machine."""
        boot = _boot_id()
        with self.transaction(writes=True) as connection:
            row = connection.execute("SELECT value FROM meta WHERE name = ?", (f"clock {boot}",)).fetchone()
            if row is not None:
                return float(row[0])
            # Seconds since 1970, and never earlier than a time recorded before the reboot.
            offset = (
                max(_outside.wall_time(), _newest_time(connection)) - _seconds_since_boot() if boot else 0.0
            )
            connection.execute("DELETE FROM meta WHERE name LIKE 'clock %'")
            connection.execute("INSERT INTO meta VALUES (?, ?)", (f"clock {boot}", offset))
            return offset

    def salt(self) -> bytes:
        """The bytes that salt a key before it is digested. Each ledger has its own."""
        with self.transaction(writes=True) as connection:
            row = connection.execute("SELECT value FROM meta WHERE name = 'salt'").fetchone()
            if row is None:
                row = (_outside.new_bytes(16),)
                connection.execute("INSERT INTO meta VALUES ('salt', ?)", row)
            return bytes(row[0])


def _identity(status: os.stat_result) -> tuple[int, int]:
    """What a file keeps when it is moved or changed, and no other file has while it is open."""
    return status.st_dev, status.st_ino


def _gone(path: Path, missing: Path, *, is_replaced: bool) -> LedgerError:
    """The error after *missing*, which is the ledger *path* or its folder of locks, was deleted, moved or replaced."""
    what = f"the ledger {path}" if missing == path else f"the folder of locks of the ledger {path}"
    fate = "replaced by another one" if is_replaced else "deleted or moved"
    return LedgerError(
        f"{what} was {fate} while it was open: nothing is recorded and nothing new is sent; tasks that were sent are "
        f"still polled. Move it back ({missing}), and work goes on; or close all clients that use it and open new ones"
    )


def _newest_time(connection: sqlite3.Connection) -> float:
    """The newest time on record."""
    (newest,) = connection.execute(
        "SELECT max(at) FROM (SELECT max(admitted) AS at FROM records UNION ALL SELECT max(answered) FROM creates "
        "UNION ALL SELECT max(at) FROM news UNION ALL SELECT max(at) FROM removed "
        "UNION ALL SELECT max(changed) FROM learned)"
    ).fetchone()
    return float(newest or 0.0)


def _boot_id() -> str:
    """The id of this boot of the machine; empty where the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _seconds_since_boot() -> float:
    seconds = _outside.seconds_since_boot() if _HAS_BOOT_ID else None
    return _outside.wall_time() if seconds is None else seconds


_HAS_BOOT_ID = bool(_boot_id())


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Raise unless the file is a ledger or empty. Nothing is changed."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if application != APPLICATION_ID and not is_empty:
        raise LedgerError(f"{path} is a database of another program, not a ledger of bide: name another file")
    if version > len(SCHEMA):
        raise LedgerError(
            f"the ledger {path} was written by a newer bide (its schema is {version}, this bide knows {len(SCHEMA)}): "
            f"upgrade bide, or name another file; nothing was changed"
        )


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        for step in SCHEMA[version:]:
            for statement in filter(str.strip, step.split(";")):
                connection.execute(statement)
        if version < len(SCHEMA):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(SCHEMA)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def explain(fault: sqlite3.Error | OSError, path: Path) -> LedgerError:
    """*fault* as an error that says what the user can do."""
    text = str(fault)
    code = (getattr(fault, "sqlite_errorcode", None) or 0) & 0xFF
    advice = _ADVICE.get(code, "nothing was recorded; the file and its directory must be on a local disk")
    if isinstance(fault, PermissionError):
        advice = _ADVICE[sqlite3.SQLITE_READONLY]
    elif isinstance(fault, OSError):
        text = fault.strerror or text
    return LedgerError(f"the ledger {path} cannot be used ({text}): {advice}")


_ADVICE = {
    sqlite3.SQLITE_FULL: "free some space; nothing was recorded, and nothing new is sent until it can be",
    sqlite3.SQLITE_READONLY: "it (or FILE-wal, -shm, -bide, or its directory) cannot be written; change owner or mode",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that its directory exists and can be written",
    sqlite3.SQLITE_PERM: "this process has no permission to write it; change its owner or mode, or name another file",
    sqlite3.SQLITE_BUSY: "another program (a database browser?) has locked it; end that one; nothing was recorded",
    sqlite3.SQLITE_LOCKED: "another program has locked it; nothing was recorded",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database; name another file, or move this one away",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; move it away (`sqlite3 FILE .recover` may save it) and start again",
    sqlite3.SQLITE_IOERR: "the disk does not work, or is full; nothing was recorded",
}
