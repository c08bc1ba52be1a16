"""`Download`: fills one part file, from the network with several tries, or from the inline text of a reply."""

from __future__ import annotations

import asyncio
import base64
import math
import re
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from attrs import frozen

from bide import _outside
from bide._concurrency import in_thread
from bide._downloads.media_types import is_text, media_type_of
from bide._downloads.ranges import (
    AddressRefused,
    Complete,
    Partial,
    Permanent,
    Rest,
    Restart,
    RetryLater,
    Whole,
    meaning_of,
)
from bide._downloads.writer import Writer
from bide._http.fetcher import CutError, ForbiddenError
from bide._text import excerpt, redact, redact_url
from bide.errors import BideError, DownloadError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from bide._downloads.part_file import PartFile
    from bide._http.fetcher import Fetcher, FileReply
    from bide.models import Output, SavedFile

BASE64_SLICE_CHARACTERS = 64 * 1024
"""Characters of base64 that are decoded at once: decoding blocks the event loop. A multiple of 4."""
MAX_FRUITLESS_TRIES = 6
"""Tries in a row without progress after which the download fails."""
PROGRESS_BYTES = 64 * 1024
"""New bytes that count as progress; near the end of a file, half of the missing bytes count."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0
"""Seconds between two tries without progress, at first and at most; half of it at least, at random."""
LONGEST_RETRY_AFTER_SECONDS = 60.0
"""The longest `Retry-After` that the download waits for. After a longer one it fails, and the caller saves again."""
MAX_REFRESHES = 20
"""Fresh addresses that are requested at most while one file is fetched."""
CHUNKS_PER_TURN = 100
"""Chunks of a body after which other tasks of the event loop run, however small the chunks are."""
SLOW_SECONDS, SLOW_BYTES = 30.0, 16 * 1024
"""A connection with fewer than SLOW_BYTES in SLOW_SECONDS counts as cut: another one may be faster."""

_MEDIA_KINDS = ("image", "video", "audio")
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,40}/[a-z0-9][a-z0-9.+-]{0,60}")


@frozen
class DownloadJob:
    """One output to save.

    Attributes:
        stem: the file's name without extension; the content decides the extension.
        identity: identifies the output. A part file with another identity is emptied.
        refresh: polls the task for the output again, since its address may have changed; a poll made after that moment
            (of the loop's clock) is shared. Returns None if the service gives no address.
        on_progress: called with the number of bytes on disk or on their way there, and with the length of the whole
            file if that is known.
        find_saved: returns the file if this or another client has saved it already.
    """

    output: Output
    folder: Path
    stem: str
    identity: str
    overwrite: bool
    refresh: Callable[[float], Awaitable[Output | None]]
    on_progress: Callable[[int, int | None], None]
    find_saved: Callable[[], Awaitable[SavedFile | None]]


class UnusablePartError(Exception):
    """The download has failed, and the bytes in the part file are of no use for another one."""

    def __init__(self, error: DownloadError) -> None:
        super().__init__(str(error))
        self.error = error


class RetryError(Exception):
    """This try has failed; another one may succeed. *after*: the seconds that the server asks to wait."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class AddressError(Exception):
    """The address does not work, or works no longer."""


@frozen
class _Refresh:
    """One refresh of the address.

    Attributes:
        found: whether the service gave an address.
        had_expired: whether that had expired already.
        size: the size of the part file at that time, in bytes.
    """

    found: bool
    had_expired: bool
    size: int


class Download:
    """The download of one output to one part file.

    Args:
        largest: the most bytes that the file may have.
        pause: waits a number of seconds; other downloads may run meanwhile.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        threads: Executor,
        part: PartFile,
        job: DownloadJob,
        *,
        largest: int,
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._fetcher = fetcher
        self._threads = threads
        self._part = part
        self._job = job
        self._largest = largest
        self._pause = pause
        self._output = job.output
        self._declared: str | None = None
        self._is_framed = True
        self._refreshes: list[_Refresh] = []
        self._refreshed_at = asyncio.get_running_loop().time()  # the address is at least as old as this

    async def fetch(self) -> str | None:
        """Fetch the file, with several tries. Returns its media type.

        Raises:
            DownloadError, UnusablePartError: the file cannot be fetched.
        """
        part = self._part
        if self._output.url is None or _has_expired(self._output):
            with suppress(BideError):  # our clock may be wrong: the next try shows whether the address works
                await self._refresh_address()
        failures, best = 0, part.size
        while True:
            if self._output.data is not None:
                return await self.decode(self._output.data)
            try:
                return await self._try(self._output.url)
            except AddressError as fault:
                if not (self._may_refresh() and await self._refresh_address()):
                    raise self._refused_error(fault) from None
            except RetryError as fault:
                missing = (part.total or math.inf) - best
                failures = failures + 1 if part.size < best + max(1, min(PROGRESS_BYTES, missing / 2)) else 0
                best = max(best, part.size)
                if failures >= MAX_FRUITLESS_TRIES or (fault.after or 0.0) > LONGEST_RETRY_AFTER_SECONDS:
                    raise self._given_up_error(fault) from None
                await self._pause(_pause_seconds(failures, fault.after))

    # Addresses -----------------------------------------------------------------------------------------------

    def _may_refresh(self) -> bool:
        """Whether this is the first time, or the last fresh address brought progress or has expired since."""
        if not self._refreshes:
            return True
        last = self._refreshes[-1]
        expired_since = not last.had_expired and _has_expired(self._output)
        progressed = self._part.size >= last.size + PROGRESS_BYTES
        return last.found and (progressed or expired_since) and len(self._refreshes) < MAX_REFRESHES

    async def _refresh_address(self) -> bool:
        """Request the output again. Returns whether the service still has it."""
        fresh = await self._job.refresh(self._refreshed_at)
        self._refreshed_at = asyncio.get_running_loop().time()
        self._output = fresh or self._output
        self._refreshes.append(_Refresh(fresh is not None, _has_expired(self._output), self._part.size))
        return fresh is not None

    def _refused_error(self, fault: AddressError) -> UnusablePartError | DownloadError:
        ends = self._output.expires_at
        until = f" (this one until {ends:%Y-%m-%d %H:%M} UTC)" if ends else ""
        kept = f"results are kept for a limited time{until}"
        if self._refreshes and (not self._refreshes[-1].found or self._refreshes[-1].had_expired):
            return UnusablePartError(
                DownloadError(
                    f"{fault}: {kept}, and the service gives no address that works: the result is lost"
                )
            )
        return DownloadError(
            f"{fault}, and the fresh address of the service failed too: {kept}; save again later",
            retryable=True,
        )

    def _given_up_error(self, fault: RetryError) -> DownloadError:
        part = self._part
        kept = f"; {part.size} of {part.total or '?'} bytes came and are kept" if part.size else ""
        when = f" after {fault.after:.0f} s, as its server asks" if fault.after else ""
        return DownloadError(
            f"{self._job.stem} could not be fetched: {fault}{kept}; the result is still at the service: save "
            f"again{when}",
            retryable=True,
            retry_after=fault.after,
        )

    # One try -------------------------------------------------------------------------------------------------

    async def _try(self, url: str | None) -> str | None:
        if url is None:
            raise AddressError(f"the service no longer gives an address for {self._job.stem}")
        part = self._part
        on_disk = Partial(part.size, part.validator, part.total)
        if not part.size or part.size != part.total:
            try:
                async with self._fetcher.open(url, on_disk.range_headers) as reply:
                    await self._take(reply, on_disk)
            except CutError as fault:
                raise RetryError(str(fault)) from None
            except ForbiddenError as fault:
                raise DownloadError(str(fault)) from None
        return await self._check_end()

    async def _take(self, reply: FileReply, on_disk: Partial) -> None:
        """Act on a reply."""
        self._declared = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        meaning = meaning_of(reply.status, reply.headers, on_disk)
        match meaning:
            case Whole(validator, total, is_framed):
                self._is_framed = is_framed
                self._check_size(total or 0)
                begin = partial(self._part.begin, validator=validator, total=total)
                await self._receive(reply, total, total, begin)
            case Rest(expected, total):
                self._part.total = total
                self._is_framed = total is not None
                await self._receive(reply, expected, total)
            case Complete():
                self._part.total, self._is_framed = on_disk.size, True
            case Restart(why):
                await self._empty_part()
                raise RetryError(f"{reply.place}: {why}")
            case RetryLater(why, after):
                raise RetryError(f"{reply.place} answered {why}", after)
            case AddressRefused(status):
                raise AddressError(f"{reply.place} answered HTTP {status}")
            case Permanent(why):
                raise DownloadError(
                    f"{reply.place} answered {why}, which is no file: ask the service, or fetch it with another tool"
                )

    async def _receive(
        self,
        reply: FileReply,
        expected: int | None,
        total: int | None,
        begin: Callable[[], None] | None = None,
    ) -> None:
        """Write the body to the part file. The bytes before a cut are written, too.

        Args:
            expected: the bytes of the body, if the server states them.
            total: the bytes of the whole file, if the server states them.
            begin: empties the part file. It is called when the first bytes show that the body is no error page.
        """
        writer = Writer(self._threads, self._part, self._check_head, begin)
        loop = asyncio.get_running_loop()
        came, pieces, since, before = 0, 0, loop.time(), 0
        size = 0 if begin is not None else self._part.size
        self._job.on_progress(size, total)
        async with writer:
            async for chunk in reply.chunks:
                came, pieces = came + len(chunk), pieces + 1
                self._check_size(size + came)
                if expected is not None and came > expected:
                    break  # bytes beyond the range are of unknown origin
                if not pieces % CHUNKS_PER_TURN:  # if all chunks are in memory already, nothing below waits
                    await asyncio.sleep(0)
                await writer.put(chunk)
                self._job.on_progress(size + came, total)
                if loop.time() - since >= SLOW_SECONDS:
                    if came - before < SLOW_BYTES:
                        raise CutError(f"{reply.place}: {came - before} bytes in {SLOW_SECONDS:g} s")
                    since, before = loop.time(), came
        if not came:
            raise RetryError(f"{reply.place}: the file is empty: no byte came")
        if expected is not None and came != expected:
            if came > expected:
                await self._empty_part()
            raise RetryError(f"{reply.place} broke off: {came} of {expected} bytes came")

    async def _check_end(self) -> str | None:
        """Check that the file is complete. Returns its media type."""
        part, kind = self._part, self._output.kind
        media_type = (
            media_type_of(part.head)
            or _plausible_type(self._declared)
            or _plausible_type(self._output.media_type)
        )
        place = self._place()
        if not part.size:
            raise RetryError(f"{place}: the file is empty: no byte came")
        if part.total is not None and part.size < part.total:
            raise RetryError(f"{place} broke off: {part.size} of {part.total} bytes came")
        why = await in_thread(self._threads, partial(part.find_truncation, media_type))
        if why is None and not self._is_framed:
            is_whole = await in_thread(self._threads, partial(part.proves_whole, media_type))
            why = None if is_whole else "the server does not state its length, so a cut would not show"
        if why is not None:
            await self._empty_part()
            raise RetryError(f"{place}: the {kind} is not complete: {why}")
        return media_type

    def _place(self) -> str:
        """Where the file comes from, for errors."""
        return "the inline result" if self._output.url is None else redact_url(self._output.url)

    async def _empty_part(self) -> None:
        await in_thread(self._threads, partial(self._part.begin, validator=None, total=None))

    def _check_size(self, size: int) -> None:
        if size > self._largest:
            limit = "largest_image" if self._output.kind == "image" else "largest_video"
            raise UnusablePartError(
                DownloadError(
                    f"the {self._output.kind} {self._job.stem} has {size} bytes or more, and {self._largest} are "
                    f"allowed: allow more with Client(downloads=Downloads({limit}=...))"
                )
            )

    def _check_head(self, head: bytes) -> None:
        """Raise RetryError if text came instead of a media file: an error page, whatever its declared type."""
        if self._output.kind in _MEDIA_KINDS and media_type_of(head) is None and is_text(head):
            words = excerpt(redact(head.decode("utf-8", "replace")), 80)
            raise RetryError(
                f"{self._place()} answered with text and not with the {self._output.kind} "
                f"({excerpt(self._declared or 'of no type', 60)}): {words}"
            )

    async def decode(self, data: str) -> str | None:
        """Decode *data* from base64 and write it, slice by slice, so that the event loop runs in between.

        Raises:
            DownloadError, UnusablePartError: it is not base64, or too large.
        """
        self._declared = None
        if data.startswith("data:"):
            head, _, data = data.partition(",")
            self._declared = head.removeprefix("data:").partition(";")[0]
        begin = partial(self._part.begin, validator=None, total=None)
        rest, came, total = "", 0, len(data) // 4 * 3 - data.count("=", -2)
        try:
            async with Writer(self._threads, self._part, self._check_head, begin) as writer:
                for start in range(0, len(data), BASE64_SLICE_CHARACTERS):
                    text = rest + "".join(data[start : start + BASE64_SLICE_CHARACTERS].split())
                    cut = len(text) - len(text) % 4
                    rest = text[cut:]
                    piece = base64.b64decode(text[:cut], validate=True)
                    came += len(piece)
                    self._check_size(came)
                    await writer.put(piece)
                    self._job.on_progress(came, total)
                    await asyncio.sleep(0)
            if rest:
                raise ValueError("its end is missing")
            return await self._check_end()
        except ValueError as fault:
            raise DownloadError(f"the inline result {self._job.stem} is not base64: {fault}") from None
        except RetryError as fault:
            raise DownloadError(f"the inline result {self._job.stem} cannot be used: {fault}") from None


def _has_expired(output: Output) -> bool:
    return output.expires_at is not None and output.expires_at <= _outside.utc_now()


def _pause_seconds(failures: int, after: float | None) -> float:
    """Seconds until the next try: 0 after a try with progress, unless the server asks for a wait."""
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (failures - 1)) if failures else 0.0
    return max(after or 0.0, longest * _outside.chance.uniform(0.5, 1.0))


def _plausible_type(media_type: str | None) -> str | None:
    """*media_type* if it is spelled like one; else None."""
    return media_type if media_type and _MEDIA_TYPE.fullmatch(media_type) else None
