"""What works behind a client: its handles, its background tasks, and their orderly end."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import anyio
from attrs import evolve

from bide._account import Account, Counters, origin_of, turnstile_for, unless_closed
from bide._downloads import save as save_files
from bide._events import EventName, name_of, note
from bide._handle import TaskHandle
from bide._polling import Poller
from bide._submission import Submitter
from bide._wire import shown
from bide.errors import APIError, ClientClosedError, NotFoundError, WaitTimeoutError
from bide.ledgers import LaneTerms, Record
from bide.models import Billing, ErrorDetail, Task, TaskStatus
from bide.providers import Denied, Gone, Stopped, TooLate, TryAgain

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping

    from bide._events import Announcer
    from bide._pace import Pace
    from bide._transport import Transport
    from bide._wire import Secret
    from bide.errors import BideError
    from bide.ledgers import Ledger
    from bide.models import Deadlines, Limits, SavedFile
    from bide.providers import Provider

log = logging.getLogger("bide")

_T = TypeVar("_T")

CANCEL_TRIES = 5
IDS_A_LINE = 50
"""Ids that one line of the log names at most."""
REARM = 1.0
"""Seconds until a deadline is looked at again that ran out while its request was on its way."""


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
        keys: Mapping[str, Secret],
        limits: Callable[[str], Limits],
        queries_per_second: float | None,
        deadlines: Deadlines,
        pace: Pace,
        announcer: Announcer,
    ) -> None:
        self.owner = os.urandom(8).hex()
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
        self._fingerprints = tuple(keys)
        turnstile = turnstile_for(ledger, self.origin, keys, queries_per_second)
        self.account = Account(provider, transport, ledger, turnstile, Counters(), keys)
        self._open: dict[str, TaskHandle] = {}
        self._ended: WeakValueDictionary[str, TaskHandle] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[object]] = set()
        self._cancels: dict[str, asyncio.Task[bool]] = {}
        self._closing: asyncio.Task[None] | None = None
        self._adopting = False
        self._unheard: set[str] = set()  # tickets on record whose submitter has not run again since
        self._abandoned: set[str] = set()
        self._create_faults: dict[str, BideError] = {}  # by kind, until a create of it is accepted
        self.poller = Poller(self.account, deadlines, pace, self)
        self._submitter = Submitter(self.account, self.owner, self._terms, self, self._admission_failed)
        self._unsubscribe = ledger.subscribe(self._heard)
        self._adopt_soon()

    # Who may use it ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise unless this is the loop and the process of the client, and it is open."""
        self.check_place()
        if self._closing is not None:
            raise ClientClosedError("the client is closed; make a new one")

    def check_place(self) -> None:
        """Raise unless this is the loop and the process of the client."""
        if os.getpid() != self._pid:
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
        self._unheard.add(record.ticket)
        recording = self.spawn(self._submit(record))
        try:
            handle, _ = await unless_closed(recording)
        except asyncio.CancelledError:
            if recording.done():
                self._withdraw_unheard(recording)
            else:
                recording.add_done_callback(self._withdraw_unheard)
            raise
        else:
            return handle
        finally:
            if recording.done():
                self._unheard.discard(record.ticket)

    def _withdraw_unheard(self, recording: asyncio.Task[tuple[TaskHandle, bool]]) -> None:
        """Whoever submitted has left before it heard; a ticket that was on record before belongs to others."""
        if not recording.cancelled() and recording.exception() is None:
            handle, is_new = recording.result()
            if is_new:
                self._abandoned.add(handle.ticket)
                self.withdraw_soon(handle)
            self._unheard.discard(handle.ticket)

    async def is_wanted(self, ticket: str) -> bool:
        """Wait until whoever submitted *ticket* has its handle; False if it was cancelled before that."""
        while ticket in self._unheard:  # noqa: ASYNC110 - a turn of the loop or two, not a wait
            await asyncio.sleep(0)
        return ticket not in self._abandoned

    async def _submit(self, record: Record) -> tuple[TaskHandle, bool]:
        """The handle, and whether the ticket is new."""
        self.check()
        there = self._open.get(record.ticket) or self._ended.get(record.ticket)
        stored = there._record if there is not None else await self.ledger.add(record)
        if stored.request != record.request:
            raise ValueError(
                f"ticket {record.ticket!r} already names another request; use the same request with it, or a new ticket"
            )
        mine = stored.lane in self.keys if stored.lane else not self.keys.isdisjoint(stored.keys)
        if stored.origin != record.origin or not mine:
            raise ValueError(
                f"ticket {record.ticket!r} belongs to another service or key ({stored.origin}); use a new ticket here"
            )
        handle = there or self._handle(stored)
        is_new = there is None and stored.owner == self.owner and stored.task == record.task
        if is_new:
            self._tell(EventName.WAITING, handle)
            self._submitter.wake(record.kind)
            if self.deadlines.waiting is not None:
                self._set_waiting_clock(record.ticket, self.deadlines.waiting)
        return handle, is_new

    async def attach(self, record: Record) -> TaskHandle:
        """A handle for a task that was made elsewhere; the same one for the same task."""
        self.check()
        task_id = record.task.task_id or ""
        there = await self.ledger.find(self.origin, task_id)
        stored = there if there is not None else await self.ledger.add(record)
        return self._handle(stored)

    async def key_of(self, task_id: str) -> str:
        """The fingerprint of the key that *task_id* was made with: the only one, or the one that can see it."""
        if len(self._fingerprints) == 1:
            return self._fingerprints[0]
        # In a task of our own: a cancel of the caller's must not carry frames of the HTTP library, which hold the key.
        return await unless_closed(self.spawn(self._key_of(task_id)))

    async def _key_of(self, task_id: str) -> str:
        for fingerprint in self._fingerprints:
            async with self.account.place():
                outcome = await self.account.query(fingerprint, task_id)
            if isinstance(outcome, Task):
                return fingerprint
            if isinstance(outcome, TryAgain):
                raise outcome.error.about(ticket=None, task_id=task_id)
        raise NotFoundError(
            f"none of the {len(self._fingerprints)} keys of this client knows task {task_id}", task_id=task_id
        )

    def clock(self) -> float:
        """Seconds by the clock of the loop."""
        return self._loop.time()

    def handles(self) -> Collection[TaskHandle]:
        """The handles of all submissions that have not ended."""
        return self._open.values()

    def _handle(self, record: Record) -> TaskHandle:
        handle = self._open.get(record.ticket) or self._ended.get(record.ticket)
        if handle is None:
            handle = TaskHandle(self, record)
            (self._ended if record.task.status.is_final else self._open)[record.ticket] = handle
            self._watch(record)
        return handle

    def _watch(self, record: Record, *, now: bool = False) -> None:
        if record.owner == self.owner and record.task.status.is_accepted:
            self.poller.watch(record, now=now or record.request is None)

    def _heard(self, record: Record) -> None:
        """The ledger has changed *record*: ours, or one of another client."""
        handle = self._open.get(record.ticket)
        if handle is not None:
            before = handle.task.status
            handle._heard(record)
            self._watch(record)
            if record.task.status.is_accepted:
                self._create_faults.pop(record.kind, None)
                if record.cancelling and record.owner == self.owner:
                    self._start_cancel(handle)
            if record.task.status.is_final:
                self._abandoned.discard(record.ticket)
                self.poller.forget(record.ticket)
                self._ended[record.ticket] = self._open.pop(record.ticket)
            if record.task.status is not before:
                self._tell(name_of(before, record.task.status), handle)
        if record.owner is None and not record.task.status.is_final and record.origin == self.origin:
            self._adopt_soon()
        self._submitter.wake()

    def seen(self, ticket: str, task: Task) -> None:
        """A look was answered; *task* is the newest snapshot."""
        handle = self._open.get(ticket)
        if handle is not None:
            before = handle.task
            handle._seen(task)
            if handle.task.differs(before):
                self._tell(EventName.CHANGED, handle)

    def told(self, ticket: str, error: BideError) -> None:
        """Whoever waits for *ticket* must hear this now; the submission is not ended by it."""
        handle = self._open.get(ticket)
        if handle is not None:
            again = type(handle._fault) is type(error)
            note(logging.DEBUG if again else logging.WARNING, f"{ticket}: {shown(str(error), 1000)}")
            handle._stumbled(error)
            handle._told(error)

    def stumbled(self, ticket: str, error: BideError) -> None:
        """Something failed and will be tried again; the last such fault is named when a wait times out."""
        handle = self._open.get(ticket)
        if handle is not None:
            handle._stumbled(error)
            if not handle.task.status.is_accepted:
                self._create_faults[handle._record.kind] = error

    def looked(self, ticket: str, seconds: float, error: BideError | None) -> None:
        """A look has ended."""
        handle = self._open.get(ticket)
        if handle is not None:
            self._tell(EventName.LOOKED, handle, seconds=seconds, error=error)

    def paused(self, ticket: str, lane: str, seconds: float, error: BideError) -> None:
        """Creates of a lane, or queries of the account, wait because of *error*."""
        handle = self._open.get(ticket)
        if handle is not None and seconds > 0:
            self._tell(EventName.PAUSED, handle, key=lane, seconds=seconds, error=error)

    def _tell(self, name: EventName, handle: TaskHandle, *, key: str | None = None, **what: Any) -> None:
        """Announce what has happened to *handle*'s submission."""
        record = handle._record
        self.announcer.tell(name, handle.task, kind=record.kind, key=key or record.lane, **what)

    def fault(self, handle: TaskHandle) -> BideError | None:
        """The last fault that *handle* has met, or that keeps those before it in the queue."""
        if handle.task.status is TaskStatus.WAITING:
            return handle._fault or self._create_faults.get(handle._record.kind)
        return handle._fault

    def _admission_failed(self, error: BideError) -> None:
        """Nothing can be admitted: whoever waits for a slot hears it. The records stay, and it is tried again."""
        note(logging.ERROR, f"nothing can be admitted: {shown(str(error), 1000)}")
        for handle in list(self._open.values()):
            if handle.task.status is TaskStatus.WAITING:
                handle._stumbled(error)
                handle._told(error)

    # Adoption ----------------------------------------------------------------------------------------------

    def _adopt_soon(self) -> None:
        if self._closing is None and not self._adopting:
            self._adopting = True
            self.spawn(self._adopt())

    async def _adopt(self) -> None:
        """Take over what a closed client has left open: its slots stay in use until somebody sees the end."""
        self._adopting = False
        for record in await self.ledger.adopt(self.origin, self.keys, self.owner):
            handle = self._handle(record)
            self._watch(record, now=True)
            self._submitter.wake(record.kind)
            if record.cancelling:
                self._start_cancel(handle)

    # Leaving a task ----------------------------------------------------------------------------------------

    async def withdraw(self, ticket: str, *, why: ErrorDetail | None = None) -> bool:
        """End *ticket* if it has not been sent. Returns whether it has ended that way."""
        record = await self.ledger.get(ticket)
        if record is None or record.task.status is not TaskStatus.WAITING:
            return False
        task = evolve(record.task, status=TaskStatus.CANCELLED, billing=Billing.NONE, error=why)
        return (await self.ledger.withdraw(ticket, task)).task.status is TaskStatus.CANCELLED

    def withdraw_soon(self, handle: TaskHandle) -> None:
        """Withdraw *handle*'s request if it has not been sent, from within a wait that is being cancelled."""
        if handle.task.status is TaskStatus.WAITING and self._closing is None:
            self.spawn(self.withdraw(handle.ticket))

    async def cancel(self, handle: TaskHandle) -> bool:
        """See `TaskHandle.cancel`. Once begun it goes on without whoever asked."""
        return await unless_closed(self._start_cancel(handle))

    def _start_cancel(self, handle: TaskHandle) -> asyncio.Task[bool]:
        running = self._cancels.get(handle.ticket)
        if running is None:
            running = self._cancels[handle.ticket] = self.spawn(self._cancel(handle))
            running.add_done_callback(lambda _: self._cancels.pop(handle.ticket, None))
        return running

    async def _cancel(self, handle: TaskHandle) -> bool:
        while not (handle.task.status.is_final or handle.task.status.is_accepted):
            if handle.task.status is TaskStatus.WAITING:
                await self.withdraw(handle.ticket)
                await asyncio.sleep(0)
            else:
                await self.ledger.cancelling(handle.ticket)
                if handle.task.status is TaskStatus.SUBMITTING:
                    await handle._changed()
        for attempt in range(CANCEL_TRIES):
            record, task_id = handle._record, handle.task_id
            if handle.task.status.is_final or task_id is None or record.lane is None:
                break
            match await self.account.cancel(record.lane, task_id):
                case Stopped():
                    self.poller.look_soon(handle.ticket)
                    return True
                case TooLate() | Gone():
                    self.poller.look_soon(handle.ticket)
                    break
                case Denied(error):
                    raise error.about(ticket=handle.ticket, task_id=task_id)
                case TryAgain(error):
                    if isinstance(error, APIError) and error.status_code == 429:
                        pause = self.account.turnstile.budget.paused_for(self.clock())
                        self.paused(handle.ticket, record.lane, pause, error)
                    if attempt == CANCEL_TRIES - 1:
                        raise error.about(ticket=handle.ticket, task_id=task_id)
                    await asyncio.sleep(2.0**attempt)
        return handle.task.status is TaskStatus.CANCELLED

    async def refresh(self, handle: TaskHandle) -> None:
        """See `TaskHandle.refresh`."""
        error = await self.poller.look_now(handle.ticket)
        if error is not None:
            handle._unheard = None  # whoever asked hears it now
            raise error.about(ticket=handle.ticket, task_id=handle.task_id)

    async def save(self, task: Task, directory: str | os.PathLike[str]) -> list[SavedFile]:
        """Write the files of *task* to *directory*."""
        began = self._loop.time()
        files = await save_files(self._transport, task, directory)
        handle = self._ended.get(task.ticket)
        kind, key = ("", None) if handle is None else (handle._record.kind, handle._record.lane)
        took = self._loop.time() - began
        self.announcer.tell(EventName.SAVED, task, kind=kind, key=key, seconds=took, files=tuple(files))
        return files

    def as_curl(self, handle: TaskHandle, *, create: bool) -> str:
        """See `TaskHandle.as_curl`."""
        request, task_id = handle.request, handle.task_id
        if not create:
            if task_id is None:
                raise ValueError(
                    f"ticket {handle.ticket} has no task id: there is nothing to ask for. as_curl(create=True) gives "
                    f"the create; running that makes, and bills, a new task"
                )
            call = self._provider.query_call(task_id)
        elif request is None:
            raise ValueError(f"task {task_id} was made elsewhere: its create is not known here")
        else:
            call = self._provider.create_call(request, handle.ticket)
        variable = next(iter(self._provider.key_variables), "API_KEY")
        return self._transport.as_curl(call, key_variable=variable)

    # Deadlines ---------------------------------------------------------------------------------------------

    def _set_waiting_clock(self, ticket: str, seconds: float) -> None:
        def ran_out() -> None:
            handle = self._open.get(ticket)
            if handle is None or handle.task.status.is_accepted:
                return
            if handle.task.status is TaskStatus.WAITING:
                self.spawn(self._withdraw_late(handle, seconds))
            else:
                self.poller.at(self._loop.time() + REARM, ran_out)

        self.poller.at(self._loop.time() + seconds, ran_out)

    async def _withdraw_late(self, handle: TaskHandle, seconds: float) -> None:
        fault = self.fault(handle)
        text = (
            f"ticket {handle.ticket} got no slot within {seconds:g} s (Deadlines.waiting) and was withdrawn: "
        )
        text += "nothing was sent" + (f". The last fault: {fault}" if fault else "")
        if not await self.withdraw(
            handle.ticket, why=ErrorDetail(message=text, type=WaitTimeoutError.__name__)
        ):
            self._set_waiting_clock(handle.ticket, REARM)  # it has just been admitted: it may come back

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
        return tuple(LaneTerms(fingerprint, limits, longest) for fingerprint in self._fingerprints)

    async def aclose(self, grace: float) -> None:
        """See `Client.aclose`."""
        self.check_place()
        if self._closing is None:
            self._closing = self._loop.create_task(self._close(grace))
        with anyio.CancelScope(shield=True):
            await asyncio.shield(self._closing)

    async def _close(self, grace: float) -> None:
        """Stop admitting, let what is under way end, and hand over the rest; waits fail, whatever else does."""
        left: list[Record] = []
        try:
            await self._submitter.stop()
            if not self.ledger.durable:
                await self._withdraw_all()
            until = self._loop.time() + grace
            await self._submitter.aclose(grace)
            if self._cancels:
                await asyncio.wait(set(self._cancels.values()), timeout=max(0.0, until - self._loop.time()))
            rest = [task for task in self._tasks if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            if rest:
                await asyncio.wait(rest)
            await self.poller.aclose()
            left = await self.ledger.release(self.owner)
        finally:
            self._unsubscribe()
            self._tell_left(left)
            await self._transport.aclose()

    async def _withdraw_all(self) -> None:
        """Nobody could ever send what still waits; said so now, it is not lost."""
        closed = ErrorDetail(
            message="the client was closed before this was sent: nothing was made, submit it again",
            type=ClientClosedError.__name__,
        )
        for handle in list(self._open.values()):
            if handle.task.status is TaskStatus.WAITING and handle._record.owner == self.owner:
                await self.withdraw(handle.ticket, why=closed)

    def _tell_left(self, left: list[Record]) -> None:
        """Fail every wait, and name the tasks that go on without us."""
        for handle in list(self._open.values()):
            handle._told(handle._closed())
        ids = [record.task.task_id or record.ticket for record in left]
        for start in range(0, len(ids), IDS_A_LINE):
            some = ids[start : start + IDS_A_LINE]
            log.warning("closed with %d tasks left running: %s", len(ids), ", ".join(some))
