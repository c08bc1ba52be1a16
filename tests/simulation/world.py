"""The world: virtual time, one event loop for each host, and the scheduler that steps them."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

EPOCH = 1_800_000_000.0
"""The wall clock at the start of a history."""
BOOTED = 5000.0
"""Seconds since the machine was started, at the start of a history."""
START = 1000.0
"""What the clocks of the loops show then."""
MOST_TURNS = 400_000
"""Turns of all loops in one history, after which it counts as one that never ends."""


class EndlessError(AssertionError):
    """A loop turns without end at one moment."""


class OrderedTask(asyncio.Task[Any]):
    """A task that has the same place in a set in each run."""

    numbers = itertools.count()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._number = next(OrderedTask.numbers)
        super().__init__(*arguments, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Selector:
    """Hands over what has arrived at a host. The world decides when time passes."""

    def __init__(self) -> None:
        self.arrived: deque[Callable[[], object]] = deque()

    def select(self, timeout: float | None) -> list[Callable[[], object]]:
        arrived = list(self.arrived)
        self.arrived.clear()
        return arrived

    def close(self) -> None:
        self.arrived.clear()


class HostLoop(asyncio.BaseEventLoop):
    """The event loop of one host. As in a real loop, what has arrived comes before the timers of the same turn."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._selector = _Selector()
        self._clock_resolution = 1e-9
        self._readers: dict[int, Callable[[], object]] = {}
        self.set_task_factory(_make_task)
        self.set_exception_handler(self._note_fault)
        self.faults: list[str] = []

    def time(self) -> float:
        return self._world.now

    def arrive(self, call: Callable[[], object]) -> None:
        """Something comes from outside: *call* runs in the next turn."""
        self._selector.arrived.append(call)

    def turn(self) -> None:
        """One turn: what has arrived, the timers that are due, and what was ready."""
        previous = events._get_running_loop()
        events._set_running_loop(self)
        try:
            self._run_once()
        finally:
            events._set_running_loop(previous)

    def next_moment(self) -> float:
        """When it has something to do: now or earlier, a timer's moment, or never."""
        if self._ready or self._selector.arrived:
            return self._world.now
        while self._scheduled and self._scheduled[0]._cancelled:
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False
            self._timer_cancelled_count -= 1
        return self._scheduled[0]._when if self._scheduled else float("inf")

    def _process_events(self, event_list: list[Callable[[], object]]) -> None:
        for call in event_list:
            self._ready.append(asyncio.Handle(call, (), self, None))

    def _write_to_self(self) -> None:
        pass

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        self._readers[fd] = callback

    def remove_reader(self, fd: Any) -> bool:
        return self._readers.pop(fd, None) is not None

    def read(self, fd: int) -> None:
        """A socket of this host can be read."""
        if fd in self._readers:
            self.arrive(self._readers[fd])

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as fault:  # noqa: BLE001 - the caller that awaits it raises it
            future.set_exception(fault)
        return future

    def _note_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        fault = context.get("exception")
        self.faults.append(f"{context.get('message')}: {fault!r}")

    def drop(self) -> None:
        """The process has died: nothing of it runs any more, and no warning is printed of what it leaves."""
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._ready.clear()
        self._scheduled.clear()
        self._selector.close()


def _make_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    return OrderedTask(coro, loop=loop, **options)


class World:
    """Time, chance, and what is to happen.

    Attributes:
        now: seconds; what the clocks of all loops show.
        story: what has happened so far, a line each.
    """

    def __init__(self, seed: str) -> None:
        self.now = START
        self.wall_jump = 0.0
        self.chance = Random(seed)
        self.story: list[str] = []
        self.turns = 0
        self._loops: list[HostLoop] = []
        self._stopped: dict[HostLoop, bool] = {}
        self._plans: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._last = 0
        self.after_turn: list[Callable[[HostLoop], object]] = []

    def tell(self, text: str) -> None:
        """Add a line to the story."""
        self.story.append(f"{self.now - START:9.3f}  {text}")

    def wall_time(self) -> float:
        """The wall clock."""
        return EPOCH + self.now - START + self.wall_jump

    def true_time(self, moment: float | None = None) -> float:
        """What the wall clock would show if it did not jump: the service's clock."""
        return EPOCH + (self.now if moment is None else moment) - START

    # Loops -------------------------------------------------------------------------------------------------

    def new_loop(self) -> HostLoop:
        """The loop of a new host."""
        loop = HostLoop(self)
        self._loops.append(loop)
        return loop

    def end_loop(self, loop: HostLoop) -> None:
        """The host of *loop* has ended."""
        self._loops.remove(loop)
        self._stopped.pop(loop, None)

    def stop(self, loop: HostLoop, *, threads: bool = True) -> None:
        """The host is stopped: its clock goes on, but it does nothing. Or its loop is blocked: its *threads* go on."""
        self._stopped[loop] = threads

    def go_on(self, loop: HostLoop) -> None:
        """The host goes on."""
        self._stopped.pop(loop, None)

    def is_stopped(self, loop: HostLoop) -> bool:
        """Whether the loop of the host does nothing."""
        return loop in self._stopped

    def are_threads_stopped(self, loop: HostLoop) -> bool:
        """Whether the threads of the host do nothing either."""
        return self._stopped.get(loop, False)

    # Time --------------------------------------------------------------------------------------------------

    def at(self, moment: float, call: Callable[[], object]) -> None:
        """Call *call* at *moment*."""
        heapq.heappush(self._plans, (moment, next(self._order), call))

    def after(self, seconds: float, call: Callable[[], object]) -> None:
        """Call *call* in so many *seconds*."""
        self.at(self.now + seconds, call)

    def run(self, until: float, *, is_done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass up to the moment *until*, or until *is_done*."""
        while not is_done():
            live = [loop for loop in self._loops if loop not in self._stopped]
            moments = [loop.next_moment() for loop in live]
            busy = [loop for loop, moment in zip(live, moments, strict=True) if moment <= self.now]
            if busy:
                self._last += 1
                self._turn(busy[self._last % len(busy)])
                continue
            following = min([*moments, self._plans[0][0] if self._plans else float("inf")])
            if following > until:
                self.now = max(self.now, until)
                return
            self.now = max(self.now, following)
            while self._plans and self._plans[0][0] <= self.now:
                heapq.heappop(self._plans)[2]()

    def _turn(self, loop: HostLoop) -> None:
        self.turns += 1
        if self.turns > MOST_TURNS:
            raise EndlessError("the loops turn without end")
        loop.turn()
        for call in self.after_turn:
            call(loop)
