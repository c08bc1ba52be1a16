"""How far a task and its files are, and the columns of a progress display that show it.

A task shows the progress that its service reports. Without that, it shows an estimate that rises with the time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.progress import BarColumn, ProgressColumn
from rich.text import Text

from bide.cli._output import duration_text, size_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Task as Row
    from rich.progress_bar import ProgressBar

    from bide import Task

LINEAR_SHARE = 0.8
"""The share of the expected time in which a bar moves evenly; after that it slows down, since the end may be late."""
MIN_EXPECTED_SECONDS = 1.0
MAX_ESTIMATE_PERCENT = 99.0
"""An estimate never shows more: only a task that has ended is at 100 %."""


class TaskProgress:
    """How far one task is, in percent. It never moves backwards. All moments are seconds of one clock, of any kind.

    At each new snapshot the bar stays where it is, and gets a new speed from the time that is left. So it moves evenly
    while the forecast is right, changes its speed after a wrong forecast, and never jumps.

    Attributes:
        newest: returns the newest snapshot.
    """

    def __init__(self, newest: Callable[[], Task]) -> None:
        self.newest = newest
        self._task: Task | None = None
        self._start_percent = 0.0  # at the newest snapshot
        self._start_moment = 0.0
        self._accepted_at: float | None = None
        self._due: float | None = None
        self._reported: float | None = None

    def percent(self, now: float) -> float | None:
        """How far it is; None if that is not known."""
        task = self._update(now)
        if task.status.is_final or not task.status.is_accepted:
            return 100.0 if task.status.is_final else 0.0
        return None if self._reported is None and self._due is None else self._percent_at(now)

    def text(self, now: float) -> str:
        """The same as text: "43 %", or "~43 %" if the service reports less; with the time left if it is known."""
        task, percent = self._update(now), self.percent(now)
        if not task.status.is_accepted or task.status.is_final or percent is None:
            return ""
        about = "~" if self._reported is None or self._reported < percent else ""
        left = 0.0 if self._due is None else self._due - now
        time_left = f", about {duration_text(left)} left" if left >= MIN_EXPECTED_SECONDS else ""
        return f"{about}{percent:.0f} %{time_left}"

    def _update(self, now: float) -> Task:
        task = self.newest()
        if task is self._task:
            return task
        self._start_percent, self._start_moment, self._task = self._percent_at(now), now, task
        if self._accepted_at is None and task.status.is_accepted:
            self._accepted_at = now
        if task.eta is not None and self._accepted_at is not None:
            if self._due is None:  # the first forecast: count the time that has passed before it
                passed = now - self._accepted_at
                share = passed / max(MIN_EXPECTED_SECONDS, passed + task.eta)
                self._start_percent = min(MAX_ESTIMATE_PERCENT, MAX_ESTIMATE_PERCENT * share)
            self._due = now + task.eta
        if task.progress is not None:
            self._reported = task.progress
            self._start_percent = max(self._start_percent, self._reported)
        return task

    def _percent_at(self, now: float) -> float:
        if self._reported is not None or self._due is None:
            return self._start_percent
        share = (now - self._start_moment) / max(MIN_EXPECTED_SECONDS, self._due - self._start_moment)
        ahead = (MAX_ESTIMATE_PERCENT - self._start_percent) * _share_shown(share)
        return max(self._start_percent, min(MAX_ESTIMATE_PERCENT, self._start_percent + ahead))


def _share_shown(share: float) -> float:
    """The share of its length that a bar fills after this *share* of the expected time; always below 1."""
    if share < LINEAR_SHARE:
        return share
    return 1 - (1 - LINEAR_SHARE) * math.exp((LINEAR_SHARE - share) / (1 - LINEAR_SHARE))


class FilesProgress:
    """How far the download of the files of one task is, by the bytes of all files.

    Args:
        count: the number of files.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._sizes: dict[int, tuple[int, int | None]] = {}

    def update(self, place: int, size: int, total: int | None) -> None:
        """Note that *size* of *total* bytes of the file at *place* have arrived."""
        self._sizes[place] = (size, total)

    @property
    def status(self) -> str:
        """Such as "saving"; with several files "saving 1/3", if one of three is complete."""
        complete = sum(size == total for size, total in self._sizes.values())
        return "saving" if self._count == 1 else f"saving {complete}/{self._count}"

    def percent(self, _now: float) -> float | None:
        """How far they are; None as long as the length of one is not known."""
        size, total = self._bytes()
        return min(100.0, 100.0 * size / total) if total else None

    def text(self, _now: float) -> str:
        """The same as text: "3.2/10.0 MB", or "3.2 MB" as long as the length of one is not known."""
        return size_text(*self._bytes())

    def _bytes(self) -> tuple[int, int | None]:
        """The bytes that have arrived, and their total."""
        totals = [total for _, total in self._sizes.values() if total is not None]
        is_known = len(totals) == self._count
        return sum(size for size, _ in self._sizes.values()), sum(totals) if is_known else None


# On a terminal -------------------------------------------------------------------------------------------------


class PercentColumn(BarColumn):
    """The bar of a row, by its field "progress" if it has one; the bar pulses as long as the percentage is unknown."""

    def render(self, task: Row) -> ProgressBar:
        """See `ProgressColumn`."""
        progress: TaskProgress | FilesProgress | None = task.fields["progress"]
        if progress is not None:
            percent = progress.percent(task.get_time())
            task.total, task.completed = (None, 0.0) if percent is None else (100.0, percent)
        return super().render(task)


class PercentTextColumn(ProgressColumn):
    """What the bar shows, as text; such as "3/12" for a row without a field "progress"."""

    def render(self, task: Row) -> Text:
        """See `ProgressColumn`."""
        progress: TaskProgress | FilesProgress | None = task.fields["progress"]
        if progress is not None:
            return Text(progress.text(task.get_time()))
        return Text(f"{task.completed:.0f}/{'?' if task.total is None else f'{task.total:.0f}'}")
