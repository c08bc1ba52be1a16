"""When to look at a task again: plain functions of what is known, without I/O or a clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from bide.providers import Profile

GROWTH = 1.2
CAP = 10.0
JITTER = 0.05
RECHECK = 60.0
"""Seconds between looks where the last one told a lasting fault, or where the task is overdue."""
LONGEST_BACKOFF = 60.0


@frozen
class Pace:
    """Look after the provider's floor, then ever less often while nothing changes.

    Attributes:
        growth: by how much an interval grows while nothing changes.
        cap: the longest interval, in seconds.
    """

    growth: float = GROWTH
    cap: float = CAP

    def first(self, profile: Profile, chance: float) -> float:
        """Seconds from the create to the first look: one to two floors, so that many do not look in step.

        Args:
            chance: a random number from 0 to 1.
        """
        return profile.floor * (1 + chance)

    def next(self, profile: Profile, interval: float, *, changed: bool, chance: float) -> float:
        """Seconds to the next look, after one that came *interval* seconds after its forerunner."""
        wanted = profile.floor if changed else min(interval * self.growth, max(self.cap, profile.floor))
        return max(profile.floor, wanted) * (1 + JITTER * chance)

    def after_fault(self, profile: Profile, failures: int, retry_after: float | None, chance: float) -> float:
        """Seconds to the next look, after *failures* looks in a row that gave no answer."""
        backoff: float = min(LONGEST_BACKOFF, profile.floor * 2.0 ** min(failures - 1, 10))
        return max(backoff, retry_after or 0.0) * (1 + JITTER * chance)
