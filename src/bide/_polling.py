"""The scheduler: one heap of due looks and one asyncio task, for any number of accepted tasks.

A look is idempotent, so a look that fails never fails the task: it is made again, later. What is told to the
waiters ("your key is no longer valid") does not end the task either: looking goes on, more rarely.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import random
from collections import deque
from typing import TYPE_CHECKING

from attrs import define, evolve, field

from bide._account import misread, retry_after_of, unless_closed
from bide._events import note
from bide._pace import RECHECK, Pace
from bide.errors import APIError, BideError, LedgerError, WaitTimeoutError
from bide.models import Deadlines, ErrorDetail, Task, TaskStatus
from bide.providers import Denied, Gone

if TYPE_CHECKING:
    from collections.abc import Callable

    from bide._account import Account, Listener
    from bide.ledgers import Record
    from bide.providers import ListedTask, Profile, QueryOutcome

GONE_FOR = 60.0
"""Seconds over which "no such task" must repeat before it is believed."""
GONE_RECHECK = 15.0
RERECORD = 5.0
"""Seconds until what could not be recorded is looked at again."""
OLDEST = 24 * 3600.0
"""A task that was made elsewhere may be this old: services forget them after a day."""
LOOKS_SHARE = 0.7
"""The share of the transport's places that looks may take; the rest is for creates."""

BATCH = 500
"""How many that are due are taken from the heap in one turn of the event loop: others want theirs too."""


@define(eq=False)
class _Watch:
    """One accepted task that is looked at."""

    ticket: str
    task_id: str
    lane: str
    created: float  # by the ledger's clock, as early as it can be
    slot_until: float
    profile: Profile
    task: Task
    look_at: float
    interval: float
    deadline: float = math.inf
    in_heap_at: float = math.inf
    due: bool = False
    look: asyncio.Task[BideError | None] | None = None
    failures: int = 0
    gone_since: float | None = None
    listed: bool = False  # a list has shown its end: the next look at it is a single one
    closed: bool = field(default=False)


class Poller:
    """Looks at tasks when they are due, within the account's budget."""

    def __init__(
        self, account: Account, owner: str, deadlines: Deadlines, pace: Pace, listener: Listener
    ) -> None:
        self._account = account
        self._owner = owner
        self._ledger = account.ledger
        self._deadlines = deadlines
        self._pace = pace
        self._listener = listener
        self._most_looks = max(1, int(account.transport.places * LOOKS_SHARE))
        self._watches: dict[str, _Watch] = {}
        self._heap: list[tuple[float, int, _Watch | Callable[[], None]]] = []
        self._order = itertools.count()
        self._due: deque[_Watch] = deque()
        self._looks: set[asyncio.Task[BideError | None]] = set()
        self._listing: asyncio.Task[None] | None = None
        self._strange: set[str] = set()
        self._wake = asyncio.Event()
        self._time = asyncio.get_running_loop().time
        account.turnstile.on_free.append(self._wake.set)
        self._loop = asyncio.create_task(self._run(), name="bide poller")

    def watch(self, record: Record, *, now: bool = False) -> None:
        """Look at an accepted task until it has ended; the first look comes at once with *now*."""
        task_id = record.task.task_id
        if record.ticket in self._watches or task_id is None:
            return
        profile = self._account.provider.profile(record.kind)
        interval = 0.0 if now else self._pace.first(profile, random.random())  # noqa: S311 - jitter
        watch = _Watch(
            ticket=record.ticket,
            task_id=task_id,
            lane=record.lane or "",
            created=self._ledger.now() - OLDEST if record.admitted is None else record.admitted,
            slot_until=record.slot_until,
            profile=profile,
            task=record.task,
            look_at=self._time() + interval,
            interval=max(interval, profile.floor),
        )
        self._watches[record.ticket] = watch
        self._start_clock(watch)
        self._push(watch)
        self._note_word(watch.task)

    def forget(self, ticket: str) -> None:
        """The task has ended, or someone else watches it now."""
        watch = self._watches.pop(ticket, None)
        if watch is not None:
            watch.closed = True

    def look_soon(self, ticket: str) -> None:
        """Something hints at a change: look at the next occasion."""
        watch = self._watches.get(ticket)
        if watch is not None:
            watch.look_at = self._time()
            self._push(watch)

    async def look_now(self, ticket: str) -> BideError | None:
        """Look at once, or share the look under way. Returns the fault of that look, or None."""
        watch = self._watches.get(ticket)
        if watch is None:
            return None
        if watch.look is None:
            await self._account.turnstile.enter()
            if watch.look is None and not watch.closed:
                self._start_look(watch)
            else:
                self._account.turnstile.leave()
        look = watch.look
        return None if look is None else await unless_closed(look)

    def at(self, moment: float, call: Callable[[], None]) -> None:
        """Call *call* at *moment* (loop's clock): a place in the heap instead of a timer of its own."""
        heapq.heappush(self._heap, (moment, next(self._order), call))
        self._wake.set()

    @property
    def backlog(self) -> int:
        """Tasks that are due to be looked at, and have to wait for the budget or a connection."""
        return len(self._due)

    async def aclose(self) -> None:
        """Stop looking."""
        self._account.turnstile.on_free.remove(self._wake.set)
        for watch in self._watches.values():
            watch.closed = True
        tasks = {self._loop, *self._looks, *([self._listing] if self._listing else [])}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    # The loop ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            try:
                self._pop_due()
                until = self._start_looks()
            except Exception as fault:  # noqa: BLE001 - it reaches whoever waits, and looking goes on
                until = self._time() + RECHECK
                self._failed(misread(fault))
            if self._heap:
                until = min(until, self._heap[0][0])
            timer = loop.call_at(until, self._wake.set) if until < math.inf else None
            await self._wake.wait()
            if timer is not None:
                timer.cancel()

    def _failed(self, error: BideError) -> None:
        """The scheduler itself has stumbled: everybody hears it."""
        for watch in list(self._watches.values()):
            self._listener.told(watch.ticket, error)

    def _push(self, watch: _Watch) -> None:
        """Put the watch into the heap for its next moment. An older place of it there is passed over."""
        if watch.closed:
            return
        moment = min(watch.look_at, watch.deadline) if not (watch.due or watch.look) else watch.deadline
        if moment < math.inf and moment != watch.in_heap_at:
            watch.in_heap_at = moment
            heapq.heappush(self._heap, (moment, next(self._order), watch))
            if self._heap[0][2] is watch:
                self._wake.set()

    def _pop_due(self) -> None:
        now = self._time()
        for _ in range(BATCH):
            if not self._heap or self._heap[0][0] > now:
                break
            moment, _, item = heapq.heappop(self._heap)
            if not isinstance(item, _Watch):
                item()
            elif not item.closed and item.in_heap_at == moment:
                item.in_heap_at = math.inf
                if item.deadline <= now:
                    self._deadline_passed(item)
                if item.look_at <= now and not item.due and item.look is None:
                    item.due = True
                    self._due.append(item)
                self._push(item)

    def _start_looks(self) -> float:
        """Start what is due, as far as the budget and the connections allow. Returns when to go on."""
        turnstile = self._account.turnstile
        self._list_if_worth_it()
        while self._due and len(self._looks) < self._most_looks:
            head = self._due[0]
            if head.closed or head.look is not None or head.look_at > self._time():
                self._due.popleft().due = False  # it has ended, or was looked at meanwhile
                self._push(head)
            elif turnstile.try_enter(self._time()):
                watch = self._due.popleft()
                watch.due = False
                self._start_look(watch)
            else:
                return turnstile.free_at(self._time())
        return math.inf

    # One look ----------------------------------------------------------------------------------------------

    def _start_look(self, watch: _Watch) -> None:
        """Make the look in a task of our own; a place in the turnstile has been taken for it."""
        look = asyncio.create_task(self._look(watch), name=f"bide look {watch.task_id}")
        watch.look = look
        self._looks.add(look)

        def ended(_: object) -> None:
            self._looks.discard(look)
            watch.look = None
            if look.cancelled() or look.exception() is not None:
                watch.look_at = self._time() + RECHECK  # it has digested nothing
            self._account.turnstile.leave()
            self._push(watch)
            self._wake.set()

        look.add_done_callback(ended)

    async def _look(self, watch: _Watch) -> BideError | None:
        try:
            began = self._time()
            outcome = await self._account.query(watch.lane, watch.task_id)
            error = None if isinstance(outcome, Task) else outcome.error
            self._listener.looked(watch.ticket, self._time() - began, error)
            return await self._digest(watch, outcome)
        except Exception as fault:  # noqa: BLE001 - whatever goes wrong reaches who waits and stops nobody else
            error = fault if isinstance(fault, BideError) else misread(fault)
            self._tell(watch, error)
            if isinstance(
                fault, LedgerError
            ):  # the task may have ended, and holds its slot until that is recorded
                watch.look_at = self._time() + RERECORD
            return error

    async def _digest(self, watch: _Watch, outcome: QueryOutcome) -> BideError | None:
        """Take in what a look has told. Returns the fault, if it was one."""
        chance, now = random.random(), self._time()  # noqa: S311 - jitter
        if isinstance(outcome, Task):
            watch.failures, watch.gone_since, watch.listed = 0, None, False
            changed = await self._take_in(watch, outcome)
            watch.interval = self._pace.next(watch.profile, watch.interval, changed=changed, chance=chance)
            watch.look_at = self._time() + watch.interval
            self._tell_overdue(watch)
            return None
        if isinstance(outcome, Gone):
            await self._take_in_gone(watch, outcome, now)
            return outcome.error
        if isinstance(outcome, Denied):
            return self._tell(watch, outcome.error)
        watch.failures += 1
        watch.look_at = now + self._pace.after_fault(
            watch.profile, watch.failures, retry_after_of(outcome), chance
        )
        self._listener.stumbled(watch.ticket, outcome.error)
        if isinstance(outcome.error, APIError) and outcome.error.status_code == 429:
            pause = self._account.turnstile.budget.paused_for(now)
            self._listener.paused(watch.ticket, watch.lane, pause, outcome.error)
        self._tell_overdue(watch)
        return outcome.error

    async def _take_in(self, watch: _Watch, seen: Task) -> bool:
        """A new snapshot: on record if its status is new, then told. Returns whether anything has changed."""
        before = watch.task
        task = before.advanced(seen)
        if task.status.is_final:
            await self._ledger.finish(watch.ticket, task, owner=self._owner)
        elif task.status is not before.status:
            await self._ledger.update(watch.ticket, task, owner=self._owner)
        watch.task = task
        if task.status is not before.status:
            self._start_clock(watch)
        self._note_word(task)
        self._listener.seen(watch.ticket, task)
        return task.differs(before)

    async def _take_in_gone(self, watch: _Watch, outcome: Gone, now: float) -> None:
        """One "no such task" proves nothing; only repeated over a while it ends the task as expired."""
        if watch.gone_since is None:
            watch.gone_since = now
        if now - watch.gone_since >= GONE_FOR:
            detail = ErrorDetail(
                outcome.error.code, outcome.error.message, status_code=outcome.error.status_code
            )
            await self._take_in(watch, evolve(watch.task, status=TaskStatus.EXPIRED, error=detail))
            return
        self._listener.stumbled(watch.ticket, outcome.error)
        watch.look_at = min(now + max(GONE_RECHECK, watch.profile.floor), watch.gone_since + GONE_FOR)
        watch.look_at = max(watch.look_at, now + watch.profile.floor)

    def _tell(self, watch: _Watch, error: BideError) -> BideError:
        """A lasting fault: whoever waits hears it, and looking goes on, more rarely."""
        watch.look_at = self._time() + RECHECK
        self._listener.told(watch.ticket, error)
        return error

    def _tell_overdue(self, watch: _Watch) -> None:
        if watch.task.status.is_final or self._ledger.now() < watch.slot_until:
            return
        watch.look_at = max(watch.look_at, self._time() + RECHECK)
        self._listener.told(
            watch.ticket,
            WaitTimeoutError(
                f"task {watch.task_id} is overdue: still {watch.task.status} after the longest time that such a task "
                f"takes; its slot counts as free now. It is looked at every {RECHECK:.0f} s: wait again to hear of it",
                task=watch.task,
            ),
        )

    def _note_word(self, task: Task) -> None:
        """Warn once of a status word that nobody knows."""
        word = task.raw_status
        if word is None or task.status is not TaskStatus.RUNNING or word in self._strange:
            return
        self._strange.add(word)
        if not self._account.provider.knows(word):
            name = self._account.provider.name
            note(logging.WARNING, f"{name}: unknown task status {word!r} counts as running")

    # Deadlines ---------------------------------------------------------------------------------------------

    def _start_clock(self, watch: _Watch) -> None:
        running = watch.task.status is TaskStatus.RUNNING
        seconds = self._deadlines.running if running else self._deadlines.queued
        watch.deadline = math.inf if seconds is None else self._time() + seconds

    def _deadline_passed(self, watch: _Watch) -> None:
        watch.deadline = math.inf
        running = watch.task.status is TaskStatus.RUNNING
        name, seconds = (
            ("running", self._deadlines.running) if running else ("queued", self._deadlines.queued)
        )
        self._listener.told(
            watch.ticket,
            WaitTimeoutError(
                f"task {watch.task_id} is still {watch.task.status} after {seconds:g} s (Deadlines.{name}); "
                f"it goes on and is watched: wait again, or later client.attach({watch.task_id!r})",
                task=watch.task,
            ),
        )

    # Lists -------------------------------------------------------------------------------------------------

    def _list_if_worth_it(self) -> None:
        """Use the list where single looks would take more than a second of the budget, and pages are fewer."""
        provider, rate = self._account.provider, self._account.turnstile.budget.rate
        if not provider.lists or rate is None or self._listing is not None or len(self._due) <= rate:
            return
        if self._due[0].listed:
            return  # what the last list has shown as ended is fetched first
        lane = self._due[-1].lane
        watches = [each for each in self._due if each.lane == lane and not each.listed and not each.closed]
        pages = math.ceil(sum(each.lane == lane for each in self._watches.values()) / provider.page_size)
        if len(watches) <= max(rate, 2 * pages):
            return
        chosen = set(map(id, watches))
        self._due = deque(each for each in self._due if id(each) not in chosen)
        self._listing = asyncio.create_task(self._list(lane, watches), name="bide list")
        self._listing.add_done_callback(self._listed)

    def _listed(self, _: object) -> None:
        self._listing = None
        self._wake.set()

    async def _list(self, lane: str, watches: list[_Watch]) -> None:
        """One list in the place of many looks. What it lacks or shows as ended is looked at singly, first."""
        listed: dict[str, ListedTask] = {}
        try:
            since = min(watch.created for watch in watches)
            answer = await self._account.listed(lane, since, self._ledger.now())
            if isinstance(answer, list):
                listed = {each.task.task_id: each for each in answer if each.task.task_id is not None}
        except Exception as fault:  # noqa: BLE001 - single looks will do, and tell what is wrong
            note(logging.DEBUG, f"list failed: {misread(fault)}")
        for watch in watches:
            watch.due = False
            if watch.closed:
                continue
            try:
                await self._digest_listed(watch, listed.get(watch.task_id))
            except Exception as fault:  # noqa: BLE001 - it reaches who waits for this one, and the others go on
                self._tell(watch, fault if isinstance(fault, BideError) else misread(fault))
                self._push(watch)

    async def _digest_listed(self, watch: _Watch, listed: ListedTask | None) -> None:
        if listed is None or listed.task.status.is_final:
            watch.listed = watch.due = True
            self._due.appendleft(watch)
            return
        # A list row is not the task's own answer: what it lacks (the raw answer above all) stays as it was.
        seen = evolve(watch.task, status=listed.task.status, raw_status=listed.task.raw_status)
        await self._digest(watch, seen)
        self._push(watch)
