"""`Store`: what a ledger implements to keep its records. The state machine over it takes the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from bide.ledgers._lanes import LaneLoad, LaneState
    from bide.ledgers._records import Record


class Store(Protocol):
    """Where a ledger keeps records and lanes. To write a further ledger, implement this protocol.

    A `StateMachine` calls it inside a step, which the ledger makes atomic (see `Ledger`). A store holds no rules: it
    keeps what it is given, and finds it by the indexes below. `MemoryStore` and `SQLiteStore` are the examples.
    """

    def now(self) -> float:
        """Seconds by the ledger's clock."""
        ...

    def record(self, ticket: str) -> Record | None:
        """The record of *ticket*."""
        ...

    def insert(self, record: Record) -> Record:
        """Add a new record. Returns it with its `sequence`, its place in the order of arrival."""
        ...

    def replace(self, before: Record, after: Record) -> Record:
        """Replace *before* by *after*, which has the same ticket. Returns *after*."""
        ...

    def drop(self, record: Record) -> None:
        """Remove a record. `ticket_of_task` knows its task id for some time."""
        ...

    def heads(self, origin: str, kind: str) -> Iterable[Record]:
        """Of each owner and set of keys, the oldest waiting record. The oldest of all comes first."""
        ...

    def offers(self, origin: str, kind: str) -> Mapping[str, float]:
        """When a free slot was offered to owners that have not asked for one since."""
        ...

    def write_offer(self, origin: str, kind: str, owner: str, at: float | None) -> None:
        """Write when a slot was offered to *owner*; None removes that."""
        ...

    def lane(self, origin: str, kind: str, key: str) -> LaneState:
        """The state of a lane; a new state if the lane is not known yet."""
        ...

    def write_lane(self, origin: str, kind: str, key: str, state: LaneState) -> None:
        """Write the state of a lane."""
        ...

    def load(
        self, origin: str, kind: str, key: str, now: float, *, slots: bool = True, creates: bool = True
    ) -> LaneLoad:
        """How a lane is used now.

        Args:
            slots: False if more than `MOST_COUNTED_SLOTS` slots need not be counted, and `next_free` does not matter,
                since the lane has no cap.
            creates: False if answered creates need not be counted, since the lane has no create rate.
        """
        ...

    def count_create(self, origin: str, kind: str, key: str, now: float, window: float) -> None:
        """Count a create that was answered now. It counts for the lane's create rate for *window* seconds."""
        ...

    def ticket_of_task(self, origin: str, task_id: str) -> str | None:
        """The ticket of the record that has, or had recently, the service's *task_id*."""
        ...

    def unsettled_records(self, origin: str, key: str, now: float) -> list[Record]:
        """Records of the key that are `submitting`, or `unknown` and still using a slot."""
        ...

    def records_of_owner(self, owner: str) -> list[Record]:
        """The open records of *owner*."""
        ...

    def unowned_records(self, origin: str) -> list[Record]:
        """The open records without an owner."""
        ...

    def held_keys(self, origin: str) -> frozenset[str]:
        """The keys of the open clients."""
        ...

    def open_records(self, origin: str) -> list[Record]:
        """The open records, in the order of arrival."""
        ...

    def unsaved_records(self, origin: str, keys: Collection[str], at: float, most: int) -> Iterable[Record]:
        """The records of these keys with unsaved results that expire after *at*.

        If there are more than *most*, those whose results expire first. It can return further records: the state
        machine filters them.
        """
        ...

    def lanes(self, origin: str) -> list[tuple[str, str, LaneState]]:
        """Kind, key and state of each lane that has been used."""
        ...

    def read_learned(self, names: Collection[str] | None) -> dict[str, str]:
        """What was learned under these names, or under all names with None."""
        ...

    def write_learned(self, texts: Mapping[str, str], most: int) -> None:
        """Write these texts under their names. Of all names, keep the *most* that were changed last."""
        ...
