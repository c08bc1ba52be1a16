"""What users hold: `TaskHandle`, the state of one submission, and iterators over its events and over many handles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Self
from weakref import ref

from bide import _outcomes
from bide._concurrency import lived_timeout
from bide._downloads.paths import check_output, folder_of
from bide._submissions import Completions
from bide.errors import BideError, ClientClosedError
from bide.models import TaskStatus

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Sequence

    from bide._runtime.engine import Engine
    from bide._runtime.wishes import Wish
    from bide._submissions import Submission
    from bide.ledgers import Record
    from bide.models import Request, SavedFile, Task


LEFT_SECONDS = 5.0
"""Seconds after a cancelled step of `as_completed`, within which its caller takes the next one, or has left."""


class TaskHandle:
    """The state of one submission. `client.submit` and `client.attach` make it.

    Any number of waiters and iterators share one handle, and one poll. Dropping the handle, or cancelling a wait, does
    not stop the task; `cancel()` does.

    Example:
        handle = await client.submit(ImageRequest("a cat", model="gpt-image-2"))
        async for task in handle.events():
            print(task.status, task.progress)
        task = await handle.result()
    """

    __slots__ = ("__weakref__", "_engine", "_submission")

    def __init__(self, engine: Engine, submission: Submission) -> None:
        self._engine = engine
        self._submission = submission

    @classmethod
    def of(cls, engine: Engine, submission: Submission) -> Self:
        """The handle of *submission*: the same one for as long as a user holds it."""
        handle: Self | None = submission.handle
        if handle is None:
            handle = cls(engine, submission)
            submission.hold(handle)
        return handle

    def __repr__(self) -> str:
        name = self.task_id or "no task id yet"
        return f"<TaskHandle {self.ticket} ({name}) {self.task.status}>"

    @property
    def ticket(self) -> str:
        """Our id of the submission, known at once; it names the files that `save` writes."""
        return self._submission.ticket

    @property
    def task_id(self) -> str | None:
        """The service's id, or None until the create is accepted."""
        return self._submission.task.task_id

    @property
    def request(self) -> Request | None:
        """What was submitted; None for a task that was made elsewhere."""
        return self._submission.record.request

    @property
    def task(self) -> Task:
        """The newest snapshot."""
        return self._submission.task

    async def accepted(self, *, timeout: float | None = None) -> Task:
        """Wait until the service has accepted the request. Its `task_id` is then known, unless the result came at once.

        Cancelling this stops the waiting only.

        Args:
            timeout: seconds to wait at most; None is no limit.

        Raises:
            APIError: the create was refused. Nothing was made.
            TransportError: the address cannot work; or no connection has worked for 30 s, and the request waits on.
            SubmissionUnknownError: the create may have arrived.
            TaskCancelledError: it was withdrawn before.
            WaitTimeoutError: *timeout* seconds passed, or `Deadlines.waiting` did.
        """
        await self._wait(lambda task: task.status.is_final or task.status.is_accepted, timeout)
        if self.task.status.is_final and self.task.task_id is None:
            return self._result()
        return self.task

    async def result(self, *, timeout: float | None = None) -> Task:
        """Wait until the task has ended and return its last snapshot.

        A task that has succeeded without any output is polled for 60 s more. Then it is returned without outputs, and
        its `error` says so.

        Cancelling this stops the waiting, never the task: that goes on and stays on record.

        Args:
            timeout: seconds that this one wait may take, a request under way included; None leaves it to the
                client's `Deadlines`.

        Raises:
            TaskFailedError: the service reports a failure; `.code`, `.message` and `.retryable` say which.
            TaskCancelledError, TaskExpiredError: it ended without a result.
            APIError: the create was refused. Nothing was made.
            TransportError: the address cannot work; or no connection has worked for 30 s, and the request waits on.
            AuthenticationError: for 30 s the service has said that the key may not query the task. It stays on record
                and is polled again.
            SubmissionUnknownError: the create may have arrived; it is unknown whether it did.
            WaitTimeoutError: *timeout* seconds or a deadline passed. The task goes on; call again to wait longer.
            ClientClosedError: the client was closed meanwhile; the message names the id.
        """
        if not self.task.status.is_final:
            await self._wait(lambda task: task.status.is_final, timeout)
        return self._result()

    def events(self) -> TaskEvents:
        """An async iterator of snapshots: first the present one, then one for each change, up to the final one.

        A change is a change of status, progress, outputs or error. A slow reader may miss snapshots in between, but
        never the last one. While the task goes on, the iterator raises the same errors as `result` (such as
        `AuthenticationError`). It ends after the final snapshot. It does not raise then, even if the task failed.
        You may leave the loop early.
        """
        return TaskEvents(self._engine, self._submission)

    async def refresh(self) -> Task:
        """Poll the task soon and return the newest snapshot; all callers share one poll, also one under way.

        The poll comes as soon as the least time between two polls of the task has passed (the provider's floor, or
        that of the `Pace`) and the query rate allows it. It takes turns with the polls of the other tasks.

        A request that was not accepted yet, and a task that has ended, are not polled: the last snapshot is returned
        (`client.attach(task_id)` polls an ended task again).

        Raises:
            APIError, TransportError, UnexpectedReplyError: this poll failed. That does not end the task.
            ClientClosedError: the client is closed.
        """
        self._engine.submissions.check(self._submission)
        await self._engine.refresh(self._submission)
        return self.task

    async def cancel(self) -> bool:
        """Stop the task where the service allows it. Its slot is free once the service reports that it has ended.

        A request that still waits is withdrawn without a call. One that is being submitted is cancelled as soon as the
        service has answered its create, even if this wait is cancelled meanwhile.

        Returns:
            True if the task is cancelled or the service has accepted the cancel; False if it is too late: the task has
            ended, or the service does not cancel it in this state (DashScope cancels tasks in state PENDING only).
            False, too, if the answer to the create was lost and its task was found by model and time alone: it may be
            another program's.

        Raises:
            APIError, TransportError: the cancel call failed; the task goes on.
            ClientClosedError: the client is closed.
        """
        self._engine.submissions.check(self._submission)
        return await self._engine.canceller.cancel(self._submission)

    async def save(
        self, directory: str | os.PathLike[str], *, output: int | None = None, overwrite: bool = False
    ) -> list[SavedFile]:
        """Wait for the result and write its files to *directory* as `{ticket}-{index}.{ext}`: see `Client.save`.

        Raises:
            DownloadError: a file could not be fetched or written.
            BideError: the same errors as `result`.
            TypeError, ValueError: *directory* or *output* is wrong.
        """
        folder_of(directory)
        check_output(output)
        task = await self.result()
        self._engine.submissions.check(self._submission)
        return await self._engine.saver.save(task, directory, output=output, overwrite=overwrite)

    def as_curl(self, *, create: bool = False) -> str:
        """The status query of this task as a curl command, for a support ticket. Running it costs nothing.

        The key is left out: the command takes it from the provider's environment variable (with several keys, set the
        one that the task was made with). Signatures in addresses, and inline files, are left out too. This sends
        nothing, and works after the client was closed.

        Args:
            create: give the create call instead. **Running that makes, and bills, a new task.**

        Raises:
            ValueError: there is no task id yet; or *create* is true, and the task was made elsewhere.
        """
        return self._engine.account.as_curl(self.task, self.request, create=create)

    async def _wait(self, is_enough: Callable[[Task], bool], timeout: float | None) -> None:
        check_timeout(timeout)
        submissions = self._engine.submissions
        scope = lived_timeout(timeout)
        try:
            async with scope:
                while not is_enough(self.task):
                    await submissions.next_change(self._submission)
        except TimeoutError:
            if timeout is None or not scope.expired():
                raise
            raise _outcomes.wait_timeout(
                self._submission.record, self.task, timeout, submissions.fault_of(self._submission)
            ) from None

    def _result(self) -> Task:
        return _outcomes.result_of(self._submission.record, self.task)


def check_timeout(timeout: float | None) -> None:
    """Raise ValueError unless *timeout* is a number of seconds, 0 or more, or None."""
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and timeout >= 0):
        raise ValueError(f"timeout must be a number of seconds, 0 or more, or None, not {timeout!r}")


class TaskEvents:
    """The iterator of `TaskHandle.events()`: a class, so that leaving the loop early breaks nothing."""

    def __init__(self, engine: Engine, submission: Submission) -> None:
        self._engine = engine
        self._submission = submission
        self._last: Task | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Task:
        while self._last is not None and not self._submission.task.differs(self._last):
            if self._last.status.is_final:
                raise StopAsyncIteration
            await self._engine.submissions.next_change(self._submission)
        self._last = self._submission.task
        return self._last


class AsCompleted:
    """The iterator of `client.as_completed()`: yields each handle when its task is final.

    It is a class and not a generator, so that a cancelled step breaks nothing: the next step goes on. When it is
    dropped or closed, its caller has left; so it has when no step follows a cancelled one.
    """

    def __init__(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        submit: Callable[[Request], Awaitable[tuple[TaskHandle, Submission, Wish]]],
        window: int,
    ) -> None:
        self._source: AsyncIterator[Request] | Iterator[Request] | None
        self._source = aiter(requests) if isinstance(requests, AsyncIterable) else iter(requests)
        self._submit = submit
        self._window = window
        self._open = Completions()
        self._handles: dict[Submission, tuple[TaskHandle, Wish]] = {}
        self._pull: asyncio.Future[Request] | None = None
        self._pulled: Request | None = None
        self._submitting: asyncio.Future[tuple[TaskHandle, Submission, Wish]] | None = None
        self._is_stepping = False
        self._steps = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TaskHandle:
        if self._is_stepping:
            raise RuntimeError(
                "another asyncio task awaits this iterator: make an as_completed() for each task"
            )
        self._is_stepping = True
        self._loop = asyncio.get_running_loop()
        self._steps += 1
        try:
            return await self._step()
        except asyncio.CancelledError:
            # The caller may take the next step, as after a timeout of this one, or may have left the loop.
            loop, step = asyncio.get_running_loop(), self._steps
            loop.call_later(LEFT_SECONDS, _withdraw_if_left, ref(self), step)
            raise
        finally:
            self._is_stepping = False

    def has_taken(self, step: int) -> bool:
        """Whether *step* is the last one, and has ended."""
        return self._steps == step and not self._is_stepping

    async def aclose(self) -> None:
        """Leave the loop: requests that were not sent are withdrawn. Tasks that were sent go on."""
        self._leave()

    def __del__(self) -> None:
        loop = getattr(self, "_loop", None)
        if loop is not None and not loop.is_closed() and (self._handles or self._submitting is not None):
            wishes = [wish for _, wish in self._handles.values()]
            with suppress(RuntimeError):  # the loop was closed meanwhile
                # Python may drop it in any thread.
                loop.call_soon_threadsafe(_leave_all, wishes, self._submitting, self._open)

    def withdraw_unsent(self) -> None:
        """Withdraw what was not sent. A caller that comes back gets these handles as cancelled, and goes on."""
        for _, wish in self._handles.values():
            wish.leave()
        if self._submitting is not None:
            self._submitting.add_done_callback(_leave_when_submitted)

    def _leave(self) -> None:
        self._source = None
        self._open.drop()
        self.withdraw_unsent()
        self._handles.clear()
        self._submitting = None

    async def _step(self) -> TaskHandle:
        while True:
            await self._fill()
            ending = self._open.ready()
            if ending is not None:
                return self._take(*ending)
            if self._source is None and not len(self._open):
                raise StopAsyncIteration
            await self._open.wait()

    def _take(self, submission: Submission, error: BideError | None) -> TaskHandle:
        handle, wish = self._handles.pop(submission)
        if error is None or isinstance(error, ClientClosedError):
            wish.end()
        else:
            self._add(handle, submission, wish)
        if error is not None:
            raise error
        return handle

    def _add(self, handle: TaskHandle, submission: Submission, wish: Wish) -> None:
        self._handles[submission] = (handle, wish)
        self._open.add(submission)

    async def _fill(self) -> None:
        """Take requests and submit them, until the window is full or the source has none at hand."""
        while len(self._open) < self._window:
            if self._pulled is None:
                self._pulled = await self._pull_one()
            if self._pulled is None:
                return
            if self._submitting is None:
                self._submitting = asyncio.ensure_future(self._submit(self._pulled))
            # A cancel here must not touch the submission, which may be sent by now: the next step takes it.
            try:
                submitted = await asyncio.shield(self._submitting)
            except asyncio.CancelledError:
                raise
            except BaseException:
                self._submitting = self._pulled = None
                raise
            self._submitting = self._pulled = None
            self._add(*submitted)

    async def _pull_one(self) -> Request | None:
        """The next request; None if the source has none at hand, or has ended."""
        if self._source is None:
            return None
        if isinstance(self._source, Iterator):
            return self._next(self._source)
        if self._pull is None:
            self._pull = asyncio.ensure_future(anext(self._source))
            self._pull.add_done_callback(lambda _: self._open.poke())
            # A source that has a request at hand answers within one step of the loop.
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


def _withdraw_if_left(iterator: ref[AsCompleted], step: int) -> None:
    """*step* of the iterator was cancelled a while ago: without a later step, its caller has left."""
    completed = iterator()
    if completed is not None and completed.has_taken(step):
        completed.withdraw_unsent()


def _leave_all(
    wishes: Sequence[Wish],
    submitting: asyncio.Future[tuple[TaskHandle, Submission, Wish]] | None,
    completions: Completions,
) -> None:
    """The iterator was dropped: its caller has left."""
    completions.drop()
    for wish in wishes:
        wish.leave()
    if submitting is not None:
        submitting.add_done_callback(_leave_when_submitted)


def _leave_when_submitted(submitting: asyncio.Future[tuple[TaskHandle, Submission, Wish]]) -> None:
    """The iterator was left while it submitted a request."""
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result()[2].leave()


class Gathering:
    """One call of `client.gather`: many requests that are submitted and waited for together."""

    def __init__(self, engine: Engine, records: Sequence[Record]) -> None:
        self._engine = engine
        self._records = records
        self._wishes = [engine.wishes.want(record.ticket) for record in records]
        self._submissions: list[Submission] = []
        self._completions = Completions()

    async def run(self, *, return_exceptions: bool) -> list[Task | BideError]:
        """See `Client.gather`."""
        try:
            outcomes = await self._outcomes(return_exceptions=return_exceptions)
        except BideError as error:
            raise await self._leave_with(error) from None
        except BaseException as error:
            for wish in self._wishes:
                wish.leave()
            self._note_left(error)
            raise
        finally:
            self._completions.drop()
        for wish in self._wishes:
            wish.end()
        return outcomes

    async def _outcomes(self, *, return_exceptions: bool) -> list[Task | BideError]:
        outcomes: dict[str, Task | BideError] = {}
        for record in self._records:
            submission = await self._engine.submit(record)
            self._submissions.append(submission)
            self._completions.add(submission)
        while len(self._completions):
            ending = self._completions.ready()
            if ending is None:
                await self._completions.wait()
                continue
            outcome = _outcome_of(*ending)
            if isinstance(outcome, BideError) and not return_exceptions:
                raise outcome
            outcomes[ending[0].ticket] = outcome
        return [outcomes[record.ticket] for record in self._records]

    async def _leave_with(self, error: BideError) -> BideError:
        """Leave with *error*. Returns it with `bought` and `tickets` as the ledger confirms them."""
        left = await asyncio.gather(*(wish.leave_with(error) for wish in self._wishes))
        bought = {record.ticket: each.bought for record, each in zip(self._records, left, strict=True)}
        if isinstance(error, ClientClosedError):  # the requests were not withdrawn
            bought = dict.fromkeys(bought, False)  # those that were not put on record any more
            bought |= {submission.ticket: submission.record.bought for submission in self._submissions}
            if error.ticket in bought and error.ticket not in {each.ticket for each in self._submissions}:
                bought[error.ticket] = error.bought  # the one that was being put on record
        tickets = tuple(ticket for ticket, each in bought.items() if each is not False)
        of_all = False if not tickets else True if True in bought.values() else None
        fresh = error.about(ticket=error.ticket, task_id=error.task_id, bought=of_all)
        fresh.tickets = tickets
        self._note_left(fresh)
        return fresh

    def _note_left(self, error: BaseException) -> None:
        """Name in *error*'s notes the tasks that go on without the caller."""
        going = [each.task.task_id or each.ticket for each in self._submissions if _goes_on(each.task.status)]
        if going:
            error.add_note(
                f"{len(going)} other tasks of this gather go on: {', '.join(going)}; client.attach(id) follows one, "
                f"return_exceptions=True waits for all"
            )


def _outcome_of(submission: Submission, error: BideError | None) -> Task | BideError:
    """How a wait for *submission* ends: with its task, or with an error. *error* is the one for its waiters, if any."""
    if error is not None:
        return error
    try:
        return _outcomes.result_of(submission.record, submission.task)
    except BideError as raised:
        return raised


def _goes_on(status: TaskStatus) -> bool:
    return status.is_accepted or status is TaskStatus.SUBMITTING
