"""What both services share: the settings, the clock, and the fingerprints of keys."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bide.emulator._durations import Sampler


@dataclass(frozen=True)
class Settings:
    """How the emulator behaves; `Emulator` documents each setting."""

    seconds: Mapping[str, Sampler]
    queue_seconds: Sampler
    cancel_seconds: float
    speed: float
    seed: int
    failure_share: float
    keep: float
    url_seconds: float
    fresh_urls: bool
    cut_share: float
    retry_after: float | None
    keys: frozenset[str] | None
    """Fingerprints of the keys that are accepted; None accepts every key."""


class Clock:
    """The running loop's time, and the wall time that goes with it.

    In a loop with virtual time the wall clock of the services moves with the loop. So the times in their answers
    (`Date`, `created_at`, expiry) agree with the time that passes for a client.
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


def fingerprint(key: str) -> str:
    """The short hash that names an API *key* in the emulator's records. The emulator never keeps the key itself."""
    return hashlib.sha256(b"bide emulator " + key.encode()).hexdigest()[:8]
