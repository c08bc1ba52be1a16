"""The one asyncio task that polls, for any number of accepted tasks.

The pace says when to poll each task. If more polls are due than the query rate allows, the poll that is worth most is
sent first. A poll is idempotent: a poll that fails never fails the task, raises nothing in the waiters, and is repeated
later. An error for the waiters ("your key is no longer valid") does not end the task either: the poller still polls it,
but more rarely.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from bide._concurrency import wait_unless_closed
from bide._events import log_line
from bide._polling.duration_models import DurationModels
from bide._polling.lister import Lister
from bide._polling.observer import Observer
from bide._polling.pace import RECHECK_SECONDS
from bide._polling.schedule import Schedule
from bide._polling.watched_task import WatchedTask
from bide._service.account import misread
from bide.models import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from bide._polling.pace import Pace
    from bide._service.account import Account
    from bide._submissions import Submissions
    from bide.errors import BideError
    from bide.ledgers import Record
    from bide.models import Deadlines
    from bide.providers import Profile

POLLS_SHARE = 0.7
"""The share of the transport's places that polls may take; the rest is for creates."""
RESUME_SECONDS = 5.0
"""Seconds until the poller goes on after an unforeseen exception."""


class Poller:
    """Polls tasks when they are due, within the account's query rate.

    Attributes:
        duration_models: what was learned of the durations of tasks.

    Args:
        owner: the name of the client on the ledger.
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
        self._ledger = account.ledger
        self._submissions = submissions
        self._most_polls = max(1, int(account.transport.places * POLLS_SHARE))
        self._polls: set[asyncio.Task[BideError | None]] = set()
        self._profiles: dict[str, Profile] = {}
        self._wake = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._schedule = schedule = Schedule(pace, submissions.pressure, self._wake.set)
        self.duration_models: DurationModels = DurationModels(
            account.ledger, account.origin, spawn, schedule.plan_model_again
        )
        self._observer = Observer(
            account,
            owner,
            deadlines,
            submissions,
            self.duration_models,
            schedule,
            self._note_contradiction,
        )
        self._lister = Lister(account, schedule, self._observer)
        self._resume_at = -math.inf
        account.query_limiter.add_taker(self._take_place)
        account.outage.on_end.append(self._end_outage)
        self._loop = asyncio.create_task(self._run(), name="bide poller")

    def _note_contradiction(self, watched: WatchedTask) -> None:
        self._lister.note_contradiction(watched)  # the lister is made after the observer, which it uses

    def _end_outage(self) -> None:
        """The service answers again: poll all tasks that it did not answer for."""
        self._lister.forget_failures(self._account.outage.since)
        for watched in self._schedule.tasks():
            if watched.failing_since is not None:
                self._schedule.hasten(watched)
        self._wake.set()

    # For the client ----------------------------------------------------------------------------------------

    def watch(self, record: Record, *, now: bool = False, answered: bool = False) -> None:
        """Poll an accepted task until it has ended.

        Args:
            now: the first poll comes at once.
            answered: its create was answered just now. So the task was made between its admission and this moment.
        """
        if record.ticket in self._schedule or record.task.task_id is None:
            return
        moment, since = self._clock(), record.admitted
        age = 0.0 if since is None else max(0.0, self._ledger.now() - since)
        profile = self._profiles.get(record.kind)
        if profile is None:  # one value for all: a hundred thousand tasks may be watched
            profile = self._profiles[record.kind] = self._account.provider.profile(record.kind)
        name = record.task.model if record.request is None else record.request.model
        watched = WatchedTask(
            task=record.task,
            key=record.key or "",
            kind=record.kind,
            profile=profile,
            model=self.duration_models.model(record.kind, name, record.request, profile.typical),
            zero=moment - (age / 2 if answered else age),
            poll_at=moment,
            slot_until=record.slot_until,
            is_dated=since is not None,
            is_named=name is not None,
            guessed_for=record.request if record.guessed else None,
        )
        if record.task.awaits_outputs:
            self._observer.start_empty(watched)
        elif not now:
            self._schedule.plan(watched)
        self._schedule.add(watched)
        self._observer.start_deadline(watched)
        self._schedule.push(watched)
        self._observer.note_word(watched.task)

    def forget(self, ticket: str) -> None:
        """The task has ended, or another client polls it now."""
        self._schedule.remove(ticket)

    def poll_soon(self, ticket: str) -> None:
        """The task may have changed: poll it as soon as the query rate allows."""
        watched = self._schedule.get(ticket)
        if watched is not None:
            watched.is_asked_again = watched.poll is not None
            self._schedule.hasten(watched)

    async def poll_now(self, ticket: str) -> BideError | None:
        """Poll as soon as the floor of the pace and the query rate allow. All callers share one poll, also one that is
        under way. Returns the fault of that poll, or None."""
        watched = self._schedule.get(ticket)
        if watched is None:
            return None
        if watched.wish is None:
            watched.wish = asyncio.get_running_loop().create_future()
            if watched.poll is None:
                self._schedule.hasten(watched)
        return await wait_unless_closed(watched.wish)

    def hurry(self, kind: str) -> None:
        """Requests of this *kind* wait for a slot from now on: poll its tasks more often."""
        self._schedule.plan_kind_again(kind)

    def at(self, moment: float, call: Callable[[], None]) -> None:
        """Call *call* at *moment* (loop's clock)."""
        self._schedule.at(moment, call)

    @property
    def backlog(self) -> int:
        """Tasks that are due to be polled, and have to wait for the query rate or a connection."""
        return self._schedule.backlog

    async def aclose(self) -> None:
        """Stop polling."""
        self._account.query_limiter.remove_taker(self._take_place)
        self._account.outage.on_end.remove(self._end_outage)
        self._schedule.close()
        tasks = {self._loop, *self._polls, *self._lister.tasks()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    # The loop ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            try:
                for watched in self._schedule.pop_due():
                    self._observer.pass_deadline(watched)
                until = self._start_due()
            except Exception as fault:  # noqa: BLE001 - a wait that times out names it, and polling goes on
                until = self._pause_after(fault)
            until = min(until, self._schedule.next_moment)
            timer = loop.call_at(until, self._wake.set) if until < math.inf else None
            await self._wake.wait()
            if timer is not None:
                timer.cancel()

    def _pause_after(self, fault: Exception) -> float:
        """An unforeseen exception: pause for a moment. Returns when to go on."""
        error = misread(fault)
        log_line(logging.ERROR, f"no task is polled for {RESUME_SECONDS:g} s: {error}")
        for watched in self._schedule.tasks():
            self._submissions.note_fault(watched.ticket, error)
        self._resume_at = self._clock() + RESUME_SECONDS
        return self._resume_at

    def _start_due(self) -> float:
        """Start the polls that are due, as far as the query rate and the connections allow. Returns when to go on."""
        limiter = self._account.query_limiter
        limiter.serve()
        if not self._schedule.backlog or len(self._polls) >= self._most_polls:
            return math.inf
        return max(limiter.free_at(self._clock()), self._next_poll())

    def _next_poll(self) -> float:
        """The earliest moment for the next poll by what is known of the service."""
        return max(self._account.outage.next_poll(is_under_way=bool(self._polls)), self._resume_at)

    def _take_place(self) -> bool:
        """The query limiter has a place for a poll. Returns whether one was due, and is sent now."""
        try:
            return self._start_next()
        except Exception as fault:  # noqa: BLE001 - a wait that times out names it, and polling goes on
            self._pause_after(fault)
            self._wake.set()
            return False

    def _start_next(self) -> bool:
        schedule = self._schedule
        is_limited = self._account.query_limiter.rate is not None
        while schedule.backlog and len(self._polls) < self._most_polls:
            now = self._clock()
            if self._next_poll() > now:
                return False
            watched = schedule.next_due(now, is_limited=is_limited)
            try:
                if watched.is_closed or watched.poll is not None or watched.poll_at > now:
                    schedule.push(watched)  # it has ended, or was polled meanwhile
                elif not self._lister.takes(watched, now):
                    self._start(watched)
                    return True
            except Exception:
                schedule.push(watched)  # the task must keep its place, whatever has failed
                raise
        return False

    def _start(self, watched: WatchedTask) -> None:
        """Poll in a background task; the query limiter has given a place for it."""
        self._account.outage.note_try(self._clock())
        poll = asyncio.create_task(self._poll(watched), name=f"bide poll {watched.task_id}")
        watched.poll = poll
        self._polls.add(poll)
        poll.add_done_callback(lambda _: self._end(watched, poll))

    def _end(self, watched: WatchedTask, poll: asyncio.Task[BideError | None]) -> None:
        self._polls.discard(poll)
        watched.poll, watched.polled_at = None, self._clock()
        is_broken = poll.cancelled() or poll.exception() is not None
        if not poll.cancelled():
            watched.grant_wish(None if is_broken else poll.result())
        if is_broken:
            watched.poll_at = self._clock() + RECHECK_SECONDS  # the poll has planned no next one
        elif watched.is_asked_again and watched.is_paced:
            watched.poll_at = min(watched.poll_at, self._clock() + self._schedule.floor(watched))
        watched.is_asked_again = False
        self._account.query_limiter.release()
        self._schedule.push(watched)
        self._wake.set()

    async def _poll(self, watched: WatchedTask) -> BideError | None:
        start = self._clock()
        try:
            outcome = await self._account.query(watched.key, watched.task_id)
            error = None if isinstance(outcome, Task) else outcome.error
            self._submissions.announce_poll(watched.ticket, self._clock() - start, error)
            return await self._observer.digest(watched, outcome, (start + self._clock()) / 2)
        except Exception as fault:  # noqa: BLE001 - a wait that times out names it, and it stops no other task
            fault_of_poll = self._observer.take_in_fault(watched, fault)
            self._submissions.announce_poll(watched.ticket, self._clock() - start, fault_of_poll)
            return fault_of_poll
