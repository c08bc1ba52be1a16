"""`MemoryLedger`: the ledger of one event loop, in plain objects that end with the process."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary, finalize

from attrs import Factory, define, evolve

from bide import _outside
from bide.ledgers._lanes import LaneLoad, LaneState
from bide.ledgers._ledger import Ledger
from bide.ledgers._state_machine import StateMachine
from bide.ledgers._store import Store
from bide.models import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from typing import Self

    from bide.ledgers._records import Record

_T = TypeVar("_T")

MOST_RECENT_CREATES = 10_000
"""A lane remembers so many answered creates, for its create rate."""
MOST_RECENT_IDS = 10_000
"""So many ids of accepted tasks are remembered after their records have left. A task with another id is an orphan."""

MOST_ENDED_RECORDS = 256
MOST_INLINE_CHARACTERS = 64 * 2**20
"""So many records are kept after their end, and so much of results that came inline: an error may have named their
tickets to a caller that comes back for them."""


@define(eq=False)
class _Lane:
    """A lane's state, and an index of the records that use its slots."""

    state: LaneState = Factory(LaneState)
    slots: dict[str, float] = Factory(dict)
    ends: list[tuple[float, str]] = Factory(list)
    submitting: dict[str, float] = Factory(dict)  # when each was admitted
    answered: deque[float] = Factory(lambda: deque(maxlen=MOST_RECENT_CREATES))

    def take(self, ticket: str, until: float) -> None:
        if self.slots.get(ticket) != until:
            self.slots[ticket] = until
            if until < math.inf:
                heapq.heappush(self.ends, (until, ticket))

    def load(self, now: float) -> LaneLoad:
        while self.ends and (self.ends[0][0] <= now or self.slots.get(self.ends[0][1]) != self.ends[0][0]):
            until, ticket = heapq.heappop(self.ends)
            if self.slots.get(ticket) == until:
                del self.slots[ticket]
        next_free = self.ends[0][0] if self.ends else math.inf
        admitted = [at for ticket, at in self.submitting.items() if ticket in self.slots]
        last = max(admitted, default=-math.inf)
        return LaneLoad(len(self.slots), len(admitted), last, self.answered, next_free)


class MemoryStore(Store):
    """Records and lanes as plain objects, with the indexes that `StateMachine` asks for."""

    def __init__(self, notify: Callable[[Record], None]) -> None:
        self._notify = notify
        self._sequence = itertools.count(1)
        self._open: dict[str, Record] = {}
        self._ended: WeakValueDictionary[str, Record] = WeakValueDictionary()
        self._held: dict[str, Record] = {}
        self._kept: OrderedDict[str, Record] = OrderedDict()
        self._kept_characters = 0
        self._tickets: dict[str, dict[str, str]] = {}  # by origin, then by task id: no tuple for each task
        self._recent: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._lanes: dict[tuple[str, str, str], _Lane] = {}
        self._learned: dict[str, str] = {}  # the name changed last is last
        # Waiting records by origin and kind, then by owner and set of keys, in the order of arrival.
        self._queues: dict[tuple[str, str], dict[tuple[str, frozenset[str]], list[tuple[int, str]]]] = {}
        self._offers: dict[tuple[str, str], dict[str, float]] = {}
        self.clients: dict[str, tuple[str, frozenset[str]]] = {}  # origin and keys of each open client

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def record(self, ticket: str) -> Record | None:
        return self._open.get(ticket) or self._ended.get(ticket)

    def insert(self, record: Record) -> Record:
        return self._write(evolve(record, sequence=next(self._sequence)))

    def replace(self, before: Record, after: Record) -> Record:
        if before.key is not None:
            lane = self._lane(before.origin, before.kind, before.key)
            lane.submitting.pop(before.ticket, None)
            if after.key != before.key or after.task.status.is_final:
                lane.slots.pop(before.ticket, None)
        if before.task.task_id not in (None, after.task.task_id):
            self._tickets.get(before.origin, {}).pop(before.task.task_id or "", None)
        if before.task.status.is_final:
            # A handle that holds the ended record before this change keeps the new one on record, too.
            finalize(before, _drop_reference, after).atexit = False
        return self._write(after)

    def drop(self, record: Record) -> None:
        self._open.pop(record.ticket, None)
        self._ended.pop(record.ticket, None)
        self._held.pop(record.ticket, None)
        self._stop_keeping(record.ticket)
        if record.key is not None:
            lane = self._lane(record.origin, record.kind, record.key)
            lane.slots.pop(record.ticket, None)
            lane.submitting.pop(record.ticket, None)
        if record.task.task_id is not None:
            self._index(record.origin, record.task.task_id, record.ticket, final=True)
        self._notify(record)

    def heads(self, origin: str, kind: str) -> Iterator[Record]:
        queue = self._queues.get((origin, kind), {})
        heads = []
        for place, heap in list(queue.items()):
            while heap and not self._waits(place, *heap[0]):
                heapq.heappop(heap)
            if heap:
                heads.append(heap[0])
            else:
                del queue[place]
        return (self._open[ticket] for _, ticket in sorted(heads))

    def offers(self, origin: str, kind: str) -> Mapping[str, float]:
        return self._offers.get((origin, kind), {})

    def write_offer(self, origin: str, kind: str, owner: str, at: float | None) -> None:
        offers = self._offers.setdefault((origin, kind), {})
        if at is None:
            offers.pop(owner, None)
        else:
            offers[owner] = at

    def lane(self, origin: str, kind: str, key: str) -> LaneState:
        return self._lane(origin, kind, key).state

    def write_lane(self, origin: str, kind: str, key: str, state: LaneState) -> None:
        self._lane(origin, kind, key).state = state

    def load(
        self, origin: str, kind: str, key: str, now: float, *, slots: bool = True, creates: bool = True
    ) -> LaneLoad:
        return self._lane(origin, kind, key).load(now)

    def count_create(self, origin: str, kind: str, key: str, now: float, window: float) -> None:
        self._lane(origin, kind, key).answered.append(now)

    def ticket_of_task(self, origin: str, task_id: str) -> str | None:
        return self._tickets.get(origin, {}).get(task_id) or self._recent.get((origin, task_id))

    def unsettled_records(self, origin: str, key: str, now: float) -> list[Record]:
        self._held = {ticket: each for ticket, each in self._held.items() if each.slot_until > now}
        submitting = [
            self._open[ticket]
            for (where, _, used), each in self._lanes.items()
            if where == origin and used == key
            for ticket in each.submitting
        ]
        return submitting + [
            each
            for each in self._held.values()
            if each.origin == origin and each.key == key and each.task.status is TaskStatus.UNKNOWN
        ]

    def records_of_owner(self, owner: str) -> list[Record]:
        return [record for record in self._open.values() if record.owner == owner]

    def unowned_records(self, origin: str) -> list[Record]:
        return [record for record in self._open.values() if record.owner is None and record.origin == origin]

    def held_keys(self, origin: str) -> frozenset[str]:
        return frozenset().union(*(keys for where, keys in self.clients.values() if where == origin))

    def open_records(self, origin: str) -> list[Record]:
        records = [record for record in self._open.values() if record.origin == origin]
        return sorted(records, key=lambda record: record.sequence)

    def unsaved_records(self, origin: str, keys: Collection[str], at: float, most: int) -> list[Record]:
        return [record for record in self._ended.values() if record.origin == origin]

    def lanes(self, origin: str) -> list[tuple[str, str, LaneState]]:
        return [
            (kind, key, lane.state) for (where, kind, key), lane in self._lanes.items() if where == origin
        ]

    def read_learned(self, names: Collection[str] | None) -> dict[str, str]:
        if names is None:
            return dict(self._learned)
        return {name: self._learned[name] for name in names if name in self._learned}

    def write_learned(self, texts: Mapping[str, str], most: int) -> None:
        for name, text in texts.items():
            self._learned.pop(name, None)
            self._learned[name] = text
        while len(self._learned) > most:
            del self._learned[next(iter(self._learned))]

    def _write(self, record: Record) -> Record:
        """Put *record* in the place of the one before, and notify the listeners."""
        status, ticket = record.task.status, record.ticket
        (self._ended if status.is_final else self._open)[ticket] = record
        (self._open if status.is_final else self._ended).pop(ticket, None)
        self._held.pop(ticket, None)
        self._stop_keeping(ticket)
        if status.is_final:
            self._keep(record)
        if record.key is not None:
            self._use(record, record.key)
        if status is TaskStatus.WAITING and record.owner is not None:
            heaps = self._queues.setdefault((record.origin, record.kind), {})
            place = (record.sequence, ticket)
            heap = heaps.setdefault((record.owner, record.keys), [])
            if place not in heap[:1]:
                heapq.heappush(heap, place)
        if record.task.task_id is not None:
            self._index(record.origin, record.task.task_id, ticket, final=status.is_final)
        self._notify(record)
        return record

    def _keep(self, record: Record) -> None:
        """Keep an ended record that no handle may hold. The oldest ones leave for it."""
        self._kept[record.ticket] = record
        self._kept_characters += _inline_characters(record)
        while len(self._kept) > MOST_ENDED_RECORDS or self._kept_characters > MOST_INLINE_CHARACTERS:
            self._stop_keeping(next(iter(self._kept)))

    def _stop_keeping(self, ticket: str) -> None:
        record = self._kept.pop(ticket, None)
        if record is not None:
            self._kept_characters -= _inline_characters(record)

    def _use(self, record: Record, key: str) -> None:
        """Count the record in its lane, if it uses a slot."""
        lane, status = self._lane(record.origin, record.kind, key), record.task.status
        if status is TaskStatus.SUBMITTING:
            lane.submitting[record.ticket] = record.admitted or 0.0
        if not status.is_final:
            lane.take(record.ticket, record.slot_until)
        elif record.slot_until > self.now():
            lane.take(record.ticket, record.slot_until)
            self._held[record.ticket] = record

    def _index(self, origin: str, task_id: str, ticket: str, *, final: bool) -> None:
        if not final:
            self._tickets.setdefault(origin, {})[task_id] = ticket
            return
        self._tickets.get(origin, {}).pop(task_id, None)
        self._recent[origin, task_id] = ticket
        while len(self._recent) > MOST_RECENT_IDS:
            self._recent.popitem(last=False)

    def _lane(self, origin: str, kind: str, key: str) -> _Lane:
        lane = self._lanes.get((origin, kind, key))
        if lane is None:
            lane = self._lanes[origin, kind, key] = _Lane()
        return lane

    def _waits(self, place: tuple[str, frozenset[str]], sequence: int, ticket: str) -> bool:
        record = self._open.get(ticket)
        return (
            record is not None
            and (record.owner, record.keys) == place
            and record.sequence == sequence
            and record.task.status is TaskStatus.WAITING
        )


def _inline_characters(record: Record) -> int:
    return sum(len(output.data or "") for output in record.task.outputs)


def _drop_reference(record: Record) -> None:
    """Called when the record before *record* is gone; until then it refers to *record*."""


class MemoryLedger(Ledger):
    """Records in the memory of one event loop. The default: all clients of a loop share `MemoryLedger.of_loop()`.

    An ended record leaves with the last handle that holds it, but not while it is among the last 256 that have ended.
    Until then, its ticket is idempotent. Promise 2 ("nothing is lost") holds across crashes only with a durable ledger.
    """

    def __init__(self) -> None:
        super().__init__()
        self._salt = _outside.new_bytes(16)
        self._store = MemoryStore(self._notify)
        self._machine = StateMachine(self._store)

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

    async def salt(self) -> bytes:
        return self._salt

    async def enter(self, origin: str, keys: Collection[str]) -> str:
        owner = _outside.new_id(8)
        self._store.clients[owner] = (origin, frozenset(keys))
        return owner

    async def leave(self, owner: str, *, waiting: bool = False) -> list[Record]:
        if not waiting:
            self._store.clients.pop(owner, None)
        return self._machine.leave(owner, waiting=waiting)

    async def newer_records(self, versions: Mapping[str, int]) -> list[Record]:
        return []  # its listeners were notified of every change

    async def share(self, owner: str, rate: float) -> float:
        return rate  # all clients of the loop share one query limiter

    async def _step(
        self, step: Callable[[StateMachine], _T], *, writes: bool = True, vital: bool = False
    ) -> _T:
        return step(self._machine)


_LEDGERS: WeakKeyDictionary[asyncio.AbstractEventLoop, MemoryLedger] = WeakKeyDictionary()
