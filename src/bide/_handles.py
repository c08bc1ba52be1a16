"""`TaskHandle`: the state of one submission, and the ways to wait for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias

from bide._downloads.paths import check_output, folder_of
from bide.errors import (
    APIError,
    BideError,
    ClientClosedError,
    SubmissionUnknownError,
    TaskCancelledError,
    TaskError,
    TaskExpiredError,
    TaskFailedError,
    TransportError,
    WaitTimeoutError,
    type_named,
)
from bide.models import TaskStatus

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Sequence

    from bide.ledgers import Record
    from bide.models import Request, SavedFile, Task

    Ending: TypeAlias = tuple["TaskHandle", BideError | None]


class Engine(Protocol):
    """What a handle needs of the client that made it."""

    def check(self) -> None: ...
    def fault(self, handle: TaskHandle) -> BideError | None: ...
    async def cancel(self, handle: TaskHandle) -> bool: ...
    async def refresh(self, handle: TaskHandle) -> None: ...
    async def save(
        self, task: Task, directory: str | os.PathLike[str], *, output: int | None, overwrite: bool
    ) -> list[SavedFile]: ...
    def as_curl(self, handle: TaskHandle, *, create: bool) -> str: ...
    def how_to_go_on(self, ticket: str) -> str: ...


class TaskHandle:
    """The state of one submission. `client.submit` and `client.attach` make it.

    Any number of waiters and iterators share one handle, and one poll. Dropping the handle, or cancelling a
    wait, does not stop the task; `cancel()` does.

    Example:
        handle = await client.submit(ImageRequest("a cat", model="gpt-image-2"))
        async for task in handle.events():
            print(task.status, task.progress)
        task = await handle.result()
    """

    __slots__ = ("__weakref__", "_engine", "_fault", "_record", "_task", "_unheard", "_watchers")

    def __init__(self, engine: Engine, record: Record) -> None:
        self._engine = engine
        self._record = record
        self._task = record.task
        self._fault: BideError | None = None
        self._unheard: BideError | None = None
        self._watchers: list[Callable[[TaskHandle, BideError | None], None]] | None = None

    def __repr__(self) -> str:
        name = self._task.task_id or "no task id yet"
        return f"<TaskHandle {self.ticket} ({name}) {self._task.status}>"

    @property
    def ticket(self) -> str:
        """Our id of the submission, known at once; it names the files that `save` writes."""
        return self._record.ticket

    @property
    def task_id(self) -> str | None:
        """The service's id, or None until the create is accepted."""
        return self._task.task_id

    @property
    def request(self) -> Request | None:
        """What was submitted; None for a task that was made elsewhere."""
        return self._record.request

    @property
    def task(self) -> Task:
        """The newest snapshot."""
        return self._task

    async def accepted(self, *, timeout: float | None = None) -> Task:
        """Wait until the service has taken the request, and so its `task_id` is known (unless it answered at once).

        Cancelling this stops the waiting only.

        Args:
            timeout: seconds to wait at most; None is no limit.

        Raises:
            APIError, TransportError: the create was refused, or no connection works. Nothing was made.
            SubmissionUnknownError: the create may have arrived.
            TaskCancelledError: it was withdrawn before.
            WaitTimeoutError: *timeout* seconds passed, or `Deadlines.waiting` did.
        """
        await self._wait(lambda task: task.status.is_final or task.status.is_accepted, timeout)
        if self._task.status.is_final and self._task.task_id is None:
            return self._outcome()
        return self._task

    async def result(self, *, timeout: float | None = None) -> Task:
        """Wait until the task has ended and return its last snapshot.

        Cancelling this stops the waiting, never the task: that goes on and stays on record.

        Args:
            timeout: seconds that this one wait may take, a request under way included; None leaves it to the
                client's `Deadlines`.

        Raises:
            TaskFailedError: the service reports a failure; `.code`, `.message` and `.retryable` say which.
            TaskCancelledError, TaskExpiredError: it ended without a result.
            APIError, TransportError: the create was refused, or no connection works. Nothing was made.
            AuthenticationError: the key may no longer ask for the task; it is on record and looked at again.
            SubmissionUnknownError: the create may have arrived, and nobody can say whether it did.
            WaitTimeoutError: *timeout* seconds passed, or a deadline did. The task goes on; call again to wait on.
            ClientClosedError: the client was closed meanwhile; the message names the id.
        """
        if not self._task.status.is_final:
            await self._wait(lambda task: task.status.is_final, timeout)
        return self._outcome()

    def events(self) -> TaskEvents:
        """An async iterator of snapshots: the one now, then every change, the last one included.

        A change is one of status, progress, outputs or error. A slow reader misses snapshots between, never the
        last. It raises what `result` raises while the task goes on (such as `AuthenticationError`), but ends
        quietly with the final snapshot, whatever that is. Leaving the loop early needs no clean-up.
        """
        return TaskEvents(self)

    async def refresh(self) -> Task:
        """Look at the task now and return the newest snapshot; a look under way is shared.

        While nothing has been accepted yet there is nothing to look at, and an ended task is not asked for again
        (`client.attach(task_id)` does that): the snapshot is returned as it is.

        Raises:
            APIError, TransportError, UnexpectedReplyError: this look failed. The task is not ended by that.
            ClientClosedError: the client is closed.
        """
        self._engine.check()
        await self._engine.refresh(self)
        return self._task

    async def cancel(self) -> bool:
        """Stop the task where the service allows it. Its slot is free once the service says that it has ended.

        A request that still waits is withdrawn without a call. One that is being submitted is cancelled as soon
        as it is known to have been refused or accepted, even if this wait is cancelled meanwhile.

        Returns:
            True if the task is cancelled or the service has taken the cancel; False if it is too late for that
            (it has ended, or the service does not stop a task in this state: DashScope cancels PENDING alone).

        Raises:
            APIError, TransportError: the service could not be asked; the task goes on.
            ClientClosedError: the client is closed.
        """
        self._engine.check()
        return await self._engine.cancel(self)

    async def save(
        self, directory: str | os.PathLike[str], *, output: int | None = None, overwrite: bool = False
    ) -> list[SavedFile]:
        """Wait for the result and write its files to *directory* as `{ticket}-{index}.{ext}`: see `Client.save`.

        Raises:
            DownloadError: a file could not be fetched or written.
            BideError: whatever `result` raises.
            TypeError, ValueError: *directory* or *output* is not what it should be.
        """
        folder_of(directory)
        check_output(output)
        return await self._engine.save(await self.result(), directory, output=output, overwrite=overwrite)

    def as_curl(self, *, create: bool = False) -> str:
        """The status query of this task as a curl command, for a support ticket: asking costs nothing.

        The key is left out: the command takes it from the provider's environment variable (with several keys, set the
        one that the task was made with). Signatures in addresses, and inline files, are left out too. Nothing is
        sent, and the client may be closed.

        Args:
            create: give the create call instead. **Running that makes, and bills, a new task.**

        Raises:
            ValueError: there is no task id yet to ask for; or *create*, and the task was made elsewhere.
        """
        return self._engine.as_curl(self, create=create)

    # For the engine, and for whoever waits in this package ------------------------------------------------

    def _heard(self, record: Record) -> None:
        """The ledger has a new record of this submission."""
        before, self._record = self._record, record
        if record.cancel_taken is not before.cancel_taken:
            self._notify(None)
        # While it goes on the ledger knows less than looks have shown: it is not told of progress.
        if not (record.task.status is self._task.status and record.task.status.is_accepted):
            self._seen(record.task)

    def _seen(self, task: Task) -> None:
        """There is a new snapshot."""
        before = self._task
        if before.status.is_final:
            return
        self._task = task
        if task.status is not before.status or not isinstance(self._unheard, WaitTimeoutError):
            self._unheard = None  # it is over
        if task.differs(before) or task.task_id != before.task_id:
            self._notify(None)

    def _told(self, error: BideError) -> None:
        """Whoever waits gets *error*, or else the next one who does; the submission is not ended by it."""
        if self._watchers is None:
            self._unheard = error
        self._notify(error)

    def _stumbled(self, error: BideError) -> None:
        """Something failed and will be tried again."""
        self._fault = error

    def _on_change(self, watcher: Callable[[TaskHandle, BideError | None], None]) -> None:
        """Call *watcher* at each change, and with each error that waiters are told."""
        if self._watchers is None:
            self._watchers = []
        self._watchers.append(watcher)

    def _off_change(self, watcher: Callable[[TaskHandle, BideError | None], None]) -> None:
        """End what `_on_change` began."""
        if self._watchers is not None:
            self._watchers.remove(watcher)
            if not self._watchers:
                self._watchers = None

    def _notify(self, error: BideError | None) -> None:
        for watcher in tuple(self._watchers or ()):
            watcher(self, error)

    async def _changed(self) -> None:
        """Wait for the next change. Raises a fresh copy of what waiters are told."""
        try:
            self._engine.check()
        except ClientClosedError:
            raise self._closed() from None
        if self._unheard is not None:
            unheard, self._unheard = self._unheard, None
            raise unheard.about(ticket=self.ticket, task_id=self.task_id or unheard.task_id)
        future: asyncio.Future[BideError | None] = asyncio.get_running_loop().create_future()

        def wake(_: TaskHandle, error: BideError | None) -> None:
            if not future.done():
                future.set_result(error)

        self._on_change(wake)
        try:
            error = await future
        finally:
            self._off_change(wake)
        if error is not None:
            raise error.about(ticket=self.ticket, task_id=self.task_id or error.task_id)

    async def _wait(self, enough: Callable[[Task], bool], timeout: float | None) -> None:
        is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if timeout is not None and not (is_number and timeout >= 0):
            raise ValueError(f"timeout must be a number of seconds, 0 or more, or None, not {timeout!r}")
        scope = asyncio.timeout(timeout)
        try:
            async with scope:
                while not enough(self._task):
                    await self._changed()
        except TimeoutError:
            if not scope.expired():
                raise
            raise self._gave_up(timeout) from None

    def _gave_up(self, timeout: float | None) -> WaitTimeoutError:
        task = self._task
        if task.task_id is not None:
            text = f"gave up waiting for {task.task_id} after {timeout:g} s, it is {task.status}; it may still finish: "
            text += f"wait again, or client.attach({task.task_id!r})"
        else:
            text = f"gave up waiting for ticket {self.ticket} after {timeout:g} s, it is {task.status}; it stays on "
            text += "record: wait again, or handle.cancel() to withdraw it"
        fault = self._engine.fault(self)
        if fault is not None:
            text += f". The last fault: {fault}"
        return WaitTimeoutError(text, task=task, ticket=self.ticket, task_id=task.task_id)

    def _closed(self) -> ClientClosedError:
        """The client is closed: what that means for this submission."""
        task = self._task
        if task.task_id is not None:
            text = f"{task.task_id} was {task.status}; it goes on: a new client's attach({task.task_id!r}) follows it"
        else:
            text = f"ticket {self.ticket} was {task.status}; it is on record with whoever else drives it"
        text += self._engine.how_to_go_on(self.ticket)
        return ClientClosedError(
            f"the client was closed while {text}", ticket=self.ticket, task_id=task.task_id
        )

    def _outcome(self) -> Task:
        """The final snapshot, or the error that it stands for."""
        if self._task.status is TaskStatus.SUCCEEDED:
            return self._task
        raise failure(self._record, self._task)


class TaskEvents:
    """The iterator of `TaskHandle.events()`: a class, so that leaving the loop early breaks nothing."""

    def __init__(self, handle: TaskHandle) -> None:
        self._handle = handle
        self._last: Task | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Task:
        while self._last is not None and not self._handle.task.differs(self._last):
            if self._last.status.is_final:
                raise StopAsyncIteration
            await self._handle._changed()
        self._last = self._handle.task
        return self._last


def failure(record: Record, task: Task) -> BideError:
    """The error that a final *task* without a result stands for. A fresh one for each who waits."""
    if task.status is TaskStatus.UNKNOWN:
        error: BideError = _unknown(record, task)
    else:
        error = _never_made(task) or _ended(task)
    return error.about(ticket=task.ticket, task_id=task.task_id)


def _unknown(record: Record, task: Task) -> SubmissionUnknownError:
    why = task.error.message if task.error else None
    of_model = f" of model {task.model}" if task.model else ""
    at = f" at {record.sent_at:%Y-%m-%d %H:%M:%S} UTC" if record.sent_at else ""
    return SubmissionUnknownError(
        f"nobody can say whether the create of ticket {task.ticket} arrived ({why}). It is not sent again, since that "
        f"could buy it twice. Look in the service's console or list for a task{of_model} made{at}: if it is there, "
        f"client.attach(its id, ticket={task.ticket!r}) goes on with it; if not, submit it again with a new ticket",
        request=record.request,
        sent_at=record.sent_at,
        model=task.model,
    )


def _never_made(task: Task) -> BideError | None:
    """The error that was recorded when the create was refused, or its request withdrawn; None if it was neither."""
    detail = task.error
    kind = type_named(detail.type) if detail and detail.type else None
    if detail is None or kind is None:
        return None
    text = detail.text or detail.message or f"{task.ticket} was refused"
    if issubclass(kind, APIError):
        return kind(
            text,
            status_code=detail.status_code or 0,
            code=detail.code,
            message=detail.message,
            request_id=task.request_id,
        )
    if issubclass(kind, TransportError):
        return TransportError(text, may_have_arrived=False)
    if issubclass(kind, WaitTimeoutError):
        return WaitTimeoutError(text, task=task)
    return kind(text)


def _ended(task: Task) -> TaskError:
    """The error of a task that the service has ended without a result."""
    name, detail = task.task_id or f"ticket {task.ticket}", task.error
    words = ": ".join(filter(None, (detail.code, detail.message))) if detail else ""
    if task.status is TaskStatus.CANCELLED:
        return TaskCancelledError(f"{name} was cancelled" + (f": {words}" if words else ""), task=task)
    if task.status is TaskStatus.EXPIRED:
        text = f"{name} has expired: the service no longer knows it, or has removed its result"
        return TaskExpiredError(text + (f" ({words})" if words else ""), task=task)
    return TaskFailedError(
        f"{name} failed: {words or 'the service gives no reason; its answer is in .task.raw'} "
        f"(billing: {task.billing})",
        task=task,
        code=detail.code if detail else None,
        message=detail.message if detail else None,
        billing=task.billing,
        retryable=detail.retryable if detail else None,
    )


class Completions:
    """Handles that are waited for together."""

    def __init__(self) -> None:
        self._open: dict[int, TaskHandle] = {}
        self._ready: deque[Ending] = deque()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open) + len(self._ready)

    def add(self, handle: TaskHandle) -> None:
        """Wait for *handle* too."""
        if handle.task.status.is_final:
            self._end(handle, None)
        elif handle._unheard is not None:
            error, handle._unheard = handle._unheard, None
            self._end(handle, error)
        elif id(handle) not in self._open:
            self._open[id(handle)] = handle
            handle._on_change(self._changed)

    def ready(self) -> Ending | None:
        """The next handle that has ended, or whose waiters were told an error; None if there is none yet."""
        if self._ready:
            return self._ready.popleft()
        self._wake.clear()
        return None

    async def wait(self) -> None:
        """Wait until `ready` has one, or `poke` was called."""
        await self._wake.wait()

    def poke(self) -> None:
        """Let `wait` return."""
        self._wake.set()

    def drop(self) -> None:
        """Wait for none of them any more."""
        for handle in self._open.values():
            handle._off_change(self._changed)
        self._open.clear()

    def _changed(self, handle: TaskHandle, error: BideError | None) -> None:
        if error is not None or handle.task.status.is_final:
            del self._open[id(handle)]
            handle._off_change(self._changed)
            self._end(handle, error)

    def _end(self, handle: TaskHandle, error: BideError | None) -> None:
        if error is not None:
            error = error.about(ticket=handle.ticket, task_id=handle.task_id)
        self._ready.append((handle, error))
        self._wake.set()


class AsCompleted:
    """The iterator of `client.as_completed()`: yields each handle when its task is final.

    A class and not a generator, so that leaving the loop early breaks nothing: what was submitted goes on.
    """

    def __init__(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        submit: Callable[[Request], Awaitable[TaskHandle]],
        window: int,
    ) -> None:
        self._source: AsyncIterator[Request] | Iterator[Request] | None
        self._source = aiter(requests) if isinstance(requests, AsyncIterable) else iter(requests)
        self._submit = submit
        self._window = window
        self._open = Completions()
        self._pull: asyncio.Future[Request] | None = None
        self._pulled: Request | None = None
        self._submitting: asyncio.Future[TaskHandle] | None = None
        self._stepping = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TaskHandle:
        if self._stepping:
            raise RuntimeError("this iterator is awaited by another task: give each its own as_completed()")
        self._stepping = True
        try:
            return await self._step()
        finally:
            self._stepping = False

    async def _step(self) -> TaskHandle:
        while True:
            await self._fill()
            ending = self._open.ready()
            if ending is not None:
                return self._ended(*ending)
            if self._source is None and not len(self._open):
                raise StopAsyncIteration
            await self._open.wait()

    def _ended(self, handle: TaskHandle, error: BideError | None) -> TaskHandle:
        if error is None:
            return handle
        if not isinstance(error, ClientClosedError):
            self._open.add(handle)
        raise error

    async def _fill(self) -> None:
        """Pull requests and submit them, until the window is full or the source has nothing at once."""
        while len(self._open) < self._window:
            if self._pulled is None:
                self._pulled = await self._pull_one()
            if self._pulled is None:
                return
            if self._submitting is None:
                self._submitting = asyncio.ensure_future(self._submit(self._pulled))
            # A step that is cancelled here leaves the submission alone: it may be sent by now. The next one takes it.
            try:
                handle = await asyncio.shield(self._submitting)
            except asyncio.CancelledError:
                raise
            except BaseException:
                self._submitting = self._pulled = None
                raise
            self._submitting = self._pulled = None
            self._open.add(handle)

    async def _pull_one(self) -> Request | None:
        """The next request; None if the source has none at once, or none any more."""
        if self._source is None:
            return None
        if isinstance(self._source, Iterator):
            return self._next(self._source)
        if self._pull is None:
            self._pull = asyncio.ensure_future(anext(self._source))
            self._pull.add_done_callback(lambda _: self._open.poke())
            # A source that has one at hand answers within a step of the loop.
            await asyncio.sleep(0)
        if not self._pull.done():
            return None
        pulled, self._pull = self._pull, None
        return self._next(pulled)

    def _next(self, pull: asyncio.Future[Request] | Iterator[Request]) -> Request | None:
        """The next request, or None at the end of the source."""
        try:
            return next(pull) if isinstance(pull, Iterator) else pull.result()
        except (StopIteration, StopAsyncIteration):
            self._source = None
            return None


async def outcome_of(handle: TaskHandle, told: BideError | None) -> Task | BideError:
    """How a wait for *handle* ends: with its task, its error, or what its waiters were told."""
    if told is not None:
        return told
    try:
        return await handle.result()
    except BideError as error:
        return error


def note_left(error: BaseException, handles: Sequence[TaskHandle]) -> None:
    """Name in *error*'s notes the tasks that go on without the caller."""
    ids = [handle.task_id or handle.ticket for handle in handles if _goes_on(handle)]
    if ids:
        error.add_note(
            f"{len(ids)} other tasks of this gather go on: {', '.join(ids)}; client.attach(id) follows one, "
            f"return_exceptions=True waits for all"
        )


def _goes_on(handle: TaskHandle) -> bool:
    return handle.task.status.is_accepted or handle.task.status is TaskStatus.SUBMITTING
