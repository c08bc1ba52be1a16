"""`Outage`: whether the service answers at all, for all tasks together. It sends no calls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bide.errors import APIError
from bide.providers import TryAgain

if TYPE_CHECKING:
    from collections.abc import Callable

FAULTS_BEFORE_OUTAGE = 3
"""After so many faults in a row, of any tasks, the service counts as not answering. Single faults do not matter."""
RETRY_SECONDS, LATER_RETRY_SECONDS = 2.0, 10.0
"""Seconds between two tries in the first minute of faults, and after it."""
FIRST_SECONDS = 60.0


class Outage:
    """While the service does not answer, one poll at a time tests whether it answers again. The other polls wait.

    So there is one wait after faults for the service, and not one for each task. After one success all polls go on.

    Attributes:
        since: the moment of the first of the last faults in a row, by the loop's clock.
        on_end: called when the service answers again.
    """

    def __init__(self) -> None:
        self.on_end: list[Callable[[], None]] = []
        self._faults = 0
        self.since: float = 0.0
        self._next = -math.inf

    @property
    def next_try(self) -> float:
        """The earliest moment for the next poll, by the loop's clock; minus infinity while the service answers."""
        return self._next if self._faults >= FAULTS_BEFORE_OUTAGE else -math.inf

    def next_poll(self, *, is_under_way: bool) -> float:
        """The earliest moment for the next poll, if another one is under way or not; minus infinity for any moment.

        After a first fault the service may be down: while that is not known, many polls that are due do not start at
        once. The next one starts when those under way have their answers, or in its turn as in an outage.
        """
        is_in_doubt = is_under_way and self._faults > 0
        return self._next if is_in_doubt else self.next_try

    def note(self, outcome: object, now: float) -> None:
        """Take in the *outcome* of a query, a list or a cancel."""
        if not isinstance(outcome, TryAgain):
            self.note_answer()
        elif isinstance(outcome.error, APIError):
            # With a 429 the service works, and asks for fewer calls.
            is_answer = outcome.error.status_code == 429
            self.note_answer() if is_answer else self.note_fault(now, outcome.error.retry_after)
        else:
            self.note_fault(now)

    def note_answer(self) -> None:
        """The service has answered."""
        was_out = self._faults >= FAULTS_BEFORE_OUTAGE
        self._faults, self._next = 0, -math.inf
        for call in tuple(self.on_end) if was_out else ():
            call()

    def note_fault(self, now: float, retry_after: float | None = None) -> None:
        """A call got no answer."""
        if not self._faults:
            self.since = now
        self._faults += 1
        self._next = max(self._next, now + (retry_after or 0.0))

    def note_try(self, now: float) -> None:
        """A call is sent."""
        failing_for = now - self.since if self._faults else 0.0
        self._next = max(self._next, now + wait_after_fault(failing_for))


def wait_after_fault(seconds: float) -> float:
    """Seconds to wait for the next try, after so many *seconds* in which each try failed."""
    return RETRY_SECONDS if seconds < FIRST_SECONDS else LATER_RETRY_SECONDS
