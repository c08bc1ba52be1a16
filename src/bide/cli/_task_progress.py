"""How far a task is: what its service tells, and where that tells nothing, an estimate that the clock moves on.

And how far its files are, once they are on their way.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.progress import BarColumn, ProgressColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Task as Row
    from rich.progress_bar import ProgressBar

    from bide import Task

EVENLY = 0.8
"""The part of the expected time in which a bar moves evenly; then ever more slowly, since it may take longer."""
SHORTEST = 1.0
"""Seconds that are expected at least."""
MOST = 99.0
"""Percent that an estimate shows at most: only the end is the end."""


class Gauge:
    """How far one task is, in percent. Moments are seconds of any one clock; it never goes backwards.

    At each new snapshot the bar sets out anew from where it stands, for the time that is left by then: it moves evenly
    where that was foreseen well, and slower or faster where it was not, without a jump.

    Attributes:
        newest: gives the newest snapshot.
    """

    def __init__(self, newest: Callable[[], Task]) -> None:
        self.newest = newest
        self._task: Task | None = None
        self._stood = 0.0
        self._since = 0.0
        self._began: float | None = None
        self._due: float | None = None
        self._told: float | None = None

    def percent(self, now: float) -> float | None:
        """How far it is; None where nobody knows."""
        task = self._take(now)
        if task.status.is_final or not task.status.is_accepted:
            return 100.0 if task.status.is_final else 0.0
        return None if self._told is None and self._due is None else self._at(now)

    def words(self, now: float) -> str:
        """The same in words: "43 %", or "~43 %" where that is more than the service tells; "about 12 s left"."""
        task, percent = self._take(now), self.percent(now)
        if not task.status.is_accepted or task.status.is_final or percent is None:
            return ""
        about = "~" if self._told is None or self._told < percent else ""
        left = 0.0 if self._due is None else self._due - now
        return f"{about}{percent:.0f} %" + (f", about {_span(left)} left" if left >= SHORTEST else "")

    def _take(self, now: float) -> Task:
        task = self.newest()
        if task is self._task:
            return task
        self._stood, self._since, self._task = self._at(now), now, task
        if self._began is None and task.status.is_accepted:
            self._began = now
        if task.eta is not None and self._began is not None:
            if self._due is None:  # the part that lies behind has been watched, too
                behind = now - self._began
                self._stood = min(MOST, MOST * behind / max(SHORTEST, behind + task.eta))
            self._due = now + task.eta
        if task.progress is not None:
            self._told = task.progress
            self._stood = max(self._stood, self._told)
        return task

    def _at(self, now: float) -> float:
        if self._told is not None or self._due is None:
            return self._stood
        part = (now - self._since) / max(SHORTEST, self._due - self._since)
        return max(self._stood, min(MOST, self._stood + (MOST - self._stood) * _way(part)))


def _way(part: float) -> float:
    """How much of the way is covered after this *part* of the time: all of it never."""
    return part if part < EVENLY else 1 - (1 - EVENLY) * math.exp((EVENLY - part) / (1 - EVENLY))


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


# Its files -----------------------------------------------------------------------------------------------------

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


class Files:
    """How far the files of one task are, by the bytes of all of them.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._known: dict[int, tuple[int, int | None]] = {}

    def heard(self, place: int, size: int, total: int | None) -> None:
        """Of the file at this *place*, of *total* bytes, *size* are here."""
        self._known[place] = (size, total)

    @property
    def status(self) -> str:
        """What goes on, in words: of several files, how many are whole."""
        whole = sum(size == total for size, total in self._known.values())
        return "saving" if self._count == 1 else f"saving {whole}/{self._count}"

    def percent(self, _now: float) -> float | None:
        """How far they are; None for as long as a length is not known."""
        size, total = self._bytes()
        return min(100.0, 100.0 * size / total) if total else None

    def words(self, _now: float) -> str:
        """The same in words: "3.2/10.0 MB", or what is here alone."""
        return amount(*self._bytes())

    def _bytes(self) -> tuple[int, int | None]:
        """How many are here, and of how many."""
        totals = [total for _, total in self._known.values() if total is not None]
        is_known = len(totals) == self._count
        return sum(size for size, _ in self._known.values()), sum(totals) if is_known else None


def amount(size: int, total: int | None = None) -> str:
    """So many bytes, of *total* where that is known, as a person says it."""
    unit, name = next((each for each in _UNITS if (total or size) >= each[0]), _UNITS[-1])
    return f"{size / unit:.1f}" + (f"/{total / unit:.1f}" if total else "") + f" {name}"


# On a terminal -------------------------------------------------------------------------------------------------


class GaugeBar(BarColumn):
    """The bar of a row, by its field "gauge" where there is one; it sweeps where that knows nothing."""

    def render(self, task: Row) -> ProgressBar:
        """See `ProgressColumn`."""
        gauge: Gauge | Files | None = task.fields["gauge"]
        if gauge is not None:
            percent = gauge.percent(task.get_time())
            task.total, task.completed = (None, 0.0) if percent is None else (100.0, percent)
        return super().render(task)


class GaugeText(ProgressColumn):
    """What the bar shows, in words; for a row without a gauge as "3/12"."""

    def render(self, task: Row) -> Text:
        """See `ProgressColumn`."""
        gauge: Gauge | Files | None = task.fields["gauge"]
        if gauge is not None:
            return Text(gauge.words(task.get_time()))
        return Text(f"{task.completed:.0f}/{'?' if task.total is None else f'{task.total:.0f}'}")
