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
from typing import TYPE_CHECKING

from attrs import field, frozen

from bide.ledgers._lanes import LaneState
from bide.models import TaskStatus, request_to_dict

if TYPE_CHECKING:
    from datetime import datetime

    from bide.models import Limits, Request, SavedFile, Task


MOST_LEARNED_NAMES = 1000
"""Names under which a ledger keeps what was learned; those that were changed longest ago go."""
MOST_UNSAVED_RECORDS = 1000
"""Records that `Ledger.unsaved_records` tells of at once."""


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
        key: fingerprint of the API key that creates it or has created it; None while it waits.
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
    key: str | None = None
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
        key: its fingerprint, never the key.
        limits: how many tasks and creates the lane takes.
        slot_for: seconds that a task may use its slot at most.
    """

    key: str
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
        key: its fingerprint, never the key.
        slots: how many are in use.
        state: what was learned of it; its moments are by the ledger's clock.
        origin: the provider's name and origin.
    """

    key: str
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
