"""What a ledger keeps and what it must do atomically.

The slot is the record: there is no semaphore beside the records. A record that is `submitting`, `queued` or
`running` uses a slot of its lane until its `slot_until`; one that ended as `unknown` does so for a while.
"""

from __future__ import annotations

import hashlib
import json
import math
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen

from bide.ledgers._lanes import LaneState
from bide.models import TaskStatus, request_to_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from bide.ledgers._lanes import Setback
    from bide.models import Limits, Request, SavedFile, Task


MOST_LEARNED = 1000
"""Names under which a ledger keeps what was learned; those that were changed longest ago go."""
MOST_UNSAVED = 1000
"""Records that `Ledger.unsaved` tells of at once."""


@frozen
class Record:
    """What is known of one submission. A change is a new record.

    Attributes:
        ticket: our id, in use from before the create on.
        origin: the provider's name and origin; with `kind` it names the queue.
        kind: "image" or "video".
        request: what to send; None for a task that was made elsewhere, or where the ledger keeps no requests.
        keys: fingerprints of the keys that may create it.
        digest: names the request where a ledger keeps no requests, see `digest_of`.
        owner: the client that drives it; None is nobody, free to be adopted.
        sequence: the order of arrival in the queue.
        task: the last snapshot on record; looks that change nothing of weight are not recorded.
        lane: fingerprint of the key that creates it or has created it; None while it waits.
        added_at: when it was put on record, UTC.
        admitted: when it was admitted, by the ledger's clock.
        sent_at: the same by the wall clock, UTC.
        slot_for: seconds that it may use its slot, as its admission said.
        slot_until: until when it counts as a slot, by the ledger's clock.
        cancelling: a cancel was asked for while it was submitting.
        cancel_taken: what the service said to that cancel: whether it was in time; None while it has said nothing.
        followed: somebody who does not drive it wants to hear of its changes.
        files: what was saved of its results.
        version: how often it has changed: of two, the higher one is the newer.
    """

    ticket: str
    origin: str
    kind: str
    request: Request | None
    keys: frozenset[str]
    task: Task
    digest: str = ""
    owner: str | None = None
    sequence: int = 0
    lane: str | None = None
    added_at: datetime | None = None
    admitted: float | None = None
    sent_at: datetime | None = None
    slot_for: float = math.inf
    slot_until: float = math.inf
    cancelling: bool = False
    cancel_taken: bool | None = None
    followed: bool = False
    files: tuple[SavedFile, ...] = ()
    version: int = 0

    @property
    def unsaved(self) -> tuple[int, ...]:
        """The places of those results that no file was saved of; empty while it has not succeeded."""
        if self.task.status is not TaskStatus.SUCCEEDED:
            return ()
        names = [PurePath(each.path).name for each in self.files]
        return tuple(
            place
            for place, output in enumerate(self.task.outputs)
            if output.error is None and not any(name.startswith(f"{self.ticket}-{place}.") for name in names)
        )

    @property
    def losses(self) -> tuple[float, ...]:
        """When each unsaved result expires, by the wall clock: never (infinity) what came inline, nor where nobody
        says when. What cannot be fetched any more, since its address was blanked, is not among them."""
        outputs = (self.task.outputs[place] for place in self.unsaved)
        return tuple(
            math.inf if each.data is not None or each.expires_at is None else each.expires_at.timestamp()
            for each in outputs
            if each.data is not None or each.url is not None
        )

    @property
    def is_submission(self) -> bool:
        """Whether it was submitted here; else its task was made elsewhere."""
        return self.request is not None or bool(self.digest)

    def asks_for(self, request: Request | None) -> bool:
        """Whether it is a submission of *request*."""
        if self.request is not None or request is None:
            return self.request == request
        return self.digest == digest_of(request)


def digest_of(request: Request) -> str:
    """A digest that names *request*: the same one for the same request, in any process."""
    return digest_of_plain(plain_of(request))


def plain_of(request: Request) -> str:
    """*request* as JSON: the same text for the same request."""
    return json.dumps(request_to_dict(request), sort_keys=True)


def digest_of_plain(plain: str) -> str:
    """See `digest_of`."""
    return hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()


@frozen
class LaneTerms:
    """What a client knows of a lane that it may use.

    Attributes:
        fingerprint: of the key.
        limits: how many tasks and creates the lane takes.
        slot_for: seconds that a task may use its slot at most.
    """

    fingerprint: str
    limits: Limits
    slot_for: float


@frozen
class Held:
    """Nobody can be admitted now.

    Attributes:
        until: when to ask again if no change was heard before; infinity: only then.
        is_idle: nothing waits at all.
    """

    until: float = math.inf
    is_idle: bool = False


@frozen
class LaneView:
    """A lane at a moment, for `client.statistics()`.

    Attributes:
        fingerprint: of the key.
        slots: how many are in use.
        state: what was learned of it; its moments are by the ledger's clock.
        origin: the provider's name and origin.
    """

    fingerprint: str
    kind: str
    slots: int
    state: LaneState = field(factory=LaneState)
    origin: str = ""


class Hint(Enum):
    """News that is no record's."""

    SLOTS = "slots"
    """Somebody else has changed a lane or a queue: it may be the turn of what waits here."""
    OWNERS = "owners"
    """Owners have come or gone: there may be records to adopt, and the shares of the query rate are new."""
    SHARES = "shares"
    """It is time to ask for the share of the query rate again."""


class Ledger(Protocol):
    """Records and lanes. Each method is one atomic step, and safe to repeat.

    A record that is final does not change any more, and an open one is driven by its owner alone: `accept`, `put_back`,
    `update` and `finish` return it as it stands if it is final or *owner* is not its owner. A ledger is hashable and
    can be weakly referenced, as plain classes are.

    Raises:
        LedgerError: (each method) it could not read or write; nothing has changed then.
    """

    @property
    def durable(self) -> bool:
        """Whether records outlive the process, so that another can go on with them."""
        ...

    def now(self) -> float:
        """Seconds by the ledger's clock, which all its processes share."""
        ...

    async def salt(self) -> bytes:
        """16 bytes that a key is salted with before its digest names it in records. The ledger never sees the key."""
        ...

    async def enter(self, origin: str, keys: Collection[str]) -> str:
        """A client with these keys begins. Returns its name as an owner, in use until `leave` or its process ends."""
        ...

    async def leave(self, owner: str, *, waiting: bool = False) -> list[Record]:
        """*owner* ends: its open records belong to nobody. Returns them. With *waiting* only what waits does.

        What waits and could not be sent by anybody else (its request was not stored) ends as `cancelled`.
        """
        ...

    async def newer(self, versions: Mapping[str, int]) -> list[Record]:
        """Those records of these tickets that have changed since the version given: what was not heard, if anything."""
        ...

    async def share(self, owner: str, rate: float) -> float:
        """The part of the account's *rate* (queries in a second) that this process may use now.

        The clients of the account divide it by their open tasks; all that one process has count as one.
        """
        ...

    def subscribe(self, heard: Callable[[Record | Hint], None]) -> Callable[[], None]:
        """Call *heard*, in the loop, with each record that is changed here, with those changed elsewhere that an owner
        of this process drives or somebody here follows, and with hints. Returns what ends that."""
        ...

    async def add(self, record: Record) -> Record:
        """Put *record* on record. If its ticket is there already, that one is returned and nothing changes."""
        ...

    async def get(self, ticket: str) -> Record | None:
        """The record of *ticket*."""
        ...

    async def follow(self, ticket: str) -> Record | None:
        """The record of *ticket*, whose changes are heard from now on whoever makes them."""
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
        owner that could use the same lane goes first; what nobody owns is in nobody's way.
        """
        ...

    async def accept(self, ticket: str, task: Task, *, owner: str, admitted: float | None = None) -> Record:
        """The create was answered with a task that goes on.

        The answer to the create that was *admitted* then counts whoever drives the record by now, and even if it has
        been called `unknown` meanwhile: the id of what was bought is not to be lost. A task id that another record of
        the service has already cannot be this one's too: the record is returned as it stands, still `submitting`.
        """
        ...

    async def put_back(
        self,
        ticket: str,
        setback: Setback,
        *,
        owner: str,
        limits: Limits,
        certain: bool,
        retry_after: float | None,
    ) -> Record:
        """The create made no task, for now: back to the head of the queue, and the lane pauses.

        If a cancel was asked for meanwhile, the record ends as `cancelled` instead.
        """
        ...

    async def update(self, ticket: str, task: Task, *, owner: str) -> Record:
        """The service tells a new state that is not final."""
        ...

    async def finish(self, ticket: str, task: Task, *, owner: str, hold: float = 0.0) -> Record:
        """Record a final state. The slot is free now, or *hold* seconds from now."""
        ...

    async def saved(self, ticket: str, files: Sequence[SavedFile]) -> Record | None:
        """Note what was saved of a result, beside what was saved of it before; None if the ticket is on no record.

        A file at the same path takes the place of the one before.
        """
        ...

    async def unsaved(self, origin: str, keys: Collection[str]) -> list[Record]:
        """Records of these keys with results that were not saved and that can be fetched yet, as far as is known: the
        most urgent first, and at most `MOST_UNSAVED` of them."""
        ...

    async def withdraw(self, ticket: str, task: Task) -> Record:
        """End a record that waits, whoever owns it; one that does not is returned as it stands."""
        ...

    async def cancelling(self, ticket: str) -> Record:
        """Remember that a cancel was asked for while the record is `submitting`."""
        ...

    async def cancel_answered(self, ticket: str, *, taken: bool) -> Record:
        """The service has taken the cancel that was asked for meanwhile, or it was too late."""
        ...

    async def settle(self, ticket: str, task_id: str) -> Record:
        """An `unknown` submission is found to be *task_id*: it is open again, for anybody to adopt.

        Raises:
            ValueError: the record is not `unknown`, or *task_id* belongs to another one.
            LookupError: *ticket* is on no record.
        """
        ...

    async def forget(self, ticket: str) -> Record:
        """Remove a record that has ended (an `unknown` one too: its slot is free) or is overdue; withdraw one that
        waits. Returns it as it was.

        Raises:
            ValueError: its task goes on at the service.
            LookupError: *ticket* is on no record.
        """
        ...

    async def unsettled(self, origin: str, lane: str) -> list[Record]:
        """Records of the key whose create has no known task: `submitting`, or `unknown` and still held."""
        ...

    async def adopt(
        self,
        origin: str,
        keys: Collection[str],
        owner: str,
        *,
        tickets: Collection[str] | None = None,
        waiting: bool = True,
    ) -> list[Record]:
        """*owner* takes over the open records that belong to nobody and that it holds the key of. Returns them.

        Args:
            tickets: only these.
            waiting: what waits, too, and so is sent by the new owner.
        """
        ...

    async def open_records(self, origin: str, keys: Collection[str]) -> list[Record]:
        """The open records of these keys, whoever drives them, in the order of their arrival."""
        ...

    async def lanes(self, origin: str, keys: Collection[str]) -> list[LaneView]:
        """The lanes of these keys that have been used."""
        ...

    async def learned(self, names: Collection[str] | None = None) -> dict[str, str]:
        """What was learned under these names (all of them with None): JSON text that only `_learned` reads."""
        ...

    async def learn(self, changes: Mapping[str, Callable[[str | None], str]]) -> dict[str, str]:
        """Change what was learned under each name, in one atomic step. Returns what stands there now.

        A change gets the text on record, or None. It is a pure function: it may be called in another thread, and again.
        What it raises is raised here, and nothing has changed then. At most `MOST_LEARNED` names are kept.
        """
        ...
