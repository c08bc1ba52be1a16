"""What an answer about a task means: a new snapshot, a new record, a fault for the waiters, a sample for the pace."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from attrs import evolve

from bide import _outcomes, _outside
from bide._events import log_line
from bide._polling.durations import duration_of
from bide._polling.pace import JITTER, RECHECK_SECONDS, bounds, eta, lateness, plausible, sample_of
from bide._service.account import CLOCK_SLACK_SECONDS, misread, retry_after_of
from bide._service.outage import wait_after_fault
from bide.errors import APIError, BideError, LedgerError, UnexpectedReplyError, WaitTimeoutError
from bide.models import ErrorDetail, Task, TaskStatus
from bide.providers import Denied, Gone

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from bide._polling.duration_models import DurationModels
    from bide._polling.schedule import Schedule
    from bide._polling.watched_task import WatchedTask
    from bide._service.account import Account
    from bide._submissions import Submissions
    from bide.models import Deadlines
    from bide.providers import QueryOutcome

GONE_SECONDS = 60.0
"""Seconds over which "no such task" must repeat until it ends the task."""
GONE_RECHECK_SECONDS = 15.0
DENIED_SECONDS = 30.0
"""Seconds over which "not allowed" must repeat until the waiters get the error."""
DENIED_RECHECK_SECONDS = 10.0
EMPTY_SECONDS = 60.0
"""Seconds for which a task that has succeeded without any output is polled again."""
EMPTY_RECHECK_SECONDS = 5.0
RERECORD_SECONDS = 5.0
"""Seconds until a task is polled again whose answer could not be taken in or recorded."""
PLAUSIBLE_FACTOR = 4.0
"""If a task that was made elsewhere is older than so many usual durations, its age counts as unknown."""
MOST_CAPS_WAITED = 1.5
"""A task that could not be polled for so many caps says nothing about the quality of the pace."""
VAGUE_START_SECONDS = 10.0
"""The end of a task teaches something only if its start is known to within so many seconds, or to within a cap if that
is longer."""


class Observer:
    """Takes in what polls and lists show of the watched tasks.

    Args:
        owner: the name of the client on the ledger.
        on_contradiction: called with a task if a poll of it contradicts an earlier list.
    """

    def __init__(
        self,
        account: Account,
        owner: str,
        deadlines: Deadlines,
        submissions: Submissions,
        models: DurationModels,
        schedule: Schedule,
        on_contradiction: Callable[[WatchedTask], None],
    ) -> None:
        self._account = account
        self._ledger = account.ledger
        self._owner = owner
        self._deadlines = deadlines
        self._submissions = submissions
        self._models = models
        self._schedule = schedule
        self._pace = schedule.pace
        self._on_contradiction = on_contradiction
        self._clock = asyncio.get_running_loop().time
        self._unknown_words: set[str] = set()

    # An answer ---------------------------------------------------------------------------------------------

    async def digest(
        self, watched: WatchedTask, outcome: QueryOutcome, at: float, *, listed: bool = False
    ) -> BideError | None:
        """Take in what a poll (or a list) has shown for the moment *at*, and plan the next poll. Returns its fault."""
        now, watched.is_paced = self._clock(), False
        if isinstance(outcome, Task):
            if watched.guessed_for and self._account.provider.contradicts(outcome, watched.guessed_for):
                await self._undo_match(watched)
                return None
            if watched.needs_poll and not outcome.status.is_final:
                self._on_contradiction(watched)
            watched.failing_since = watched.gone_since = watched.denied_since = None
            watched.needs_poll = False
            await self._take_in(watched, outcome, at, listed=listed)
            if watched.task.awaits_outputs:
                self._plan_empty(watched)
            elif not watched.task.status.is_final:
                self._schedule.plan(watched)
            self._check_overdue(watched)
            return None
        if isinstance(outcome, Gone):
            await self._take_in_gone(watched, outcome, now)
            return outcome.error
        if isinstance(outcome, Denied):
            self._take_in_denied(watched, outcome.error, now)
            return outcome.error
        if watched.failing_since is None:
            watched.failing_since = now
        wait = max(self._schedule.floor(watched), wait_after_fault(now - watched.failing_since))
        wait = max(wait, retry_after_of(outcome) or 0.0)
        watched.poll_at = now + wait * (1 + JITTER * _outside.chance.random())
        self._submissions.note_fault(watched.ticket, outcome.error)
        if isinstance(outcome.error, APIError) and outcome.error.status_code == 429:
            pause = self._account.query_limiter.window.paused_for(now)
            self._submissions.announce_pause(watched.ticket, watched.key, pause, outcome.error)
        self._check_overdue(watched)
        return outcome.error

    def take_in_fault(self, watched: WatchedTask, fault: Exception) -> BideError:
        """What a poll has shown could not be taken in, because of *fault*. The task may have ended: its slot stays in
        use until that is recorded."""
        error = fault if isinstance(fault, BideError) else misread(fault)
        log_line(logging.WARNING, f"{watched.ticket}: its state could not be recorded yet: {error}")
        self._submissions.note_fault(watched.ticket, error)
        watched.poll_at = self._clock() + max(RERECORD_SECONDS, self._schedule.floor(watched))
        return error

    def _take_in_denied(self, watched: WatchedTask, error: BideError, now: float) -> None:
        """One "not allowed" proves nothing. If it repeats for some time, raise it in the waiters, and poll the task
        more rarely."""
        watched.gone_since = None
        if watched.denied_since is None:
            watched.denied_since = now
        verdict_at = watched.denied_since + DENIED_SECONDS
        if now >= verdict_at:
            watched.poll_at = now + RECHECK_SECONDS
            self._submissions.fail_waiters(watched.ticket, error)
            return
        self._submissions.note_fault(watched.ticket, error)
        self._poll_again(watched, DENIED_RECHECK_SECONDS, verdict_at)

    def _poll_again(self, watched: WatchedTask, seconds: float, last_at: float) -> None:
        """Poll it again in so many *seconds*, but at *last_at* at the latest, as far as its floor allows."""
        now, floor = self._clock(), self._schedule.floor(watched)
        watched.poll_at, watched.is_paced = max(now + floor, min(now + seconds, last_at)), False

    async def _take_in(
        self, watched: WatchedTask, answered: Task, at: float, *, listed: bool = False
    ) -> None:
        """A new snapshot: it is recorded if its status is new, then reported."""
        before = watched.task
        if answered.status is TaskStatus.SUCCEEDED and not answered.outputs:
            answered = self._take_in_empty(watched, answered, at)
        task = before.merge(answered)
        if not task.status.is_final:
            if not task.awaits_outputs:
                task = self._observe_unfinished(watched, task, at, listed=listed)
            # With its eta: this change wakes those who read events.
            if task.status is not before.status or (task.awaits_outputs and not before.awaits_outputs):
                await self._ledger.update(watched.ticket, task, owner=self._owner)
        else:
            try:
                record = await self._ledger.finish(watched.ticket, task, owner=self._owner)
            except LedgerError:
                self._submissions.advance(watched.ticket, task)  # the waiters get their result all the same
                raise
            if watched.empty_since is None and self._observe_end(watched, task, at):
                self._on_contradiction(watched)
            self._schedule.remove(watched.ticket)
            # The ledger has reported the change before this step ended. If the submission is open all the same, the
            # task had ended before, and a late record of it was opened.
            if self._submissions.is_open(watched.ticket):
                self._submissions.change_record(record)
        watched.task = task
        if task.status is not before.status:
            self.start_deadline(watched)
        self.note_word(task)
        self._submissions.advance(watched.ticket, task)

    async def _undo_match(self, watched: WatchedTask) -> None:
        """The task shows another prompt: it is another program's, and the create of its ticket is unknown again."""
        fault = UnexpectedReplyError(
            f"task {watched.task_id} fitted by model and time, but was made for another prompt"
        )
        task = _outcomes.mark_unknown(Task(ticket=watched.ticket, model=watched.task.model), fault)
        hold = watched.profile.unknown_hold
        watched.poll_at = self._clock() + RERECORD_SECONDS  # if another client drives it now
        await self._ledger.undo_match(watched.ticket, task, owner=self._owner, hold=hold)

    def _take_in_empty(self, watched: WatchedTask, answered: Task, at: float) -> Task:
        """A success without any output: the output may come a little later. Returns the snapshot that it stands for."""
        now = self._clock()
        if watched.empty_since is None:
            self._observe_end(watched, watched.task.merge(answered), at)
            watched.empty_since = now
        if now - watched.empty_since < EMPTY_SECONDS:
            return _outcomes.await_outputs(answered)
        log_line(
            logging.WARNING,
            f"{watched.ticket}: task {watched.task_id} has succeeded, and for {EMPTY_SECONDS:g} s the service has "
            f"shown no output of it",
        )
        return _outcomes.end_without_outputs(answered, EMPTY_SECONDS)

    def start_empty(self, watched: WatchedTask) -> None:
        """*watched* is on record as a success without any output, whose slot is free since then."""
        watched.empty_since = self._clock() - max(0.0, self._ledger.now() - watched.slot_until)
        self._plan_empty(watched)

    def _plan_empty(self, watched: WatchedTask) -> None:
        since = self._clock() if watched.empty_since is None else watched.empty_since
        self._poll_again(watched, EMPTY_RECHECK_SECONDS, since + EMPTY_SECONDS)

    async def _take_in_gone(self, watched: WatchedTask, outcome: Gone, now: float) -> None:
        """One "no such task" proves nothing. It ends the task as expired only if it repeats for some time."""
        watched.denied_since = None
        if watched.gone_since is None:
            watched.gone_since = now
        if now - watched.gone_since >= GONE_SECONDS:
            detail = ErrorDetail(
                outcome.error.code, outcome.error.message, status_code=outcome.error.status_code
            )
            await self._take_in(watched, evolve(watched.task, status=TaskStatus.EXPIRED, error=detail), now)
            return
        self._submissions.note_fault(watched.ticket, outcome.error)
        self._poll_again(watched, GONE_RECHECK_SECONDS, watched.gone_since + GONE_SECONDS)

    def note_word(self, task: Task) -> None:
        """Log a status word that the provider does not know, once."""
        word = task.raw_status
        if word is None or task.status is not TaskStatus.RUNNING or word in self._unknown_words:
            return
        self._unknown_words.add(word)
        if not self._account.provider.knows(word):
            name = self._account.provider.name
            log_line(logging.WARNING, f"{name}: unknown task status {word!r} counts as running")

    # What it shows of the task's time ----------------------------------------------------------------------

    def _observe_unfinished(self, watched: WatchedTask, task: Task, at: float, *, listed: bool) -> Task:
        """*task*, which had not ended at the moment *at*, with the seconds that it may still take."""
        if not watched.is_named and task.model is not None:
            watched.model = self._models.model(watched.kind, task.model, None, watched.profile.typical)
            watched.is_named = True
        if not watched.is_dated and task.created_at is not None:
            self._date(watched, task.created_at)
        watched.note_poll(
            watched.age(at),
            running=task.status is TaskStatus.RUNNING,
            progress=task.progress,
            started=watched.reported_age(task, task.started_at),
            listed=listed,
        )
        return evolve(task, eta=eta(watched, watched.model.best(), watched.age(self._clock())))

    def _date(self, watched: WatchedTask, created_at: datetime) -> None:
        """Take the age of a task that was made elsewhere from the service's answer, unless it is implausible: some
        services do not document in which time zone they write."""
        age = (self._account.service_time(self._ledger.now()) - created_at).total_seconds()
        usual = max(60.0, watched.profile.typical[1], duration_of(watched.model.best(), 0.9) or 0.0)
        if -CLOCK_SLACK_SECONDS <= age <= PLAUSIBLE_FACTOR * usual:
            watched.zero, watched.is_dated = self._clock() - max(0.0, age), True

    def _observe_end(self, watched: WatchedTask, task: Task, at: float) -> bool:
        """A poll at the moment *at* has shown the end of *task*. Returns whether that contradicts a list before it."""
        age, ended = watched.age(self._clock()), watched.reported_age(task, task.finished_at)
        contradicts = (
            watched.is_dated
            and ended is not None
            and watched.sure <= ended < watched.seen - CLOCK_SLACK_SECONDS
        )
        if not watched.is_dated or task.status not in (TaskStatus.SUCCEEDED, TaskStatus.FAILED):
            return contradicts
        floor, cap = bounds(self._pace, watched.seen, watched.profile.floor)
        sample = sample_of(watched, age, watched.reported_age(task, task.started_at), ended)
        is_start_known = watched.running is None or watched.started is not None
        doubt = 0.0 if is_start_known or watched.running is None else watched.running - watched.queued
        if age - watched.seen <= MOST_CAPS_WAITED * cap:
            sample = sample._replace(late=lateness(self._pace, sample.lag, at - watched.poll_at, floor))
        elif plausible(ended, watched.sure, age) is None:
            return contradicts
        if doubt <= max(VAGUE_START_SECONDS, cap):
            self._models.teach(watched.model, sample)
        return contradicts

    # Deadlines ---------------------------------------------------------------------------------------------

    def start_deadline(self, watched: WatchedTask) -> None:
        """The task is in a new state: start its deadline for that state."""
        _, seconds = self._deadline_of(watched)
        watched.deadline = math.inf if seconds is None else self._clock() + seconds

    def pass_deadline(self, watched: WatchedTask) -> None:
        """The deadline of the task has passed: raise `WaitTimeoutError` in the waiters. The task goes on."""
        watched.deadline = math.inf
        name, seconds = self._deadline_of(watched)
        self._submissions.fail_waiters(
            watched.ticket,
            WaitTimeoutError(
                f"task {watched.task_id} is still {watched.task.status} after {seconds:g} s (Deadlines.{name}); "
                f"it goes on and is polled: wait again, or later client.attach({watched.task_id!r})",
                task=watched.task,
            ),
        )

    def _deadline_of(self, watched: WatchedTask) -> tuple[str, float | None]:
        if watched.task.status is TaskStatus.RUNNING:
            return "running", self._deadlines.running
        return "queued", self._deadlines.queued

    def _check_overdue(self, watched: WatchedTask) -> None:
        is_ended = watched.task.status.is_final or watched.empty_since is not None
        if is_ended or self._ledger.now() < watched.slot_until:
            return
        watched.poll_at, watched.is_paced = max(watched.poll_at, self._clock() + RECHECK_SECONDS), False
        self._submissions.fail_waiters(
            watched.ticket,
            WaitTimeoutError(
                f"task {watched.task_id} is overdue: still {watched.task.status} after the longest time that such a "
                f"task takes; its slot counts as free now. It is polled every {RECHECK_SECONDS:.0f} s: wait again to "
                f"see its end",
                task=watched.task,
            ),
        )
