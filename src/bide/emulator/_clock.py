"""The time the emulator lives by."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate


class Clock:
    """The running loop's time, and the wall time that goes with it.

    In a loop with virtual time the wall clock of the services runs ahead with the loop, so that the times in their
    answers (`Date`, `created_at`, expiry) fit the time that a client sees pass.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._offset = time.time() - self._loop.time()

    @property
    def now(self) -> float:
        """The loop's time in seconds."""
        return self._loop.time()

    def wall(self, moment: float | None = None) -> float:
        """The epoch seconds of a *moment* of loop time (by default, of now)."""
        return self._offset + (self.now if moment is None else moment)

    def date(self, moment: float | None = None) -> str:
        """A *moment* of loop time (by default, now) as an HTTP date, in whole seconds."""
        return formatdate(self.wall(moment), usegmt=True)
