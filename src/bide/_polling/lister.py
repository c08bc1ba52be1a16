"""One list in the place of many polls, for services that list recent tasks.

A list costs one query for each page, and shows which of all live tasks of a key have ended; each end costs one poll
more, for the result. So a list is worth as much as the expected seconds of unseen ends of all these tasks together
(`pace.next_list`).

A row is a hint. A task that the list shows as ended is polled. A task that the list shows as unfinished is polled less
often, but lists never replace its polls for long. After a list that is late, wrong or slow, the lister makes none for
some time.
"""

from __future__ import annotations

import asyncio
import logging
import math
from statistics import median
from typing import TYPE_CHECKING

from attrs import Factory, define, evolve

from bide import _outside
from bide._events import log_line
from bide._polling.pace import (
    RECHECK_SECONDS,
    PollTerms,
    forecast,
    next_list,
    price_of,
    unseen_together,
)
from bide._service.account import CLOCK_SLACK_SECONDS, misread, retry_after_of
from bide.providers import TryAgain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bide._polling.observer import Observer
    from bide._polling.pace import Forecast
    from bide._polling.schedule import Schedule
    from bide._polling.watched_task import WatchedTask
    from bide._service.account import Account
    from bide.providers import ListedTask

FEWEST_TASKS = 3
"""A list is considered if the key has at least so many live tasks."""
EARLIER_SECONDS = 10.0
"""A task can be older than it seems by so many seconds: its create took a while, and clocks differ."""
MOST_TASKS_WEIGHED = 64
"""If there are more tasks, so many of them stand for all when a list is weighed."""
LONGEST_WINDOW_SECONDS = 23 * 3600.0
"""A list spans 24 hours at most (DashScope: "Query async task list")."""
YOUNG_SECONDS = 2.0
"""A service may list a task some time after its create: the lister does not look for a younger task in a list."""
MOST_MISSING_LISTS = 2
"""If so many lists in a row lack a task, it is polled until a list shows it."""
NEVER_LISTED = 1_000_000
"""The value of `missing_lists` after a list has shown the task falsely: from then on it is only polled."""
CONTRADICTIONS_BEFORE_PAUSE = 2
"""After lists have shown so many tasks falsely, no list is made for some time."""
POLL_AT_LEAST_EVERY_SECONDS = 180.0
"""Seconds for which lists alone may show that a task goes on; or its age at its last poll, if that is longer."""
HOLD_SECONDS_PER_PAGE = 1.5
"""While a list is read, polls that become due wait for it: at most so many seconds for each page."""
LONGEST_PAUSE_SECONDS = 3600.0
WEIGHED_FOR_SECONDS = 0.2
"""Seconds until the lister weighs again whether a list is worth its price."""
ROWS_PER_TURN = 100
"""The most rows that are taken in during one turn of the event loop, so that other work gets its turn."""


@define(eq=False)
class _ListsOfKey:
    """The lists of one key.

    Attributes:
        task: the list under way, with the work on its answer.
        members: the tasks that this list looks for, by ticket, until its answer has come.
        hold_until: until when the polls of these tasks wait for the list.
        planned: when the next list is planned, by the loop's clock.
        not_before: no list before this moment.
        failures: lists in a row that failed, or were slow, the last of them at `failed_at`.
        contradictions: tasks that lists have shown falsely since the last pause for this reason.
        contradiction_pauses: how many of those pauses there were.
        weighed_at: when the lister last found that a list is not worth its price.
        rows_per_second: tasks of all users of the account that the service lists, for each second of the list's time.
    """

    task: asyncio.Task[None] | None = None
    members: dict[str, WatchedTask] = Factory(dict)
    hold_until: float = -math.inf
    planned: float = -math.inf
    not_before: float = -math.inf
    failures: int = 0
    failed_at: float = -math.inf
    contradictions: int = 0
    contradiction_pauses: int = 0
    weighed_at: float = -math.inf
    rows_per_second: float = 0.0

    def note_failure(self, now: float, why: str, retry_after: float = 0.0) -> None:
        """A list has failed: make none during a pause, which doubles each time."""
        self.failed_at = now
        self._pause(now, why, self.failures, retry_after)
        self.failures += 1

    def note_contradiction(self, now: float) -> None:
        """A list has shown a task falsely."""
        self.contradictions += 1
        if self.contradictions >= CONTRADICTIONS_BEFORE_PAUSE:
            self._pause(now, "the list of tasks is late or wrong", self.contradiction_pauses)
            self.contradictions, self.contradiction_pauses = 0, self.contradiction_pauses + 1

    def _pause(self, now: float, why: str, times: int, retry_after: float = 0.0) -> None:
        pause = max(retry_after, min(LONGEST_PAUSE_SECONDS, RECHECK_SECONDS * 2.0 ** min(times, 10)))
        self.not_before = max(self.not_before, now + pause)
        log_line(logging.DEBUG, f"{why}: tasks are polled one by one for {pause:.0f} s")


class Lister:
    """Decides when one list takes the place of many polls, and makes it."""

    def __init__(self, account: Account, schedule: Schedule, observer: Observer) -> None:
        self._account = account
        self._provider = account.provider
        self._schedule = schedule
        self._observer = observer
        self._pace = schedule.pace
        self._keys: dict[str, _ListsOfKey] = {}
        self._clock = asyncio.get_running_loop().time

    def tasks(self) -> list[asyncio.Task[None]]:
        """The lists under way."""
        return [lists.task for lists in self._keys.values() if lists.task is not None]

    def takes(self, watched: WatchedTask, now: float) -> bool:
        """Whether a list replaces the poll of *watched* that is due. The list is under way, or this call starts it."""
        if not self._provider.lists or not self._may_list(watched, now):
            return False
        lists = self._lists_of(watched.key)
        if lists.task is not None:
            return watched.ticket in lists.members and now < lists.hold_until
        if now < max(lists.not_before, lists.weighed_at + WEIGHED_FOR_SECONDS):
            return False
        group = self._group(watched.key, now)
        if watched in group and self._is_cheaper(lists, group, watched, now):
            self._start(watched.key, lists, group)
            return True
        lists.weighed_at = now
        return False

    def forget_failures(self, since: float) -> None:
        """Forget the lists that failed from *since* on: the service did not answer at all, so they prove nothing."""
        for lists in self._keys.values():
            if lists.failed_at >= since:
                lists.failures, lists.not_before = 0, -math.inf

    def note_contradiction(self, watched: WatchedTask) -> None:
        """A poll of *watched* has contradicted an earlier list."""
        watched.missing_lists = NEVER_LISTED
        self._lists_of(watched.key).note_contradiction(self._clock())

    def _lists_of(self, key: str) -> _ListsOfKey:
        return self._keys.setdefault(key, _ListsOfKey())

    # Whether a list is worth its price ---------------------------------------------------------------------

    @staticmethod
    def _may_list(watched: WatchedTask, now: float) -> bool:
        """Whether a list may show that *watched* goes on. Only a poll may do so if a fault has delayed its poll, or if
        a caller has asked for one."""
        unsure_for = watched.age(now) - watched.sure
        return (
            watched.is_dated
            and watched.is_paced
            and not watched.needs_poll
            and watched.missing_lists < MOST_MISSING_LISTS
            and watched.age(now) >= YOUNG_SECONDS
            and unsure_for < max(POLL_AT_LEAST_EVERY_SECONDS, watched.sure)
        )

    def _group(self, key: str, now: float) -> list[WatchedTask]:
        """The tasks of a key that one list can be expected to show.

        Tasks that are much older than the rest are left out: for them the list would have to reach far back.
        """
        live = [
            watched
            for watched in self._schedule.tasks_of_key(key)
            if self._may_list(watched, now)
            and watched.poll is None
            and watched.age(now) < LONGEST_WINDOW_SECONDS
        ]
        if len(live) < FEWEST_TASKS:
            return []
        oldest = 60.0 + 3 * median(watched.age(now) for watched in live)
        return [watched for watched in live if watched.age(now) <= oldest]

    def _is_cheaper(
        self, lists: _ListsOfKey, group: Sequence[WatchedTask], due: WatchedTask, now: float
    ) -> bool:
        """Whether the polls that the list saves are worth more than its pages and the poll for the end of *due*."""
        pages = self._pages(lists, group, now)
        if self._pace.gaps:
            # Polls at fixed times: a list must save more than two polls for each of its pages, and more polls than the
            # query rate allows in a second.
            rate = self._account.query_limiter.rate
            return rate is not None and self._schedule.backlog > max(rate, 2 * pages)
        others = [watched for watched in group if watched is not due]
        ends, price, factor = self._ends(others, now)
        [(own, age)] = self._ends([due], now)[0]
        unseen, _ = unseen_together(ends, 0.0)
        return unseen * factor >= price * (pages - 1 + own.end_probability(age))

    def _pages(self, lists: _ListsOfKey, group: Sequence[WatchedTask], now: float) -> int:
        span = max(watched.age(now) for watched in group) + 2 * CLOCK_SLACK_SECONDS
        rows = max(len(group), math.ceil(lists.rows_per_second * span))
        return max(1, math.ceil(rows / max(1, self._provider.page_size)))

    def _ends(
        self, group: Sequence[WatchedTask], now: float
    ) -> tuple[list[tuple[Forecast, float]], float, float]:
        """When tasks of *group* may end, each with its age; the mean price of a poll; how many tasks of *group* each of
        these tasks stands for."""
        some = (
            group if len(group) <= MOST_TASKS_WEIGHED else _outside.chance.sample(group, MOST_TASKS_WEIGHED)
        )
        ends, prices = [], []
        for watched in some:
            learned = watched.model.best()
            ends.append((forecast(watched, learned), watched.age(now)))
            terms = PollTerms(watched.profile.floor, self._schedule.pressure(watched.kind))
            prices.append(price_of(self._pace, learned, terms))
        return ends, sum(prices) / max(1, len(prices)), len(group) / max(1, len(some))

    # One list ----------------------------------------------------------------------------------------------

    def _start(self, key: str, lists: _ListsOfKey, group: list[WatchedTask]) -> None:
        now = self._clock()
        lists.members = {watched.ticket: watched for watched in group}
        lists.hold_until = now + HOLD_SECONDS_PER_PAGE * self._pages(lists, group, now)
        self._schedule.at(lists.hold_until, lambda: self._release(lists.members))
        lists.task = asyncio.create_task(self._list(key, lists), name="bide list")
        lists.task.add_done_callback(lambda _: self._end(key, lists))

    def _release(self, members: dict[str, WatchedTask]) -> None:
        """The list takes too long: poll the tasks that wait for it."""
        for watched in members.values():
            self._schedule.push(watched)

    def _end(self, key: str, lists: _ListsOfKey) -> None:
        lists.task = None
        try:
            self._plan(key, lists)
        except Exception as fault:  # noqa: BLE001 - the tasks are polled instead
            lists.note_failure(self._clock(), f"no list could be planned: {misread(fault)}")
        self._schedule.wake()

    def _plan(self, key: str, lists: _ListsOfKey) -> None:
        """Set the moment of the next list. A poll that is due before that may start one, too."""
        now = self._clock()
        group = self._group(key, now)
        if not group or self._pace.gaps:
            return
        floor = max(self._schedule.floor(watched) for watched in group)
        ends, price, factor = self._ends(group, now)
        price *= self._pages(lists, group, now)
        gap = next_list(ends, price / factor, floor, max(floor, RECHECK_SECONDS))
        lists.planned = max(now + gap, lists.not_before)
        self._schedule.at(lists.planned, lambda: self._start_planned(key, lists))

    def _start_planned(self, key: str, lists: _ListsOfKey) -> None:
        """Start the planned list, unless the tasks have ended or another list was made meanwhile."""
        now = self._clock()
        if lists.task is None and now >= max(lists.planned, lists.not_before):
            group = self._group(key, now)
            if group:
                self._start(key, lists, group)

    async def _list(self, key: str, lists: _ListsOfKey) -> None:
        """Read the list. A task that it lacks is polled as planned; a task that it shows as ended is polled at once."""
        members, start = lists.members, self._clock()
        listed: dict[str, ListedTask] | None = None
        try:
            listed = await self._read(key, lists, members)
        except Exception as fault:  # noqa: BLE001 - polls replace it, and report what is wrong
            lists.note_failure(self._clock(), f"the list of tasks failed: {misread(fault)}")
        finally:
            lists.members = {}
            for watched in members.values():  # those that were due and have waited for it
                self._schedule.push(watched)
        if listed is None:
            return
        if self._clock() > lists.hold_until:
            lists.note_failure(self._clock(), "the list of tasks is slow")
        else:
            lists.failures = 0
        tasks = self._schedule.tasks_of_key(key)
        for watched in tasks:
            self._mark(watched, listed.get(watched.task_id), was_expected=watched.ticket in members)
        for number, watched in enumerate(tasks):
            if number % ROWS_PER_TURN == ROWS_PER_TURN - 1:
                await asyncio.sleep(0)
            await self._take_in(watched, listed.get(watched.task_id), start)

    async def _read(
        self, key: str, lists: _ListsOfKey, members: dict[str, WatchedTask]
    ) -> dict[str, ListedTask] | None:
        """The rows by their task ids; None if the service returns no list."""
        until = self._account.ledger.now()
        oldest = max(watched.age(self._clock()) for watched in members.values())
        since = until - min(oldest + EARLIER_SECONDS, LONGEST_WINDOW_SECONDS)
        answer = await self._account.list_tasks(key, since, until + CLOCK_SLACK_SECONDS)
        if not isinstance(answer, list):
            advised = retry_after_of(answer) if isinstance(answer, TryAgain) else None
            text = f"the list of tasks failed: {answer.error}"
            lists.note_failure(self._clock(), text, advised or 0.0)
            return None
        lists.rows_per_second = len(answer) / max(1.0, until - since)
        return {each.task.task_id: each for each in answer if each.task.task_id is not None}

    def _mark(self, watched: WatchedTask, row: ListedTask | None, *, was_expected: bool) -> None:
        """Note whether it must be polled next: the list shows its end, or lacks it although the task is due."""
        now = self._clock()
        if row is not None and watched.missing_lists < NEVER_LISTED:
            watched.missing_lists = 0
        if not self._may_list(watched, now) or watched.poll is not None:
            return
        if row is None:
            if was_expected:
                watched.missing_lists += 1
                watched.needs_poll = watched.poll_at <= now
        elif row.task.status.is_final:
            least = watched.zero + watched.sure + self._schedule.floor(watched)
            watched.needs_poll, watched.poll_at = True, max(now, least)
            self._schedule.push(watched)

    async def _take_in(self, watched: WatchedTask, row: ListedTask | None, at: float) -> None:
        """The task goes on, as its row shows. What a row lacks (above all the raw answer) stays as it was."""
        now = self._clock()
        if row is None or watched.is_closed or watched.poll is not None or not self._may_list(watched, now):
            return
        known, listed = watched.task, row.task
        try:
            answered = evolve(
                known,
                status=listed.status,
                raw_status=listed.raw_status,
                model=known.model or listed.model,
                created_at=known.created_at or listed.created_at,
                started_at=known.started_at or listed.started_at,
            )
            await self._observer.digest(watched, answered, at, listed=True)
            latest = watched.zero + watched.sure + max(POLL_AT_LEAST_EVERY_SECONDS, watched.sure)
            watched.poll_at = min(watched.poll_at, max(now, latest))
        except Exception as fault:  # noqa: BLE001 - a wait that times out names it, and it stops no other task
            self._observer.take_in_fault(watched, fault)
        finally:
            self._schedule.push(watched)
