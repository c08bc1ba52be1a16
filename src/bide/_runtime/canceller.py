"""Withdraw requests that were not sent, cancel tasks that were made."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakSet

from attrs import evolve

from bide import _outcomes
from bide._concurrency import wait_unless_closed
from bide._events import lines_of_ids
from bide.errors import APIError, LedgerError, WaitTimeoutError
from bide.models import Billing, ErrorDetail, TaskStatus
from bide.providers import Denied, Gone, Stopped, TooLate, TryAgain

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from bide._concurrency import Background
    from bide._polling.poller import Poller
    from bide._service.account import Account
    from bide._submissions import Submission, Submissions
    from bide.ledgers import Record

log = logging.getLogger("bide")

CANCEL_ATTEMPTS = 5
OTHER_PROCESS_SECONDS = 15.0
"""Seconds in which another process carries out a cancel that this one has asked for."""
RECHECK_SECONDS = 1.0
"""If a waiting deadline passes while the create is under way, it is checked again after this many seconds."""


class Canceller:
    """Ends the submissions of one client on request.

    Attributes:
        running: the cancels under way, by ticket. They go on when the callers that asked for them leave.
        taken: the submissions whose cancel the service has taken, until they are freed after their end.
    """

    def __init__(
        self,
        account: Account,
        owner: str,
        background: Background,
        submissions: Submissions,
        poller: Poller,
    ) -> None:
        self._account = account
        self._ledger = account.ledger
        self._owner = owner
        self._background = background
        self._submissions = submissions
        self._poller = poller
        self.running: dict[str, asyncio.Task[bool]] = {}
        self.taken: WeakSet[Submission] = WeakSet()

    # Withdrawing -------------------------------------------------------------------------------------------

    async def withdraw(self, ticket: str, *, why: ErrorDetail | None = None) -> bool:
        """End *ticket* if it has not been sent. Returns whether it has ended that way."""
        record = await self._ledger.get(ticket)
        if record is None or record.task.status is not TaskStatus.WAITING:
            return False
        task = evolve(record.task, status=TaskStatus.CANCELLED, billing=Billing.NONE, error=why)
        return (await self._ledger.withdraw(ticket, task)).task.status is TaskStatus.CANCELLED

    def set_waiting_clock(self, submission: Submission, seconds: float) -> None:
        """Withdraw the request if it gets no slot within *seconds*."""

        def run_out() -> None:
            if submission.task.status.is_final or submission.task.status.is_accepted:
                return
            if submission.task.status is TaskStatus.WAITING:
                self._background.spawn(self._withdraw_late(submission, seconds))
            else:
                self._poller.at(self._background.clock() + RECHECK_SECONDS, run_out)

        self._poller.at(self._background.clock() + seconds, run_out)

    async def _withdraw_late(self, submission: Submission, seconds: float) -> None:
        fault = self._submissions.fault_of(submission)
        waited = f"within {seconds:g} s (Deadlines.waiting)"
        error = _outcomes.withdrawal(submission.task, fault, waited=waited)
        is_withdrawn = False
        with suppress(LedgerError):  # the waiters have that error already
            why = ErrorDetail(message=str(error), type=WaitTimeoutError.__name__)
            is_withdrawn = await self.withdraw(submission.ticket, why=why)
        if not is_withdrawn:
            # The request may have been admitted meanwhile. It may wait again if its create makes no task.
            self.set_waiting_clock(submission, RECHECK_SECONDS)

    # Cancelling --------------------------------------------------------------------------------------------

    async def cancel(self, submission: Submission) -> bool:
        """See `TaskHandle.cancel`."""
        return await wait_unless_closed(self.start(submission))

    def start(self, submission: Submission) -> asyncio.Task[bool]:
        """Cancel in a background task, or share the one that runs."""
        ticket = submission.ticket
        running = self.running.get(ticket)
        if running is None:
            running = self.running[ticket] = self._background.spawn(self._cancel(submission))
            running.add_done_callback(lambda _: self.running.pop(ticket, None))
        return running

    async def _cancel(self, submission: Submission) -> bool:
        is_requested = False
        while not (submission.task.status.is_final or submission.task.status.is_accepted):
            if submission.task.status is TaskStatus.WAITING:
                await self.withdraw(submission.ticket)
                await asyncio.sleep(0)
            else:
                await self._ledger.request_cancel(submission.ticket)
                is_requested = True
                if submission.task.status is TaskStatus.SUBMITTING:
                    await self._submissions.next_change(submission)
        if is_requested and submission.record.owner not in (None, self._owner):
            return await self._is_cancelled_by_its_owner(submission)
        for attempt in range(CANCEL_ATTEMPTS):
            key, task_id = submission.record.key, submission.task.task_id
            if submission.task.status.is_final or task_id is None or key is None:
                break
            if submission.record.guessed:  # it may be another program's task
                await self._record_answer(submission, taken=False)
                break
            match await self._account.cancel(key, task_id):
                case Stopped():
                    await self._record_answer(submission, taken=True)
                    return True
                case TooLate() | Gone():
                    await self._record_answer(submission, taken=False)
                    break
                case Denied(error):
                    raise submission.error_about(error)
                case TryAgain(error):
                    if isinstance(error, APIError) and error.status_code == 429:
                        pause = self._account.query_limiter.window.paused_for(self._background.clock())
                        self._submissions.announce_pause(submission.ticket, key, pause, error)
                    if attempt == CANCEL_ATTEMPTS - 1:
                        raise submission.error_about(error)
                    await asyncio.sleep(2.0**attempt)
        return submission.task.status is TaskStatus.CANCELLED

    async def _is_cancelled_by_its_owner(self, submission: Submission) -> bool:
        """Another client drives the submission, and cancels it once its id is known. Wait until the record shows it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(OTHER_PROCESS_SECONDS):
                while not submission.task.status.is_final and submission.record.cancel_taken is None:
                    await self._submissions.next_change(submission)
        return submission.task.status is TaskStatus.CANCELLED or bool(submission.record.cancel_taken)

    async def _record_answer(self, submission: Submission, *, taken: bool) -> None:
        """Record what the service has answered, for other clients that asked for the cancel, and poll the task soon."""
        if taken:
            self.taken.add(submission)
        self._poller.poll_soon(submission.ticket)
        if submission.record.cancelling:
            with suppress(LedgerError):  # the final state will show it
                await self._ledger.record_cancel_answer(submission.ticket, taken=taken)


def log_left(left: Sequence[Record], *, cancelled: Collection[str], durable: bool) -> None:
    """Log the ids of the tasks that go on without their client.

    Args:
        cancelled: tickets of tasks whose cancel the service has taken. They do not go on.
    """
    without = frozenset() if durable else cancelled
    stopped = [record for record in left if record.ticket in without]
    for some in lines_of_ids([record.task.task_id or record.ticket for record in stopped]):
        log.info("closed; the service has taken the cancels of %d tasks: %s", len(stopped), some)
    ids = [record.task.task_id or record.ticket for record in left if record.ticket not in without]
    for some in lines_of_ids(ids):
        if durable:
            log.info("closed; %d records stay for another client to go on: %s", len(ids), some)
        else:
            log.warning("closed with %d tasks left running: %s", len(ids), some)
