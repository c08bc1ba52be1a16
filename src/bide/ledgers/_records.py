"""What a ledger keeps: the record of a submission, and what clients pass and get besides.

The slot is the record: there is no semaphore beside the records. A record that is `submitting`, `queued` or
`running` uses a slot of its lane until its `slot_until`. A record that ended as `unknown` uses it for a limited time.
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
"""A ledger keeps what was learned under so many names; those changed longest ago are removed."""
MOST_UNSAVED_RECORDS = 1000
"""The most records that `Ledger.unsaved_records` returns."""


@frozen
class Record:
    """What is known of one submission. A change makes a new record.

    Attributes:
        ticket: our id, in use from before the create.
        origin: the provider's name and origin; with `kind` it names the queue.
        kind: "image" or "video".
        request: what to send; None for a task that was made elsewhere, or if the ledger stores no requests.
        keys: fingerprints of the keys that may create it.
        digest: identifies the request where a ledger stores no requests; see `digest_of`.
        owner: the client that drives it; None if it can be adopted.
        sequence: the order of arrival in the queue.
        task: the last recorded snapshot. Polls that change nothing important are not recorded.
        key: fingerprint of the API key of its create; None while it waits.
        added_at: when the record was added, UTC.
        admitted: when it was admitted, by the ledger's clock.
        sent_at: the same by the wall clock, UTC.
        slot_for: seconds that it may use its slot, set by its admission.
        slot_until: until when it uses a slot, by the ledger's clock.
        cancelling: a cancel was requested while it was `submitting`.
        cancel_taken: whether the service accepted that cancel; None while it has not answered.
        followed: a client that does not drive it follows its changes.
        guessed: its task was found in the service's list by model and time alone, and may be another program's.
        wanted_by: the clients with callers that want it. A client that has died stays among them.
        attempt: how often its ticket was submitted, where the earlier attempts made no task or have failed.
        files: what was saved of its results.
        version: how often it has changed. Of two records, the one with the higher version is newer.
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
    guessed: bool = False
    wanted_by: tuple[str, ...] = ()
    attempt: int = 1
    files: tuple[SavedFile, ...] = ()
    version: int = 0

    @property
    def unsaved(self) -> tuple[int, ...]:
        """The indexes of the results without a saved file; empty while the task has not succeeded."""
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
        """When each unsaved result expires, by the wall clock; infinity for an inline result and for an unknown expiry.

        A result whose address was blanked cannot be fetched any more, and is left out.
        """
        outputs = (self.task.outputs[place] for place in self.unsaved)
        return tuple(
            math.inf if each.data is not None or each.expires_at is None else each.expires_at.timestamp()
            for each in outputs
            if each.data is not None or each.url is not None
        )

    @property
    def bought(self) -> bool | None:
        """Whether a task was made for it: False if none was made and none will be, None if that cannot be said, else
        True. See `BideError.bought`."""
        status = self.task.status
        if status is TaskStatus.UNKNOWN:
            return None
        is_unsent = status is TaskStatus.CANCELLED and self.task.task_id is None
        return not (is_unsent or status is TaskStatus.REJECTED)

    @property
    def idempotency_key(self) -> str:
        """What names this attempt to a service that accepts idempotency keys."""
        return self.ticket if self.attempt == 1 else f"{self.ticket}.{self.attempt}"

    @property
    def is_submission(self) -> bool:
        """Whether it was submitted through a ledger. Otherwise its task was made elsewhere."""
        return self.request is not None or bool(self.digest)

    def asks_for(self, request: Request | None) -> bool:
        """Whether it is a submission of *request*."""
        if self.request is not None or request is None:
            return self.request == request
        return self.digest == digest_of(request)


def digest_of(request: Request) -> str:
    """A digest that identifies *request*: equal for equal requests, in any process."""
    return digest_of_plain(plain_of(request))


def plain_of(request: Request) -> str:
    """*request* as JSON: equal text for equal requests."""
    return json.dumps(request_to_dict(request), sort_keys=True)


def digest_of_plain(plain: str) -> str:
    """See `digest_of`."""
    return hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()


@frozen
class LaneTerms:
    """What a client knows of a lane that it may use.

    Attributes:
        key: the key's fingerprint, never the key.
        limits: how many tasks and creates the lane takes; None and `math.inf` are no limit here.
        slot_for: the longest time that a task may use its slot, in seconds.
    """

    key: str
    limits: Limits
    slot_for: float


@frozen
class Held:
    """The answer of `Ledger.admit` if no record can be admitted now.

    Attributes:
        until: when to call again, if no change is reported before; with infinity, only after a change.
        is_idle: no record waits at all.
    """

    until: float = math.inf
    is_idle: bool = False


@frozen
class LaneView:
    """A lane at a moment, for `client.statistics()`.

    Attributes:
        key: the key's fingerprint, never the key.
        slots: the number of slots in use.
        state: what the ledger remembers of the lane, with times by the ledger's clock.
        origin: the provider's name and origin.
    """

    key: str
    kind: str
    slots: int
    state: LaneState = field(factory=LaneState)
    origin: str = ""


class Hint(Enum):
    """News for listeners that concerns no single record."""

    SLOTS = "slots"
    """Another process has changed a lane or a queue: it may be the turn of a record that waits here."""
    OWNERS = "owners"
    """Owners have come or gone: there may be records to adopt, and the shares of the query rate have changed."""
    FAULT = "fault"
    """Clients must read again what they own: a step of this process failed, and may have taken effect all the same, or
    this process was silent, and others have taken over its records."""
    SHARES = "shares"
    """It is time to read the share of the query rate again."""
