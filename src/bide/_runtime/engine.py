"""The parts that work behind a client: what each is notified of, and their orderly end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from bide._concurrency import Background, wait_unless_closed
from bide._downloads.saver import Saver
from bide._events import EventName, log_line
from bide._polling.poller import Poller
from bide._runtime.canceller import Canceller, log_left
from bide._runtime.submitter import Submitter
from bide._runtime.takeover import Takeover
from bide._submissions import Submissions
from bide._text import excerpt
from bide.errors import LedgerError
from bide.ledgers import Hint, LaneTerms, Record
from bide.models import TaskStatus

if TYPE_CHECKING:
    from bide._http.fetcher import Fetcher
    from bide._runtime.settings import ClientSettings
    from bide._service.account import Account
    from bide._submissions import Submission


class Engine:
    """Submits, polls, cancels and saves for one client, on one event loop.

    Make it inside the running loop; `aclose` ends it. It is the hub of its parts: `change_record` notifies each of them
    that a changed record concerns.

    Attributes:
        owner: the name of the client on the ledger.
    """

    def __init__(self, settings: ClientSettings, account: Account, owner: str, fetcher: Fetcher) -> None:
        self.account = account
        self.owner = owner
        self._settings = settings
        self._ledger = account.ledger
        self._recordings: dict[str, asyncio.Task[tuple[Submission, bool]]] = {}
        background = Background()
        self.background: Background = background
        submissions = Submissions(background, settings.announcer, self._slots, durable=self._ledger.durable)
        self.submissions: Submissions = submissions
        self.poller: Poller = Poller(
            account, owner, settings.deadlines, settings.pace, submissions, background.spawn
        )
        self.canceller: Canceller = Canceller(account, owner, background, submissions, self.poller)
        self.takeover: Takeover = Takeover(
            account, owner, background, submissions, self, adopts=settings.adopts
        )
        self.saver: Saver = Saver(
            account,
            background,
            submissions,
            fetcher,
            settings.downloads,
            settings.save_to,
            adopts=settings.adopts,
        )
        self._submitter = Submitter(account, owner, submissions, self.poller, self._terms)
        self._unsubscribe = self._ledger.subscribe(self._notice)
        self.takeover.read_ledger_soon()
        self.saver.start()

    def _slots(self, kind: str) -> int | None:
        slots = self._settings.limits_of(kind).concurrency
        return None if slots is None else slots * len(self.account.keys)

    def _terms(self, kind: str) -> tuple[LaneTerms, ...]:
        limits, longest = self._settings.limits_of(kind), self._settings.provider.profile(kind).longest
        return tuple(LaneTerms(key, limits, longest) for key in self.account.keys_in_order)

    # Submissions -------------------------------------------------------------------------------------------

    async def submit(self, record: Record) -> Submission:
        """Put *record* on record. Cancelling this withdraws what has not been sent.

        Raises:
            ValueError: its ticket names another request, or belongs to another service or key.
        """
        self.background.check()
        ticket = record.ticket
        self.submissions.start_recording(ticket)
        recording = self.background.spawn(self._record(record, self._recordings.get(ticket)))
        self._recordings[ticket] = recording
        recording.add_done_callback(lambda _: self._recordings.pop(ticket, None))
        try:
            submission, _ = await wait_unless_closed(recording)
        except asyncio.CancelledError:
            if recording.done():
                self._withdraw_unclaimed(ticket, recording)
            else:
                recording.add_done_callback(partial(self._withdraw_unclaimed, ticket))
            raise
        else:
            return submission
        finally:
            if recording.done():
                self.submissions.end_recording(ticket)

    def _withdraw_unclaimed(self, ticket: str, recording: asyncio.Task[tuple[Submission, bool]]) -> None:
        """The caller has left before it got its handle. A ticket that was on record before belongs to other callers."""
        if not recording.cancelled() and recording.exception() is None:
            submission, is_new = recording.result()
            if is_new:
                self.submissions.mark_unwanted(submission.ticket)
                self.withdraw_soon(submission)
        self.submissions.end_recording(ticket)

    async def _record(self, record: Record, before: asyncio.Task[Any] | None) -> tuple[Submission, bool]:
        """The submission, and whether the ticket is new. Of two calls at once with one ticket, the first one's is."""
        if before is not None:
            await asyncio.wait([before])
        self.background.check()
        there = self.submissions.get(record.ticket)
        stored = there.record if there is not None else await self._ledger.add(record)
        if not stored.asks_for(record.request):
            raise ValueError(
                f"ticket {record.ticket!r} already names another request; use the same request with it, or a new ticket"
            )
        self.takeover.check_ours(stored)
        submission = there or self.open(await self.takeover.follow_record(stored))
        is_new = there is None and stored.owner == self.owner and stored.task == record.task
        if is_new:
            self.submissions.announce(EventName.WAITING, submission)
            if self._settings.deadlines.waiting is not None:
                self.canceller.set_waiting_clock(submission, self._settings.deadlines.waiting)
        return submission, is_new

    async def attach(self, record: Record) -> Submission:
        """The submission of a task that was made elsewhere; the same one for the same task."""
        self.background.check()
        there = await self._ledger.find(self.account.origin, record.task.task_id or "")
        stored = there if there is not None else await self._ledger.add(record)
        return self.open(await self.takeover.follow_record(stored))

    async def refresh(self, submission: Submission) -> None:
        """Poll the task now, or read the record of a task that another client drives.

        Raises:
            BideError: the poll failed.
        """
        if submission.record.owner != self.owner:
            record = await self._ledger.get(submission.ticket)
            if record is not None:
                self.change_record(record)
            return
        error = await self.poller.poll_now(submission.ticket)
        if error is not None:
            submission.take_unraised()  # the caller of this raises it now
            raise submission.error_about(error)

    def withdraw_soon(self, submission: Submission) -> None:
        """Withdraw a request that was not sent. It does not wait: its caller is being cancelled."""
        if submission.task.status is TaskStatus.WAITING and not self.background.is_closing:
            self.submissions.mark_unwanted(
                submission.ticket
            )  # if the ledger fails, its turn in the queue ends it
            self.background.spawn(self.canceller.withdraw(submission.ticket))

    # The hub -----------------------------------------------------------------------------------------------

    def open(self, record: Record) -> Submission:
        """The submission of *record*. A new one is watched, and saved if it has ended."""
        record = self.submissions.newest(record)
        if self.submissions.is_open(record.ticket):
            self.change_record(record)  # where the ledger's news are late, this is the news
        submission, is_new = self.submissions.add(record)
        if is_new:
            self.saver.save_automatically(record)
            self._watch(record)
        return submission

    def take_up(self, record: Record) -> Submission:
        """Drive *record* from now on: an owner that is gone has left it, and this client has adopted it."""
        submission = self.open(record)
        self._watch(record)
        self.poller.poll_soon(record.ticket)
        if record.task.status is TaskStatus.SUBMITTING:
            self._submitter.recover(record)
        elif record.cancelling and record.cancel_taken is None:
            self.canceller.start(submission)
        return submission

    @property
    def has_waiting(self) -> bool:
        """Whether a request of this client may wait for a slot."""
        return self._submitter.has_waiting

    def _notice(self, news: Record | Hint) -> None:
        """The ledger has changed a record, of this client or of another one, or gives a hint."""
        if isinstance(news, Hint):
            self._submitter.wake()
            if news is not Hint.SLOTS:
                self.takeover.read_ledger_soon(adopt=news is Hint.OWNERS)
        elif news.origin == self.account.origin:
            self.change_record(news)

    def change_record(self, record: Record) -> None:
        """A record of this service has changed, whichever client drives it: notify each part that it concerns."""
        self._submitter.notice(record)
        changed = self.submissions.change_record(record)
        if changed is not None:
            self._pass_on(record, *changed)
        if record.owner is None and not record.task.status.is_final:
            self.takeover.read_ledger_soon()

    def _pass_on(self, record: Record, submission: Submission, before: TaskStatus) -> None:
        status = record.task.status
        if record.owner == self.owner:
            self._watch(record, answered=before is TaskStatus.SUBMITTING)
            if record.cancelling and status.is_accepted and not before.is_accepted:
                self.canceller.start(submission)
        else:
            self.poller.forget(record.ticket)
        if status.is_final:
            self.poller.forget(record.ticket)
            self.saver.save_automatically(record)
        self.submissions.announce_status(submission, before)

    def _watch(self, record: Record, *, answered: bool = False) -> None:
        if record.owner == self.owner and record.task.status.is_accepted:
            # A task that was made elsewhere may have ended long ago.
            self.poller.watch(record, now=not record.is_submission, answered=answered)

    # The end -----------------------------------------------------------------------------------------------

    async def aclose(self, grace: float, *, withdraw: bool = False) -> None:
        """See `Client.aclose`."""
        self.background.check_place()
        await self.background.close(partial(self._close, grace, withdraw=withdraw))

    async def _close(self, grace: float, *, withdraw: bool) -> None:
        """Stop admission, let what is under way end, and hand over the rest. All waits fail, whatever else fails."""
        left: list[Record] = []
        try:
            try:
                await self._wind_down(grace, withdraw=withdraw)
            finally:
                self.saver.stop()
                await self.background.end_tasks()
                await self.poller.aclose()
            await self.poller.duration_models.aclose()
            left = await self._ledger.leave(self.owner)
        except LedgerError as fault:
            log_line(logging.ERROR, f"open records could not be handed over: {excerpt(str(fault), 1000)}")
        finally:
            self._unsubscribe()
            self.submissions.fail_all()
            log_left(left, durable=self._ledger.durable)
            await self.saver.aclose()
            await self.account.transport.aclose()

    async def _wind_down(self, grace: float, *, withdraw: bool) -> None:
        """Admit nothing more, and give what is under way its time."""
        await self._submitter.stop()
        with suppress(LedgerError):  # `_close` reports it
            if self._ledger.durable and not withdraw:
                await self._ledger.leave(self.owner, waiting=True)
        if withdraw or not self._ledger.durable:
            await self.canceller.withdraw_all(self.submissions.open())
        clock = self.background.clock
        until = clock() + grace
        await self._submitter.aclose(grace)
        if self.canceller.running:
            await asyncio.wait(set(self.canceller.running.values()), timeout=max(0.0, until - clock()))
        await self.saver.settle_within(max(0.0, until - clock()))
