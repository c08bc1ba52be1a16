"""Records and lanes as rows: the `Store` of a `SQLiteLedger`, used inside its transactions only."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Any

import attrs
from attrs import evolve

from bide import _outside
from bide.errors import LedgerError
from bide.ledgers._lanes import MOST_COUNTED_SLOTS, LaneLoad, LaneState
from bide.ledgers._records import digest_of_plain, plain_of
from bide.ledgers._store import Store
from bide.ledgers.sqlite.rows import (
    COLUMNS,
    LOSS_COLUMNS,
    SELECT,
    changed_columns,
    oldest_waiting,
    record_of,
    row_of,
    text_of,
)
from bide.models import request_from_dict

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Mapping

    from bide.ledgers._records import Record
    from bide.ledgers.sqlite.database import Database
    from bide.ledgers.sqlite.news import News
    from bide.models import Request

_log = logging.getLogger("bide")

MOST_CACHED_RECORDS = 4000
"""Open records that stay cached when another process has written. Records that ended there are among them."""
LONGEST_READ_CHARACTERS = 8 * 1024 * 1024
"""`unsaved_records` stops reading after snapshots of this length: those with inline files are long."""

_INSERT = f"INSERT INTO records ({', '.join(COLUMNS + LOSS_COLUMNS)}) VALUES (:{', :'.join(COLUMNS + LOSS_COLUMNS)})"  # noqa: S608 - our own names
_HEADS = oldest_waiting(SELECT)
_ADDED_AT, _TASK = COLUMNS.index("added_at"), COLUMNS.index("task")
_LANE = tuple(each.name for each in attrs.fields(LaneState))
_LANE_COLUMNS = ", ".join("learned_at" if name == "probe_at" else name for name in _LANE)
_IN_FLIGHT = "FROM records WHERE held = 1 AND origin = ? AND kind = ? AND lane = ? AND slot_until > ?"
_COUNT_ALL = f"SELECT count(*), min(slot_until) {_IN_FLIGHT}"
_COUNT_SOME = f"SELECT count(*) FROM (SELECT 1 {_IN_FLIGHT} LIMIT {MOST_COUNTED_SLOTS})"  # noqa: S608 - our own names


class SQLiteStore(Store):
    """The rows behind one connection, with a cache of the open records and the lanes.

    Args:
        news: notes each change.
        store_prompts: whether requests are stored. Otherwise they stay in the memory of this process.
    """

    def __init__(self, database: Database, news: News, *, store_prompts: bool) -> None:
        self._database = database
        self._connection: sqlite3.Connection = database.connection
        self._news = news
        self._store_prompts = store_prompts
        self._cache: dict[str, Record] = {}
        self._lanes: dict[tuple[str, str, str], LaneState] = {}
        self._offers: dict[tuple[str, str], dict[str, float]] = {}
        self._checked: set[str] = set()  # cached tickets whose records are known to equal those in the file
        self._version = -1
        self._requests: dict[str, Request] = {}

    # Transactions -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start a transaction: what is cached holds only if no other process has written since."""
        self._news.begin()
        version = self._connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._checked.clear()
            self._lanes.clear()
            self._offers.clear()
            if len(self._cache) > MOST_CACHED_RECORDS:
                self._cache.clear()
            self._version = version
            self._news.read_peers()

    def on_rollback(self) -> None:
        """Forget what the transaction has changed."""
        self._cache.clear()
        self._lanes.clear()
        self._offers.clear()
        self._version = -1
        self._news.on_rollback()

    def now(self) -> float:
        return self._database.now()

    # Records ------------------------------------------------------------------------------------------------

    def record(self, ticket: str) -> Record | None:
        there = self._cache.get(ticket)
        if there is not None and ticket not in self._checked:
            # Another process has written since, mostly other records. Comparing is cheaper than reading it again.
            row = self._connection.execute(
                "SELECT sequence, version, added_at FROM records WHERE ticket = ?", (ticket,)
            ).fetchone()
            # A ticket that was removed can be added again, with the same sequence and version.
            if row == (there.sequence, there.version, text_of(there.added_at)):
                self._checked.add(ticket)
            else:
                del self._cache[ticket]
                there = None
        if there is None:
            row = self._connection.execute(f"{SELECT} WHERE ticket = ?", (ticket,)).fetchone()
            there = None if row is None else self._read(row)
        return there

    def insert(self, record: Record) -> Record:
        body = "" if record.request is None else plain_of(record.request)
        digest = body and digest_of_plain(body)
        record = evolve(record, digest=digest, added_at=_outside.utc_now())
        row = row_of(record, self.now(), prompts=self._store_prompts)
        cursor = self._connection.execute(_INSERT, row)
        record = evolve(record, sequence=cursor.lastrowid or 0)
        if record.request is not None:
            if self._store_prompts:
                self._connection.execute("INSERT INTO requests VALUES (?, ?)", (record.sequence, body))
            else:
                self._requests[record.ticket] = record.request
        return self._note_change(record, record)

    def replace(self, before: Record, after: Record) -> Record:
        changed = changed_columns(before, after, self.now(), prompts=self.keeps_prompt(after))
        names = ", ".join(f"{name} = ?" for name in changed)
        self._connection.execute(
            f"UPDATE records SET {names} WHERE sequence = ?",  # noqa: S608 - our own names
            (*changed.values(), before.sequence),
        )
        return self._note_change(before, after)

    def drop(self, record: Record) -> None:
        self._connection.execute("DELETE FROM records WHERE sequence = ?", (record.sequence,))
        self._connection.execute("DELETE FROM requests WHERE sequence = ?", (record.sequence,))
        if record.task.task_id is not None:
            place = (record.origin, record.task.task_id, record.ticket, self.now())
            self._connection.execute("INSERT OR REPLACE INTO removed VALUES (?, ?, ?, ?)", place)
        self._cache.pop(record.ticket, None)
        self._requests.pop(record.ticket, None)
        self._news.note_removal(record)

    def _note_change(self, before: Record, after: Record) -> Record:
        if after.task.status.is_final:
            self._cache.pop(after.ticket, None)
            self._requests.pop(after.ticket, None)
        else:
            self._cache[after.ticket] = after
            self._checked.add(after.ticket)
        self._news.note_change(before, after)
        return after

    def has_request(self, record: Record) -> bool:
        """Whether the request of *record* is stored, so that another client can send it."""
        return self._store_prompts and record.request is not None

    def keeps_prompt(self, record: Record) -> bool:
        """Whether the prompt of *record* is stored: both this process and the one that submitted it must allow it."""
        return self._store_prompts and (record.request is not None or not record.digest)

    def newer_records(self, versions: Mapping[str, int]) -> list[Record]:
        """See `Ledger.newer_records`."""
        records = map(self.record, versions)
        return [each for each in records if each is not None and each.version > versions[each.ticket]]

    # Indexes ------------------------------------------------------------------------------------------------

    def heads(self, origin: str, kind: str) -> list[Record]:
        return sorted(self._all(_HEADS, *(origin, kind) * 3), key=lambda head: head.sequence)

    def ticket_of_task(self, origin: str, task_id: str) -> str | None:
        row = self._connection.execute(
            "SELECT ticket FROM records WHERE task_id = :id AND origin = :origin "
            "UNION ALL SELECT ticket FROM removed WHERE task_id = :id AND origin = :origin",
            {"id": task_id, "origin": origin},
        ).fetchone()
        return None if row is None else str(row[0])

    def unsettled_records(self, origin: str, key: str, now: float) -> list[Record]:
        return self.select(
            "WHERE held = 1 AND origin = ? AND lane = ? AND slot_until > ? AND status = 'unknown' "
            f"UNION ALL {SELECT} WHERE status = 'submitting' AND origin = ? AND lane = ?",
            *(origin, key, now, origin, key),
        )

    def records_of_owner(self, owner: str) -> list[Record]:
        return self.select("WHERE is_open = 1 AND owner = ?", owner)

    def unowned_records(self, origin: str) -> list[Record]:
        return self.select("WHERE is_open = 1 AND owner IS NULL AND origin = ? ORDER BY sequence", origin)

    def held_keys(self, origin: str) -> frozenset[str]:
        rows = self._connection.execute("SELECT keys FROM clients WHERE origin = ?", (origin,)).fetchall()
        return frozenset(key for (keys,) in rows for key in keys.split(","))

    def open_records(self, origin: str) -> list[Record]:
        return self.select("WHERE is_open = 1 AND origin = ? ORDER BY sequence", origin)

    def unsaved_records(self, origin: str, keys: Collection[str], at: float, most: int) -> list[Record]:
        # The index alone finds the rows to read, so the number of other records does not matter.
        mine = " OR ".join("instr(',' || keys || ',', ?)" for _ in keys)
        cursor = self._connection.execute(
            f"{SELECT} INDEXED BY records_unsaved WHERE first_loss IS NOT NULL AND origin = ? AND last_loss > ? "
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

    def list_records(self, *, is_open: bool) -> list[Record]:
        """The records in the order of arrival: the open and `unknown` ones, or all."""
        only = "WHERE is_open = 1 OR status = 'unknown' " if is_open else ""
        return self.select(f"{only}ORDER BY sequence")

    def offers(self, origin: str, kind: str) -> Mapping[str, float]:
        offers = self._offers.get((origin, kind))
        if offers is None:
            rows = self._connection.execute(
                "SELECT owner, at FROM offers WHERE origin = ? AND kind = ?", (origin, kind)
            )
            offers = self._offers[origin, kind] = dict(rows.fetchall())
        return offers

    def write_offer(self, origin: str, kind: str, owner: str, at: float | None) -> None:
        place = (origin, kind, owner)
        if at is None:
            self._connection.execute("DELETE FROM offers WHERE origin = ? AND kind = ? AND owner = ?", place)
        else:
            self._connection.execute("INSERT OR REPLACE INTO offers VALUES (?, ?, ?, ?)", (*place, at))
        self._offers.pop((origin, kind), None)
        self._news.note_queue(origin, kind)

    # Lanes --------------------------------------------------------------------------------------------------

    def lane(self, origin: str, kind: str, key: str) -> LaneState:
        state = self._lanes.get((origin, kind, key))
        if state is None:
            row = self._connection.execute(
                f"SELECT {_LANE_COLUMNS} FROM lanes WHERE origin = ? AND kind = ? AND key = ?",  # noqa: S608 - our own names
                (origin, kind, key),
            ).fetchone()
            state = self._lanes[origin, kind, key] = LaneState() if row is None else _lane(row)
        return state

    def write_lane(self, origin: str, kind: str, key: str, state: LaneState) -> None:
        self._connection.execute(
            f"INSERT OR REPLACE INTO lanes (origin, kind, key, {_LANE_COLUMNS}) "  # noqa: S608 - our own names
            f"VALUES (?, ?, ?, {', '.join('?' * len(_LANE))})",
            (origin, kind, key, *_lane_row(state)),
        )
        self._lanes[origin, kind, key] = state
        self._news.note_queue(origin, kind)

    def load(
        self, origin: str, kind: str, key: str, now: float, *, slots: bool = True, creates: bool = True
    ) -> LaneLoad:
        lane, answered = (origin, kind, key), list[tuple[float]]()
        if slots:
            used, free = self._connection.execute(_COUNT_ALL, (*lane, now)).fetchone()
        else:
            (used,), free = self._connection.execute(_COUNT_SOME, (*lane, now)).fetchone(), None
        submitting, last = self._connection.execute(
            "SELECT count(*), max(admitted) FROM records "
            "WHERE status = 'submitting' AND origin = ? AND kind = ? AND lane = ? AND slot_until > ?",
            (*lane, now),
        ).fetchone()
        if creates:
            answered = self._connection.execute(
                "SELECT answered FROM creates WHERE origin = ? AND kind = ? AND key = ? ORDER BY answered",
                lane,
            ).fetchall()
        return LaneLoad(
            used,
            submitting,
            -math.inf if last is None else last,
            [each for (each,) in answered],
            math.inf if free is None else free,
        )

    def count_create(self, origin: str, kind: str, key: str, now: float, window: float) -> None:
        lane = (origin, kind, key)
        self._connection.execute(
            "DELETE FROM creates WHERE origin = ? AND kind = ? AND key = ? AND answered <= ?",
            (*lane, now - window),
        )
        self._connection.execute("INSERT INTO creates VALUES (?, ?, ?, ?)", (*lane, now))
        self._news.note_queue(origin, kind)

    def lanes(self, origin: str) -> list[tuple[str, str, LaneState]]:
        rows = self._connection.execute(
            f"SELECT kind, key, {_LANE_COLUMNS} FROM lanes WHERE origin = ?",  # noqa: S608 - our own names
            (origin,),
        )
        return [(row[0], row[1], _lane(row[2:])) for row in rows]

    def origins(self) -> list[str]:
        """The services that have lanes."""
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

    def write_learned(self, texts: Mapping[str, str], most: int) -> None:
        now = self.now()
        self._connection.executemany(
            "INSERT OR REPLACE INTO learned (name, state, changed) VALUES (?, ?, ?)",
            [(name, text, now) for name, text in texts.items()],
        )
        self._connection.execute(
            "DELETE FROM learned WHERE name IN (SELECT name FROM learned ORDER BY changed DESC LIMIT -1 OFFSET ?)",
            (most,),
        )

    # Rows ---------------------------------------------------------------------------------------------------

    def select(self, rest: str, *values: Any) -> list[Record]:
        """The records of the query `SELECT` that ends with *rest*. A row that cannot be read is logged and skipped."""
        return self._all(f"{SELECT} {rest}", *values)

    def _all(self, query: str, *values: Any) -> list[Record]:
        return self._records(self._connection.execute(query, values).fetchall())

    def _records(self, rows: Iterable[tuple[Any, ...]]) -> list[Record]:
        records = []
        for row in rows:
            try:
                records.append(self._read(row))
            except LedgerError as fault:  # an unreadable record must not block the others
                _log.error("%s", fault)
        return records

    def _read(self, row: tuple[Any, ...]) -> Record:
        sequence, ticket, version = row[:3]
        record = self._cache.get(ticket)
        in_file = (sequence, version, row[_ADDED_AT])
        if record is None or (record.sequence, record.version, text_of(record.added_at)) != in_file:
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
    freed = tuple(float(moment) for moment in str(state.freed).split())
    return evolve(state, probing=bool(state.probing), freed=freed)


def _lane_row(state: LaneState) -> list[Any]:
    return [" ".join(map(repr, state.freed)) if name == "freed" else getattr(state, name) for name in _LANE]
