"""The wall clock, chance and new ids: what the library takes from outside, besides the network and the ledger.

All of it enters here, so that a simulation can replace it and replay what has happened. The clock of the event loop is
the loop's own `time`.
"""

from __future__ import annotations

import os
import secrets
import time
from datetime import UTC, datetime
from random import Random

chance: Random = Random()  # noqa: S311 - for jitter and samples, never for a secret
"""Draws jitter and samples. A forked process draws other ones than its parent."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=chance.seed)


def wall_time() -> float:
    """Seconds since 1970. A user or a time server can set this clock: no wait may depend on it."""
    return time.time()


def utc_now() -> datetime:
    """The same as an aware UTC time."""
    return datetime.fromtimestamp(wall_time(), UTC)


def seconds_since_boot() -> float | None:
    """Seconds since the machine was started, by a clock that cannot be set; None where the system has none."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else None


def new_bytes(count: int) -> bytes:
    """Random bytes: they cannot be guessed, and no two results are equal."""
    return secrets.token_bytes(count)


def new_id(count: int) -> str:
    """The same as a text of two hexadecimal digits for each of *count* bytes."""
    return new_bytes(count).hex()
