"""`StateMachine`: the steps of a submission.

The state machine does no I/O and has no clock of its own. It makes the same changes over every store, whether that is
a dictionary or a database. The ledger makes each step atomic.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import evolve

from bide import _outside
from bide.errors import LedgerError
from bide.ledgers._admission import Admission
from bide.ledgers._records import MOST_LEARNED_NAMES, MOST_UNSAVED_RECORDS, Held, LaneView, Record
from bide.models import Billing, ErrorDetail, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from bide.ledgers._lanes import Setback
    from bide.ledgers._records import LaneTerms
    from bide.ledgers._store import Store
    from bide.models import Limits, SavedFile, Task

FAILURES = (TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.EXPIRED)
"""States in which a task has ended without a result; the next attempt is made only on request."""
UNSENT = (TaskStatus.WAITING, TaskStatus.SUBMITTING)
NOT_STORED = "the client that submitted this is gone, and its request was not stored: nothing was sent, submit it again"


class StateMachine:
    """The steps of a submission. `Ledger` has a method of the same name for each, with its description.

    Args:
        can_be_sent: whether another client can read the request of a waiting record whose owner has gone.
    """

    def __init__(self, store: Store, *, can_be_sent: Callable[[Record], bool] | None = None) -> None:
        self.store = store
        self._admission = Admission(store)
        self._can_be_sent = can_be_sent or _has_request

    # One submission ----------------------------------------------------------------------------------------

    def add(self, record: Record, *, again: bool = False) -> Record:
        there = self.store.record(record.ticket)
        if there is None and record.task.task_id is not None:
            there = self.find(record.origin, record.task.task_id)
        if there is None:
            return self.store.insert(record)
        if not there.asks_for(record.request):
            return there
        if there.bought is False or (again and there.task.status in FAILURES):
            self.store.drop(there)
            return self.store.insert(
                evolve(record, attempt=there.attempt + 1, version=there.version + 1, followed=there.followed)
            )
        return self._add_wishes(there, record.wanted_by)

    def _add_wishes(self, record: Record, clients: Collection[str], **changes: Any) -> Record:
        new = tuple(each for each in clients if each not in record.wanted_by)
        if new and not record.task.status.is_final:
            changes["wanted_by"] = (*record.wanted_by, *new)
        return self._change(record, **changes) if changes else record

    def get(self, ticket: str) -> Record | None:
        return self.store.record(ticket)

    def follow(self, ticket: str, client: str) -> Record | None:
        record = self.store.record(ticket)
        changes = {} if record is None or record.followed else {"followed": True}
        return None if record is None else self._add_wishes(record, (client,), **changes)

    def admit(self, origin: str, kind: str, owner: str, lanes: Sequence[LaneTerms]) -> Record | Held:
        turn = self._admission.turn(origin, kind, owner, lanes)
        if isinstance(turn, Held):
            return turn
        record, terms = turn
        now = self.store.now()
        return self._change(
            record,
            task=evolve(record.task, status=TaskStatus.SUBMITTING),
            key=terms.key,
            admitted=now,
            sent_at=_outside.utc_now(),
            slot_for=terms.slot_for,
            slot_until=now + terms.slot_for,
        )

    def confirm(self, ticket: str, owner: str, admitted: float | None) -> bool:
        record = self.store.record(ticket)
        if record is None or not self._is_being_sent(record, owner, admitted):
            return False
        return bool(record.wanted_by) and not record.cancelling and not self._admission.is_paused(record)

    def accept(
        self, ticket: str, task: Task, owner: str, admitted: float | None, *, guessed: bool = False
    ) -> Record:
        record = self._record(ticket)
        if self._belongs_to_another(record, task):
            return record
        status, is_answer = record.task.status, _is_answer(record, admitted, guessed=guessed)
        is_late = status is TaskStatus.UNKNOWN or record.guessed
        if self._is_fenced(record, owner) and is_answer and is_late:
            held = {"slot_until": self.store.now() + record.slot_for} | self._free_slot(record, task)
            return self._change(record, task=task, owner=None, guessed=False, **held)
        if self._is_fenced(record, owner) and not (is_answer and status is TaskStatus.SUBMITTING):
            return record
        if record.task.status is TaskStatus.SUBMITTING:
            self._admission.note_accept(record)
        return self._change(record, task=task, guessed=guessed, **self._free_slot(record, task))

    def undo_match(self, ticket: str, task: Task, owner: str, hold: float) -> Record:
        record = self._record(ticket)
        if self._is_fenced(record, owner) or not record.guessed:
            return record
        return self._change(record, task=task, guessed=False, slot_until=self.store.now() + hold)

    def put_back(
        self,
        ticket: str,
        setback: Setback,
        *,
        owner: str,
        admitted: float | None,
        limits: Limits,
        retry_after: float | None,
    ) -> Record:
        record = self._record(ticket)
        if not self._is_being_sent(record, owner, admitted):
            return record
        self._admission.note_refusal(record, limits, setback, retry_after=retry_after)
        return self._wait_again(record)

    def take_back(self, ticket: str, owner: str, admitted: float | None, *, pass_over: bool) -> Record:
        record = self._record(ticket)
        if not self._is_being_sent(record, owner, admitted):
            return record
        if pass_over:
            self._admission.pass_over(record)
        return self._wait_again(record)

    @staticmethod
    def _is_being_sent(record: Record, owner: str, admitted: float | None) -> bool:
        """Whether *owner* sends the create that was admitted then: it may have been put back, and admitted again."""
        is_this = record.owner == owner and record.admitted == admitted
        return is_this and record.task.status is TaskStatus.SUBMITTING

    def _wait_again(self, record: Record) -> Record:
        """The create of *record* has made no task: it waits at its old place, if a client still wants it."""
        if record.cancelling or not record.wanted_by:
            ended = evolve(record.task, status=TaskStatus.CANCELLED, billing=Billing.NONE)
            return self._change(record, task=ended, slot_until=self.store.now())
        return self._change(
            record,
            task=evolve(record.task, status=TaskStatus.WAITING),
            key=None,
            admitted=None,
            sent_at=None,
            slot_for=math.inf,
            slot_until=math.inf,
        )

    def update(self, ticket: str, task: Task, owner: str) -> Record:
        record = self._record(ticket)
        if self._is_fenced(record, owner):
            return record
        return self._change(record, task=task, **self._free_slot(record, task))

    def _free_slot(self, record: Record, task: Task) -> dict[str, float]:
        """A task that has succeeded uses no slot, also while its outputs are awaited."""
        if not task.awaits_outputs:
            return {}
        return {"slot_until": self.store.now() + self._admission.note_end(record)}

    def finish(self, ticket: str, task: Task, owner: str, hold: float) -> Record:
        record = self._record(ticket)
        if self._is_fenced(record, owner) or self._belongs_to_another(record, task):
            return record
        if record.task.status is TaskStatus.SUBMITTING:
            # A refusal says nothing about slots: only an accepted create ends the probing after a pause.
            was_accepted = task.status in (TaskStatus.SUCCEEDED, TaskStatus.FAILED)
            (self._admission.note_accept if was_accepted else self._admission.count_create)(record)
        elif task.status is not TaskStatus.UNKNOWN and not record.task.awaits_outputs:
            hold = max(hold, self._admission.note_end(record))
        return self._change(record, task=task, slot_until=self.store.now() + hold)

    def record_files(self, ticket: str, files: Sequence[SavedFile]) -> Record | None:
        record = self.store.record(ticket)
        if record is None:
            return None
        by_path = {each.path: each for each in (*record.files, *files)}
        after = tuple(by_path.values())
        return record if after == record.files else self._change(record, files=after)

    def stop_wanting(self, ticket: str, task: Task, client: str) -> Record | None:
        record = self.store.record(ticket)
        status = None if record is None else record.task.status
        if record is None or client not in record.wanted_by or status not in UNSENT:
            return record
        left = tuple(each for each in record.wanted_by if each != client)
        is_over = status is TaskStatus.WAITING and not left
        return self._change(record, wanted_by=left, task=task if is_over else record.task)

    def withdraw(self, ticket: str, task: Task) -> Record:
        record = self._record(ticket)
        return self._change(record, task=task) if record.task.status is TaskStatus.WAITING else record

    def request_cancel(self, ticket: str) -> Record:
        record = self._record(ticket)
        is_due = record.task.status is TaskStatus.SUBMITTING and not record.cancelling
        return self._change(record, cancelling=True) if is_due else record

    def record_cancel_answer(self, ticket: str, *, taken: bool) -> Record:
        record = self._record(ticket)
        if not record.cancelling or record.cancel_taken is not None or record.task.status.is_final:
            return record
        return self._change(record, cancel_taken=taken)

    # What users settle ---------------------------------------------------------------------------------------

    def settle(self, ticket: str, task_id: str) -> Record:
        record = self._named_record(ticket)
        if record.task.task_id == task_id:
            return record
        if record.task.status is not TaskStatus.UNKNOWN:
            raise ValueError(
                f"ticket {ticket} is {record.task.status}: only one whose create is unknown can be settled"
            )
        other = self.store.ticket_of_task(record.origin, task_id)
        if other is not None:
            raise ValueError(f"task {task_id} belongs to ticket {other}: it cannot be {ticket}'s too")
        task = evolve(
            record.task, status=TaskStatus.QUEUED, task_id=task_id, error=None, billing=Billing.UNKNOWN
        )
        until = self.store.now() + record.slot_for
        return self._change(record, task=task, owner=None, guessed=False, slot_until=until)

    def forget(self, ticket: str) -> Record:
        record = self._named_record(ticket)
        status = record.task.status
        if status is TaskStatus.WAITING:
            ended = evolve(record.task, status=TaskStatus.CANCELLED, billing=Billing.NONE)
            self._change(record, task=ended)
            return record
        if not status.is_final and record.slot_until > self.store.now():
            name = record.task.task_id or "it"
            raise ValueError(
                f"ticket {ticket} is {status}: {name} goes on at the service, and is paid for; cancel it, or wait"
            )
        self.store.drop(record)
        return record

    def _named_record(self, ticket: str) -> Record:
        """The record of a ticket that a user has named."""
        record = self.store.record(ticket)
        if record is None:
            raise LookupError(f"no record of ticket {ticket!r}")
        return record

    # Many ---------------------------------------------------------------------------------------------------

    def find(self, origin: str, task_id: str) -> Record | None:
        ticket = self.store.ticket_of_task(origin, task_id)
        record = None if ticket is None else self.store.record(ticket)
        return None if record is None or record.task.status.is_final else record

    def known_task_ids(self, origin: str, task_ids: Collection[str]) -> frozenset[str]:
        return frozenset(each for each in task_ids if self.store.ticket_of_task(origin, each) is not None)

    def unsettled_records(self, origin: str, key: str) -> list[Record]:
        return self.store.unsettled_records(origin, key, self.store.now())

    def leave(self, owner: str, *, waiting: bool = False, sending: bool = True) -> list[Record]:
        """See `Ledger.leave`. Without *sending*, the owner keeps its creates under way."""
        records = [
            record
            for record in self.store.records_of_owner(owner)
            if (not waiting or record.task.status is TaskStatus.WAITING)
            and (sending or record.task.status is not TaskStatus.SUBMITTING)
        ]
        for queue in {(record.origin, record.kind) for record in records}:
            self._admission.forget(owner, *queue)
        left = [self._release(record) for record in records]
        return [record for record in left if not record.task.status.is_final]

    def _release(self, record: Record) -> Record:
        """Release *record*, whose owner is gone: another client with the key can adopt it."""
        if record.task.status is TaskStatus.WAITING and not self._can_be_sent(record):
            detail = ErrorDetail(message=NOT_STORED)
            ended = evolve(record.task, status=TaskStatus.CANCELLED, billing=Billing.NONE, error=detail)
            return self._change(record, task=ended)
        return self._change(record, owner=None)

    def adopt(
        self,
        origin: str,
        keys: Collection[str],
        owner: str,
        *,
        tickets: Collection[str] | None,
        waiting: bool,
    ) -> list[Record]:
        own_keys = frozenset(keys)
        return [
            self._change(record, owner=owner)
            for record in self.store.unowned_records(origin)
            if _belongs_to(record, own_keys)
            and (tickets is None or record.ticket in tickets)
            and (waiting or record.task.status is not TaskStatus.WAITING)
        ]

    def lost_records(self, origin: str, keys: Collection[str]) -> list[Record]:
        held = self.store.held_keys(origin).union(keys)
        return [record for record in self.store.unowned_records(origin) if not _belongs_to(record, held)]

    def move_waiting(self, tickets: Collection[str], keys: Collection[str], owner: str) -> list[Record]:
        records = [self.store.record(ticket) for ticket in tickets]
        return [
            self._change(record, keys=frozenset(keys), owner=owner)
            for record in records
            if record is not None and record.owner is None and record.task.status is TaskStatus.WAITING
        ]

    def records_of(self, owner: str) -> list[Record]:
        return self.store.records_of_owner(owner)

    def open_records(self, origin: str, keys: Collection[str]) -> list[Record]:
        own_keys = frozenset(keys)
        return [record for record in self.store.open_records(origin) if _belongs_to(record, own_keys)]

    def unsaved_records(self, origin: str, keys: Collection[str]) -> list[Record]:
        own_keys, now = frozenset(keys), _outside.wall_time()
        records = self.store.unsaved_records(origin, own_keys, now, MOST_UNSAVED_RECORDS)
        return _in_order_of_losses((each for each in records if _belongs_to(each, own_keys)), now)

    def lanes(self, origin: str, keys: Collection[str]) -> list[LaneView]:
        now = self.store.now()
        return [
            LaneView(key, kind, self.store.load(origin, kind, key, now).slots, state, origin)
            for kind, key, state in self.store.lanes(origin)
            if key in keys
        ]

    # What was learned ---------------------------------------------------------------------------------------

    def read_learned(self, names: Collection[str] | None) -> dict[str, str]:
        return self.store.read_learned(names)

    def learn(self, changes: Mapping[str, Callable[[str | None], str]]) -> dict[str, str] | Exception:
        """Returns the error of a change that raises: it must not fail other steps in the same transaction."""
        before = self.store.read_learned(changes)
        try:
            after = {name: _text(change(before.get(name))) for name, change in changes.items()}
        except Exception as fault:  # noqa: BLE001 - the caller that awaits the step raises it
            return fault
        self.store.write_learned(after, MOST_LEARNED_NAMES)
        return after

    # Rules --------------------------------------------------------------------------------------------------

    def _change(self, record: Record, **changes: Any) -> Record:
        return self.store.replace(record, evolve(record, version=record.version + 1, **changes))

    def _record(self, ticket: str) -> Record:
        record = self.store.record(ticket)
        if record is None:
            raise LedgerError(
                f"no record of ticket {ticket!r}: it was removed, or its last handle is gone", ticket=ticket
            )
        return record

    def _is_fenced(self, record: Record, owner: str) -> bool:
        """Whether *owner* must not change *record*: it is final, or another client drives it."""
        return record.task.status.is_final or record.owner != owner

    def _belongs_to_another(self, record: Record, task: Task) -> bool:
        """Whether another submission already has the task with which the create of *record* was answered."""
        if task.task_id in (None, record.task.task_id):
            return False
        return self.store.ticket_of_task(record.origin, task.task_id) not in (None, record.ticket)


def _is_answer(record: Record, admitted: float | None, *, guessed: bool) -> bool:
    """Whether *record* lacks the task that the create of *admitted* has made. A guess is no more than a stopgap."""
    is_stopgap = record.guessed and not guessed and not record.task.status.is_final
    return (
        admitted is not None and record.admitted == admitted and (record.task.task_id is None or is_stopgap)
    )


def _in_order_of_losses(records: Iterable[Record], now: float) -> list[Record]:
    """Those of *records* that lose a result after *now*; those that lose it first come first."""
    found = [
        (min(ahead), record.sequence, record)
        for record in records
        if (ahead := [moment for moment in record.losses if moment > now])
    ]
    return [record for *_, record in sorted(found, key=lambda each: each[:2])[:MOST_UNSAVED_RECORDS]]


def _has_request(record: Record) -> bool:
    return record.request is not None


def _text(value: object) -> str:
    """*value*, if it is text that can be stored."""
    if not isinstance(value, str):
        raise TypeError(f"what is learned is kept as text, not as {type(value).__name__}")
    value.encode()
    return value


def _belongs_to(record: Record, keys: frozenset[str]) -> bool:
    return record.key in keys if record.key is not None else not keys.isdisjoint(record.keys)
