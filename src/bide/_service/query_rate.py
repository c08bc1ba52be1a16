"""The queue for the account's query rate: status queries, lists and cancels share it."""

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

RAISE_AFTER_SECONDS = 2.5
"""Seconds until a process uses a larger share of the query rate. The other processes learn within 0.6 s that their
share is smaller now, and the queries that they sent before that count for 1 s more."""
MOST_REFUSAL_PAUSE_SECONDS = 30.0


class QueryLimiter:
    """Lets queries through at the account's rate. All clients of an account on one ledger share it.

    The callers of `acquire` (lists, cancels) wait in one queue. This queue and the pollers take turns, so that each of
    them gets places however many queries the others want.

    Attributes:
        rate: queries of the account in any second, of which this process may have a share only; None is no limit.
        window: counts the queries of this process.
    """

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self.window: SlidingWindow = SlidingWindow(rate)
        self._takers: deque[Callable[[], bool]] = deque([self._take_for_caller])
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._raise_to: float | None = None
        self._raising: asyncio.TimerHandle | None = None

    def join(self, share: float) -> None:
        """Start with a *share* of the account's rate. Send nothing until the processes that had it all know that."""
        if self.window.rate is not None and share < self.window.rate:
            self.window.set_rate(share)
            self.window.pause(asyncio.get_running_loop().time() + RAISE_AFTER_SECONDS)

    def set_share(self, share: float) -> None:
        """Let only *share* (queries a second) through from now on. A larger share than before is used a little later:
        the processes whose shares become smaller may not know that yet."""
        now = self.window.rate
        if now is None or share <= now:
            if self._raising is not None:
                self._raising.cancel()
            self._raise_to = self._raising = None
            self.window.set_rate(share)
        elif self._raise_to is None:
            self._raise_to = share
            self._raising = asyncio.get_running_loop().call_later(RAISE_AFTER_SECONDS, self._raise)
        else:
            self._raise_to = min(self._raise_to, share)  # if it is larger, the ledger reports it again

    def _raise(self) -> None:
        self.window.set_rate(self._raise_to)
        self._raise_to = self._raising = None
        self.serve()

    def add_taker(self, take: Callable[[], bool]) -> None:
        """Call *take* when a place is free and it is its turn. It starts one query, which ends with `release`, and
        returns True; or it has none to start and returns False."""
        self._takers.append(take)

    def remove_taker(self, take: Callable[[], bool]) -> None:
        """Offer no more places to *take*."""
        self._takers.remove(take)

    def free_at(self, now: float) -> float:
        """When the next place is free: *now* or earlier if at once; infinity if an answer has to come first."""
        return self.window.free_at(now)

    async def acquire(self) -> None:
        """Wait for a place for one query; `release` must follow."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self.serve()
        try:
            await place
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
            elif not place.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """The query has ended."""
        self.window.end(asyncio.get_running_loop().time())
        self.serve()

    def serve(self) -> None:
        """Give the free places to those that want them, in turns."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (at := self.window.free_at(loop.time())) <= loop.time():
            if not self._give():
                return
        if self._waiting and at < math.inf:
            self._timer = loop.call_at(at, self.serve)

    def _give(self) -> bool:
        """Give one free place. Returns whether one of the takers has taken it."""
        for _ in range(len(self._takers)):
            take = self._takers[0]
            self._takers.rotate(-1)
            if take():
                self.window.start()
                return True
        return False

    def _take_for_caller(self) -> bool:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.cancelled():
                place.set_result(None)
                return True
        return False


_LIMITERS: WeakKeyDictionary[Ledger, dict[tuple[str, str], QueryLimiter]] = WeakKeyDictionary()


def query_limiter_for(ledger: Ledger, origin: str, keys: Iterable[str], rate: float | None) -> QueryLimiter:
    """The limiter of the account that has *keys* (fingerprints): clients that have one of them in common share it.

    If two clients have different rates, the lower one applies.
    """
    known = _LIMITERS.setdefault(ledger, {})
    names = [(origin, key) for key in keys]
    limiter = next((known[name] for name in names if name in known), None)
    if limiter is None:
        limiter = QueryLimiter(rate)
    elif rate is not None and (limiter.rate is None or rate < limiter.rate):
        limiter.rate = rate
        limiter.window.set_rate(rate)
    for name in names:
        known.setdefault(name, limiter)
    return limiter


class SlidingWindow:
    """At most *rate* queries in any second. A query counts until a second after its answer.

    It counts from the answer and not from the sending, so the limit also holds at the service, however slow the network
    is: a query reaches the service before its answer reaches us.
    """

    MARGIN = 1.02

    def __init__(self, rate: float | None) -> None:
        self._running = 0
        self._ends: deque[float] = deque()
        self._paused_until = -math.inf
        self._refusals = 0
        self.set_rate(rate)

    def set_rate(self, rate: float | None) -> None:
        """Allow *rate* queries a second from now on; None is no limit."""
        self.rate = rate
        self._most = math.inf if rate is None else max(1, int(rate))
        # A rate of 6.7 is 6 in any second; one of 0.5 is 1 in any two.
        self._seconds = 0.0 if rate is None else max(1.0, self._most / rate) * self.MARGIN

    def pause(self, until: float) -> None:
        """Let no query be sent before *until*."""
        self._paused_until = max(self._paused_until, until)

    def free_at(self, now: float) -> float:
        """When the next query may be sent: *now* or earlier if at once, infinity if an answer has to come first."""
        while self._ends and self._ends[0] <= now - self._seconds:
            self._ends.popleft()
        at = self._paused_until
        over = self._running + len(self._ends) - self._most
        if over >= 0:
            at = max(at, self._ends[int(over)] + self._seconds if over < len(self._ends) else math.inf)
        return at

    def start(self) -> None:
        """A query is sent now; `end` must follow when it is answered or given up."""
        self._running += 1

    def end(self, now: float) -> None:
        """A query has ended."""
        self._running -= 1
        if self.rate is not None:
            self._ends.append(now)

    def note_refusal(self, now: float, retry_after: float | None, chance: float) -> None:
        """The service has answered 429 to a query: no query is sent before its `Retry-After`, or before a pause that
        doubles each time. *chance* (0 to 1) says how much of the jitter is added."""
        pause = min(MOST_REFUSAL_PAUSE_SECONDS, 2.0**self._refusals) if retry_after is None else retry_after
        self._refusals = min(self._refusals + 1, 5)
        self._paused_until = max(self._paused_until, now + pause * (1 + JITTER_SHARE * chance))

    def note_answer(self) -> None:
        """The service has answered a query without a refusal: the pause after the next 429 is short again."""
        self._refusals = 0

    def paused_for(self, now: float) -> float:
        """Seconds until the next query may be sent after a 429; 0 if at once."""
        return max(0.0, self._paused_until - now)
