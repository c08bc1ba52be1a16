"""`StateMachine`: the steps of a submission, and `Store`: what a ledger implements to keep its records.

The state machine does no I/O and has no clock of its own. It makes the same changes over every store, whether that is
a dictionary or a database. The ledger makes each step atomic.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from attrs import evolve

from bide import _outside
from bide.errors import LedgerError
from bide.ledgers._lanes import (
    PASS_OVER_SECONDS,
    LaneState,
    after_accept,
    after_end,
    after_refusal,
    cap,
    is_passed_over,
    may_start_at,
    window,
)
from bide.ledgers._records import MOST_LEARNED_NAMES, MOST_UNSAVED_RECORDS, Held, LaneView, Record
from bide.models import Billing, ErrorDetail, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from bide.ledgers._lanes import LaneLoad, Setback
    from bide.ledgers._records import LaneTerms
    from bide.models import Limits, SavedFile, Task

FAILURES = (TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.EXPIRED)
"""States in which a task has ended without a result; the next attempt is made only on request."""
UNSENT = (TaskStatus.WAITING, TaskStatus.SUBMITTING)
NOT_STORED = "the client that submitted this is gone, and its request was not stored: nothing was sent, submit it again"


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


class StateMachine:
    """The steps of a submission. `Ledger` has a method of the same name for each, with its description.

    Args:
        can_be_sent: whether another client can read the request of a waiting record whose owner has gone.
    """

    def __init__(self, store: Store, *, can_be_sent: Callable[[Record], bool] | None = None) -> None:
        self.store = store
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
        now = self.store.now()
        keys = frozenset(each.key for each in lanes)
        heads = [head for head in self.store.heads(origin, kind) if not keys.isdisjoint(head.keys)]
        if not any(head.owner == owner for head in heads):
            return Held(is_idle=True)
        offers = dict(self.store.offers(origin, kind))
        if is_passed_over(offers.get(owner), now):
            self.store.write_offer(origin, kind, owner, None)
            del offers[owner]
        free, until = self._free_lanes(origin, kind, lanes, now)
        first_heads: dict[frozenset[str], Record] = {}
        for head in heads:
            if not is_passed_over(offers.get(head.owner or ""), now):
                first_heads.setdefault(head.keys, head)
        for head in first_heads.values():
            terms_for_head = next((each for each in free if each.key in head.keys), None)
            if terms_for_head is None:
                continue
            if head.owner == owner:
                return self._admit(head, terms_for_head, now)
            free.remove(terms_for_head)
            until = min(until, self._offer(head, offers, now) + PASS_OVER_SECONDS)
        return Held(until)

    def _free_lanes(
        self, origin: str, kind: str, lanes: Sequence[LaneTerms], now: float
    ) -> tuple[list[LaneTerms], float]:
        """The lanes that can take one more create now, and when the first of the others can."""
        free: list[LaneTerms] = []
        until = math.inf
        for terms in lanes:
            at = self._may_start_at(origin, kind, terms, now)
            if at <= now:
                free.append(terms)
            else:
                until = min(until, at)
        return free, until

    def _offer(self, head: Record, offers: Mapping[str, float], now: float) -> float:
        """Note that the owner of *head* can take a free slot. Returns since when."""
        owner = head.owner or ""
        if owner not in offers:
            self.store.write_offer(head.origin, head.kind, owner, now)
        return offers.get(owner, now)

    def _may_start_at(self, origin: str, kind: str, terms: LaneTerms, now: float) -> float:
        state = self.store.lane(origin, kind, terms.key)
        seconds = window(terms.limits)[1]
        if state.window is None or state.window < seconds:
            state = evolve(state, window=seconds)
            self.store.write_lane(origin, kind, terms.key, state)
        capped = cap(state, terms.limits, now) is not None
        load = self.store.load(origin, kind, terms.key, now, slots=capped, creates=bool(seconds))
        return may_start_at(state, load, terms.limits, now)

    def _admit(self, record: Record, terms: LaneTerms, now: float) -> Record:
        if record.owner is not None and record.owner in self.store.offers(record.origin, record.kind):
            self.store.write_offer(record.origin, record.kind, record.owner, None)
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
        record = self._record(ticket)
        if not self._is_being_sent(record, owner) or record.admitted != admitted:
            return False
        lane = self.store.lane(record.origin, record.kind, record.key or "")
        if lane.paused_until <= self.store.now() and record.wanted_by and not record.cancelling:
            return True
        self._wait_again(record)
        return False

    def accept(self, ticket: str, task: Task, owner: str, admitted: float | None) -> Record:
        record = self._record(ticket)
        if self._belongs_to_another(record, task):
            return record
        status = record.task.status
        is_answer = admitted is not None and record.admitted == admitted and record.task.task_id is None
        if self._is_fenced(record, owner) and is_answer and status is TaskStatus.UNKNOWN:
            until = self.store.now() + record.slot_for
            return self._change(record, task=task, owner=None, slot_until=until)
        if self._is_fenced(record, owner) and not (is_answer and status is TaskStatus.SUBMITTING):
            return record
        self._note_accept(record)
        return self._change(record, task=task)

    def put_back(
        self,
        ticket: str,
        setback: Setback,
        *,
        owner: str,
        limits: Limits,
        certain: bool,
        retry_after: float | None,
    ) -> Record:
        record = self._record(ticket)
        if not self._is_being_sent(record, owner):
            return record
        key = record.key or ""
        now, store = self.store.now(), self.store
        lane = self._count_create(record)
        load = store.load(record.origin, record.kind, key, now, creates=False)
        is_held = record.slot_until > now
        lane = after_refusal(
            lane,
            limits,
            setback,
            certain=certain,
            retry_after=retry_after,
            others=load.slots - is_held,
            sent=now if record.admitted is None else record.admitted,
            now=now,
            chance=_outside.chance.random(),
        )
        store.write_lane(record.origin, record.kind, key, lane)
        return self._wait_again(record)

    def take_back(self, ticket: str, owner: str) -> Record:
        record = self._record(ticket)
        if not self._is_being_sent(record, owner):
            return record
        self.store.write_offer(record.origin, record.kind, owner, -math.inf)
        return self._wait_again(record)

    @staticmethod
    def _is_being_sent(record: Record, owner: str) -> bool:
        return (
            record.task.status is TaskStatus.SUBMITTING and record.owner == owner and record.key is not None
        )

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
        return record if self._is_fenced(record, owner) else self._change(record, task=task)

    def finish(self, ticket: str, task: Task, owner: str, hold: float) -> Record:
        record = self._record(ticket)
        if self._is_fenced(record, owner) or self._belongs_to_another(record, task):
            return record
        if record.task.status is TaskStatus.SUBMITTING:
            # A refusal says nothing about slots: only an accepted create ends the probing after a pause.
            was_accepted = task.status in (TaskStatus.SUCCEEDED, TaskStatus.FAILED)
            (self._note_accept if was_accepted else self._count_create)(record)
        elif record.key is not None and task.status is not TaskStatus.UNKNOWN:
            hold = max(hold, self._note_end(record, record.key))
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
        return self._change(record, task=task, owner=None, slot_until=until)

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

    def leave(self, owner: str, *, waiting: bool = False) -> list[Record]:
        records = [
            record
            for record in self.store.records_of_owner(owner)
            if not waiting or record.task.status is TaskStatus.WAITING
        ]
        for queue in {(record.origin, record.kind) for record in records}:
            if owner in self.store.offers(*queue):
                self.store.write_offer(*queue, owner, None)
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

    def records_of(self, owner: str) -> list[Record]:
        return self.store.records_of_owner(owner)

    def open_records(self, origin: str, keys: Collection[str]) -> list[Record]:
        own_keys = frozenset(keys)
        return [record for record in self.store.open_records(origin) if _belongs_to(record, own_keys)]

    def unsaved_records(self, origin: str, keys: Collection[str]) -> list[Record]:
        own_keys, now = frozenset(keys), _outside.wall_time()
        found = [
            (min(ahead), record.sequence, record)
            for record in self.store.unsaved_records(origin, own_keys, now, MOST_UNSAVED_RECORDS)
            if _belongs_to(record, own_keys)
            and (ahead := [moment for moment in record.losses if moment > now])
        ]
        return [record for *_, record in sorted(found, key=lambda each: each[:2])[:MOST_UNSAVED_RECORDS]]

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
        if task.task_id is None or record.task.task_id is not None:
            return False
        return self.store.ticket_of_task(record.origin, task.task_id) not in (None, record.ticket)

    def _count_create(self, record: Record) -> LaneState:
        """Count the create of *record*, which was answered or given up. Returns the state of its lane."""
        place = (record.origin, record.kind, record.key or "")
        lane = self.store.lane(*place)
        if lane.window:
            self.store.count_create(*place, self.store.now(), lane.window)
        return lane

    def _note_accept(self, record: Record) -> None:
        """Note that the create of *record* was accepted: its lane goes on."""
        if record.key is None or record.task.status is not TaskStatus.SUBMITTING:
            return
        lane, now = self._count_create(record), self.store.now()
        place = (record.origin, record.kind, record.key)
        tasks = 1
        if lane.learned is not None:
            load = self.store.load(*place, now, creates=False)
            tasks = load.slots - load.submitting + 1  # this one counts as `submitting` still
        sent = now if record.admitted is None else record.admitted
        after = after_accept(lane, tasks=tasks, sent=sent, now=now)
        if after != lane:
            self.store.write_lane(*place, after)

    def _note_end(self, record: Record, key: str) -> float:
        """Note that the task of *record* has ended. Returns after how many seconds the service has its slot free."""
        now = self.store.now()
        lane = self.store.lane(record.origin, record.kind, key)
        if record.slot_until > now:
            self.store.write_lane(record.origin, record.kind, key, after_end(lane, now))
        return lane.release_delay


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
