"""`Downloader`: saves one output in one file, complete or not at all.

The received bytes stay in a part file beside the target, across tries, cancels and crashes. The next try requests the
rest, if the server still has the same version of the file. `fetcher` opens addresses, `ranges` decides what a reply
means, `part_file` writes, `download` combines them. This module limits the downloads at once, sets the deadline and
names the target.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Self

from bide._concurrency import in_thread
from bide._downloads.download import Download, UnusablePartError
from bide._downloads.media_types import extension_of, media_type_of
from bide._downloads.part_file import PartBusyError, PartFile
from bide.errors import DownloadError
from bide.models import SavedFile

if TYPE_CHECKING:
    from types import TracebackType

    from bide._downloads.download import DownloadJob
    from bide._downloads.settings import Downloads
    from bide._http.fetcher import Fetcher

BUSY_RETRY_SECONDS = 0.25
"""Seconds until a part file that another process is writing is opened again."""


class Downloader:
    """Saves outputs, some at a time. Of those that wait, the one that expires first goes first.

    Args:
        terms: how many at once, how large, how long.
    """

    def __init__(self, fetcher: Fetcher, terms: Downloads) -> None:
        self._fetcher = fetcher
        self._terms = terms
        self._semaphore = _PrioritySemaphore(terms.at_once)
        # Not the loop's default threads: there the application's work would wait for our disk, and ours for its work.
        self._threads = ThreadPoolExecutor(terms.at_once, thread_name_prefix="bide-save")

    async def aclose(self) -> None:
        """Release the threads. No download may be under way."""
        self._threads.shutdown(wait=False)

    async def save(self, job: DownloadJob) -> tuple[SavedFile, bool]:
        """Save one output. Returns its file, and whether this call has written it (otherwise it was there already).

        A cancel keeps the received bytes for the next call.

        Raises:
            DownloadError: it cannot be fetched or written.
        """
        expires = job.output.expires_at
        async with _Permit(self._semaphore, expires.timestamp() if expires else math.inf) as permit:
            try:
                return await self._save(job, permit)
            except OSError as fault:
                in_the_way = isinstance(fault, IsADirectoryError | NotADirectoryError | FileExistsError)
                advice = "; move it away, or save to another directory" if in_the_way else ""
                raise DownloadError(
                    f"cannot write to {job.folder}: {fault}{advice}; the result is still at the service",
                    retryable=True,
                ) from None

    async def _save(self, job: DownloadJob, permit: _Permit) -> tuple[SavedFile, bool]:
        await in_thread(self._threads, partial(job.folder.mkdir, parents=True, exist_ok=True))
        part = await self._open_part(job, permit)
        if isinstance(part, SavedFile):
            return part, False
        try:
            media_type = await self._fetch(part, job, permit)
            job.on_progress(part.size, part.size)
            # The content decides, not the server's header; except for JSON, whose content has no signature.
            found = media_type if media_type == "application/json" else media_type_of(part.head)
            target = job.folder / f"{job.stem}.{extension_of(found)}"
            size, digest = part.size, part.sha256()
            try:
                is_new = await in_thread(self._threads, partial(part.finish, target, overwrite=job.overwrite))
            except FileExistsError:
                raise DownloadError(
                    f"{target} is there already, and is another file than this result: save to another directory, or "
                    f"set overwrite to replace it"
                ) from None
            return SavedFile(str(target), size, digest, media_type), is_new
        except UnusablePartError as fault:
            await in_thread(self._threads, part.discard)
            raise fault.error from None
        finally:
            await in_thread(self._threads, part.close)

    async def _open_part(self, job: DownloadJob, permit: _Permit) -> PartFile | SavedFile:
        """The part file, opened for us alone; or the saved file, if another process has finished it meanwhile."""
        clock = asyncio.timeout(self._terms.deadline)
        try:
            async with clock:
                while True:
                    try:
                        opening = partial(PartFile.open, job.folder, job.stem, job.identity)
                        return await in_thread(self._threads, opening, undo=PartFile.close)
                    except PartBusyError:
                        await permit.pause(BUSY_RETRY_SECONDS)
                    saved = None if job.overwrite else await job.find_saved()
                    if saved is not None:
                        return saved
        except TimeoutError:
            if not clock.expired():
                raise
        raise DownloadError(
            f"another process has been saving {job.stem} for {self._terms.deadline:g} s", retryable=True
        )

    async def _fetch(self, part: PartFile, job: DownloadJob, permit: _Permit) -> str | None:
        """Fill *part* with the whole file. Returns its media type."""
        largest = self._terms.largest(job.output.kind)
        download = Download(self._fetcher, self._threads, part, job, largest=largest, pause=permit.pause)
        if job.output.data is not None:
            return await download.decode(job.output.data)
        clock = asyncio.timeout(self._terms.deadline)
        try:
            async with clock:
                return await download.fetch()
        except TimeoutError:
            if not clock.expired():
                raise
        raise DownloadError(
            f"{job.stem} was not complete within {self._terms.deadline:g} s: {part.size} of {part.total or '?'} bytes "
            f"came; save again to continue",
            retryable=True,
        )


class _PrioritySemaphore:
    """A semaphore that gives its next permit to the most urgent waiter."""

    def __init__(self, permits: int) -> None:
        self._free = permits
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    async def acquire(self, urgency: float) -> None:
        """Wait for a permit; `release` must follow. The lower *urgency* is, the sooner."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (urgency, next(self._numbers), turn)
        heapq.heappush(self._waiting, waiting)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # we got the permit at that moment
                self.release()
            elif waiting in self._waiting:  # `release` may have removed it already
                self._waiting.remove(waiting)
                heapq.heapify(self._waiting)
            raise

    def release(self) -> None:
        """Give the permit to the most urgent waiter, or keep it free."""
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class _Permit:
    """One permit of the semaphore, held during an `async with` block."""

    def __init__(self, semaphore: _PrioritySemaphore, urgency: float) -> None:
        self._semaphore = semaphore
        self._urgency = urgency
        self._is_held = False

    async def __aenter__(self) -> Self:
        await self._semaphore.acquire(self._urgency)
        self._is_held = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_held:
            self._semaphore.release()

    async def pause(self, seconds: float) -> None:
        """Wait *seconds*; another download may have the permit meanwhile."""
        if seconds <= 0:
            return
        self._is_held = False
        self._semaphore.release()
        await asyncio.sleep(seconds)
        await self._semaphore.acquire(-math.inf)  # first of all waiters: its deadline is running
        self._is_held = True
