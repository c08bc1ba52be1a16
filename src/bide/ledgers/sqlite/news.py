"""`News`: what a transaction has changed, and which other processes must be notified of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bide.ledgers._lanes import is_passed_over
from bide.ledgers.sqlite.processes import instance_of
from bide.ledgers.sqlite.rows import oldest_waiting
from bide.models import TaskStatus

if TYPE_CHECKING:
    from bide.ledgers._records import Record
    from bide.ledgers.sqlite.database import Database

TURN_MESSAGE, NEWS_MESSAGE, OWNERS_MESSAGE = b"t", b"n", b"o"
"""What processes wake each other with: it may be your turn; there is news to read; owners have come or gone."""

_TURNS = oldest_waiting("SELECT keys, owner, sequence FROM records")


class News:
    """The changes of this process, for its own listeners and its peers, and the table `news` between the processes.

    Attributes:
        peers: the other processes that are on record as having the file open.
        has_unowned: a record has no owner now, or owners have come or gone.
    """

    def __init__(self, database: Database, instance: str) -> None:
        self._database = database
        self._connection = database.connection
        self._instance = instance
        (self._last_read,) = self._connection.execute("SELECT coalesce(max(id), 0) FROM news").fetchone()
        self._last_read_before = self._last_read
        self._changed: list[Record] = []
        self._queues: set[tuple[str, str]] = set()
        self._is_written = False
        self.peers: list[str] = []
        self.has_unowned: bool = False

    # Transactions -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Remember what to return to if the transaction is rolled back."""
        self._last_read_before = self._last_read

    def read_peers(self) -> None:
        """Read again which other processes have the file open."""
        rows = self._connection.execute("SELECT instance FROM owners WHERE instance != ?", (self._instance,))
        self.peers = [instance for (instance,) in rows]

    def on_rollback(self) -> None:
        """Forget what the transaction has changed."""
        self._last_read = self._last_read_before
        self._changed.clear()
        self._queues.clear()
        self._is_written = self.has_unowned = False

    # What this process changes ------------------------------------------------------------------------------

    def note_change(self, before: Record, after: Record) -> None:
        """Note that a record has changed."""
        status = after.task.status
        self._changed.append(after)
        # A record that is sent or goes on keeps its slot. Only where the queue or the slots change can it be the turn
        # of another owner.
        if (
            status.is_final
            or before.slot_until != after.slot_until
            or before.owner != after.owner
            or TaskStatus.WAITING in (before.task.status, status)
        ):
            self.note_queue(after.origin, after.kind)
        self.has_unowned = self.has_unowned or (after.owner is None and not status.is_final)
        owners = {before.owner, after.owner}
        if self.peers and (after.followed or any(each and self._is_of_a_peer(each) for each in owners)):
            self._is_written = True
            self._connection.execute(
                "INSERT INTO news (ticket, instance, at) VALUES (?, ?, ?)",
                (after.ticket, self._instance, self._database.now()),
            )

    def note_removal(self, record: Record) -> None:
        """Note that a record was removed."""
        self._changed.append(record)
        self.note_queue(record.origin, record.kind)

    def note_queue(self, origin: str, kind: str) -> None:
        """Note that it may be the turn of another owner in this queue."""
        self._queues.add((origin, kind))

    def _is_of_a_peer(self, owner: str) -> bool:
        return not owner.startswith(self._instance)

    def take_changed(self) -> list[Record]:
        """Hand over the records changed since the last call."""
        changed, self._changed = self._changed, []
        return changed

    def take_messages(self) -> set[tuple[str, bytes]]:
        """Hand over which processes to wake after the transaction, and with what message."""
        turns = (instance_of(owner) for owner in self._turns())
        messages = {(instance, TURN_MESSAGE) for instance in turns if instance != self._instance}
        if self._is_written or self.has_unowned:
            message = OWNERS_MESSAGE if self.has_unowned else NEWS_MESSAGE
            messages.update((peer, message) for peer in self.peers)
            self._is_written = self.has_unowned = False
        return messages

    def _turns(self) -> set[str]:
        """The owners whose turn it may be, in the queues that have changed."""
        queues, self._queues = self._queues, set()
        if not self.peers:
            return set()
        return {owner for queue in queues for owner in self._turns_in(*queue)}

    def _turns_in(self, origin: str, kind: str) -> set[str]:
        """Of each set of keys, the first owner that is not passed over."""
        offers = dict(
            self._connection.execute(
                "SELECT owner, at FROM offers WHERE origin = ? AND kind = ?", (origin, kind)
            ).fetchall()
        )
        now = self._database.now()
        turns: dict[str, str] = {}
        rows = self._connection.execute(_TURNS, (origin, kind) * 3).fetchall()
        for keys, owner, _ in sorted(rows, key=lambda row: int(row[2])):
            if not is_passed_over(offers.get(owner), now):
                turns.setdefault(keys, owner)
        return set(turns.values())

    # What peers have changed --------------------------------------------------------------------------------

    def read(self) -> list[str]:
        """The tickets of the records that peers have changed since the last call."""
        rows = self._connection.execute(
            "SELECT id, ticket, instance FROM news WHERE id > ? ORDER BY id", (self._last_read,)
        ).fetchall()
        if rows:
            self._last_read = rows[-1][0]
        return list(dict.fromkeys(ticket for _, ticket, instance in rows if instance != self._instance))
