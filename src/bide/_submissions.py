"""The submissions of one client: the newest snapshot of each, and the callers that wait for a change of it.

The poller, the submitter and the saver report here, by ticket; handles and iterators wait here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakValueDictionary, ref

from bide import _outcomes
from bide._events import EventName, event_name, log_line
from bide._text import excerpt
from bide.errors import BideError, ClientClosedError, WaitTimeoutError
from bide.models import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from bide._concurrency import Background
    from bide._events import Announcer
    from bide.ledgers import Record
    from bide.models import Task

    Watcher: TypeAlias = Callable[["Submission", BideError | None], None]
    Ending: TypeAlias = tuple["Submission", BideError | None]

EARLY_NEWS_KEPT = 200


class Submission:
    """One submission as this client knows it.

    Attributes:
        record: the newest one of the ledger.
        task: the newest snapshot. While the task goes on, it is newer than the record's: progress is not recorded.
        fault: the last passing fault.
        raised: the class of the last error for the waiters: the log warns of the first one of its kind.
        unraised: an error for the waiters that came while there was no waiter; the next waiter raises it.
        is_kept: whether a caller has got a handle of it, and so wants it to its end.
    """

    __slots__ = (
        *("__weakref__", "_handle", "_watchers"),
        *("fault", "is_kept", "raised", "record", "task", "unraised"),
    )

    def __init__(self, record: Record) -> None:
        self.record: Record = record
        self.task: Task = record.task
        self.fault: BideError | None = None
        self.raised: type[BideError] | None = None
        self.unraised: BideError | None = None
        self.is_kept: bool = False
        self._handle: Any = None  # once it has ended, a weak reference: dropping the last handle frees it
        self._watchers: list[Watcher] | None = None

    @property
    def ticket(self) -> str:
        """Our id of the submission."""
        return self.record.ticket

    @property
    def handle(self) -> Any:
        """The handle that `hold` was given, or None."""
        return self._handle() if isinstance(self._handle, ref) else self._handle

    def hold(self, handle: object) -> None:
        """Remember *handle* until the submission has ended, and then for as long as a user holds it."""
        self._handle = ref(handle) if self.task.status.is_final else handle

    def change_record(self, record: Record) -> None:
        """The ledger has a new record of this submission."""
        before, self.record = self.record, record
        if record.cancel_taken is not before.cancel_taken:
            self._notify(None)
        is_same = record.task.status is self.task.status and record.task.task_id == self.task.task_id
        if not (is_same and record.task.status.is_accepted):
            self.advance(record.task)

    def advance(self, task: Task) -> None:
        """Take *task* as the newest snapshot, unless the last one was final."""
        before = self.task
        if before.status.is_final:
            return
        self.task = task
        if task.status.is_final and self._handle is not None:
            self.hold(self._handle)
        if task.status is not before.status or not isinstance(self.unraised, WaitTimeoutError):
            self.unraised = None  # a newer state has made it obsolete
        if task.differs(before) or task.task_id != before.task_id:
            self._notify(None)

    def fail_waiters(self, error: BideError) -> None:
        """Raise *error* in the waiters, or in the next one if there are none. It does not end the submission."""
        if self._watchers is None:
            self.unraised = error
        self._notify(error)

    def take_unraised(self) -> BideError | None:
        """The error that no waiter has raised yet; it counts as raised from now on."""
        error, self.unraised = self.unraised, None
        return error

    def error_about(self, error: BideError) -> BideError:
        """A new instance of *error* that names this submission."""
        task_id = self.task.task_id or error.task_id
        return error.about(ticket=self.ticket, task_id=task_id, bought=self.record.bought)

    def add_watcher(self, watcher: Watcher) -> None:
        """Call *watcher* at each change, and with each error for the waiters."""
        if self._watchers is None:
            self._watchers = []
        self._watchers.append(watcher)

    def remove_watcher(self, watcher: Watcher) -> None:
        """Stop calling *watcher*."""
        if self._watchers is not None:
            self._watchers.remove(watcher)
            if not self._watchers:
                self._watchers = None

    def _notify(self, error: BideError | None) -> None:
        for watcher in tuple(self._watchers or ()):
            watcher(self, error)

    async def next_change(self) -> None:
        """Wait for the next change. Raises a new instance of the error for the waiters, if one comes."""
        unraised = self.take_unraised()
        if unraised is not None:
            raise self.error_about(unraised)
        future: asyncio.Future[BideError | None] = asyncio.get_running_loop().create_future()

        def wake(_: Submission, error: BideError | None) -> None:
            if not future.done():
                future.set_result(error)
            elif error is not None:
                self.unraised = (
                    error  # a change came just before it: this waiter raises it when it waits again
                )

        self.add_watcher(wake)
        try:
            error = await future
        finally:
            self.remove_watcher(wake)
        if error is not None:
            raise self.error_about(error)


class Submissions:
    """All submissions of one client, by ticket.

    Attributes:
        announcer: logs each event, and counts.

    Args:
        slots: how many slots there are for a kind of work, over all keys; None where that is not limited.
        durable: whether the ledger outlives the client.
    """

    def __init__(
        self,
        background: Background,
        announcer: Announcer,
        slots: Callable[[str], int | None],
        *,
        durable: bool,
    ) -> None:
        self._background = background
        self.announcer = announcer
        self._slots = slots
        self._durable = durable
        self._open: dict[str, Submission] = {}
        self._ended: WeakValueDictionary[str, Submission] = WeakValueDictionary()
        # The newest records of tickets without a submission. A submission that is being made must not start with an
        # older one.
        self._early: OrderedDict[str, Record] = OrderedDict()
        self._recording: Counter[str] = Counter()
        self._wishes: Counter[str] = Counter()  # callers that can leave, by ticket
        self._unwanted: set[str] = set()
        self._waiting: Counter[str] = Counter()  # requests that wait for a slot, by kind
        self._create_faults: dict[str, BideError] = {}  # by kind, until a create of that kind is accepted

    # Finding them ------------------------------------------------------------------------------------------

    def open(self) -> Collection[Submission]:
        """Those that have not ended."""
        return self._open.values()

    def is_open(self, ticket: str) -> bool:
        """Whether *ticket* has a submission that has not ended."""
        return ticket in self._open

    def get(self, ticket: str) -> Submission | None:
        """The submission of *ticket*, if it is open or a caller still holds its handle."""
        return self._open.get(ticket) or self._ended.get(ticket)

    # What the ledger records -------------------------------------------------------------------------------

    def newest(self, record: Record) -> Record:
        """*record*, or a newer one of its ticket that has come before there was a submission for it."""
        early = self._early.pop(record.ticket, record)
        return early if early.version > record.version else record

    def add(self, record: Record) -> tuple[Submission, bool]:
        """The submission of *record*, and whether this call made it."""
        there = self.get(record.ticket)
        if there is not None and not _is_reopened(there, record):
            return there, False
        submission = Submission(record)
        (self._ended if record.task.status.is_final else self._open)[record.ticket] = submission
        self._waiting[record.kind] += record.task.status is TaskStatus.WAITING
        return submission, True

    def change_record(self, record: Record) -> tuple[Submission, TaskStatus] | None:
        """Take in a changed *record*. Returns its submission and the status before; None if there is no open
        submission, or if that has a newer record already."""
        submission = self._open.get(record.ticket)
        if submission is None:
            if self._durable:
                self._early[record.ticket] = record
                while len(self._early) > EARLY_NEWS_KEPT:
                    self._early.popitem(last=False)
            return None
        if record.version < submission.record.version:
            return None
        before, after = submission.task.status, record.task.status
        submission.change_record(record)
        self._waiting[record.kind] += (after is TaskStatus.WAITING) - (before is TaskStatus.WAITING)
        if after.is_accepted and not before.is_accepted:
            self._create_faults.pop(record.kind, None)
        if after.is_final:
            self.forget_wishes(record.ticket)
            self._ended[record.ticket] = self._open.pop(record.ticket)
        return submission, before

    # Whether they are wanted -------------------------------------------------------------------------------

    def want(self, ticket: str) -> None:
        """A caller of this client wants *ticket*, and can leave."""
        self._wishes[ticket] += 1
        self._unwanted.discard(ticket)

    def stop_wanting(self, ticket: str) -> bool:
        """One of these callers no longer wants it. Returns whether no caller of this client wants it."""
        self._wishes[ticket] -= 1
        if self._wishes[ticket] > 0:
            return False
        del self._wishes[ticket]
        submission = self._open.get(ticket)
        return submission is None or not submission.is_kept

    def mark_unwanted(self, ticket: str) -> None:
        """The last caller has left: if the request was not sent, it must not be sent."""
        self._unwanted.add(ticket)

    def forget_wishes(self, ticket: str) -> None:
        """Nothing of *ticket* can be sent any more: whether it is wanted does not matter."""
        self._unwanted.discard(ticket)

    def is_wanted(self, ticket: str) -> bool:
        """Whether the last caller that wanted *ticket* has not left."""
        return ticket not in self._unwanted

    def start_recording(self, ticket: str) -> None:
        """A caller submits *ticket*, and has not got its submission yet."""
        self._recording[ticket] += 1

    def end_recording(self, ticket: str) -> None:
        """The caller has got it, or has left."""
        self._recording[ticket] -= 1
        if self._recording[ticket] <= 0:
            del self._recording[ticket]

    async def wait_for_callers(self, ticket: str) -> None:
        """Wait until each caller that submits *ticket* has got its submission, or has left."""
        while ticket in self._recording:  # noqa: ASYNC110 - a turn of the loop or two, not a wait
            await asyncio.sleep(0)

    # What polls and creates report -------------------------------------------------------------------------

    def advance(self, ticket: str, task: Task) -> None:
        """A poll was answered: *task* is the newest snapshot."""
        submission = self._open.get(ticket)
        if submission is not None:
            before = submission.task
            submission.advance(task)
            if submission.task.status is not before.status:  # a result that could not be recorded yet
                self.announce_status(submission, before.status)
            elif submission.task.differs(before):
                self.announce(EventName.CHANGED, submission)

    def fail_waiters(self, ticket: str, error: BideError) -> None:
        """Raise *error* in the waiters of *ticket*, and log it. It does not end the submission."""
        submission = self._open.get(ticket)
        if submission is not None:
            again = submission.raised is type(error)
            log_line(logging.DEBUG if again else logging.WARNING, f"{ticket}: {excerpt(str(error), 1000)}")
            submission.fault, submission.raised = error, type(error)
            submission.fail_waiters(error)

    def fail_waiting(self, error: BideError) -> None:
        """No request can be sent: raise *error* in the waiters of all that wait. It does not end them."""
        log_line(logging.ERROR, f"nothing can be sent: {excerpt(str(error), 1000)}")
        for submission in list(self._open.values()):
            if submission.task.status is TaskStatus.WAITING:
                submission.fault = error
                submission.fail_waiters(error)

    def note_admission_fault(self, error: BideError) -> None:
        """Nothing can be admitted for now: a wait that times out names *error*."""
        log_line(logging.ERROR, f"nothing can be admitted: {excerpt(str(error), 1000)}")
        for submission in list(self._open.values()):
            if submission.task.status is TaskStatus.WAITING:
                submission.fault = error

    def fail_all(self) -> None:
        """The client is closed: raise `ClientClosedError` in all waiters."""
        for submission in list(self._open.values()):
            submission.fail_waiters(_outcomes.client_closed(submission.record, durable=self._durable))

    def note_fault(self, ticket: str, error: BideError) -> None:
        """A step failed and will be tried again. A wait that times out names the last such fault."""
        submission = self._open.get(ticket)
        if submission is not None:
            submission.fault = error
            if not submission.task.status.is_accepted:
                self._create_faults[submission.record.kind] = error

    def fault_of(self, submission: Submission) -> BideError | None:
        """The last fault of *submission*, or of those before it in the queue."""
        if submission.task.status is TaskStatus.WAITING:
            return submission.fault or self._create_faults.get(submission.record.kind)
        return submission.fault

    def pressure(self, kind: str) -> float:
        """Requests of *kind* that wait for a slot, for each slot that there is; 0 where slots are not limited."""
        slots = self._slots(kind)
        return self._waiting[kind] / slots if slots else 0.0

    # Waiting -----------------------------------------------------------------------------------------------

    async def next_change(self, submission: Submission) -> None:
        """Wait for the next change of *submission*.

        Raises:
            BideError: the error for its waiters, if one comes; `ClientClosedError` once the client is closed.
        """
        self.check(submission)
        await submission.next_change()

    def check(self, submission: Submission) -> None:
        """Raise unless the client is open, and this is its loop and process.

        Raises:
            ClientClosedError: the client is closed; the error names *submission*.
            RuntimeError: another loop or process uses it.
        """
        try:
            self._background.check()
        except ClientClosedError:
            raise _outcomes.client_closed(submission.record, durable=self._durable) from None

    # Events ------------------------------------------------------------------------------------------------

    def announce_status(self, submission: Submission, before: TaskStatus) -> None:
        """Announce that the status has changed from *before*."""
        if submission.task.status is not before:
            self.announce(event_name(before, submission.task.status), submission)

    def announce_poll(self, ticket: str, seconds: float, error: BideError | None) -> None:
        """A poll has ended after *seconds*, with *error* if it failed."""
        submission = self._open.get(ticket)
        if submission is not None:
            self.announce(EventName.POLLED, submission, seconds=seconds, error=error)

    def announce_pause(self, ticket: str, key: str, seconds: float, error: BideError) -> None:
        """Because of *error*, no create of the lane is sent for *seconds*. If *ticket* is accepted already, no
        task of the account is polled for *seconds* instead."""
        submission = self._open.get(ticket)
        if submission is not None and seconds > 0:
            self.announce(EventName.PAUSED, submission, key=key, seconds=seconds, error=error)

    def announce_files(self, name: EventName, task: Task, **details: Any) -> None:
        """Announce what has happened to the results of *task*. The *details* are fields of `Event`."""
        submission = self._ended.get(task.ticket)
        kind, key = ("", None) if submission is None else (submission.record.kind, submission.record.key)
        self.announcer.emit(name, task, kind=kind, key=key, **details)

    def announce(
        self, name: EventName, submission: Submission, *, key: str | None = None, **details: Any
    ) -> None:
        """Announce what has happened to *submission*. The *details* are fields of `Event`."""
        record = submission.record
        self.announcer.emit(name, submission.task, kind=record.kind, key=key or record.key, **details)


def _is_reopened(there: Submission, record: Record) -> bool:
    """Whether *record* goes on after the end of *there*: its create was found to have arrived, or it is submitted
    again."""
    before, after = there.task.status, record.task.status
    if before is TaskStatus.UNKNOWN:
        return after is not TaskStatus.UNKNOWN
    return before.is_final and record.attempt > there.record.attempt


class Completions:
    """Submissions that are waited for together, without a task for each, in the order in which they end."""

    def __init__(self) -> None:
        self._open: set[Submission] = set()
        self._ready: deque[Ending] = deque()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open) + len(self._ready)

    def add(self, submission: Submission) -> None:
        """Wait for *submission* too."""
        if submission.task.status.is_final:
            self._end(submission, None)
        elif (error := submission.take_unraised()) is not None:
            self._end(submission, error)
        elif submission not in self._open:
            self._open.add(submission)
            submission.add_watcher(self._change)

    def ready(self) -> Ending | None:
        """The next submission that has ended, or has an error for its waiters; None if there is none yet."""
        if self._ready:
            return self._ready.popleft()
        self._wake.clear()
        return None

    async def wait(self) -> None:
        """Wait until `ready` has a submission to return, or until `poke` is called."""
        await self._wake.wait()

    def poke(self) -> None:
        """Let `wait` return."""
        self._wake.set()

    def drop(self) -> None:
        """Stop waiting for all of them."""
        for submission in self._open:
            submission.remove_watcher(self._change)
        self._open.clear()

    def _change(self, submission: Submission, error: BideError | None) -> None:
        if error is not None or submission.task.status.is_final:
            self._open.discard(submission)
            submission.remove_watcher(self._change)
            self._end(submission, error)

    def _end(self, submission: Submission, error: BideError | None) -> None:
        self._ready.append((submission, None if error is None else submission.error_about(error)))
        self._wake.set()
