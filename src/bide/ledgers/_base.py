"""What a ledger keeps and what it must do atomically.

The slot is the record: there is no semaphore beside the records. A record that is `submitting`, `queued` or
`running` uses a slot of its lane until its `slot_until`; one that ended as `unknown` does so for a while.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen

from bide._limits import LaneState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from bide._limits import Setback
    from bide.models import Limits, Request, Task


@frozen
class Record:
    """What is known of one submission. A change is a new record.

    Attributes:
        origin: the provider's name and origin; with `kind` it names the queue.
        request: what to send, or None for a task that was made elsewhere.
        keys: fingerprints of the keys that may create it.
        owner: the client that drives it; None is nobody, free to be adopted.
        sequence: the order of arrival in the queue.
        task: the last snapshot on record; looks that change nothing of weight are not recorded.
        lane: fingerprint of the key that creates it or has created it; None while it waits.
        admitted: when it was admitted, by the ledger's clock; `sent_at` is the same by the wall clock.
        slot_until: until when it counts as a slot, by the ledger's clock.
        cancelling: a cancel was asked for while it was submitting.
    """

    ticket: str
    origin: str
    kind: str
    request: Request | None
    keys: frozenset[str]
    task: Task
    owner: str | None = None
    sequence: int = 0
    lane: str | None = None
    admitted: float | None = None
    sent_at: datetime | None = None
    slot_until: float = math.inf
    cancelling: bool = False


@frozen
class LaneTerms:
    """What a client knows of a lane that it may use.

    Attributes:
        slot_for: seconds that a task may use its slot at most.
    """

    fingerprint: str
    limits: Limits
    slot_for: float


@frozen
class Held:
    """Nobody can be admitted now. *until* is when to ask again if no change was heard before; infinity: only then."""

    until: float = math.inf


@frozen
class LaneView:
    """A lane at a moment, for `client.statistics()`."""

    fingerprint: str
    kind: str
    slots: int
    state: LaneState = field(factory=LaneState)


class Ledger(Protocol):
    """Records and lanes. Each method is one atomic step, and safe to repeat.

    A record that is final does not change any more: `update`, `accept` and `finish` return it as it stands. A ledger
    is hashable and can be weakly referenced, as plain classes are.

    Attributes:
        durable: whether records outlive the process, so that another can go on with them.
    """

    @property
    def durable(self) -> bool: ...

    def now(self) -> float:
        """Seconds by the ledger's clock."""
        ...

    async def fingerprint(self, key: str) -> str:
        """A salted digest that names *key* in records, and tells nothing of it."""
        ...

    def subscribe(self, heard: Callable[[Record], None]) -> Callable[[], None]:
        """Call *heard* with each record that changes, whoever changed it. Returns what ends that."""
        ...

    async def add(self, record: Record) -> Record:
        """Put *record* on record. If its ticket is there already, that one is returned and nothing changes."""
        ...

    async def get(self, ticket: str) -> Record | None:
        """The record of *ticket*."""
        ...

    async def find(self, origin: str, task_id: str) -> Record | None:
        """The open record of the service's *task_id*."""
        ...

    async def known(self, origin: str, task_ids: Collection[str]) -> frozenset[str]:
        """Those of *task_ids* that some record has, or has had of late."""
        ...

    async def admit(self, origin: str, kind: str, owner: str, lanes: Sequence[LaneTerms]) -> Record | Held:
        """Admit the first record of the queue that *owner* has and that a lane can take: it is `submitting` then.

        Gate, slots, learned cap, create rate and the queue are looked at together. An older record of another
        owner that could use the same lane goes first.
        """
        ...

    async def accept(self, ticket: str, task: Task) -> Record:
        """The create was answered with a task that goes on."""
        ...

    async def put_back(
        self, ticket: str, setback: Setback, *, limits: Limits, certain: bool, retry_after: float | None
    ) -> Record:
        """The create made no task, for now: back to the head of the queue, and the lane pauses.

        If a cancel was asked for meanwhile, the record ends as `cancelled` instead.
        """
        ...

    async def update(self, ticket: str, task: Task) -> Record:
        """The service tells a new state that is not final."""
        ...

    async def finish(self, ticket: str, task: Task, *, hold: float = 0.0) -> Record:
        """Record a final state. The slot is free now, or *hold* seconds from now."""
        ...

    async def withdraw(self, ticket: str, task: Task) -> Record:
        """End a record that waits; one that does not is returned as it stands."""
        ...

    async def cancelling(self, ticket: str) -> Record:
        """Remember that a cancel was asked for while the record is `submitting`."""
        ...

    async def unsettled(self, origin: str, lane: str) -> list[Record]:
        """Records of the key whose create has no known task: `submitting`, or `unknown` and still held."""
        ...

    async def release(self, owner: str) -> list[Record]:
        """*owner* leaves: its open records belong to nobody. Returns them."""
        ...

    async def adopt(self, origin: str, keys: Collection[str], owner: str) -> list[Record]:
        """*owner* takes over the open records that belong to nobody and that it holds the key of. Returns them."""
        ...

    async def lanes(self, origin: str, keys: Collection[str]) -> list[LaneView]:
        """The lanes of these keys that have been used."""
        ...
