"""The background tasks of one client, blocking work in threads, and waits that end only when the work has ended."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio

from bide.errors import ClientClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor
    from types import TracebackType

log = logging.getLogger("bide")

_T = TypeVar("_T")

LATE_SECONDS = 0.5
"""A timer that is later than this shows that the loop did not run."""
MOMENT_SECONDS, MOST_MOMENTS = 1.0, 3
"""How many seconds a late timeout gives to the tasks that wait, and how often: with a loop that is always late, the
timeout must end, too."""


class Background:
    """The asyncio tasks of one client. Make it inside the running loop: the client belongs to that loop and process."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._has_ended = False

    def clock(self) -> float:
        """Seconds by the clock of the loop."""
        return self._loop.time()

    def spawn(self, work: Coroutine[object, object, _T]) -> asyncio.Task[_T]:
        """Run *work* in a task of its own. `end_tasks` cancels it if it is still running."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("a background task failed: %r", task.exception())

    async def end_tasks(self) -> None:
        """Cancel all tasks but the current one, and wait for their end."""
        self._has_ended = True
        rest = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest)

    # The end of the client ---------------------------------------------------------------------------------

    @property
    def is_closing(self) -> bool:
        """Whether `close` was called."""
        return self._closing is not None

    @property
    def is_over(self) -> bool:
        """Whether a task that is spawned now would never run to its end."""
        return self._has_ended or self._loop.is_closed() or self.is_inherited

    async def close(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run *work* to close the client, or wait for an earlier call that does so. A cancel does not end it early."""
        if self._closing is None:
            self._closing = self._loop.create_task(work())
        with anyio.CancelScope(shield=True):
            await asyncio.shield(self._closing)

    # Who may use the client --------------------------------------------------------------------------------

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a fork: not the process that made the client."""
        return os.getpid() != self._process

    def check(self) -> None:
        """Raise unless the client is open, and this is its loop and process.

        Raises:
            ClientClosedError: the client is closed.
            RuntimeError: another loop or process uses it.
        """
        self.check_place()
        if self._closing is not None:
            raise ClientClosedError("the client is closed; make a new one")

    def check_place(self) -> None:
        """Raise RuntimeError unless this is the loop and the process of the client."""
        if self.is_inherited:
            raise RuntimeError(
                f"this client belongs to process {self._process}, and this is process {os.getpid()}: after a fork each "
                f"process needs a Client of its own, made after the fork"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                "this client belongs to another event loop: use it in the loop that it was first used in, or make one "
                "Client for each loop"
            )


class lived_timeout:  # noqa: N801 - used like `asyncio.timeout`
    """`asyncio.timeout` for a process that may be stopped, or whose loop may be blocked.

    When such a loop runs again, its timers are due before the waiting tasks have read what has arrived meanwhile. So a
    timeout that is late first gives these tasks some time.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._scope = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._moments = MOST_MOMENTS

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._scope.__aenter__()
        if self._seconds is not None:
            self._set(self._seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._scope.__aexit__(kind, error, trace)

    def expired(self) -> bool:
        """Whether the time has run out."""
        return self._scope.expired()

    def _set(self, seconds: float) -> None:
        when = self._loop.time() + seconds
        self._timer = self._loop.call_at(when, self._run_out, when)

    def _run_out(self, when: float) -> None:
        if self._loop.time() - when > LATE_SECONDS and self._moments:
            self._moments -= 1
            self._set(MOMENT_SECONDS)
        else:
            self._scope.reschedule(self._loop.time())


async def in_thread(
    executor: Executor | None, work: Callable[[], _T], *, undo: Callable[[_T], object] | None = None
) -> _T:
    """Run *work* in a thread. A cancel still waits for its end, so no thread uses a file after the caller has left.

    Args:
        undo: called with the return value of *work* if this wait was cancelled meanwhile.
    """
    return await wait_to_end(asyncio.get_running_loop().run_in_executor(executor, work), undo=undo)


async def wait_to_end(job: asyncio.Future[_T], *, undo: Callable[[_T], object] | None = None) -> _T:
    """Return the result of *job*. A cancel still waits for its end: see `in_thread`."""
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await wait_done(job)
        if not job.cancelled() and job.exception() is None and undo is not None:
            with suppress(OSError):
                undo(job.result())
        raise


async def wait_done(job: asyncio.Future[Any]) -> None:
    """Wait until *job* is done, even if this wait is cancelled several times. Use it only for a short *job*."""
    while not job.done():
        # anyio cancels again at each await; asyncio cancels once for each call of `cancel`.
        with anyio.CancelScope(shield=True), suppress(asyncio.CancelledError):
            await asyncio.wait([job])


async def wait_unless_closed(task: asyncio.Future[_T]) -> _T:
    """Wait for a background *task*, which goes on when this wait is cancelled.

    Raises:
        ClientClosedError: the client was closed, and *task* was cancelled with it.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        me = asyncio.current_task()
        if task.cancelled() and (me is None or not me.cancelling()):
            raise ClientClosedError("the client was closed meanwhile") from None
        raise
