"""Retention: expired addresses are blanked, and old records are removed, a few at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bide import _outside
from bide.ledgers.sqlite.rows import losses, task_text, without_addresses

if TYPE_CHECKING:
    from bide.ledgers.sqlite.database import Database
    from bide.ledgers.sqlite.store import SQLiteStore

RECORDS_PER_CLEANING = 200
"""The most records that are blanked or removed in one step."""
NEWS_KEPT_SECONDS = 3600.0
REMOVED_KEPT_SECONDS = 2 * 24 * 3600.0
"""How long the ids of removed records stay known: longer than a service lists its tasks."""


class Retention:
    """Blanks and removes what has expired in *store*.

    Args:
        keep: seconds that a record is kept after its addresses were blanked.
    """

    def __init__(self, database: Database, store: SQLiteStore, *, keep: float) -> None:
        self._database = database
        self._connection = database.connection
        self._store = store
        self._keep = keep

    def clean(self) -> bool:
        """Blank expired addresses and remove old records. Returns whether there is more to do."""
        due = self._store.select(
            f"WHERE clean_at IS NOT NULL AND clean_at <= ? ORDER BY clean_at LIMIT {RECORDS_PER_CLEANING}",
            _outside.wall_time(),
        )
        for record in due:
            was_blanked, at = self._connection.execute(
                "SELECT blanked, clean_at FROM records WHERE sequence = ?", (record.sequence,)
            ).fetchone()
            if was_blanked:
                self._store.drop(record)
            else:
                bare = without_addresses(record)
                text = task_text(bare, prompts=self._store.keeps_prompt(record))
                self._connection.execute(
                    "UPDATE records SET task = ?, blanked = 1, clean_at = ?, first_loss = ?, last_loss = ? "
                    "WHERE sequence = ?",
                    (text, at + self._keep, *losses(bare).values(), record.sequence),
                )
        now = self._database.now()
        self._connection.execute("DELETE FROM news WHERE at < ?", (now - NEWS_KEPT_SECONDS,))
        self._connection.execute("DELETE FROM removed WHERE at < ?", (now - REMOVED_KEPT_SECONDS,))
        self._connection.execute("PRAGMA incremental_vacuum(50)")
        (more,) = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM records WHERE clean_at IS NOT NULL AND clean_at <= ?)",
            (_outside.wall_time(),),
        ).fetchone()
        return bool(more)
