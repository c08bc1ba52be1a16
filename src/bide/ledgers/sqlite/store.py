"""Records and lanes as rows: the `Store` of a `SQLiteLedger`, used inside its transactions only."""

from __future__ import annotations

import json
import logging
import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
from attrs import evolve

from bide.errors import LedgerError
from bide.ledgers._lanes import LaneLoad, LaneState
from bide.ledgers._records import Record, digest_of_plain, plain_of
from bide.ledgers._state_machine import Store
from bide.ledgers.sqlite.rows import (
    COLUMNS,
    LOSS_COLUMNS,
    blanked,
    changes,
    losses,
    record_of,
    row_of,
    task_text,
    text_of,
)
from bide.models import TaskStatus, request_from_dict

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Mapping

    from bide.ledgers.sqlite.database import Database
    from bide.models import Request

log = logging.getLogger("bide")

RECORDS_PER_CLEANING = 200
"""Records that are blanked or removed in one step."""
MOST_CACHED_RECORDS = 4000
"""Open records that are remembered while other processes write; those that ended there are among them."""
LONGEST_READ_CHARACTERS = 8 * 1024 * 1024
"""Characters of snapshots after which `unsaved` reads no further one: those with files inline are long."""
NEWS_KEPT_SECONDS = 3600.0
REMOVED_KEPT_SECONDS = 2 * 24 * 3600.0
"""Seconds that the ids of removed records are known: longer than a service lists its tasks."""

_SELECT = f"SELECT {', '.join(COLUMNS)} FROM records"  # noqa: S608 - our own names
_INSERT = f"INSERT INTO records ({', '.join(COLUMNS + LOSS_COLUMNS)}) VALUES (:{', :'.join(COLUMNS + LOSS_COLUMNS)})"  # noqa: S608 - our own names
# The oldest one of each set of keys: as many steps in the index as there are sets, however long the queue is.
_WAITING = "status = 'waiting' AND owner IS NOT NULL AND origin = ? AND kind = ?"
_FIRST = f"""
    WITH RECURSIVE sets (keys) AS (
        SELECT min(keys) FROM records WHERE {_WAITING}
        UNION ALL
        SELECT (SELECT min(keys) FROM records WHERE {_WAITING} AND keys > sets.keys) FROM sets WHERE sets.keys NOT NULL
    )
    {{}} WHERE sequence IN (
        SELECT (SELECT min(sequence) FROM records WHERE {_WAITING} AND keys = sets.keys) FROM sets
    )
"""  # noqa: S608 - our own names
_HEADS, _TURNS = _FIRST.format(_SELECT), _FIRST.format("SELECT owner FROM records")
_ADDED_AT, _TASK = COLUMNS.index("added_at"), COLUMNS.index("task")
_LANE = tuple(each.name for each in attrs.fields(LaneState))


class SQLiteStore(Store):
    """The rows behind one connection, with what must be told to others when the transaction is through.

    Attributes:
        changed: records that were changed here since `begin`.
        queues: origin and kind of queues in which it may be somebody else's turn now.
        has_news: others have to read the news.
        others: the other processes that have the file open, as far as is on record.
        has_unowned: a record belongs to nobody now, or owners have come or gone.
    """

    def __init__(self, database: Database, instance: str, *, store_prompts: bool, keep: float) -> None:
        self._database = database
        self._connection: sqlite3.Connection = database.connection
        self._instance = instance
        self._store_prompts = store_prompts
        self._keep = keep
        self._cache: dict[str, Record] = {}
        self._lanes: dict[tuple[str, str, str], LaneState] = {}
        self._checked: set[str] = set()  # those in it that are as they stand in the file
        self._version = -1
        self._requests: dict[str, Request] = {}
        (self._seen_news,) = self._connection.execute("SELECT coalesce(max(id), 0) FROM news").fetchone()
        self._seen_before = self._seen_news
        self.changed: list[Record] = []
        self.queues: set[tuple[str, str]] = set()
        self.others: list[str] = []
        self.has_news = False
        self.has_unowned = False

    # Transactions -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A transaction has begun: what is remembered of records holds only if no other process has written."""
        self._seen_before = self._seen_news
        version = self._connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._checked.clear()
            self._lanes.clear()
            if len(self._cache) > MOST_CACHED_RECORDS:
                self._cache.clear()
            self._version = version
            rows = self._connection.execute(
                "SELECT instance FROM owners WHERE instance != ?", (self._instance,)
            )
            self.others = [instance for (instance,) in rows]

    def undone(self) -> None:
        """The transaction was rolled back."""
        self._cache.clear()
        self._lanes.clear()
        self._version = -1
        self._seen_news = self._seen_before
        self.changed.clear()
        self.queues.clear()
        self.has_news = self.has_unowned = False

    def turns(self) -> set[str]:
        """The owners whose turn it may be, in the queues that have changed."""
        queues, self.queues = self.queues, set()
        if not self.others:
            return set()
        rows = (self._connection.execute(_TURNS, queue * 3).fetchall() for queue in queues)
        return {owner for found in rows for (owner,) in found}

    def now(self) -> float:
        return self._database.now()

    # Records ------------------------------------------------------------------------------------------------

    def record(self, ticket: str) -> Record | None:
        there = self._cache.get(ticket)
        if there is not None and ticket not in self._checked:
            # Others have written since: mostly not this one, and reading it anew is dearer than asking.
            row = self._connection.execute(
                "SELECT sequence, version, added_at FROM records WHERE ticket = ?", (ticket,)
            ).fetchone()
            # A ticket that was forgotten may be there again, with the same number and version.
            if row == (there.sequence, there.version, text_of(there.added_at)):
                self._checked.add(ticket)
            else:
                del self._cache[ticket]
                there = None
        return there or self._one(f"{_SELECT} WHERE ticket = ?", ticket)

    def insert(self, record: Record) -> Record:
        body = "" if record.request is None else plain_of(record.request)
        digest = body and digest_of_plain(body)
        record = evolve(record, digest=digest, added_at=datetime.now(UTC))
        row = row_of(record, self.now(), prompts=self._store_prompts)
        cursor = self._connection.execute(_INSERT, row)
        record = evolve(record, sequence=cursor.lastrowid or 0)
        if record.request is not None:
            if self._store_prompts:
                self._connection.execute("INSERT INTO requests VALUES (?, ?)", (record.sequence, body))
            else:
                self._requests[record.ticket] = record.request
        return self._noted(record, record)

    def replace(self, before: Record, after: Record) -> Record:
        changed = changes(before, after, self.now(), prompts=self._keeps_prompt(after))
        names = ", ".join(f"{name} = ?" for name in changed)
        self._connection.execute(
            f"UPDATE records SET {names} WHERE sequence = ?",  # noqa: S608 - our own names
            (*changed.values(), before.sequence),
        )
        return self._noted(before, after)

    def drop(self, record: Record) -> None:
        self._connection.execute("DELETE FROM records WHERE sequence = ?", (record.sequence,))
        self._connection.execute("DELETE FROM requests WHERE sequence = ?", (record.sequence,))
        if record.task.task_id is not None:
            place = (record.origin, record.task.task_id, record.ticket, self.now())
            self._connection.execute("INSERT OR REPLACE INTO removed VALUES (?, ?, ?, ?)", place)
        self._cache.pop(record.ticket, None)
        self._requests.pop(record.ticket, None)
        self.changed.append(record)
        self.queues.add((record.origin, record.kind))

    def _noted(self, before: Record, after: Record) -> Record:
        """Remember a change, and who has to hear of it."""
        status = after.task.status
        if status.is_final:
            self._cache.pop(after.ticket, None)
            self._requests.pop(after.ticket, None)
        else:
            self._cache[after.ticket] = after
            self._checked.add(after.ticket)
        self.changed.append(after)
        # What goes out or on keeps its slot: it can be somebody else's turn only where the queue or the slots change.
        if (
            status.is_final
            or before.owner != after.owner
            or TaskStatus.WAITING in (before.task.status, status)
        ):
            self.queues.add((after.origin, after.kind))
        self.has_unowned = self.has_unowned or (after.owner is None and not status.is_final)
        owners = {before.owner, after.owner}
        if self.others and (after.followed or any(each and self._is_elsewhere(each) for each in owners)):
            self.has_news = True
            self._connection.execute(
                "INSERT INTO news (ticket, instance, at) VALUES (?, ?, ?)",
                (after.ticket, self._instance, self.now()),
            )
        return after

    def _is_elsewhere(self, owner: str) -> bool:
        return not owner.startswith(self._instance)

    def has_request(self, record: Record) -> bool:
        """Whether the request of *record* is stored, for others to send."""
        return self._store_prompts and record.request is not None

    def _keeps_prompt(self, record: Record) -> bool:
        """Whether a prompt may be stored: not if whoever submitted it, or this process, does not want that."""
        return self._store_prompts and (record.request is not None or not record.digest)

    def news(self) -> list[Record]:
        """The records that other processes have told of since this was asked last."""
        rows = self._connection.execute(
            "SELECT id, ticket, instance FROM news WHERE id > ? ORDER BY id", (self._seen_news,)
        ).fetchall()
        if rows:
            self._seen_news = rows[-1][0]
        tickets = dict.fromkeys(ticket for _, ticket, instance in rows if instance != self._instance)
        return [record for ticket in tickets if (record := self.record(ticket)) is not None]

    def newer_records(self, versions: Mapping[str, int]) -> list[Record]:
        """See `Ledger.newer_records`."""
        records = map(self.record, versions)
        return [each for each in records if each is not None and each.version > versions[each.ticket]]

    # Indexes ------------------------------------------------------------------------------------------------

    def heads(self, origin: str, kind: str) -> list[Record]:
        return sorted(self._all(_HEADS, *(origin, kind) * 3), key=lambda head: head.sequence)

    def of_task(self, origin: str, task_id: str) -> str | None:
        row = self._connection.execute(
            "SELECT ticket FROM records WHERE task_id = :id AND origin = :origin "
            "UNION ALL SELECT ticket FROM removed WHERE task_id = :id AND origin = :origin",
            {"id": task_id, "origin": origin},
        ).fetchone()
        return None if row is None else str(row[0])

    def unsettled_records(self, origin: str, key: str, now: float) -> list[Record]:
        return self._all(
            f"{_SELECT} WHERE held = 1 AND origin = ? AND lane = ? AND slot_until > ? AND status = 'unknown' "
            f"UNION ALL {_SELECT} WHERE status = 'submitting' AND origin = ? AND lane = ?",
            *(origin, key, now, origin, key),
        )

    def owned_by(self, owner: str) -> list[Record]:
        return self._all(f"{_SELECT} WHERE is_open = 1 AND owner = ?", owner)

    def unowned(self, origin: str) -> list[Record]:
        return self._all(
            f"{_SELECT} WHERE is_open = 1 AND owner IS NULL AND origin = ? ORDER BY sequence", origin
        )

    def open_records(self, origin: str) -> list[Record]:
        return self._all(f"{_SELECT} WHERE is_open = 1 AND origin = ? ORDER BY sequence", origin)

    def unsaved_records(self, origin: str, keys: Collection[str], at: float, most: int) -> list[Record]:
        # What is to be read is found in the index alone: it does not matter how much else is on record.
        mine = " OR ".join("instr(',' || keys || ',', ?)" for _ in keys)
        cursor = self._connection.execute(
            f"{_SELECT} INDEXED BY records_unsaved WHERE first_loss IS NOT NULL AND origin = ? AND last_loss > ? "
            f"AND (lane IN ({', '.join('?' * len(keys))}) OR (lane IS NULL AND ({mine or 0}))) "
            f"ORDER BY first_loss LIMIT ?",
            (origin, at, *keys, *(f",{key}," for key in keys), most),
        )
        rows, length = [], 0
        for row in cursor:
            rows.append(row)
            length += len(row[_TASK] or "")
            if length > LONGEST_READ_CHARACTERS:
                break
        cursor.close()
        return self._records(rows)

    def listed(self, *, is_open: bool) -> list[Record]:
        """The records in the order of arrival: the open and the unknown ones, or all."""
        only = " WHERE is_open = 1 OR status = 'unknown'" if is_open else ""
        return self._all(f"{_SELECT}{only} ORDER BY sequence")

    # Lanes --------------------------------------------------------------------------------------------------

    def lane(self, origin: str, kind: str, key: str) -> LaneState:
        state = self._lanes.get((origin, kind, key))
        if state is None:
            row = self._connection.execute(
                f"SELECT {', '.join(_LANE)} FROM lanes WHERE origin = ? AND kind = ? AND key = ?",  # noqa: S608 - our own names
                (origin, kind, key),
            ).fetchone()
            state = self._lanes[origin, kind, key] = LaneState() if row is None else _lane(row)
        return state

    def keep_lane(self, origin: str, kind: str, key: str, state: LaneState) -> None:
        self._connection.execute(
            f"INSERT OR REPLACE INTO lanes (origin, kind, key, {', '.join(_LANE)}) "  # noqa: S608 - our own names
            f"VALUES (?, ?, ?, {', '.join('?' * len(_LANE))})",
            (origin, kind, key, *(getattr(state, name) for name in _LANE)),
        )
        self._lanes[origin, kind, key] = state
        self.queues.add((origin, kind))

    def load(
        self, origin: str, kind: str, key: str, now: float, *, slots: bool = True, creates: bool = True
    ) -> LaneLoad:
        lane = (origin, kind, key)
        used, free, submitting, answered = 0, None, 0, list[tuple[float]]()
        if slots:
            used, free = self._connection.execute(
                "SELECT count(*), min(slot_until) FROM records "
                "WHERE held = 1 AND origin = ? AND kind = ? AND lane = ? AND slot_until > ?",
                (*lane, now),
            ).fetchone()
        if creates:
            (submitting,) = self._connection.execute(
                "SELECT count(*) FROM records "
                "WHERE status = 'submitting' AND origin = ? AND kind = ? AND lane = ? AND slot_until > ?",
                (*lane, now),
            ).fetchone()
            answered = self._connection.execute(
                "SELECT answered FROM creates WHERE origin = ? AND kind = ? AND key = ? ORDER BY answered",
                lane,
            ).fetchall()
        return LaneLoad(used, submitting, [each for (each,) in answered], math.inf if free is None else free)

    def answered(self, origin: str, kind: str, key: str, now: float, window: float) -> None:
        lane = (origin, kind, key)
        self._connection.execute(
            "DELETE FROM creates WHERE origin = ? AND kind = ? AND key = ? AND answered <= ?",
            (*lane, now - window),
        )
        self._connection.execute("INSERT INTO creates VALUES (?, ?, ?, ?)", (*lane, now))
        self.queues.add((origin, kind))

    def lanes(self, origin: str) -> list[tuple[str, str, LaneState]]:
        rows = self._connection.execute(
            f"SELECT kind, key, {', '.join(_LANE)} FROM lanes WHERE origin = ?",  # noqa: S608 - our own names
            (origin,),
        )
        return [(row[0], row[1], _lane(row[2:])) for row in rows]

    def origins(self) -> list[str]:
        """The services that lanes are of."""
        return [row[0] for row in self._connection.execute("SELECT DISTINCT origin FROM lanes")]

    # What was learned ---------------------------------------------------------------------------------------

    def read_learned(self, names: Collection[str] | None) -> dict[str, str]:
        if names is None:
            return dict(self._connection.execute("SELECT name, state FROM learned ORDER BY changed"))
        rows = [
            self._connection.execute("SELECT name, state FROM learned WHERE name = ?", (name,)).fetchone()
            for name in names
        ]
        return dict(row for row in rows if row is not None)

    def keep_learned(self, texts: Mapping[str, str], most: int) -> None:
        now = self.now()
        self._connection.executemany(
            "INSERT OR REPLACE INTO learned (name, state, changed) VALUES (?, ?, ?)",
            [(name, text, now) for name, text in texts.items()],
        )
        self._connection.execute(
            "DELETE FROM learned WHERE name IN (SELECT name FROM learned ORDER BY changed DESC LIMIT -1 OFFSET ?)",
            (most,),
        )

    # Retention ----------------------------------------------------------------------------------------------

    def clean(self) -> bool:
        """Blank addresses that have expired, and remove what is old, a few at a time. Returns if there may be more."""
        due = self._all(
            f"{_SELECT} WHERE clean_at IS NOT NULL AND clean_at <= ? ORDER BY clean_at LIMIT {RECORDS_PER_CLEANING}",
            time.time(),
        )
        for record in due:
            was_blanked, at = self._connection.execute(
                "SELECT blanked, clean_at FROM records WHERE sequence = ?", (record.sequence,)
            ).fetchone()
            if was_blanked:
                self.drop(record)
            else:
                bare = blanked(record)
                text = task_text(bare, prompts=self._keeps_prompt(record))
                self._connection.execute(
                    "UPDATE records SET task = ?, blanked = 1, clean_at = ?, first_loss = ?, last_loss = ? "
                    "WHERE sequence = ?",
                    (text, at + self._keep, *losses(bare).values(), record.sequence),
                )
        self._connection.execute("DELETE FROM news WHERE at < ?", (self.now() - NEWS_KEPT_SECONDS,))
        self._connection.execute("DELETE FROM removed WHERE at < ?", (self.now() - REMOVED_KEPT_SECONDS,))
        self._connection.execute("PRAGMA incremental_vacuum(50)")
        (more,) = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM records WHERE clean_at IS NOT NULL AND clean_at <= ?)",
            (time.time(),),
        ).fetchone()
        return bool(more)

    # Rows ---------------------------------------------------------------------------------------------------

    def _one(self, query: str, *values: Any) -> Record | None:
        row = self._connection.execute(query, values).fetchone()
        return None if row is None else self._read(row)

    def _all(self, query: str, *values: Any) -> list[Record]:
        return self._records(self._connection.execute(query, values).fetchall())

    def _records(self, rows: Iterable[tuple[Any, ...]]) -> list[Record]:
        records = []
        for row in rows:
            try:
                records.append(self._read(row))
            except LedgerError as fault:  # one that cannot be read keeps nobody from the others
                log.error("%s", fault)
        return records

    def _read(self, row: tuple[Any, ...]) -> Record:
        sequence, ticket, version = row[:3]
        record = self._cache.get(ticket)
        stands = (sequence, version, row[_ADDED_AT])
        if record is None or (record.sequence, record.version, text_of(record.added_at)) != stands:
            try:
                record = record_of(row, self._request(ticket, sequence))
            except (ValueError, TypeError, KeyError) as fault:
                raise LedgerError(
                    f"the record of ticket {ticket!r} cannot be read ({type(fault).__name__}): was it changed by hand?"
                ) from fault
        if not record.task.status.is_final:
            self._cache[ticket] = record
            self._checked.add(ticket)
        return record

    def _request(self, ticket: str, sequence: int) -> Request | None:
        if not self._store_prompts:
            return self._requests.get(ticket)
        row = self._connection.execute("SELECT body FROM requests WHERE sequence = ?", (sequence,)).fetchone()
        return None if row is None else request_from_dict(json.loads(row[0]))


def _lane(row: tuple[Any, ...]) -> LaneState:
    state = LaneState(*row)
    return evolve(state, probing=bool(state.probing))
