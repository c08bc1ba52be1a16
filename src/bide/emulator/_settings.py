"""What both services share: the settings, the clock, and the keys."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bide.emulator._durations import Sampler


class Keys:
    """Which keys are accepted, and to which account each belongs. An account has the fingerprint of its first key.

    Args:
        accepted: the keys that are accepted; None accepts every key.
    """

    def __init__(self, accepted: Iterable[str] | None = None) -> None:
        self._first = None if accepted is None else frozenset(map(fingerprint, accepted))
        self.reset()

    def account_of(self, key: str) -> str | None:
        """The account of *key*; None if the key is refused."""
        name = fingerprint(key)
        if name in self._retired or not (self._accepted is None or name in self._accepted):
            return None
        return self._accounts.get(name, name)

    def rotate(self, old: str, new: str) -> None:
        """Give the account of *old* the key *new*, and refuse *old* from now on.

        Raises:
            ValueError: *old* is not accepted, or *new* is in use or was replaced already.
        """
        account, before, after = self.account_of(old), fingerprint(old), fingerprint(new)
        if account is None:
            raise ValueError("the old key is refused already: name a key that is accepted")
        if after in {before, *self._retired, *self._accounts, *(self._accepted or ())}:
            raise ValueError("the new key is in use, or was in use before: name a key that was never used")
        self._accounts[after] = account
        self._retired.add(before)
        if self._accepted is not None:
            self._accepted.add(after)

    def reset(self) -> None:
        """Forget what was rotated."""
        self._accepted = None if self._first is None else set(self._first)
        self._accounts: dict[str, str] = {}
        self._retired: set[str] = set()


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
    keys: Keys


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
