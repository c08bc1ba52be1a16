"""Blocking work in threads, and waiting that ends only when the work has."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from bide.errors import ClientClosedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

_T = TypeVar("_T")


async def in_thread(
    executor: Executor | None, work: Callable[[], _T], *, undo: Callable[[_T], object] | None = None
) -> _T:
    """Do *work* in a thread. A cancel waits for its end: it must not write, or hold a file, behind our back.

    Args:
        undo: called with what *work* has returned if nobody waits for it any more.
    """
    return await finished(asyncio.get_running_loop().run_in_executor(executor, work), undo=undo)


async def finished(job: asyncio.Future[_T], *, undo: Callable[[_T], object] | None = None) -> _T:
    """What *job* returns. A cancel waits for its end, see `in_thread`."""
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await ended(job)
        if not job.cancelled() and job.exception() is None and undo is not None:
            with suppress(OSError):
                undo(job.result())
        raise


async def ended(job: asyncio.Future[Any]) -> None:
    """Wait until *job* is done, however often this wait is cancelled: use it where that takes moments."""
    while not job.done():
        # anyio cancels again at each await, asyncio as often as it is asked to.
        with anyio.CancelScope(shield=True), suppress(asyncio.CancelledError):
            await asyncio.wait([job])


async def unless_closed(task: asyncio.Task[_T]) -> _T:
    """Wait for a *task* of ours, which goes on when this wait is cancelled.

    Raises:
        ClientClosedError: the client was closed, and *task* ended with it.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        me = asyncio.current_task()
        if task.cancelled() and (me is None or not me.cancelling()):
            raise ClientClosedError("the client was closed meanwhile") from None
        raise
