"""Which callers want a submission, and what happens to it when the last one leaves.

A caller of `run`, `gather` or `as_completed` wants its submission until it leaves: it is cancelled, runs out of time,
or gets the error of its own request. A caller that has got a handle from `submit` or `attach` cannot leave any more.
Each client counts its own callers. The ledger records which clients want a submission. So a wish is valid in each state
of the record, and in all processes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from attrs import evolve

from bide._events import log_line
from bide._text import excerpt
from bide.errors import ClientClosedError
from bide.models import Billing, ErrorDetail, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bide._concurrency import Background
    from bide._submissions import Submission, Submissions
    from bide.errors import BideError
    from bide.ledgers import Ledger, Record
    from bide.models import Task

RETRY_SECONDS = 1.0
"""Seconds until bide tries again to record that a caller has left."""
CONFIRM_SECONDS = 5.0
"""Within so many seconds the ledger must confirm that a caller has left. Else the error says that the task can still be
made."""


class Wish:
    """One caller that wants a submission. The first call of a method ends it; later ones change nothing."""

    __slots__ = ("_is_over", "_wishes", "ticket")

    def __init__(self, wishes: Wishes, ticket: str) -> None:
        self._wishes = wishes
        self._is_over = False
        self.ticket: str = ticket

    def _is_first_end(self) -> bool:
        was_over, self._is_over = self._is_over, True
        return not was_over

    def end(self) -> None:
        """The caller has its answer."""
        if self._is_first_end():
            self._wishes.end(self.ticket)

    def keep(self, submission: Submission) -> None:
        """The caller has got a handle: it wants the submission until that ends."""
        submission.is_kept = True
        self.end()

    def leave(self) -> None:
        """The caller has left. This does not wait: the caller is being cancelled."""
        if self._is_first_end():
            self._wishes.leave(self.ticket)

    async def leave_with(self, error: BideError) -> BideError:
        """The caller leaves with *error*. Returns it with `bought` as the ledger confirms it."""
        if not self._is_first_end():
            return error
        if isinstance(error, ClientClosedError):  # `aclose` withdraws the requests or keeps them
            self._wishes.end(self.ticket)
            return error
        return await self._wishes.leave_with(self.ticket, error)


class Wishes:
    """What the callers of one client want.

    Attributes:
        leaving: by ticket, the tasks that record that the last caller has left.

    Args:
        owner: the name of the client on the ledger.
        recordings: the submissions that are being put on record, by ticket.
    """

    def __init__(
        self,
        ledger: Ledger,
        owner: str,
        background: Background,
        submissions: Submissions,
        recordings: Mapping[str, asyncio.Task[Submission]],
    ) -> None:
        self._ledger = ledger
        self._owner = owner
        self._background = background
        self._submissions = submissions
        self._recordings = recordings
        self.leaving: dict[str, asyncio.Task[Record | None]] = {}

    def want(self, ticket: str) -> Wish:
        """A caller wants *ticket*, and can leave."""
        self._submissions.want(ticket)
        return Wish(self, ticket)

    def end(self, ticket: str) -> None:
        """See `Wish`."""
        self._submissions.stop_wanting(ticket)

    def leave(self, ticket: str) -> asyncio.Task[Record | None] | None:
        """See `Wish`. Returns the task that records it; None if another caller of this client wants *ticket* too."""
        if not self._submissions.stop_wanting(ticket) or self._background.is_over:
            return None
        self._submissions.mark_unwanted(ticket)
        leaving = self.leaving.get(ticket)
        if leaving is None:
            leaving = self.leaving[ticket] = self._background.spawn(self._record_leave(ticket))
            leaving.add_done_callback(lambda _: self._end_leave(ticket))
        return leaving

    def _end_leave(self, ticket: str) -> None:
        self.leaving.pop(ticket, None)
        if not self._submissions.is_open(ticket):
            self._submissions.forget_wishes(ticket)

    async def leave_with(self, ticket: str, error: BideError) -> BideError:
        """See `Wish`."""
        submission = self._submissions.get(ticket)
        if submission is not None and submission.task.status.is_final:
            self.end(ticket)
            return submission.error_about(error)
        leaving = self.leave(ticket)
        if leaving is not None:
            await asyncio.wait([leaving], timeout=CONFIRM_SECONDS)
        submission = self._submissions.get(ticket)
        record = None if submission is None else submission.record
        bought: bool | None = True
        if leaving is not None and leaving.done() and not leaving.cancelled():
            record = leaving.result()
            bought = False if record is None else record.bought
        elif leaving is None and record is not None:
            bought = record.bought
        task_id = error.task_id if record is None else record.task.task_id or error.task_id
        return error.about(ticket=ticket, task_id=task_id, bought=bought)

    async def _record_leave(self, ticket: str) -> Record | None:
        """Record that this client does not want *ticket* any more; try until the ledger works. Returns the record."""
        recording = self._recordings.get(ticket)
        if recording is not None:
            await asyncio.wait([recording])
        while True:
            try:
                record = await self._ledger.get(ticket)
                if record is None or self._submissions.is_wanted(ticket):
                    return record
                return await self._ledger.stop_wanting(ticket, _withdrawn(record), client=self._owner)
            except Exception as fault:  # noqa: BLE001 - a ledger may be the caller's own
                text = excerpt(str(fault), 1000)
                log_line(
                    logging.WARNING,
                    f"{ticket}: its caller has left, but this could not be recorded yet: {text}",
                )
            await asyncio.sleep(RETRY_SECONDS)

    async def withdraw_all(self, submissions: Iterable[Submission]) -> None:
        """Record that the closing client does not want those of *submissions* any more that were not sent."""
        closed = ErrorDetail(
            message="the client was closed before this was sent: nothing was made, submit it again",
            type=ClientClosedError.__name__,
        )
        for submission in list(submissions):
            if submission.task.status in (TaskStatus.WAITING, TaskStatus.SUBMITTING):
                task = _withdrawn(submission.record, closed)
                await self._ledger.stop_wanting(submission.ticket, task, client=self._owner)


def _withdrawn(record: Record, why: ErrorDetail | None = None) -> Task:
    return evolve(record.task, status=TaskStatus.CANCELLED, billing=Billing.NONE, error=why)
