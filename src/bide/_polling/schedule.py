"""When each task is polled next, and which of those that are due goes first. It polls nothing and reports nothing."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
from collections import deque
from typing import TYPE_CHECKING

from bide import _outside
from bide._events import log_line
from bide._polling.pace import SHORTEST_CAP_SECONDS, PollTerms, bounds, next_poll, unseen_seconds
from bide._polling.watched_task import WatchedTask
from bide._service.account import misread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bide._polling.duration_models import DurationModel
    from bide._polling.pace import Pace

DEADLINE_NEAR_SECONDS = 600.0
"""A task that is being polled keeps a place in the heap for its deadline only if that is closer than this."""
MOST_INVALID_PLACES = 256
"""The heap is tidied when it has twice as many places as were valid the last time, and so many more."""
DUE_PER_TURN = 500
"""The most places that are taken from the heap in one turn of the event loop, so that other work gets its turn."""
CANDIDATES = 32
"""When many tasks are due, the schedule compares so many that have waited longest, and as many others."""


class Schedule:
    """A heap of moments and a queue of the tasks that are due, in constant or logarithmic time for each step.

    Args:
        pressure: returns the requests of a kind that wait for a slot, divided by the number of slots.
        wake: called when something may be due earlier than before.
    """

    def __init__(self, pace: Pace, pressure: Callable[[str], float], wake: Callable[[], None]) -> None:
        self.pace = pace
        self.pressure = pressure
        self.wake = wake
        self._clock = asyncio.get_running_loop().time
        self._tasks: dict[str, WatchedTask] = {}
        self._heap: list[tuple[float, int, WatchedTask | Callable[[], None]]] = []
        self._tidy_at = MOST_INVALID_PLACES
        self._order = itertools.count()
        self._due: deque[WatchedTask] = deque()
        self._wished: deque[WatchedTask] = deque()  # those of the due tasks that a caller wants to be polled
        self._is_turn_of_wished = True

    # The tasks ---------------------------------------------------------------------------------------------

    def __contains__(self, ticket: str) -> bool:
        return ticket in self._tasks

    def get(self, ticket: str) -> WatchedTask | None:
        """The task of *ticket*."""
        return self._tasks.get(ticket)

    def tasks(self) -> Iterable[WatchedTask]:
        """All tasks."""
        return self._tasks.values()

    def tasks_of_key(self, key: str) -> list[WatchedTask]:
        """The tasks that were made with *key*."""
        return [watched for watched in self._tasks.values() if watched.key == key]

    def add(self, watched: WatchedTask) -> None:
        """Schedule *watched* for its `poll_at`."""
        self._tasks[watched.ticket] = watched

    def remove(self, ticket: str) -> None:
        """The task has ended, or another client polls it now."""
        watched = self._tasks.pop(ticket, None)
        if watched is not None:
            watched.is_closed = True
            if watched.poll is None:
                watched.grant_wish(None)
            self._tidy()

    def close(self) -> None:
        """Stop polling all tasks."""
        for watched in self._tasks.values():
            watched.is_closed = True
            if watched.wish is not None:
                watched.wish.cancel()

    # When each is polled -----------------------------------------------------------------------------------

    def floor(self, watched: WatchedTask) -> float:
        """The least seconds between two polls of it."""
        return bounds(self.pace, 0.0, watched.profile.floor)[0]

    def plan(self, watched: WatchedTask) -> None:
        """Poll it next when the pace says so."""
        now = self._clock()
        chance = _outside.chance.random()
        terms = PollTerms(watched.profile.floor, self.pressure(watched.kind), chance)
        try:
            planned = watched.zero + next_poll(self.pace, watched, watched.model.best(), terms)
        except Exception as fault:  # noqa: BLE001 - a task that is paid for must be polled
            log_line(
                logging.WARNING,
                f"{watched.ticket}: the pace failed, so the task is polled at fixed times: {misread(fault)}",
            )
            planned = now + max(terms.floor, SHORTEST_CAP_SECONDS)
        watched.poll_at, watched.is_paced = max(now, planned), True

    def hasten(self, watched: WatchedTask) -> None:
        """Poll it as soon as its floor allows. If a caller wants that, it takes turns with the other tasks that are
        due, and goes before them in its turn."""
        soon = max(self._clock(), watched.polled_at + self.floor(watched))
        watched.poll_at, watched.is_paced = min(watched.poll_at, soon), False
        if watched.is_due and watched.wish is not None and watched in self._due:
            self._due.remove(watched)
            self._wished.append(watched)
        self.push(watched)

    def plan_model_again(self, model: DurationModel) -> None:
        """Plan the tasks of *model* again: the ledger knew more of it than was known when they were planned."""
        for watched in self._tasks.values():
            if model in (watched.model, watched.model.parent):
                self._plan_again(watched)

    def plan_kind_again(self, kind: str) -> None:
        """Plan the tasks of this *kind* again: from now on requests wait for their slots, so ends are worth more."""
        for watched in self._tasks.values():
            if watched.kind == kind:
                self._plan_again(watched)

    def _plan_again(self, watched: WatchedTask) -> None:
        is_pending = watched.poll is None and not watched.is_due and watched.poll_at > self._clock()
        if watched.is_paced and is_pending:
            self.plan(watched)
            self.push(watched)

    def at(self, moment: float, call: Callable[[], None]) -> None:
        """Call *call* at *moment* (loop's clock): a place in the heap costs less than a timer."""
        heapq.heappush(self._heap, (moment, next(self._order), call))
        self.wake()

    def push(self, watched: WatchedTask) -> None:
        """Give the task a place in the heap for its next moment. If it has an earlier place, it keeps that one, and
        `pop_due` calls this again at that place. So a task has one valid place, and a list that delays many polls does
        not wake the poller."""
        if watched.is_closed:
            return
        is_busy = watched.is_due or watched.poll is not None
        moment = watched.deadline if is_busy else min(watched.poll_at, watched.deadline)
        if moment >= watched.in_heap_at or (is_busy and moment > self._clock() + DEADLINE_NEAR_SECONDS):
            return
        watched.in_heap_at = moment
        heapq.heappush(self._heap, (moment, next(self._order), watched))
        if self._heap[0][2] is watched:
            self.wake()

    def _tidy(self) -> None:
        """Drop the invalid places in the heap from time to time: each keeps a task that has ended in memory."""
        if len(self._heap) > self._tidy_at:
            self._heap = [
                (moment, order, item)
                for moment, order, item in self._heap
                if not isinstance(item, WatchedTask) or (not item.is_closed and item.in_heap_at == moment)
            ]
            heapq.heapify(self._heap)
            self._tidy_at = 2 * len(self._heap) + MOST_INVALID_PLACES

    # What is due -------------------------------------------------------------------------------------------

    @property
    def next_moment(self) -> float:
        """When something is due; infinity if nothing is planned."""
        return self._heap[0][0] if self._heap else math.inf

    @property
    def backlog(self) -> int:
        """Tasks that are due, and have to wait for the query rate or a connection."""
        return len(self._due) + len(self._wished)

    def pop_due(self) -> Iterator[WatchedTask]:
        """Put what is due now into the queue. Yields each task whose deadline has passed, before it gets its next
        place."""
        now = self._clock()
        for _ in range(DUE_PER_TURN):
            if not self._heap or self._heap[0][0] > now:
                break
            moment, _, item = heapq.heappop(self._heap)
            if not isinstance(item, WatchedTask):
                item()
            elif not item.is_closed and item.in_heap_at == moment:
                item.in_heap_at = math.inf
                if item.deadline <= now:
                    yield item
                if item.poll_at <= now and not item.is_due and item.poll is None:
                    item.is_due = True
                    (self._due if item.wish is None else self._wished).append(item)
                self.push(item)

    def next_due(self, now: float, *, is_limited: bool) -> WatchedTask:
        """Take the task whose poll is worth most out of the queue. A task that a caller wants to be polled goes first,
        but never twice in a row while others are due.

        Where the query rate *is_limited*, that is the one with the most expected seconds of an unseen end. A task that
        has waited for longer than two caps goes before it.
        """
        if self._wished and (self._is_turn_of_wished or not self._due):
            self._is_turn_of_wished = False
            watched = self._wished.popleft()
            watched.is_due = False
            return watched
        self._is_turn_of_wished = True
        due, index = self._due, 0
        head = due[0]
        if len(due) > 1 and is_limited and not (head.needs_poll or head.is_closed):
            cap = bounds(self.pace, head.seen, head.profile.floor)[1]
            if now - head.poll_at < 2 * cap:
                others = _outside.chance.sample(range(len(due)), min(CANDIDATES, len(due)))
                candidates = {*range(min(CANDIDATES, len(due))), *others}
                index = max(candidates, key=lambda at: self._worth(due[at], now))
        watched = due[index]
        del due[index]
        watched.is_due = False
        return watched

    @staticmethod
    def _worth(watched: WatchedTask, now: float) -> float:
        if watched.needs_poll or watched.is_closed:
            return math.inf
        try:
            return unseen_seconds(watched, watched.model.best(), watched.age(now))
        except Exception:  # noqa: BLE001 - `plan` logs it; it must not stop the other tasks
            return now - watched.poll_at
