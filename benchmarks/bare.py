"""The floor under the ledger: what one task writes, by hand with `sqlite3`, in one thread and one transaction a step.

It has the tables and indexes of a ledger, and each step reads and writes the same rows: before a task is admitted, the
first waiting record and its lane; before one is accepted, the other record with that id. (The lane has no cap and no
rate, so neither side counts anything.) A record is found by its number, and changed only from the state that it must
have had. JSON is made inside the loop. There are no objects, no other processes, no callbacks.
"""

from __future__ import annotations

import json
import sqlite3
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCHEMA = """
CREATE TABLE lanes (origin TEXT, kind TEXT, key TEXT, paused_until REAL, learned INTEGER, learned_at REAL,
    setbacks INTEGER, setback_at REAL, probing INTEGER, window REAL, PRIMARY KEY (origin, kind, key)) WITHOUT ROWID;
CREATE TABLE creates (origin TEXT, kind TEXT, key TEXT, answered REAL);
CREATE INDEX creates_of_lane ON creates (origin, kind, key, answered);
CREATE TABLE records (
    sequence INTEGER PRIMARY KEY, ticket TEXT NOT NULL UNIQUE, origin TEXT, kind TEXT, keys TEXT, digest TEXT,
    model TEXT, owner TEXT, status TEXT, lane TEXT, task_id TEXT, added_at TEXT, admitted REAL, sent_at TEXT,
    slot_for REAL, slot_until REAL, held INTEGER, version INTEGER, task TEXT, is_open INTEGER, clean_at REAL);
CREATE TABLE requests (sequence INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE INDEX records_waiting ON records (origin, kind, keys, sequence) WHERE status = 'waiting' AND owner IS NOT NULL;
CREATE INDEX records_held ON records (origin, kind, lane, slot_until) WHERE held = 1;
CREATE INDEX records_submitting ON records (origin, kind, lane) WHERE status = 'submitting';
CREATE INDEX records_of_task ON records (task_id) WHERE task_id IS NOT NULL;
CREATE INDEX records_open ON records (owner) WHERE is_open = 1;
CREATE INDEX records_to_clean ON records (clean_at) WHERE clean_at IS NOT NULL;
INSERT INTO lanes VALUES ('o', 'image', 'key', 0.0, NULL, 0.0, 0, 0.0, 0, 0.0);
"""
ADD = (
    "INSERT INTO records (ticket, origin, kind, keys, digest, model, owner, status, slot_until, is_open, version, "
    "added_at) VALUES (?, 'o', 'image', 'key', ?, ?, 'me', 'waiting', 9e999, 1, 0, ?)"
)
HEAD = (
    "SELECT sequence, ticket, owner, keys FROM records WHERE origin = 'o' AND kind = 'image' AND keys > '' AND "
    "status = 'waiting' AND owner IS NOT NULL ORDER BY keys, sequence LIMIT 1"
)
LANE = (
    "SELECT paused_until, learned, probing FROM lanes WHERE origin = 'o' AND kind = 'image' AND key = 'key'"
)
ADMIT = (
    "UPDATE records SET status = 'submitting', lane = 'key', admitted = ?, sent_at = ?, slot_for = 900.0, "
    "slot_until = ?, held = 1, version = version + 1 WHERE sequence = ? AND status = 'waiting'"
)
OF_TASK = "SELECT ticket FROM records WHERE task_id = ? AND origin = 'o'"
CHANGE = (
    "UPDATE records SET status = ?, task_id = ?, task = ?, version = version + 1 "
    "WHERE sequence = ? AND owner = 'me' AND status = ?"
)
FINISH = (
    "UPDATE records SET status = ?, task = ?, slot_until = ?, held = NULL, is_open = NULL, clean_at = ?, "
    "version = version + 1 WHERE sequence = ? AND owner = 'me' AND status = ?"
)


class Bare:
    """A database at *path*, and what becomes of tasks in it."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA wal_autocheckpoint = 4000")
        self._connection.executescript(SCHEMA)

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def live(self, ticket: str, request: Mapping[str, Any], snapshots: list[Mapping[str, Any]]) -> None:
        """One life: what was asked for, and the snapshots that a service reports, the last one final."""
        execute = self._connection.execute
        accepted, running, ended = snapshots
        task_id = accepted["task_id"]

        execute("BEGIN IMMEDIATE")
        added_at = datetime.now(UTC).isoformat()
        sequence = execute(ADD, (ticket, "digest", request["model"], added_at)).lastrowid
        execute("INSERT INTO requests VALUES (?, ?)", (sequence, json.dumps(request)))
        execute("COMMIT")

        execute("BEGIN IMMEDIATE")
        head = execute(HEAD).fetchone()
        execute(LANE).fetchone()
        now = time.time()
        execute(ADMIT, (now, datetime.now(UTC).isoformat(), now + 900.0, head[0]))
        execute("COMMIT")

        execute("BEGIN IMMEDIATE")
        execute(OF_TASK, (task_id,)).fetchone()
        execute(LANE).fetchone()
        execute(CHANGE, ("queued", task_id, json.dumps(accepted), sequence, "submitting"))
        execute("COMMIT")

        execute("BEGIN IMMEDIATE")
        execute(CHANGE, ("running", task_id, json.dumps(running), sequence, "queued"))
        execute("COMMIT")

        execute("BEGIN IMMEDIATE")
        now = time.time()
        changed = execute(
            FINISH, ("succeeded", json.dumps(ended), now, now + 86400.0, sequence, "running")
        ).rowcount
        execute("COMMIT")
        if changed != 1:
            raise RuntimeError(f"{ticket} did not end as it should")
