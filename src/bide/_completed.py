"""Waiting for many handles at once: without a task for each, in the order in which they end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Self, TypeAlias

from bide.errors import BideError, ClientClosedError
from bide.models import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from bide._handles import TaskHandle
    from bide.models import Request, Task

    Ending: TypeAlias = tuple[TaskHandle, BideError | None]


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
