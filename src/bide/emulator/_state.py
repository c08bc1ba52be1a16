"""The state of one service: its accounts, their tasks and limits, and its counters."""

from __future__ import annotations

import heapq
import uuid
from collections import Counter, defaultdict
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from bide.emulator._limits import ServiceLimits, Window
from bide.emulator._prompt_orders import orders_in
from bide.emulator._tasks import EmulatedTask, Failure, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bide.emulator._settings import Clock, Settings

GIVEN_UP_AFTER = 3 * 3600.0
"""Seconds after which DashScope ends a task with `InternalError.Timeout`. Both emulated services do so."""

_COUNTERS = {
    "create": "creates",
    "query": "queries",
    "cancel": "cancels",
    "list": "lists",
    "asset": "asset_gets",
}


class _InFlight:
    """The open tasks of one key and kind. Counting takes O(log n), although tasks end by the clock alone."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._ends: list[tuple[float, str]] = []
        self.most = 0

    def count(self, now: float) -> int:
        while self._ends and self._ends[0][0] <= now:
            self._open.discard(heapq.heappop(self._ends)[1])
        return len(self._open)

    def add(self, task: EmulatedTask) -> None:
        self._open.add(task.id)
        heapq.heappush(self._ends, (task.ended, task.id))
        self.most = max(self.most, self.count(task.created))

    def move(self, task: EmulatedTask) -> None:
        """A cancelled task ends sooner; its old entry in the heap has no effect."""
        heapq.heappush(self._ends, (task.ended, task.id))


class Account:
    """One account at one service, named by the fingerprint of its first key."""

    def __init__(self, key: str, limits: ServiceLimits) -> None:
        self.key = key
        self._limits = limits
        self._in_flight: defaultdict[str, _InFlight] = defaultdict(_InFlight)
        self._creates: dict[str, Window] = {}
        self._queries = Window(limits.queries_per_second, 1.0)

    def may_query(self, now: float) -> bool:
        """Count a query and return True; if it would exceed the limit, return False and do not count it."""
        if self._queries.is_full(now):
            return False
        self._queries.add(now)
        return True

    def has_slot(self, kind: str, now: float) -> bool:
        """Whether one more task of this *kind* may be in flight."""
        most = self._limits.in_flight(kind)
        return most is None or self._in_flight[kind].count(now) < most

    def may_create(self, kind: str, now: float) -> bool:
        """Whether the limit of creates a minute allows one more."""
        return not self._window(kind).is_full(now)

    def note_opened(self, task: EmulatedTask) -> None:
        """Count an accepted create."""
        self._window(task.kind).add(task.created)
        self._in_flight[task.kind].add(task)

    def note_stopped(self, task: EmulatedTask) -> None:
        """Note that the *task* ends earlier than planned."""
        self._in_flight[task.kind].move(task)

    def most_in_flight(self) -> dict[str, int]:
        """The most tasks that were in flight at once, by kind."""
        return {kind: slots.most for kind, slots in self._in_flight.items() if slots.most}

    def _window(self, kind: str) -> Window:
        return self._creates.setdefault(kind, Window(self._limits.creates(kind), 60.0))


class ServiceState:
    """Everything that one service remembers.

    Args:
        failures: random failures (`failure_share`) are chosen from these.
        describe: the message for an ordered failure code.
        word: the service's status word for a task at a moment.
    """

    def __init__(
        self,
        service: str,
        *,
        clock: Clock,
        settings: Settings,
        limits: ServiceLimits,
        failures: Sequence[Failure],
        describe: Callable[[str], str],
        word: Callable[[EmulatedTask, float], str],
    ) -> None:
        self.service = service
        self.clock = clock
        self.settings = settings
        self._limits = limits
        self._failures = failures
        self._describe = describe
        self._word = word
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.counts: Counter[str] = Counter()
        self._tasks: dict[str, EmulatedTask] = {}
        self._accounts: dict[str, Account] = {}

    def count(self, on: str, status: int | None) -> None:
        """Count a call; *status* is that of the answer, None if there was no answer."""
        self.counts[_COUNTERS[on]] += 1
        if status == 429 and on != "asset":
            self.counts["creates_429" if on == "create" else "queries_429"] += 1

    def account(self, key: str) -> Account:
        """The account of the first key with this fingerprint."""
        return self._accounts.setdefault(key, Account(key, self._limits))

    def open(self, account: Account, work: Work, task_id: str) -> EmulatedTask:
        """Accept *work*: from now on there is a task, and it is paid for."""
        task = self._plan(account, work, task_id)
        self._tasks[task_id] = task
        account.note_opened(task)
        return task

    def find(self, task_id: str, key: str | None = None) -> EmulatedTask | None:
        """The task with this id, if *key* created it; None means any key."""
        task = self._tasks.get(task_id)
        return task if task is not None and key in (None, task.key) else None

    def cancel(self, task: EmulatedTask) -> EmulatedTask:
        """End a task earlier than planned."""
        stopped = task.stop(self.clock.now, self.settings.cancel_seconds)
        self._tasks[task.id] = stopped
        self.account(task.key).note_stopped(stopped)
        return stopped

    def tasks(self) -> Iterator[EmulatedTask]:
        """The tasks in order of creation, each with its present status."""
        now = self.clock.now
        return (replace(task, status=self._word(task, now)) for task in self._tasks.values())

    def newest_first(self, key: str) -> Iterator[EmulatedTask]:
        """The tasks of one *key*, without their status: a page of a long list needs the status of a few only."""
        return (task for task in reversed(self._tasks.values()) if task.key == key)

    def stats(self) -> dict[str, Any]:
        """The counters, as plain data; `Emulator.stats` documents them."""
        names = ("creates", "creates_429", "queries", "queries_429", "cancels", "lists", "asset_gets")
        return {
            **{name: self.counts[name] for name in names},
            "tasks": len(self._tasks),
            "max_in_flight": {
                account.key: most for account in self._accounts.values() if (most := account.most_in_flight())
            },
            "statuses": dict(Counter(task.status for task in self.tasks())),
        }

    def _plan(self, account: Account, work: Work, task_id: str) -> EmulatedTask:
        orders = orders_in(work.prompt)
        # Each task has its own random generator, so its numbers do not change those of the next task.
        random = Random(f"{self.settings.seed}:{self.service}:{len(self._tasks)}")  # noqa: S311  # no secret depends on it
        drawn = self.settings.seconds[work.kind](random) / self.settings.speed
        queue = self.settings.queue_seconds(random) / self.settings.speed
        fails_by_chance = random.random() < self.settings.failure_share
        failure = random.choice(self._failures) if fails_by_chance else None
        if orders.fails:
            code = orders.failure_code
            failure = Failure(code, self._describe(code) if code else "")
        seconds = drawn if orders.seconds is None else orders.seconds
        if seconds > GIVEN_UP_AFTER:
            seconds, failure = GIVEN_UP_AFTER, Failure("InternalError.Timeout", "The task ran for too long.")
        queued = min(seconds, queue if orders.queue_seconds is None else orders.queue_seconds)
        kept = self.settings.keep if orders.expire_seconds is None else orders.expire_seconds
        now = self.clock.now
        return EmulatedTask(
            id=task_id,
            service=self.service,
            work=work,
            key=account.key,
            created=now,
            started=now + queued,
            ended=now + seconds,
            expires=now + seconds + kept,
            status="",
            failure=failure,
            failed_parts=min(orders.failed_parts, work.files - 1),
            status_word=orders.status_word,
            file_bytes=orders.file_bytes,
        )


def new_id() -> str:
    """An id that no other task has, in this or any other emulator."""
    return str(uuid.uuid4())
