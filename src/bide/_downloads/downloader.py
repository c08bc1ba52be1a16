"""Bringing results home: one output into one file, whole or not at all, whatever the connection does meanwhile.

What has come stays in a part file beside the target, across tries, cancels and crashes: the next try asks for the rest,
if the server still has the same version of the file. `_fetching` opens addresses, `_ranges` decides what an answer
means, `_part` writes, `_filling` puts them together; here are the places, the deadline and the target.
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
from bide._downloads.download import Filling, UselessError
from bide._downloads.media_types import extension_of, media_type_of
from bide._downloads.part_file import PartBusyError, PartFile
from bide.errors import DownloadError
from bide.models import SavedFile

if TYPE_CHECKING:
    from types import TracebackType

    from bide._downloads.download import Job
    from bide._downloads.settings import Downloads
    from bide._http.fetcher import Fetcher

BUSY_POLL = 0.25
"""Seconds until a part file is looked at again that somebody else is writing."""


class Downloader:
    """Brings outputs home, some at a time, the one that expires first of those that wait.

    Args:
        terms: how many at once, how large, how long.
    """

    def __init__(self, fetcher: Fetcher, terms: Downloads) -> None:
        self._fetcher = fetcher
        self._terms = terms
        self._gate = _Gate(terms.at_once)
        # Of our own: what an application does in the loop's default threads would wait for disks, and the other way.
        self._threads = ThreadPoolExecutor(terms.at_once, thread_name_prefix="bide-save")

    async def aclose(self) -> None:
        """Let go of the threads. No download is under way any more."""
        self._threads.shutdown(wait=False)

    async def save(self, job: Job) -> tuple[SavedFile, bool]:
        """Bring one output home. Returns its file, and whether it was written now (else it was there already).

        Cancelling this keeps what has come for the next time.

        Raises:
            DownloadError: it cannot be fetched or written.
        """
        expires = job.output.expires_at
        async with _Place(self._gate, expires.timestamp() if expires else math.inf) as place:
            try:
                return await self._save(job, place)
            except OSError as fault:
                in_the_way = isinstance(fault, IsADirectoryError | NotADirectoryError | FileExistsError)
                advice = "; move it away, or save to another directory" if in_the_way else ""
                raise DownloadError(
                    f"cannot write to {job.folder}: {fault}{advice}; the result is still at the service",
                    retryable=True,
                ) from None

    async def _save(self, job: Job, place: _Place) -> tuple[SavedFile, bool]:
        await in_thread(self._threads, partial(job.folder.mkdir, parents=True, exist_ok=True))
        part = await self._opened(job, place)
        if isinstance(part, SavedFile):
            return part, False
        try:
            media_type = await self._fill(part, job, place)
            job.heard(part.size, part.size)
            # Never the server's word for it, but for JSON, which has no mark of its own.
            told = media_type if media_type == "application/json" else media_type_of(part.head)
            target = job.folder / f"{job.stem}.{extension_of(told)}"
            size, digest = part.size, part.sha256()
            try:
                is_new = await in_thread(self._threads, partial(part.finish, target, overwrite=job.overwrite))
            except FileExistsError:
                raise DownloadError(
                    f"{target} is there already, and is another file than this result: save to another directory, or "
                    f"with overwrite=True to replace it"
                ) from None
            return SavedFile(str(target), size, digest, media_type), is_new
        except UselessError as fault:
            await in_thread(self._threads, part.discard)
            raise fault.told from None
        finally:
            await in_thread(self._threads, part.close)

    async def _opened(self, job: Job, place: _Place) -> PartFile | SavedFile:
        """The part file, once it is ours; or the result, if whoever had it has finished it."""
        clock = asyncio.timeout(self._terms.deadline)
        try:
            async with clock:
                while True:
                    try:
                        opening = partial(PartFile.open, job.folder, job.stem, job.identity)
                        return await in_thread(self._threads, opening, undo=PartFile.close)
                    except PartBusyError:
                        await place.pause(BUSY_POLL)
                    there = None if job.overwrite else await job.there()
                    if there is not None:
                        return there
        except TimeoutError:
            if not clock.expired():
                raise
        raise DownloadError(
            f"{job.stem} is being saved by another process since {self._terms.deadline:g} s", retryable=True
        )

    async def _fill(self, part: PartFile, job: Job, place: _Place) -> str | None:
        """Make *part* whole. Returns the media type."""
        largest = self._terms.largest(job.output.kind)
        filling = Filling(self._fetcher, self._threads, part, job, largest=largest, pause=place.pause)
        if job.output.data is not None:
            return await filling.decode(job.output.data)
        clock = asyncio.timeout(self._terms.deadline)
        try:
            async with clock:
                return await filling.fetch()
        except TimeoutError:
            if not clock.expired():
                raise
        raise DownloadError(
            f"{job.stem} was not there within {self._terms.deadline:g} s: {part.size} of {part.total or '?'} bytes "
            f"came; save again to go on",
            retryable=True,
        )


class _Gate:
    """So many places; of those who wait the most urgent one goes first."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    async def enter(self, urgency: float) -> None:
        """Wait for a place; `leave` must follow. The lower *urgency* is, the sooner."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (urgency, next(self._numbers), turn)
        heapq.heappush(self._waiting, waiting)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was our turn in that very moment
                self.leave()
            elif waiting in self._waiting:  # `leave` may have met it already
                self._waiting.remove(waiting)
                heapq.heapify(self._waiting)
            raise

    def leave(self) -> None:
        """Let the next one in."""
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class _Place:
    """A place behind the gate, for as long as the block lasts."""

    def __init__(self, gate: _Gate, urgency: float) -> None:
        self._gate = gate
        self._urgency = urgency
        self._is_held = False

    async def __aenter__(self) -> Self:
        await self._gate.enter(self._urgency)
        self._is_held = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_held:
            self._gate.leave()

    async def pause(self, seconds: float) -> None:
        """Wait so long, and let somebody else have the place meanwhile."""
        if seconds <= 0:
            return
        self._is_held = False
        self._gate.leave()
        await asyncio.sleep(seconds)
        await self._gate.enter(-math.inf)  # its deadline goes on
        self._is_held = True
