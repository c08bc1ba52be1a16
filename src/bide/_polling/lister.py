"""One list in the place of many looks, for services that list recent tasks.

A list costs a query a page, and shows which of all live tasks of a key have ended; each end costs one query more, for
the result. So it is worth as much as the expected unseen ends of all these tasks together (`_pace.next_list`).

A row is a hint. What it shows as ended is looked at; what it shows as going on is looked at less often, but never for
long by lists alone; and a list that is late, or wrong, or slow, is left alone for a while.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from statistics import median
from typing import TYPE_CHECKING

from attrs import define, evolve

from bide._events import log_line
from bide._polling.pace import RECHECK, Look, bounds, next_list, outlook, price_of, unseen_together
from bide._service.account import CLOCK_SLACK, misread, retry_after_of
from bide.errors import BideError
from bide.providers import TryAgain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bide._polling.pace import Outlook, Pace
    from bide._polling.poller import Poller
    from bide._polling.watch import Watch
    from bide._service.account import Account
    from bide.providers import ListedTask

FEWEST = 3
"""Live tasks from which on a list is worth a thought."""
EARLIER = 10.0
"""A task may have been made so many seconds before we think: its create took a while, and clocks differ."""
SAMPLE = 64
"""Of many tasks so many are looked into, and stand for all."""
LONGEST_WINDOW = 23 * 3600.0
"""A list spans 24 hours at most (DashScope: "Query async task list")."""
YOUNG = 2.0
"""A list may lag behind the creates: a task of fewer seconds is not looked for in it."""
MISSES, NEVER = 2, 1_000_000
"""A task that so many lists in a row have lacked is looked at singly until one shows it; what one has shown falsely
stays so."""
DOUBTS = 2
"""Tasks that were shown falsely, after which no list is made for a while."""
SURE_EVERY = 180.0
"""Seconds for which lists alone may say that a task goes on; or its age at its last look, if that is longer."""
HOLD = 1.5
"""Seconds for each page, within which a list answers for the looks that fall due meanwhile."""
LONGEST_PAUSE = 3600.0
JUDGED_FOR = 0.2
"""Seconds for which it holds that a list is not worth it."""
TURN = 100
"""Rows that are taken in without a pause: others want the event loop too."""


@define(eq=False)
class _Lane:
    """The lists of one key.

    Attributes:
        task: the list under way, its digestion included.
        members: the tasks that it looks for, until its answer has come.
        hold_until: until when the looks at these wait for it.
        planned: when the next one is planned, by the loop's clock.
        not_before: no list before this moment.
        failures: lists in a row that failed, or were slow.
        doubts: tasks that lists have shown falsely, since the last pause for that; `lies` counts those pauses.
        judged: when a list was last found not to be worth it.
        rows_a_second: tasks that the service lists for a second, of whoever uses the account.
    """

    task: asyncio.Task[None] | None = None
    members: frozenset[Watch] = frozenset()
    hold_until: float = -math.inf
    planned: float = -math.inf
    not_before: float = -math.inf
    failures: int = 0
    doubts: int = 0
    lies: int = 0
    judged: float = -math.inf
    rows_a_second: float = 0.0

    def fail(self, now: float, why: str, retry_after: float = 0.0) -> None:
        """A list has failed: none is made for a while, and longer each time."""
        self._pause(now, why, self.failures, retry_after)
        self.failures += 1

    def doubt(self, now: float) -> None:
        """A list has shown a task falsely."""
        self.doubts += 1
        if self.doubts >= DOUBTS:
            self._pause(now, "the list of tasks is late or wrong", self.lies)
            self.doubts, self.lies = 0, self.lies + 1

    def _pause(self, now: float, why: str, times: int, retry_after: float = 0.0) -> None:
        pause = max(retry_after, min(LONGEST_PAUSE, RECHECK * 2.0 ** min(times, 10)))
        self.not_before = max(self.not_before, now + pause)
        log_line(logging.DEBUG, f"{why}: tasks are looked at singly for {pause:.0f} s")


class Lister:
    """Decides when one list takes the place of single looks, and makes it. A part of the `Poller`."""

    def __init__(self, poller: Poller, account: Account, pace: Pace) -> None:
        self._poller = poller
        self._account = account
        self._provider = account.provider
        self._pace = pace
        self._lanes: dict[str, _Lane] = {}
        self._time = asyncio.get_running_loop().time

    def tasks(self) -> list[asyncio.Task[None]]:
        """The lists under way."""
        return [lane.task for lane in self._lanes.values() if lane.task is not None]

    def takes(self, watch: Watch, now: float) -> bool:
        """Whether a list, under way or begun here, makes the look that *watch* is due for."""
        if not self._provider.lists or not self._may_list(watch, now):
            return False
        lane = self._lanes.setdefault(watch.key, _Lane())
        if lane.task is not None:
            return watch in lane.members and now < lane.hold_until
        if now < max(lane.not_before, lane.judged + JUDGED_FOR):
            return False
        group = self._group(watch.key, now)
        if watch in group and self._is_cheaper(lane, group, watch, now):
            self._start(watch.key, lane, group)
            return True
        lane.judged = now
        return False

    def contradicted(self, watch: Watch) -> None:
        """A look has told something else of *watch* than a list before it."""
        watch.unlisted = NEVER
        self._lanes.setdefault(watch.key, _Lane()).doubt(self._time())

    @staticmethod
    def _may_list(watch: Watch, now: float) -> bool:
        """Whether a list may say that it goes on; what a fault has put off, or somebody has asked for, it may not."""
        unsure_for = watch.age(now) - watch.sure
        return (
            watch.is_dated
            and watch.paced
            and not watch.singly
            and watch.unlisted < MISSES
            and watch.age(now) >= YOUNG
            and unsure_for < max(SURE_EVERY, watch.sure)
        )

    def _group(self, name: str, now: float) -> list[Watch]:
        """The tasks of a key that one list can be expected to show.

        Those that are much older than the rest are left out: for their sake the list would have to reach far back.
        """
        live = [
            watch
            for watch in self._poller.live(name)
            if self._may_list(watch, now) and watch.look is None and watch.age(now) < LONGEST_WINDOW
        ]
        if len(live) < FEWEST:
            return []
        oldest = 60.0 + 3 * median(watch.age(now) for watch in live)
        return [watch for watch in live if watch.age(now) <= oldest]

    def _is_cheaper(self, lane: _Lane, group: Sequence[Watch], due: Watch, now: float) -> bool:
        """Whether the looks that the list saves are worth more than its pages and the fetch of the end of *due*."""
        pages = self._pages(lane, group, now)
        if (
            self._pace.gaps
        ):  # what is due by the clock: a list for more looks than it has pages, and a second lets through
            rate = self._account.query_limiter.rate
            return rate is not None and self._poller.backlog > max(rate, 2 * pages)
        others = [watch for watch in group if watch is not due]
        ends, price, factor = self._ends(others, now)
        [(own, age)] = self._ends([due], now)[0]
        unseen, _ = unseen_together(ends, 0.0)
        return unseen * factor >= price * (pages - 1 + own.ended(age))

    def _pages(self, lane: _Lane, group: Sequence[Watch], now: float) -> int:
        span = max(watch.age(now) for watch in group) + 2 * CLOCK_SLACK
        rows = max(len(group), math.ceil(lane.rows_a_second * span))
        return max(1, math.ceil(rows / max(1, self._provider.page_size)))

    def _ends(self, group: Sequence[Watch], now: float) -> tuple[list[tuple[Outlook, float]], float, float]:
        """When tasks of *group* may end, each with its age; the mean price of a look; how many each one stands for."""
        some = group if len(group) <= SAMPLE else random.sample(group, SAMPLE)
        ends, prices = [], []
        for watch in some:
            learned = watch.model.best()
            ends.append((outlook(watch, learned), watch.age(now)))
            look = Look(watch.profile.floor, self._poller.pressure(watch.kind))
            prices.append(price_of(self._pace, learned, look))
        return ends, sum(prices) / max(1, len(prices)), len(group) / max(1, len(some))

    # One list ----------------------------------------------------------------------------------------------

    def _start(self, name: str, lane: _Lane, group: list[Watch]) -> None:
        now = self._time()
        lane.members = frozenset(group)
        lane.hold_until = now + HOLD * self._pages(lane, group, now)
        self._poller.at(lane.hold_until, lambda: self._release(lane.members))
        lane.task = asyncio.create_task(self._list(name, lane), name="bide list")
        lane.task.add_done_callback(lambda _: self._listed(name, lane))

    def _release(self, members: frozenset[Watch]) -> None:
        """The list takes long: what waits for it is looked at singly."""
        for watch in members:
            self._poller.push(watch)

    def _listed(self, name: str, lane: _Lane) -> None:
        lane.task = None
        try:
            self._plan(name, lane)
        except Exception as fault:  # noqa: BLE001 - single looks will do
            lane.fail(self._time(), f"no list could be planned: {misread(fault)}")
        self._poller.wake()

    def _plan(self, name: str, lane: _Lane) -> None:
        """Set the moment of the next list; looks that are due before that may begin one too."""
        now = self._time()
        group = self._group(name, now)
        if not group or self._pace.gaps:
            return
        floor = max(bounds(self._pace, 0.0, watch.profile.floor)[0] for watch in group)
        ends, price, factor = self._ends(group, now)
        gap = next_list(ends, price * self._pages(lane, group, now) / factor, floor, max(floor, RECHECK))
        lane.planned = max(now + gap, lane.not_before)
        self._poller.at(lane.planned, lambda: self._turn(name, lane))

    def _turn(self, name: str, lane: _Lane) -> None:
        """The planned moment has come; meanwhile tasks may have ended, or a list may have been made."""
        now = self._time()
        if lane.task is None and now >= max(lane.planned, lane.not_before):
            group = self._group(name, now)
            if group:
                self._start(name, lane, group)

    async def _list(self, name: str, lane: _Lane) -> None:
        """What the list lacks keeps to its own turn; what it shows as ended is looked at singly, at once."""
        members, began = lane.members, self._time()
        listed: dict[str, ListedTask] | None = None
        try:
            listed = await self._asked(name, lane, members)
        except Exception as fault:  # noqa: BLE001 - single looks will do, and tell what is wrong
            lane.fail(self._time(), f"the list of tasks failed: {misread(fault)}")
        finally:
            lane.members = frozenset()
            for watch in members:  # those that were due and have waited for it
                self._poller.push(watch)
        if listed is None:
            return
        if self._time() > lane.hold_until:
            lane.fail(self._time(), "the list of tasks is slow")
        else:
            lane.failures = 0
        watches = self._poller.live(name)
        for watch in watches:
            self._mark(watch, listed.get(watch.task_id), lacks=watch in members)
        for number, watch in enumerate(watches):
            if number % TURN == TURN - 1:
                await asyncio.sleep(0)
            await self._take_in(watch, listed.get(watch.task_id), began)

    async def _asked(self, name: str, lane: _Lane, members: frozenset[Watch]) -> dict[str, ListedTask] | None:
        """The rows by their task ids; None where there is no list to be had."""
        until = self._account.ledger.now()
        oldest = max(watch.age(self._time()) for watch in members)
        since = until - min(oldest + EARLIER, LONGEST_WINDOW)
        answer = await self._account.listed(name, since, until + CLOCK_SLACK)
        if not isinstance(answer, list):
            advised = retry_after_of(answer) if isinstance(answer, TryAgain) else None
            lane.fail(self._time(), f"the list of tasks failed: {answer.error}", advised or 0.0)
            return None
        lane.rows_a_second = len(answer) / max(1.0, until - since)
        return {each.task.task_id: each for each in answer if each.task.task_id is not None}

    def _mark(self, watch: Watch, row: ListedTask | None, *, lacks: bool) -> None:
        """Whether its next look must be a single one: the list shows its end, or lacks it when its turn has come."""
        now = self._time()
        if row is not None and watch.unlisted < NEVER:
            watch.unlisted = 0
        if not self._may_list(watch, now) or watch.look is not None:
            return
        if row is None:
            if lacks:
                watch.unlisted += 1
                watch.singly = watch.look_at <= now
        elif row.task.status.is_final:
            floor = bounds(self._pace, 0.0, watch.profile.floor)[0]
            watch.singly, watch.look_at = True, max(now, watch.zero + watch.sure + floor)
            self._poller.push(watch)

    async def _take_in(self, watch: Watch, row: ListedTask | None, at: float) -> None:
        """It goes on, as its row says. What a row lacks (the raw answer above all) stays as it was."""
        now = self._time()
        if row is None or watch.closed or watch.look is not None or not self._may_list(watch, now):
            return
        known, told = watch.task, row.task
        try:
            seen = evolve(
                known,
                status=told.status,
                raw_status=told.raw_status,
                model=known.model or told.model,
                created_at=known.created_at or told.created_at,
                started_at=known.started_at or told.started_at,
            )
            await self._poller.digest(watch, seen, at, listed=True)
            watch.look_at = min(
                watch.look_at, max(now, watch.zero + watch.sure + max(SURE_EVERY, watch.sure))
            )
        except Exception as fault:  # noqa: BLE001 - it reaches who waits for this one, and the others go on
            self._poller.tell(watch, fault if isinstance(fault, BideError) else misread(fault))
        finally:
            self._poller.push(watch)
