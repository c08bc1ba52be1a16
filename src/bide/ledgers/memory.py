"""The ledger of one event loop: plain objects, gone with the process."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import math
import random
import secrets
from collections import OrderedDict, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary

from attrs import Factory, define, evolve

from bide._limits import LaneLoad, LaneState, may_start_at, refused
from bide._limits import accepted as after_accept
from bide.errors import LedgerError
from bide.ledgers._base import Held, LaneView, Record
from bide.models import Billing, Limits, Task, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from typing import Self

    from bide._limits import Setback
    from bide.ledgers._base import LaneTerms

RECENT_CREATES = 10_000
"""Answers to creates that a lane remembers, for its create rate."""
RECENT_IDS = 10_000
"""Ids of accepted tasks that are remembered after their records have left, for telling an orphan."""


@define(eq=False)
class _Lane:
    """A lane's state, and an index of the records that use its slots."""

    kind: str
    fingerprint: str
    state: LaneState = Factory(LaneState)
    slots: dict[str, float] = Factory(dict)
    ends: list[tuple[float, str]] = Factory(list)
    submitting: set[str] = Factory(set)
    answered: deque[float] = Factory(lambda: deque(maxlen=RECENT_CREATES))

    def take(self, ticket: str, until: float) -> None:
        self.slots[ticket] = until
        if until < math.inf:
            heapq.heappush(self.ends, (until, ticket))

    def free(self, ticket: str) -> None:
        self.slots.pop(ticket, None)

    def settle(self, ticket: str, now: float) -> None:
        """The create of *ticket* has been answered, or given up."""
        if ticket in self.submitting:
            self.submitting.discard(ticket)
            self.answered.append(now)

    def load(self, now: float) -> LaneLoad:
        while self.ends and (self.ends[0][0] <= now or self.slots.get(self.ends[0][1]) != self.ends[0][0]):
            until, ticket = heapq.heappop(self.ends)
            if self.slots.get(ticket) == until:
                self.free(ticket)
        next_free = self.ends[0][0] if self.ends else math.inf
        return LaneLoad(len(self.slots), len(self.submitting), self.answered, next_free)


@define(eq=False)
class _Queue:
    """Waiting records of one origin and kind, first come, first served; one heap for each set of keys."""

    heaps: dict[frozenset[str], list[tuple[int, str]]] = Factory(dict)

    def push(self, record: Record) -> None:
        heapq.heappush(self.heaps.setdefault(record.keys, []), (record.sequence, record.ticket))


class MemoryLedger:
    """Records in the memory of one event loop. The default: all clients of a loop share `MemoryLedger.of_loop()`.

    A finished record leaves with the last handle that holds it; a ticket is idempotent as long. Promise 2
    ("nothing is lost") holds across crashes with a durable ledger only.
    """

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(16)
        self._sequence = itertools.count(1)
        self._open: dict[str, Record] = {}
        self._ended: WeakValueDictionary[str, Record] = WeakValueDictionary()
        self._held: dict[str, Record] = {}
        self._tickets: dict[tuple[str, str], str] = {}
        self._recent: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lanes: dict[tuple[str, str, str], _Lane] = {}
        self._queues: dict[tuple[str, str], _Queue] = {}
        self._listeners: list[Callable[[Record], None]] = []

    @classmethod
    def of_loop(cls) -> Self:
        """The running loop's own ledger."""
        loop = asyncio.get_running_loop()
        ledger = _LEDGERS.get(loop)
        if not isinstance(ledger, cls):
            ledger = _LEDGERS[loop] = cls()
        return ledger

    @property
    def durable(self) -> bool:
        return False

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def fingerprint(self, key: str) -> str:
        return hashlib.blake2b(key.encode(), digest_size=8, salt=self._salt).hexdigest()

    def subscribe(self, heard: Callable[[Record], None]) -> Callable[[], None]:
        self._listeners.append(heard)

        def end() -> None:
            if heard in self._listeners:
                self._listeners.remove(heard)

        return end

    async def add(self, record: Record) -> Record:
        there = self._find(record.ticket)
        if there is not None:
            return there
        record = evolve(record, sequence=next(self._sequence))
        if record.task.status is TaskStatus.WAITING:
            self._queue(record).push(record)
        elif record.lane is not None:
            self._lane_of(record).take(record.ticket, record.slot_until)
        return self._write(record)

    async def get(self, ticket: str) -> Record | None:
        return self._find(ticket)

    async def find(self, origin: str, task_id: str) -> Record | None:
        return self._open.get(self._tickets.get((origin, task_id), ""))

    async def known(self, origin: str, task_ids: Collection[str]) -> frozenset[str]:
        return frozenset(
            each for each in task_ids if (origin, each) in self._tickets or (origin, each) in self._recent
        )

    async def admit(self, origin: str, kind: str, owner: str, lanes: Sequence[LaneTerms]) -> Record | Held:
        now = self.now()
        queue = self._queues.get((origin, kind))
        heads = list(self._heads(queue, frozenset(each.fingerprint for each in lanes))) if queue else []
        if not heads:
            return Held()
        free: list[LaneTerms] = []
        until = math.inf
        for terms in lanes:
            lane = self._lane(origin, kind, terms.fingerprint)
            at = may_start_at(lane.state, lane.load(now), terms.limits, now)
            if at <= now:
                free.append(terms)
            else:
                until = min(until, at)
        for head in heads:
            terms_for_head = next((each for each in free if each.fingerprint in head.keys), None)
            if terms_for_head is None:
                continue
            if head.owner == owner:
                return self._admit(head, terms_for_head, now)
            free.remove(terms_for_head)
        return Held(until)

    def _admit(self, record: Record, terms: LaneTerms, now: float) -> Record:
        lane = self._lane(record.origin, record.kind, terms.fingerprint)
        until = now + terms.slot_for
        lane.take(record.ticket, until)
        lane.submitting.add(record.ticket)
        return self._write(
            evolve(
                record,
                task=evolve(record.task, status=TaskStatus.SUBMITTING),
                lane=terms.fingerprint,
                admitted=now,
                sent_at=datetime.now(UTC),
                slot_until=until,
            )
        )

    async def accept(self, ticket: str, task: Task) -> Record:
        record = self._record(ticket)
        if record.task.status.is_final:
            return record
        self._settle(record, accepted=True)
        return self._write(evolve(record, task=task))

    async def put_back(
        self, ticket: str, setback: Setback, *, limits: Limits, certain: bool, retry_after: float | None
    ) -> Record:
        record = self._record(ticket)
        if record.task.status is not TaskStatus.SUBMITTING:
            return record
        lane, now = self._lane_of(record), self.now()
        lane.settle(ticket, now)
        lane.free(ticket)
        lane.state = refused(
            lane.state,
            limits,
            setback,
            certain=certain,
            retry_after=retry_after,
            others=lane.load(now).slots,
            sent=now if record.admitted is None else record.admitted,
            now=now,
            chance=random.random(),  # noqa: S311 - jitter, not a secret
        )
        if record.cancelling:
            return self._write(evolve(record, task=_withdrawn(record.task)))
        record = evolve(
            record,
            task=evolve(record.task, status=TaskStatus.WAITING),
            lane=None,
            admitted=None,
            sent_at=None,
            slot_until=math.inf,
        )
        self._queue(record).push(record)
        return self._write(record)

    async def update(self, ticket: str, task: Task) -> Record:
        record = self._record(ticket)
        if record.task.status.is_final:
            return record
        return self._write(evolve(record, task=task))

    async def finish(self, ticket: str, task: Task, *, hold: float = 0.0) -> Record:
        record = self._record(ticket)
        if record.task.status.is_final:
            return record
        # A refusal says nothing about slots: only an accepted create ends the probing after a pause.
        self._settle(record, accepted=task.status in (TaskStatus.SUCCEEDED, TaskStatus.FAILED))
        record = evolve(record, task=task, slot_until=self.now() + hold)
        if record.lane is not None:
            lane = self._lane_of(record)
            lane.free(ticket)
            if hold > 0:
                lane.take(ticket, record.slot_until)
                self._held = {**self._still_held(), ticket: record}
        return self._write(record)

    async def withdraw(self, ticket: str, task: Task) -> Record:
        record = self._record(ticket)
        if record.task.status is not TaskStatus.WAITING:
            return record
        return self._write(evolve(record, task=task))

    async def cancelling(self, ticket: str) -> Record:
        record = self._record(ticket)
        if record.task.status is not TaskStatus.SUBMITTING:
            return record
        return self._write(evolve(record, cancelling=True))

    async def unsettled(self, origin: str, lane: str) -> list[Record]:
        self._held = self._still_held()
        submitting = [
            self._open[ticket]
            for (where, _, fingerprint), each in self._lanes.items()
            if where == origin and fingerprint == lane
            for ticket in each.slots
            if ticket in self._open and self._open[ticket].task.status is TaskStatus.SUBMITTING
        ]
        return submitting + [
            each for each in self._held.values() if each.origin == origin and each.lane == lane
        ]

    async def release(self, owner: str) -> list[Record]:
        mine = [record for record in self._open.values() if record.owner == owner]
        return [self._write(evolve(record, owner=None)) for record in mine]

    async def adopt(self, origin: str, keys: Collection[str], owner: str) -> list[Record]:
        held = frozenset(keys)
        free = [
            record
            for record in self._open.values()
            if record.owner is None
            and record.origin == origin
            and (record.lane in held if record.lane is not None else not held.isdisjoint(record.keys))
        ]
        return [self._write(evolve(record, owner=owner)) for record in free]

    async def lanes(self, origin: str, keys: Collection[str]) -> list[LaneView]:
        now = self.now()
        return [
            LaneView(fingerprint, kind, lane.load(now).slots, lane.state)
            for (where, kind, fingerprint), lane in self._lanes.items()
            if where == origin and fingerprint in keys
        ]

    def _still_held(self) -> dict[str, Record]:
        now = self.now()
        return {ticket: record for ticket, record in self._held.items() if record.slot_until > now}

    def _find(self, ticket: str) -> Record | None:
        return self._open.get(ticket) or self._ended.get(ticket)

    def _record(self, ticket: str) -> Record:
        record = self._find(ticket)
        if record is None:
            raise LedgerError(f"no record of ticket {ticket!r}: its last handle has gone", ticket=ticket)
        return record

    def _write(self, record: Record) -> Record:
        """Put *record* in the place of the one before, and tell everybody."""
        task = record.task
        if task.status.is_final:
            self._open.pop(record.ticket, None)
            self._ended[record.ticket] = record
        else:
            self._open[record.ticket] = record
        if task.task_id is not None:
            self._index(record.origin, task.task_id, record.ticket, final=task.status.is_final)
        for heard in tuple(self._listeners):
            heard(record)
        return record

    def _index(self, origin: str, task_id: str, ticket: str, *, final: bool) -> None:
        if not final:
            self._tickets[origin, task_id] = ticket
            return
        self._tickets.pop((origin, task_id), None)
        self._recent[origin, task_id] = None
        while len(self._recent) > RECENT_IDS:
            self._recent.popitem(last=False)

    def _settle(self, record: Record, *, accepted: bool) -> None:
        """The create of *record* has its answer."""
        if record.lane is None or record.task.status is not TaskStatus.SUBMITTING:
            return
        lane = self._lane_of(record)
        lane.settle(record.ticket, self.now())
        if accepted:
            lane.state = after_accept(lane.state)

    def _lane_of(self, record: Record) -> _Lane:
        return self._lane(record.origin, record.kind, record.lane or "")

    def _lane(self, origin: str, kind: str, fingerprint: str) -> _Lane:
        lane = self._lanes.get((origin, kind, fingerprint))
        if lane is None:
            lane = self._lanes[origin, kind, fingerprint] = _Lane(kind, fingerprint)
        return lane

    def _queue(self, record: Record) -> _Queue:
        return self._queues.setdefault((record.origin, record.kind), _Queue())

    def _heads(self, queue: _Queue, keys: frozenset[str]) -> Iterator[Record]:
        """The oldest waiting record of each set of keys that meets *keys*, oldest first."""
        heads = []
        for each in [each for each in queue.heaps if not each.isdisjoint(keys)]:
            heap = queue.heaps[each]
            while heap and not self._waits(*heap[0]):
                heapq.heappop(heap)
            if heap:
                heads.append(heap[0])
            else:
                del queue.heaps[each]
        return (self._open[ticket] for _, ticket in sorted(heads))

    def _waits(self, sequence: int, ticket: str) -> bool:
        record = self._open.get(ticket)
        return record is not None and record.sequence == sequence and record.task.status is TaskStatus.WAITING


def _withdrawn(task: Task) -> Task:
    return evolve(task, status=TaskStatus.CANCELLED, billing=Billing.NONE)


_LEDGERS: WeakKeyDictionary[asyncio.AbstractEventLoop, MemoryLedger] = WeakKeyDictionary()
