"""The parts that work behind a client: what each part is notified of, and how all are closed."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from bide._concurrency import Background, wait_unless_closed
from bide._downloads.saver import Saver
from bide._events import IDS_PER_LINE, EventName, lines_of_ids, log_line
from bide._polling.poller import Poller
from bide._runtime.canceller import Canceller, log_left
from bide._runtime.submitter import Submitter
from bide._runtime.takeover import Takeover
from bide._runtime.wishes import Wishes
from bide._submissions import Submissions
from bide._text import excerpt
from bide.errors import ClientClosedError, LedgerError
from bide.ledgers import Hint, LaneTerms, Record
from bide.ledgers._lanes import known_cap
from bide.models import TaskStatus

if TYPE_CHECKING:
    from bide._http.fetcher import Fetcher
    from bide._runtime.settings import ClientSettings
    from bide._service.account import Account
    from bide._submissions import Submission

RECORDING_SECONDS = 2.0
"""A closing client gives its ledger at least this many seconds to record what callers have asked for."""


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
        self.wanted_by: tuple[str, ...] = (owner,)  # one value for all records
        self._settings = settings
        self._ledger = account.ledger
        self._recordings: dict[str, asyncio.Task[Submission]] = {}
        background = Background()
        self.background: Background = background
        submissions = Submissions(background, settings.announcer, self._slots, durable=self._ledger.durable)
        self.submissions: Submissions = submissions
        self.poller: Poller = Poller(
            account, owner, settings.deadlines, settings.pace, submissions, background.spawn
        )
        self.canceller: Canceller = Canceller(account, owner, background, submissions, self.poller)
        self.wishes: Wishes = Wishes(self._ledger, owner, background, submissions, self._recordings)
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
        slots = known_cap(self._settings.limits_of(kind))
        return None if slots is None else slots * len(self.account.keys)

    def _terms(self, kind: str) -> tuple[LaneTerms, ...]:
        limits, longest = self._settings.limits_of(kind), self._settings.provider.profile(kind).longest
        return tuple(LaneTerms(key, limits, longest) for key in self.account.keys_in_order)

    # Submissions -------------------------------------------------------------------------------------------

    async def submit(self, record: Record, *, again: bool = False) -> Submission:
        """Put *record* on record, for a caller that holds a `Wish` for it. Cancelling this stops only the waiting.

        Raises:
            ValueError: its ticket names another request, or belongs to another service or key.
        """
        self.check_open()
        ticket = record.ticket
        self.submissions.start_recording(ticket)
        try:
            recording = self.background.spawn(self._record(record, self._recordings.get(ticket), again=again))
            self._recordings[ticket] = recording
            recording.add_done_callback(lambda _: self._end_recording(ticket, recording))
            return await wait_unless_closed(recording)
        except ClientClosedError as error:
            # A step of the ledger was under way. It is not known whether it has taken effect.
            raise error.about(ticket=ticket, task_id=None, bought=error.bought is not False) from None
        finally:
            self.submissions.end_recording(ticket)

    def check_open(self) -> None:
        """Raise ClientClosedError once the client is closed, before anything is recorded or sent."""
        try:
            self.background.check()
        except ClientClosedError as error:
            raise error.about(ticket=None, task_id=None, bought=False) from None

    def _end_recording(self, ticket: str, recording: asyncio.Task[Submission]) -> None:
        if self._recordings.get(ticket) is recording:
            del self._recordings[ticket]

    async def _record(
        self, record: Record, before: asyncio.Task[Submission] | None, *, again: bool
    ) -> Submission:
        """The submission of *record*. If two calls use one ticket at once, the request of the first is recorded."""
        if before is not None:
            await asyncio.wait([before])
        self.check_open()
        there = self.submissions.get(record.ticket)
        if there is None or self._changes(there.record, again=again):
            stored = await self._ledger.add(record, again=again)
        else:
            stored = there.record
        if not stored.asks_for(record.request):
            raise ValueError(
                f"ticket {record.ticket!r} already names another request; use the same request with it, or a new ticket"
            )
        stored = await self.takeover.check_ours(stored)
        was_open = there is not None and not there.task.status.is_final
        submission = self.open(await self.takeover.follow_record(stored))
        if not was_open and stored.owner == self.owner and stored.task == record.task:
            self.submissions.announce(EventName.WAITING, submission)
            if self._settings.deadlines.waiting is not None:
                self.canceller.set_waiting_clock(submission, self._settings.deadlines.waiting)
        return submission

    def _changes(self, record: Record, *, again: bool) -> bool:
        """Whether to submit *record* again changes anything on the ledger."""
        if record.task.status.is_final:
            return again or record.bought is False
        return self.owner not in record.wanted_by

    async def attach(self, record: Record) -> Submission:
        """The submission of a task that was made elsewhere; the same one for the same task."""
        self.background.check()
        there = await self._ledger.find(self.account.origin, record.task.task_id or "")
        stored = await (self._ledger.add(record) if there is None else self.takeover.check_ours(there))
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

    # The hub -----------------------------------------------------------------------------------------------

    def open(self, record: Record) -> Submission:
        """The submission of *record*. A new one is watched, and saved if it has ended."""
        record = self.submissions.newest(record)
        if self.submissions.is_open(record.ticket):
            self.change_record(record)  # the ledger may not have reported this change yet
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

    def reconcile(self, record: Record) -> None:
        """This client owns *record*, perhaps by a step of the ledger that seemed to fail: it must drive it."""
        submission = self.submissions.get(record.ticket)
        if submission is None or submission.record.owner != self.owner:
            self.take_up(record)
        elif record.version >= submission.record.version:
            self.change_record(record)
            if record.task.status is TaskStatus.SUBMITTING:
                self._submitter.send(record)  # if a step that seemed to fail has admitted it, it was not sent

    @property
    def has_waiting(self) -> bool:
        """Whether a request of this client may wait for a slot."""
        return self._submitter.has_waiting

    def _notice(self, news: Record | Hint) -> None:
        """The ledger has changed a record, of this client or of another one, or gives a hint."""
        if news is Hint.FAULT:  # it wakes no admission: one that has failed is tried again after a while
            self.takeover.reconcile_soon()
        elif isinstance(news, Hint):
            self._submitter.wake()
            if news is Hint.SLOTS:
                self.takeover.retry()
            else:
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

    def describe_left(self) -> str | None:
        """What a client that was dropped without `aclose` leaves open, for a warning; None in a forked child, whose
        parent has the client."""
        if self.background.is_inherited:
            return None
        ids = [each.task.task_id or each.ticket for each in self.submissions.open()]
        some = next(lines_of_ids(ids), None)
        more = f" and {len(ids) - IDS_PER_LINE} more" if len(ids) > IDS_PER_LINE else ""
        open_ids = f"{len(ids)} submissions are still open: {some}{more}" if some else "nothing is open"
        return f"; use `async with`, or await client.aclose(). By task id or ticket, {open_ids}"

    async def aclose(self, grace: float, *, withdraw: bool = False) -> None:
        """See `Client.aclose`."""
        self.background.check_place()
        await self.background.close(partial(self._close, grace, withdraw=withdraw))

    async def _close(self, grace: float, *, withdraw: bool) -> None:
        """Stop admission, let work under way end, and hand over the rest. All waits fail, even if a step here fails."""
        left: list[Record] = []
        durable = self._ledger.durable
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
            # The ledger may be lost: then this line alone has the ids.
            left, durable = [each.record for each in self.submissions.open() if each.record.key], False
        finally:
            self._unsubscribe()
            self.submissions.fail_all()
            cancelled = {each.ticket for each in self.canceller.taken}
            log_left(left, cancelled=cancelled, durable=durable)
            await self.saver.aclose()
            await self.account.transport.aclose()

    async def _wind_down(self, grace: float, *, withdraw: bool) -> None:
        """Admit nothing more. Wait for the work under way, until its time limit."""
        clock = self.background.clock
        until = clock() + grace
        await self._submitter.stop()
        started = {*self._recordings.values(), *self.wishes.leaving.values()}
        if started:
            await asyncio.wait(started, timeout=max(grace, RECORDING_SECONDS))
        with suppress(LedgerError):  # `_close` reports it
            if self._ledger.durable and not withdraw:
                await self._ledger.leave(self.owner, waiting=True)
        if withdraw or not self._ledger.durable:
            try:
                await self.wishes.withdraw_all(self.submissions.open())
            except (
                LedgerError
            ) as fault:  # the creates under way must end, and the records be handed over, all the same
                text = excerpt(str(fault), 1000)
                log_line(
                    logging.ERROR, f"requests could not be withdrawn, so another client may send them: {text}"
                )
        await self._submitter.aclose(max(0.0, until - clock()))
        if self.canceller.running:
            await asyncio.wait(set(self.canceller.running.values()), timeout=max(0.0, until - clock()))
        await self.saver.settle_within(max(0.0, until - clock()))
