"""What a key may do: the limits of a service, and the windows that enforce them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

PerKind = Mapping[str, int | None] | int | None


@dataclass(frozen=True)
class ServiceLimits:
    """What a service allows one key; None means no limit.

    Attributes:
        concurrency: tasks in flight (accepted and not final): one number that applies to every kind of work, or a
            mapping from kind (`"image"`, `"video"`) to number. A kind that is not in the mapping has no limit.
        creates_per_minute: accepted creates in any rolling minute, in the same two forms.
        queries_per_second: queries, lists and cancels together in any rolling second.
    """

    concurrency: PerKind = None
    creates_per_minute: PerKind = None
    queries_per_second: int | None = None

    def in_flight(self, kind: str) -> int | None:
        """How many tasks of this *kind* may be in flight."""
        return _of_kind(self.concurrency, kind)

    def creates(self, kind: str) -> int | None:
        """How many tasks of this *kind* may be created in a minute."""
        return _of_kind(self.creates_per_minute, kind)


def _of_kind(limit: PerKind, kind: str) -> int | None:
    return limit.get(kind) if isinstance(limit, Mapping) else limit


DOCUMENTED_DASHSCOPE = ServiceLimits(
    concurrency={"video": 3}, creates_per_minute={"image": 30}, queries_per_second=20
)
"""The figures of DashScope's documents: for each key 3 videos in flight, 30 images a minute, 20 queries a second."""

UNLIMITED = ServiceLimits()
"""Dieyuyun documents no figures."""


class Window:
    """At most *limit* events in any rolling *seconds*."""

    def __init__(self, limit: int | None, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._events: deque[float] = deque()

    def is_full(self, now: float) -> bool:
        """Whether one more event *now* would exceed the limit."""
        if self._limit is None:
            return False
        # The microsecond is for rounding: two events exactly one window apart are not in one window.
        while self._events and self._events[0] <= now - self._seconds + 1e-6:
            self._events.popleft()
        return len(self._events) >= self._limit

    def add(self, now: float) -> None:
        """Count an event."""
        if self._limit is not None:
            self._events.append(now)
