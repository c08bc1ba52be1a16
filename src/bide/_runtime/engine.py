"""What works behind a client: its handles, its background tasks, and their orderly end."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter, OrderedDict
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import anyio

from bide._concurrency import unless_closed
from bide._downloads.saver import Saving
from bide._events import EventName, log_line, name_of
from bide._handles import TaskHandle
from bide._polling.poller import Poller
from bide._runtime.canceller import Leaving, tell_left
from bide._runtime.submitter import Submitter
from bide._runtime.takeover import Sharing
from bide._service.account import Account, Counters, origin_of
from bide._text import excerpt
from bide.errors import ClientClosedError, LedgerError
from bide.ledgers import Hint, LaneTerms, Record
from bide.models import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping
    from pathlib import Path

    from bide._downloads.settings import Downloads
    from bide._events import Announcer
    from bide._http.fetcher import Fetcher
    from bide._http.transport import Transport
    from bide._polling.pace import Pace
    from bide._service.query_rate import Turnstile
    from bide._wire import Secret
    from bide.errors import BideError
    from bide.ledgers import Ledger
    from bide.models import Deadlines, Limits, SavedFile, Task
    from bide.providers import Provider

log = logging.getLogger("bide")

_T = TypeVar("_T")

UNCLAIMED = 200


class Engine:
    """Submission and polling of one client on one event loop.

    Made inside the running loop; `aclose` ends it. Whatever goes on in the background is a task of its own.
    """

    def __init__(
        self,
        *,
        provider: Provider,
        transport: Transport,
        ledger: Ledger,
        owner: str,
        keys: Mapping[str, Secret],
        limits: Callable[[str], Limits],
        turnstile: Turnstile,
        adopts: bool,
        deadlines: Deadlines,
        pace: Pace,
        announcer: Announcer,
        fetcher: Fetcher,
        downloads: Downloads,
        save_to: Path | None,
    ) -> None:
        self.owner = owner
        self.ledger = ledger
        self.keys = frozenset(keys)
        self.origin = origin_of(provider, transport)
        self.deadlines = deadlines
        self._provider = provider
        self._transport = transport
        self._limits = limits
        self.announcer = announcer
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._key_names = tuple(keys)
        self.account = Account(provider, transport, ledger, turnstile, Counters(), keys)
        self._open: dict[str, TaskHandle] = {}
        self._ended: WeakValueDictionary[str, TaskHandle] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[object]] = set()
        # What was heard lately of tickets without a handle: one that is just being made must not begin with less.
        self._unclaimed: OrderedDict[str, Record] = OrderedDict()
        self._closing: asyncio.Task[None] | None = None
        self._recordings: dict[str, asyncio.Task[tuple[TaskHandle, bool]]] = {}
        self._unheard: set[str] = set()  # tickets on record whose submitter has not run again since
        self._abandoned: set[str] = set()
        self._waiting: Counter[str] = Counter()  # what waits for a slot, by its kind
        self._create_faults: dict[str, BideError] = {}  # by kind, until a create of it is accepted
        self.leaving = Leaving(self)
        self.sharing = Sharing(self, adopts=adopts)
        self.saving = Saving(self, fetcher, downloads, save_to)
        self.poller = Poller(self.account, owner, deadlines, pace, self, self.spawn)
        self._submitter = Submitter(self.account, self.owner, self._terms, self, self._admission_failed)
        self._unsubscribe = ledger.subscribe(self._heard)
        self.sharing.look_around_soon()
        self.saving.start()

    # Who may use it ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise unless this is the loop and the process of the client, and it is open."""
        self.check_place()
        if self._closing is not None:
            raise ClientClosedError("the client is closed; make a new one")

    @property
    def is_inherited(self) -> bool:
        """Whether this is another process than the client's: a fork of it."""
        return os.getpid() != self._pid

    def check_place(self) -> None:
        """Raise unless this is the loop and the process of the client."""
        if self.is_inherited:
            raise RuntimeError(
                f"this client belongs to process {self._pid}, and this is {os.getpid()}: after a fork each process "
                f"needs a Client of its own, made after the fork"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                "this client belongs to another event loop: use it in the loop that it was first used in, or make one "
                "Client for each loop"
            )

    # Handles -----------------------------------------------------------------------------------------------

    async def submit(self, record: Record) -> TaskHandle:
        """Put *record* on record and return its handle. Cancelling this withdraws what has not been sent."""
        self.check()
        ticket = record.ticket
        self._unheard.add(ticket)
        recording = self._recordings[ticket] = self.spawn(self._submit(record, self._recordings.get(ticket)))
        recording.add_done_callback(lambda _: self._recordings.pop(ticket, None))
        try:
            handle, _ = await unless_closed(recording)
        except asyncio.CancelledError:
            if recording.done():
                self._withdraw_unheard(ticket, recording)
            else:
                recording.add_done_callback(partial(self._withdraw_unheard, ticket))
            raise
        else:
            return handle
        finally:
            if recording.done():
                self._unheard.discard(ticket)

    def _withdraw_unheard(self, ticket: str, recording: asyncio.Task[tuple[TaskHandle, bool]]) -> None:
        """Whoever submitted has left before it heard; a ticket that was on record before belongs to others."""
        if not recording.cancelled() and recording.exception() is None:
            handle, is_new = recording.result()
            if is_new:
                self._abandoned.add(handle.ticket)
                self.withdraw_soon(handle)
        self._unheard.discard(ticket)

    async def is_wanted(self, ticket: str) -> bool:
        """Wait until whoever submitted *ticket* has its handle; False if it was cancelled before that."""
        while ticket in self._unheard:  # noqa: ASYNC110 - a turn of the loop or two, not a wait
            await asyncio.sleep(0)
        return ticket not in self._abandoned

    async def _submit(self, record: Record, before: asyncio.Task[Any] | None) -> tuple[TaskHandle, bool]:
        """The handle, and whether the ticket is new: of two at once it is the first one's."""
        if before is not None:
            await asyncio.wait([before])
        self.check()
        there = self._open.get(record.ticket) or self._ended.get(record.ticket)
        stored = there._record if there is not None else await self.ledger.add(record)
        if not stored.asks_for(record.request):
            raise ValueError(
                f"ticket {record.ticket!r} already names another request; use the same request with it, or a new ticket"
            )
        self.sharing.check_ours(stored)
        handle = there or self._handle(await self.sharing.followed(stored))
        is_new = there is None and stored.owner == self.owner and stored.task == record.task
        if is_new:
            self._tell(EventName.WAITING, handle)
            if self.deadlines.waiting is not None:
                self.leaving.set_waiting_clock(handle, self.deadlines.waiting)
        return handle, is_new

    async def attach(self, record: Record) -> TaskHandle:
        """A handle for a task that was made elsewhere; the same one for the same task."""
        self.check()
        task_id = record.task.task_id or ""
        there = await self.ledger.find(self.origin, task_id)
        stored = there if there is not None else await self.ledger.add(record)
        return self._handle(await self.sharing.followed(stored))

    def clock(self) -> float:
        """Seconds by the clock of the loop."""
        return self._loop.time()

    def handles(self) -> Collection[TaskHandle]:
        """The handles of all submissions that have not ended."""
        return self._open.values()

    def _handle(self, record: Record) -> TaskHandle:
        newer = self._unclaimed.pop(record.ticket, record)
        record = newer if newer.version > record.version else record
        if record.ticket in self._open:
            self._heard_of(record)  # where its news are late, this is the news
        handle = self._open.get(record.ticket) or self._ended.get(record.ticket)
        unknown = TaskStatus.UNKNOWN
        was_settled = handle is not None and handle.task.status is unknown is not record.task.status
        if handle is None or was_settled:
            handle = TaskHandle(self, record)
            (self._ended if record.task.status.is_final else self._open)[record.ticket] = handle
            self.saving.ended(record)
            self._waiting[record.kind] += record.task.status is TaskStatus.WAITING
            self._watch(record)
        return handle

    def _watch(self, record: Record, *, answered: bool = False) -> None:
        if record.owner == self.owner and record.task.status.is_accepted:
            # What was made elsewhere may have ended long ago.
            self.poller.watch(record, now=not record.is_submission, answered=answered)

    def _heard(self, news: Record | Hint) -> None:
        """The ledger has changed a record, ours or one of another client, or gives a hint."""
        if isinstance(news, Hint):
            self._submitter.wake()
            if news is not Hint.SLOTS:
                self.sharing.look_around_soon(adopt=news is Hint.OWNERS)
        elif news.origin == self.origin:
            self._heard_of(news)

    def _heard_of(self, record: Record) -> None:
        self._submitter.heard(record)
        handle = self._open.get(record.ticket)
        if handle is None and self.ledger.durable:
            self._unclaimed[record.ticket] = record
            while len(self._unclaimed) > UNCLAIMED:
                self._unclaimed.popitem(last=False)
        elif handle is not None and record.version >= handle._record.version:
            before = handle.task.status
            handle._heard(record)
            waits = record.task.status is TaskStatus.WAITING
            self._waiting[record.kind] += waits - (before is TaskStatus.WAITING)
            if record.owner == self.owner:
                self._watch(record, answered=before is TaskStatus.SUBMITTING)
            else:
                self.poller.forget(record.ticket)
            if record.task.status.is_accepted and not before.is_accepted:
                self._create_faults.pop(record.kind, None)
                if record.cancelling and record.owner == self.owner:
                    self.leaving.start_cancel(handle)
            if record.task.status.is_final:
                self._abandoned.discard(record.ticket)
                self.poller.forget(record.ticket)
                self._ended[record.ticket] = self._open.pop(record.ticket)
                self.saving.ended(record)
            if record.task.status is not before:
                self._tell(name_of(before, record.task.status), handle)
        if record.owner is None and not record.task.status.is_final:
            self.sharing.look_around_soon()

    def advance(self, ticket: str, task: Task) -> None:
        """A look was answered; *task* is the newest snapshot."""
        handle = self._open.get(ticket)
        if handle is not None:
            before = handle.task
            handle._seen(task)
            if handle.task.differs(before):
                self._tell(EventName.CHANGED, handle)

    def fail_waiters(self, ticket: str, error: BideError) -> None:
        """Whoever waits for *ticket* must hear this now; the submission is not ended by it."""
        handle = self._open.get(ticket)
        if handle is not None:
            again = type(handle._fault) is type(error)
            log_line(logging.DEBUG if again else logging.WARNING, f"{ticket}: {excerpt(str(error), 1000)}")
            handle._stumbled(error)
            handle._told(error)

    def note_fault(self, ticket: str, error: BideError) -> None:
        """Something failed and will be tried again; the last such fault is named when a wait times out."""
        handle = self._open.get(ticket)
        if handle is not None:
            handle._stumbled(error)
            if not handle.task.status.is_accepted:
                self._create_faults[handle._record.kind] = error

    def announce_poll(self, ticket: str, seconds: float, error: BideError | None) -> None:
        """A look has ended."""
        handle = self._open.get(ticket)
        if handle is not None:
            self._tell(EventName.POLLED, handle, seconds=seconds, error=error)

    def announce_pause(self, ticket: str, key: str, seconds: float, error: BideError) -> None:
        """Creates of a lane, or queries of the account, wait because of *error*."""
        handle = self._open.get(ticket)
        if handle is not None and seconds > 0:
            self._tell(EventName.PAUSED, handle, key=key, seconds=seconds, error=error)

    def pressure(self, kind: str) -> float:
        """See `Submissions.pressure`."""
        slots = self._limits(kind).concurrency
        return self._waiting[kind] / (slots * len(self.keys)) if slots else 0.0

    def held(self, kind: str) -> None:
        """See `Submissions.held`."""
        if self.pressure(kind):
            self.poller.hurry(kind)

    def _tell(self, name: EventName, handle: TaskHandle, *, key: str | None = None, **what: Any) -> None:
        """Announce what has happened to *handle*'s submission."""
        record = handle._record
        self.announcer.emit(name, handle.task, kind=record.kind, key=key or record.key, **what)

    def fault(self, handle: TaskHandle) -> BideError | None:
        """The last fault that *handle* has met, or that keeps those before it in the queue."""
        if handle.task.status is TaskStatus.WAITING:
            return handle._fault or self._create_faults.get(handle._record.kind)
        return handle._fault

    def _admission_failed(self, error: BideError) -> None:
        """Nothing can be admitted: whoever waits for a slot hears it. The records stay, and it is tried again."""
        log_line(logging.ERROR, f"nothing can be admitted: {excerpt(str(error), 1000)}")
        for handle in list(self._open.values()):
            if handle.task.status is TaskStatus.WAITING:
                handle._stumbled(error)
                handle._told(error)

    # For handles -------------------------------------------------------------------------------------------

    def withdraw_soon(self, handle: TaskHandle) -> None:
        """Withdraw *handle*'s request if it has not been sent, from within a wait that is being cancelled."""
        if handle.task.status is TaskStatus.WAITING and self._closing is None:
            self._abandoned.add(handle.ticket)  # should the ledger fail, it is withdrawn when its turn comes
            self.spawn(self.leaving.withdraw(handle.ticket))

    async def cancel(self, handle: TaskHandle) -> bool:
        """See `TaskHandle.cancel`."""
        return await self.leaving.cancel(handle)

    async def refresh(self, handle: TaskHandle) -> None:
        """See `TaskHandle.refresh`."""
        if handle._record.owner != self.owner:
            record = await self.ledger.get(handle.ticket)
            if record is not None:
                self._heard_of(record)
            return
        error = await self.poller.look_now(handle.ticket)
        if error is not None:
            handle._unheard = None  # whoever asked hears it now
            raise error.about(ticket=handle.ticket, task_id=handle.task_id)

    async def save(
        self, task: Task, directory: str | os.PathLike[str], *, output: int | None, overwrite: bool
    ) -> list[SavedFile]:
        """See `Client.save`."""
        self.check()
        return await self.saving.save(task, directory, output=output, overwrite=overwrite)

    def tell_of(self, name: EventName, task: Task, **what: Any) -> None:
        """Announce what has happened to the results of *task*."""
        handle = self._ended.get(task.ticket)
        kind, key = ("", None) if handle is None else (handle._record.kind, handle._record.key)
        self.announcer.emit(name, task, kind=kind, key=key, **what)

    def how_to_go_on(self, ticket: str) -> str:
        """Where the ledger outlives the client: how a new one goes on with a submission."""
        return f", on this ledger attach(ticket={ticket!r}) too" if self.ledger.durable else ""

    def as_curl(self, handle: TaskHandle, *, create: bool) -> str:
        """See `TaskHandle.as_curl`."""
        return self.account.as_curl(handle.task, handle.request, create=create)

    # Background --------------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[object, object, _T]) -> asyncio.Task[_T]:
        """Run *work* in a task of our own, which `aclose` ends."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("in the background: %r", task.exception())

    def _terms(self, kind: str) -> tuple[LaneTerms, ...]:
        limits, longest = self._limits(kind), self._provider.profile(kind).longest
        return tuple(LaneTerms(key, limits, longest) for key in self._key_names)

    async def aclose(self, grace: float, *, withdraw: bool = False) -> None:
        """See `Client.aclose`."""
        self.check_place()
        if self._closing is None:
            self._closing = self._loop.create_task(self._close(grace, withdraw=withdraw))
        with anyio.CancelScope(shield=True):
            await asyncio.shield(self._closing)

    async def _close(self, grace: float, *, withdraw: bool) -> None:
        """Stop admitting, let what is under way end, and hand over the rest; waits fail, whatever else does."""
        left: list[Record] = []
        try:
            try:
                await self._wind_down(grace, withdraw=withdraw)
            finally:
                await self._end_tasks()
            await self.poller.experience.aclose()
            left = await self.ledger.leave(self.owner)
        except LedgerError as fault:
            log_line(logging.ERROR, f"open records could not be handed over: {excerpt(str(fault), 1000)}")
        finally:
            self._unsubscribe()
            for handle in list(self._open.values()):
                handle._told(handle._closed())
            tell_left(left, durable=self.ledger.durable)
            await self.saving.aclose()
            await self._transport.aclose()

    async def _wind_down(self, grace: float, *, withdraw: bool) -> None:
        """Admit nothing more, and give what is under way its time."""
        await self._submitter.stop()
        with suppress(LedgerError):  # said at the end
            if self.ledger.durable and not withdraw:
                await self.ledger.leave(self.owner, waiting=True)
        if withdraw or not self.ledger.durable:
            await self.leaving.withdraw_all(self._open.values())
        until = self._loop.time() + grace
        await self._submitter.aclose(grace)
        if self.leaving.cancels:
            cancels = set(self.leaving.cancels.values())
            await asyncio.wait(cancels, timeout=max(0.0, until - self._loop.time()))
        await self.saving.settled_within(max(0.0, until - self._loop.time()))

    async def _end_tasks(self) -> None:
        self.saving.stop()
        rest = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest)
        await self.poller.aclose()
