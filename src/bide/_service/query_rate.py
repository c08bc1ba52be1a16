"""The queue in front of the account's query rate."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from bide.ledgers._lanes import JITTER_SHARE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bide.ledgers import Ledger

RAISE_AFTER = 2.5
"""Seconds that others have to hear that their part of the query rate is smaller now (they ask every 0.6 s at the
latest), and until what they sent before that counts no more (1 s)."""


class Turnstile:
    """Lets queries through at the account's rate; shared by all clients of an account on one ledger.

    Whoever waits in `enter` goes before the poller, which asks with `try_enter` and hears of a free place
    through `on_free`.

    Attributes:
        rate: of the account, of which this process may have a part only; None is no limit.
    """

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self.budget = QueryBudget(rate)
        self.on_free: list[Callable[[], None]] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._raise_to: float | None = None
        self._raising: asyncio.TimerHandle | None = None

    def join(self, rate: float) -> None:
        """Begin with a part of the account's rate: when those who have had it all will have heard of that."""
        if self.budget.rate is not None and rate < self.budget.rate:
            self.budget.set_rate(rate)
            self.budget.pause(asyncio.get_running_loop().time() + RAISE_AFTER)

    def limit(self, rate: float) -> None:
        """Let only *rate* (in a second) through from now on. A higher one than before holds a little later: whoever has
        to do with less for it may not have heard of that yet."""
        now = self.budget.rate
        if now is None or rate <= now:
            if self._raising is not None:
                self._raising.cancel()
            self._raise_to = self._raising = None
            self.budget.set_rate(rate)
        elif self._raise_to is None:
            self._raise_to = rate
            self._raising = asyncio.get_running_loop().call_later(RAISE_AFTER, self._raise)
        else:
            self._raise_to = min(self._raise_to, rate)  # what is more will be told again

    def _raise(self) -> None:
        self.budget.set_rate(self._raise_to)
        self._raise_to = self._raising = None
        self._serve()

    def free_at(self, now: float) -> float:
        """When the poller may send a query: *now* or earlier if at once; infinity: `on_free` will tell."""
        return math.inf if self._waiting else self.budget.free_at(now)

    def try_enter(self, now: float) -> bool:
        """Take a place if one is free; `leave` must follow then."""
        if self.free_at(now) > now:
            return False
        self.budget.take()
        return True

    async def enter(self) -> None:
        """Wait for a place; `leave` must follow."""
        loop = asyncio.get_running_loop()
        if self.try_enter(loop.time()):
            return
        place: asyncio.Future[None] = loop.create_future()
        self._waiting.append(place)
        self._serve()
        try:
            await place
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
            elif not place.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """The query has ended."""
        self.budget.give_back(asyncio.get_running_loop().time())
        self._serve()

    def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and (at := self.budget.free_at(loop.time())) <= loop.time():
            place = self._waiting.popleft()
            if not place.cancelled():
                self.budget.take()
                place.set_result(None)
        if not self._waiting:
            for tell in tuple(self.on_free):
                tell()
        elif at < math.inf:
            self._timer = loop.call_at(at, self._serve)


_TURNSTILES: WeakKeyDictionary[Ledger, dict[tuple[str, str], Turnstile]] = WeakKeyDictionary()


def turnstile_for(ledger: Ledger, origin: str, keys: Iterable[str], rate: float | None) -> Turnstile:
    """The turnstile of the account that has *keys* (fingerprints); clients that share one of them share it.

    Where two clients name different rates, the lower one holds.
    """
    known = _TURNSTILES.setdefault(ledger, {})
    names = [(origin, key) for key in keys]
    there = next((known[name] for name in names if name in known), None)
    if there is None:
        there = Turnstile(rate)
    elif rate is not None and (there.rate is None or rate < there.rate):
        there.rate = rate
        there.budget.set_rate(rate)
    for name in names:
        known.setdefault(name, there)
    return there


class QueryBudget:
    """At most *rate* queries in any second, a query under way counted until a second after its answer.

    Counting from the answer and not from the sending keeps the limit true at the service whatever the delays
    on the way: a query has reached it no later than its answer reaches us.
    """

    MARGIN = 1.02

    def __init__(self, rate: float | None) -> None:
        self._out = 0
        self._answered: deque[float] = deque()
        self._paused_until = -math.inf
        self._setbacks = 0
        self.set_rate(rate)

    def set_rate(self, rate: float | None) -> None:
        """From now on at most *rate* in a second."""
        self.rate = rate
        self._most = math.inf if rate is None else max(1, int(rate))
        # A rate of 6.7 is 6 in any second; one of 0.5 is 1 in any two.
        self._window = 0.0 if rate is None else max(1.0, self._most / rate) * self.MARGIN

    def pause(self, until: float) -> None:
        """No query goes before *until*."""
        self._paused_until = max(self._paused_until, until)

    def free_at(self, now: float) -> float:
        """When the next query may go: *now* or earlier if at once, infinity if an answer has to come first."""
        while self._answered and self._answered[0] <= now - self._window:
            self._answered.popleft()
        at = self._paused_until
        over = self._out + len(self._answered) - self._most
        if over >= 0:
            at = max(at, self._answered[int(over)] + self._window if over < len(self._answered) else math.inf)
        return at

    def take(self) -> None:
        """A query goes out; `give_back` must follow when it has been answered or given up."""
        self._out += 1

    def give_back(self, now: float) -> None:
        """The query taken before has ended."""
        self._out -= 1
        if self.rate is not None:
            self._answered.append(now)

    def refused(self, now: float, retry_after: float | None, chance: float) -> None:
        """The service answered 429 to a query: no query goes before its `Retry-After`, or a doubling pause."""
        pause = min(30.0, 2.0**self._setbacks) if retry_after is None else retry_after
        self._setbacks = min(self._setbacks + 1, 5)
        self._paused_until = max(self._paused_until, now + pause * (1 + JITTER_SHARE * chance))

    def paused_for(self, now: float) -> float:
        """Seconds until a query may go that was not refused yet; 0 if at once."""
        return max(0.0, self._paused_until - now)

    def answered(self) -> None:
        """The service answered a query properly: the next 429 starts with a short pause again."""
        self._setbacks = 0
