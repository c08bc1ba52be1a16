"""The scheduler: one heap of due looks and one asyncio task, for any number of accepted tasks.

`_pace` says when to look at each; where more are due than the query budget lets through, the look that is worth most
goes first. A look is idempotent, so a look that fails never fails the task: it is made again, later. What is told to
the waiters ("your key is no longer valid") does not end the task either: looking goes on, more rarely.
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

from attrs import evolve

from bide._concurrency import unless_closed
from bide._events import log_line
from bide._polling.duration_models import Experience
from bide._polling.lister import Lister
from bide._polling.observer import Sightings
from bide._polling.pace import RECHECK, SHORTEST_CAP, Look, Pace, after_fault, bounds, next_poll, unseen_now
from bide._polling.watch import Watch
from bide._service.account import misread, retry_after_of
from bide.errors import APIError, BideError, LedgerError, WaitTimeoutError
from bide.models import Deadlines, ErrorDetail, Task, TaskStatus
from bide.providers import Denied, Gone

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from bide._polling.duration_models import Model
    from bide._service.account import Account
    from bide._submissions import Submissions
    from bide.ledgers import Record
    from bide.providers import Profile, QueryOutcome

GONE_FOR = 60.0
"""Seconds over which "no such task" must repeat before it is believed."""
GONE_RECHECK = 15.0
RERECORD = 5.0
"""Seconds until what could not be recorded is looked at again."""
LOOKS_SHARE = 0.7
"""The share of the transport's places that looks may take; the rest is for creates."""

SOON = 600.0
"""Seconds to a deadline from which on a task keeps a place in the heap for it while it is looked at."""
TIDY = 256
"""Places in the heap, besides twice the valid ones, from which on it is tidied."""
BATCH = 500
"""How many that are due are taken from the heap in one turn of the event loop: others want theirs too."""
CHOICES = 32
"""Of many that are due, so many that have waited longest and as many others are weighed against each other."""


class Poller:
    """Looks at tasks when they are due, within the account's budget.

    Args:
        spawn: runs background work that ends with the client.
    """

    def __init__(
        self,
        account: Account,
        owner: str,
        deadlines: Deadlines,
        pace: Pace,
        submissions: Submissions,
        spawn: Callable[[Coroutine[object, object, None]], object],
    ) -> None:
        self._account = account
        self._owner = owner
        self._ledger = account.ledger
        self._deadlines = deadlines
        self._pace = pace
        self._submissions = submissions
        self._most_looks = max(1, int(account.transport.places * LOOKS_SHARE))
        self._watches: dict[str, Watch] = {}
        self._heap: list[tuple[float, int, Watch | Callable[[], None]]] = []
        self._tidy_at = TIDY
        self._order = itertools.count()
        self._due: deque[Watch] = deque()
        self._profiles: dict[str, Profile] = {}
        self._looks: set[asyncio.Task[BideError | None]] = set()
        self._strange: set[str] = set()
        self._wake = asyncio.Event()
        self._time = asyncio.get_running_loop().time
        self.experience = Experience(account.ledger, account.origin, spawn, self._replan)
        self._sightings = Sightings(account, self.experience, pace)
        self._lister = Lister(self, account, pace)
        account.query_limiter.on_free.append(self._wake.set)
        self._loop = asyncio.create_task(self._run(), name="bide poller")

    def watch(self, record: Record, *, now: bool = False, answered: bool = False) -> None:
        """Look at an accepted task until it has ended.

        Args:
            now: the first look comes at once.
            answered: its create was answered just now, and so it was made between its admission and this moment.
        """
        task_id = record.task.task_id
        if record.ticket in self._watches or task_id is None:
            return
        moment, since = self._time(), record.admitted
        age = 0.0 if since is None else max(0.0, self._ledger.now() - since)
        profile = self._profiles.get(record.kind)
        if profile is None:  # one for all: a hundred thousand tasks may be watched
            profile = self._profiles[record.kind] = self._account.provider.profile(record.kind)
        name = record.task.model if record.request is None else record.request.model
        watch = Watch(
            ticket=record.ticket,
            task_id=task_id,
            key=record.key or "",
            kind=record.kind,
            zero=moment - (age / 2 if answered else age),
            is_dated=since is not None,
            is_named=name is not None,
            slot_until=record.slot_until,
            profile=profile,
            model=self.experience.model(record.kind, name, record.request, profile.typical),
            task=record.task,
            look_at=moment,
        )
        if not now:
            self._plan(watch)
        self._watches[record.ticket] = watch
        self._start_clock(watch)
        self.push(watch)
        self._note_word(watch.task)

    def _plan(self, watch: Watch) -> None:
        """Look at it next when the pace wants to."""
        now, look = self._time(), Look(watch.profile.floor, self.pressure(watch.kind), random.random())  # noqa: S311 - jitter
        try:
            planned = watch.zero + next_poll(self._pace, watch, watch.model.best(), look)
        except Exception as fault:  # noqa: BLE001 - whatever was learned, a task that is paid for is looked at
            log_line(
                logging.WARNING,
                f"{watch.ticket}: the pace failed, so it is looked at by the clock: {misread(fault)}",
            )
            planned = now + max(look.floor, SHORTEST_CAP)
        watch.look_at, watch.paced = max(now, planned), True

    def _floor(self, watch: Watch) -> float:
        """The least seconds between two looks at it."""
        return bounds(self._pace, 0.0, watch.profile.floor)[0]

    def _replan(self, model: Model) -> None:
        """The ledger knew more of *model* than was known when its tasks were planned."""
        for watch in self._watches.values():
            if model in (watch.model, watch.model.parent):
                self._plan_anew(watch)

    def hurry(self, kind: str) -> None:
        """Requests of this *kind* wait for a slot from now on: its ends are worth more."""
        for watch in self._watches.values():
            if watch.kind == kind:
                self._plan_anew(watch)

    def _plan_anew(self, watch: Watch) -> None:
        if watch.paced and watch.look is None and not watch.due and watch.look_at > self._time():
            self._plan(watch)
            self.push(watch)

    def forget(self, ticket: str) -> None:
        """The task has ended, or someone else watches it now."""
        watch = self._watches.pop(ticket, None)
        if watch is not None:
            watch.closed = True
            self._tidy()

    def _tidy(self) -> None:
        """Drop the places in the heap that no longer hold, now and then: each keeps a task that has ended."""
        if len(self._heap) > self._tidy_at:
            self._heap = [
                (moment, order, item)
                for moment, order, item in self._heap
                if not isinstance(item, Watch) or (not item.closed and item.in_heap_at == moment)
            ]
            heapq.heapify(self._heap)
            self._tidy_at = 2 * len(self._heap) + TIDY

    def look_soon(self, ticket: str) -> None:
        """Something hints at a change: look at the next occasion."""
        watch = self._watches.get(ticket)
        if watch is not None:
            watch.look_at, watch.paced, watch.again = self._time(), False, watch.look is not None
            self.push(watch)

    async def look_now(self, ticket: str) -> BideError | None:
        """Look at once, or share the look under way. Returns the fault of that look, or None."""
        watch = self._watches.get(ticket)
        if watch is None:
            return None
        if watch.look is None:
            await self._account.query_limiter.acquire()
            if watch.look is None and not watch.closed:
                self._start_look(watch)
            else:
                self._account.query_limiter.release()
        look = watch.look
        return None if look is None else await unless_closed(look)

    def at(self, moment: float, call: Callable[[], None]) -> None:
        """Call *call* at *moment* (loop's clock): a place in the heap instead of a timer of its own."""
        heapq.heappush(self._heap, (moment, next(self._order), call))
        self._wake.set()

    def wake(self) -> None:
        """Something may be due now."""
        self._wake.set()

    def pressure(self, kind: str) -> float:
        """See `Submissions.pressure`."""
        return self._submissions.pressure(kind)

    def live(self, key: str) -> list[Watch]:
        """The tasks of a key that are watched."""
        return [watch for watch in self._watches.values() if watch.key == key]

    @property
    def backlog(self) -> int:
        """Tasks that are due to be looked at, and have to wait for the budget or a connection."""
        return len(self._due)

    async def aclose(self) -> None:
        """Stop looking."""
        self._account.query_limiter.on_free.remove(self._wake.set)
        for watch in self._watches.values():
            watch.closed = True
        tasks = {self._loop, *self._looks, *self._lister.tasks()}
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
            self._submissions.fail_waiters(watch.ticket, error)

    def push(self, watch: Watch) -> None:
        """Give the watch a place in the heap for its next moment. Where it has an earlier one, it moves on from there:
        so it has one place, and a list that puts off many looks wakes nobody."""
        if watch.closed:
            return
        at_work = watch.due or watch.look is not None
        moment = watch.deadline if at_work else min(watch.look_at, watch.deadline)
        if moment >= watch.in_heap_at or (at_work and moment > self._time() + SOON):
            return
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
            if not isinstance(item, Watch):
                item()
            elif not item.closed and item.in_heap_at == moment:
                item.in_heap_at = math.inf
                if item.deadline <= now:
                    self._deadline_passed(item)
                if item.look_at <= now and not item.due and item.look is None:
                    item.due = True
                    self._due.append(item)
                self.push(item)

    def _start_looks(self) -> float:
        """Start what is due, as far as the budget and the connections allow. Returns when to go on."""
        query_limiter = self._account.query_limiter
        while self._due and len(self._looks) < self._most_looks:
            now = self._time()
            free_at = query_limiter.free_at(now)
            if free_at > now:
                return free_at
            watch = self._next_due(now)
            try:
                if watch.closed or watch.look is not None or watch.look_at > now:
                    self.push(watch)  # it has ended, or was looked at meanwhile
                elif not self._lister.takes(watch, now) and query_limiter.try_acquire(now):
                    self._start_look(watch)
            except Exception:
                self.push(watch)  # whatever it was, it must not cost the task its place
                raise
        return math.inf

    def _next_due(self, now: float) -> Watch:
        """Take the look that is worth most out of the queue.

        Where the budget cannot let all through, that is the one with the largest expected time of an unseen end; but
        one that has waited for longer than two caps goes before.
        """
        due, index = self._due, 0
        head = due[0]
        waited = now - head.look_at
        if len(due) > 1 and self._account.query_limiter.rate is not None and not (head.singly or head.closed):
            cap = bounds(self._pace, head.seen, head.profile.floor)[1]
            if waited < 2 * cap:
                others = random.sample(range(len(due)), min(CHOICES, len(due)))
                index = max(
                    {*range(min(CHOICES, len(due))), *others}, key=lambda at: self._worth(due[at], now)
                )
        watch = due[index]
        del due[index]
        watch.due = False
        return watch

    def _worth(self, watch: Watch, now: float) -> float:
        if watch.singly or watch.closed:
            return math.inf
        try:
            return unseen_now(watch, watch.model.best(), watch.age(now))
        except Exception:  # noqa: BLE001 - told where it is planned; it must not stop the others
            return now - watch.look_at

    # One look ----------------------------------------------------------------------------------------------

    def _start_look(self, watch: Watch) -> None:
        """Make the look in a task of our own; a place in the query_limiter has been taken for it."""
        look = asyncio.create_task(self._look(watch), name=f"bide look {watch.task_id}")
        watch.look = look
        self._looks.add(look)

        def ended(_: object) -> None:
            self._looks.discard(look)
            watch.look = None
            if look.cancelled() or look.exception() is not None:
                watch.look_at = self._time() + RECHECK  # it has digested nothing
            elif watch.again and watch.paced:
                watch.look_at = min(watch.look_at, self._time() + self._floor(watch))
            watch.again = False
            self._account.query_limiter.release()
            self.push(watch)
            self._wake.set()

        look.add_done_callback(ended)

    async def _look(self, watch: Watch) -> BideError | None:
        try:
            began = self._time()
            outcome = await self._account.query(watch.key, watch.task_id)
            error = None if isinstance(outcome, Task) else outcome.error
            self._submissions.announce_poll(watch.ticket, self._time() - began, error)
            return await self.digest(watch, outcome, (began + self._time()) / 2)
        except Exception as fault:  # noqa: BLE001 - whatever goes wrong reaches who waits and stops nobody else
            error = fault if isinstance(fault, BideError) else misread(fault)
            self.tell(watch, error)
            if isinstance(
                fault, LedgerError
            ):  # the task may have ended, and holds its slot until that is recorded
                watch.look_at = self._time() + RERECORD
            return error

    async def digest(
        self, watch: Watch, outcome: QueryOutcome, at: float, *, listed: bool = False
    ) -> BideError | None:
        """Take in what a look (or a list) has told of the moment *at*. Returns the fault, if it was one."""
        now, watch.paced = self._time(), False
        if isinstance(outcome, Task):
            if watch.singly and not outcome.status.is_final:
                self._lister.contradicted(watch)
            watch.failures, watch.gone_since, watch.singly = 0, None, False
            await self._take_in(watch, outcome, at, listed=listed)
            if not watch.task.status.is_final:
                self._plan(watch)
            self._tell_overdue(watch)
            return None
        if isinstance(outcome, Gone):
            await self._take_in_gone(watch, outcome, now)
            return outcome.error
        if isinstance(outcome, Denied):
            return self.tell(watch, outcome.error)
        watch.failures += 1
        floor = self._floor(watch)
        chance = random.random()  # noqa: S311 - jitter
        watch.look_at = now + after_fault(floor, watch.failures, retry_after_of(outcome), chance)
        self._submissions.note_fault(watch.ticket, outcome.error)
        if isinstance(outcome.error, APIError) and outcome.error.status_code == 429:
            pause = self._account.query_limiter.window.paused_for(now)
            self._submissions.announce_pause(watch.ticket, watch.key, pause, outcome.error)
        self._tell_overdue(watch)
        return outcome.error

    async def _take_in(self, watch: Watch, seen: Task, at: float, *, listed: bool = False) -> None:
        """A new snapshot: on record if its status is new, then told."""
        before = watch.task
        task = before.advanced(seen)
        if not task.status.is_final:
            if task.status is not before.status:
                await self._ledger.update(watch.ticket, task, owner=self._owner)
            task = self._sightings.unfinished(watch, task, at, listed=listed)
        else:
            await self._ledger.finish(watch.ticket, task, owner=self._owner)
            if self._sightings.ended(watch, task, at):
                self._lister.contradicted(watch)
        watch.task = task
        if task.status is not before.status:
            self._start_clock(watch)
        self._note_word(task)
        self._submissions.advance(watch.ticket, task)

    async def _take_in_gone(self, watch: Watch, outcome: Gone, now: float) -> None:
        """One "no such task" proves nothing; only repeated over a while it ends the task as expired."""
        if watch.gone_since is None:
            watch.gone_since = now
        if now - watch.gone_since >= GONE_FOR:
            detail = ErrorDetail(
                outcome.error.code, outcome.error.message, status_code=outcome.error.status_code
            )
            await self._take_in(watch, evolve(watch.task, status=TaskStatus.EXPIRED, error=detail), now)
            return
        self._submissions.note_fault(watch.ticket, outcome.error)
        watch.look_at = min(now + max(GONE_RECHECK, self._floor(watch)), watch.gone_since + GONE_FOR)
        watch.look_at = max(watch.look_at, now + self._floor(watch))

    def tell(self, watch: Watch, error: BideError) -> BideError:
        """A lasting fault: whoever waits hears it, and looking goes on, more rarely."""
        watch.look_at = self._time() + RECHECK
        self._submissions.fail_waiters(watch.ticket, error)
        return error

    def _tell_overdue(self, watch: Watch) -> None:
        if watch.task.status.is_final or self._ledger.now() < watch.slot_until:
            return
        watch.look_at, watch.paced = max(watch.look_at, self._time() + RECHECK), False
        self._submissions.fail_waiters(
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
            log_line(logging.WARNING, f"{name}: unknown task status {word!r} counts as running")

    # Deadlines ---------------------------------------------------------------------------------------------

    def _start_clock(self, watch: Watch) -> None:
        running = watch.task.status is TaskStatus.RUNNING
        seconds = self._deadlines.running if running else self._deadlines.queued
        watch.deadline = math.inf if seconds is None else self._time() + seconds

    def _deadline_passed(self, watch: Watch) -> None:
        watch.deadline = math.inf
        running = watch.task.status is TaskStatus.RUNNING
        name, seconds = (
            ("running", self._deadlines.running) if running else ("queued", self._deadlines.queued)
        )
        self._submissions.fail_waiters(
            watch.ticket,
            WaitTimeoutError(
                f"task {watch.task_id} is still {watch.task.status} after {seconds:g} s (Deadlines.{name}); "
                f"it goes on and is watched: wait again, or later client.attach({watch.task_id!r})",
                task=watch.task,
            ),
        )
