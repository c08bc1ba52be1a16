"""What an answer tells of a task's time: how old it is, how long it may still take, and what its end teaches."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from attrs import evolve

from bide._polling.durations import duration_of
from bide._polling.pace import believed, blame, bounds, eta, finished
from bide._service.account import CLOCK_SLACK
from bide.models import TaskStatus

if TYPE_CHECKING:
    from datetime import datetime

    from bide._polling.duration_models import Experience
    from bide._polling.pace import Pace
    from bide._polling.watch import Watch
    from bide._service.account import Account
    from bide.models import Task

PLAUSIBLE = 4.0
"""A task that was made elsewhere is at most so many times as old as such tasks take, or its age is not known."""
PATIENCE = 1.5
"""A task that could not be looked at for so many caps says nothing of how well the pace does."""
VAGUE = 10.0
"""Seconds (or a cap, whichever is longer) within which a task may have begun to run, for its end to teach something."""


class Sightings:
    """Takes what looks and lists tell into a `Watch`, and teaches what ends tell."""

    def __init__(self, account: Account, experience: Experience, pace: Pace) -> None:
        self._account = account
        self._experience = experience
        self._pace = pace
        self._time = asyncio.get_running_loop().time

    def unfinished(self, watch: Watch, task: Task, at: float, *, listed: bool) -> Task:
        """*task*, which was seen unfinished at the moment *at*, with the time that it may still take."""
        if not watch.is_named and task.model is not None:
            watch.model = self._experience.model(watch.kind, task.model, None, watch.profile.typical)
            watch.is_named = True
        if not watch.is_dated and task.created_at is not None:
            self._date(watch, task.created_at)
        watch.looked(
            watch.age(at),
            running=task.status is TaskStatus.RUNNING,
            progress=task.progress,
            started=watch.told_age(task, task.started_at),
            listed=listed,
        )
        return evolve(task, eta=eta(watch, watch.model.best(), watch.age(self._time())))

    def _date(self, watch: Watch, created_at: datetime) -> None:
        """The first answer tells when a task was made that was made elsewhere, unless that cannot be: nobody says in
        which zone some services write their times."""
        age = (self._account.service_time(self._account.ledger.now()) - created_at).total_seconds()
        longest = PLAUSIBLE * max(60.0, watch.profile.typical[1], duration_of(watch.model.best(), 0.9) or 0.0)
        if -CLOCK_SLACK <= age <= longest:
            watch.zero, watch.is_dated = self._time() - max(0.0, age), True

    def ended(self, watch: Watch, task: Task, at: float) -> bool:
        """A look at the moment *at* has seen the end of *task*. Returns whether a list has belied it."""
        age, ended = watch.age(self._time()), watch.told_age(task, task.finished_at)
        belied = watch.is_dated and ended is not None and watch.sure <= ended < watch.seen - CLOCK_SLACK
        if not watch.is_dated or task.status not in (TaskStatus.SUCCEEDED, TaskStatus.FAILED):
            return belied
        floor, cap = bounds(self._pace, watch.seen, watch.profile.floor)
        lesson = finished(watch, age, watch.told_age(task, task.started_at), ended)
        begun = 0.0 if watch.running is None or watch.started is not None else watch.running - watch.queued
        if age - watch.seen <= PATIENCE * cap:
            lesson = lesson._replace(late=blame(self._pace, lesson.lag, at - watch.look_at, floor))
        elif believed(ended, watch.sure, age) is None:
            return belied
        if begun <= max(VAGUE, cap):
            self._experience.teach(watch.model, lesson)
        return belied
