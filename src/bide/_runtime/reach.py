"""`Reach`: whether this client has a connection to its service, and when a create is tried again without one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bide import _outside
from bide._service.outage import wait_after_fault

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_WAIT_SECONDS = 0.5
"""The wait after the first create that found no connection. It doubles up to the wait after faults of a service."""
JITTER_SHARE = 0.1


class Reach:
    """What the last creates have shown of this client's network. It pauses this client, and no other one.

    Attributes:
        next_try: the earliest moment for the next create, by *clock*; minus infinity while there is a connection.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failing_since: float | None = None
        self._failures = 0
        self.next_try: float = -math.inf

    @property
    def is_lost(self) -> bool:
        """Whether the last create found no connection. One create at a time tests it then."""
        return self._failing_since is not None

    def note_failure(self) -> None:
        """A create found no connection."""
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        if now < self.next_try:
            return  # it was sent together with one that has failed before
        longest = wait_after_fault(now - self._failing_since)
        wait = min(longest, FIRST_WAIT_SECONDS * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self.next_try = now + wait * (1 + JITTER_SHARE * _outside.chance.random())

    def note_connection(self) -> None:
        """A create was sent."""
        self._failing_since, self._failures, self.next_try = None, 0, -math.inf
