"""Filling one part file: over the network by as many tries as make sense, or from text that came inline."""

from __future__ import annotations

import asyncio
import base64
import math
import random
import re
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from attrs import frozen

from bide._concurrency import in_thread
from bide._downloads.media_types import is_text, media_type_of
from bide._downloads.ranges import (
    Begin,
    Complete,
    GoOn,
    Have,
    Hopeless,
    Later,
    Refused,
    StartOver,
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
    from bide._http.fetcher import Answer, Fetcher
    from bide.models import Output, SavedFile

_T = TypeVar("_T")

SLICE = 64 * 1024
"""Characters of base64 that are decoded in one go: it holds up the event loop. A multiple of 4."""
TRIES = 6
"""Tries in a row that may bring next to nothing before a download is given up."""
PROGRESS = 64 * 1024
"""Bytes that a try must bring not to count as one of these; at the end of a file, the half of what is missing."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
LONGEST_WAIT = 60.0
"""Seconds of a `Retry-After` that are waited for; for longer ones the next `save` is the next try."""
LOOKS = 20
"""Fresh addresses that are asked for at most while one file is fetched."""
TURN = 100
"""Pieces of a body after which others have a turn, however small they are."""
LULL, LEAST = 30.0, 16 * 1024
"""A connection that brings fewer than so many bytes in so many seconds counts as cut: another one may be faster."""

_MEDIA = ("image", "video", "audio")
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,40}/[a-z0-9][a-z0-9.+-]{0,60}")


@frozen
class Job:
    """One output to bring home.

    Attributes:
        stem: of the file's name; the extension is told by the content.
        identity: names the output: what has come of another one is of no use for it.
        fresh: asks the service for the output once more, unless somebody has after that moment (of the loop's clock):
            its address may be another one by now. None if it has none.
        heard: called with the bytes that are there, and the length of the whole where that is known.
        there: the target, if it was saved already, by us or by others.
    """

    output: Output
    folder: Path
    stem: str
    identity: str
    overwrite: bool
    fresh: Callable[[float], Awaitable[Output | None]]
    heard: Callable[[int, int | None], None]
    there: Callable[[], Awaitable[SavedFile | None]]


class UselessError(Exception):
    """Given up, and what has come is of no use for a next time."""

    def __init__(self, told: DownloadError) -> None:
        super().__init__(str(told))
        self.told = told


class _AgainError(Exception):
    """This try has failed; another may do better. *after* are the seconds that the server asks to wait."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class _RefusedError(Exception):
    """The address does not work, or no longer."""


@frozen
class _Look:
    """A look at the task for a fresh address: whether there was one, whether that had ended by then already, and what
    was here of the file."""

    found: bool
    had_ended: bool
    size: int


class Filling:
    """One part file being filled.

    Args:
        largest: bytes that it may have.
        pause: waits so many seconds, and lets others go on meanwhile.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        threads: Executor,
        part: PartFile,
        job: Job,
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
        self._looks: list[_Look] = []
        self._since = asyncio.get_running_loop().time()  # the address is as old as that, or older

    async def fetch(self) -> str | None:
        """Fetch the file, by as many tries as make sense. Returns its media type.

        Raises:
            DownloadError, UselessError: it cannot be fetched, now or ever.
        """
        part = self._part
        if self._output.url is None or _has_ended(self._output):
            with suppress(BideError):  # our clock may be wrong: the address says whether it works
                await self._look_again()
        failures, best = 0, part.size
        while True:
            if self._output.data is not None:
                return await self.decode(self._output.data)
            try:
                return await self._try(self._output.url)
            except _RefusedError as fault:
                if not (self._may_look_again() and await self._look_again()):
                    raise self._refused(fault) from None
            except _AgainError as fault:
                missing = (part.total or math.inf) - best
                failures = failures + 1 if part.size < best + max(1, min(PROGRESS, missing / 2)) else 0
                best = max(best, part.size)
                if failures >= TRIES or (fault.after or 0.0) > LONGEST_WAIT:
                    raise self._given_up(fault) from None
                await self._pause(_pause(failures, fault.after))

    # Addresses -----------------------------------------------------------------------------------------------

    def _may_look_again(self) -> bool:
        """Once; and again if the fresh address has brought something, or has ended since."""
        if not self._looks:
            return True
        last, ended_since = self._looks[-1], not self._looks[-1].had_ended and _has_ended(self._output)
        progressed = self._part.size >= last.size + PROGRESS
        return last.found and (progressed or ended_since) and len(self._looks) < LOOKS

    async def _look_again(self) -> bool:
        """Ask for the output once more; whether the service still has it."""
        fresh = await self._job.fresh(self._since)
        self._since = asyncio.get_running_loop().time()
        self._output = fresh or self._output
        self._looks.append(_Look(fresh is not None, _has_ended(self._output), self._part.size))
        return fresh is not None

    def _refused(self, fault: _RefusedError) -> UselessError | DownloadError:
        ends = self._output.expires_at
        until = f" (this one until {ends:%Y-%m-%d %H:%M} UTC)" if ends else ""
        kept = f"results are kept for a limited time{until}"
        if self._looks and (not self._looks[-1].found or self._looks[-1].had_ended):
            return UselessError(
                DownloadError(
                    f"{fault}: {kept}, and the service gives no address that works: the result is gone"
                )
            )
        return DownloadError(
            f"{fault}, and so did the address that the service gave anew: {kept}; save again in a while",
            retryable=True,
        )

    def _given_up(self, fault: _AgainError) -> DownloadError:
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
            raise _RefusedError(f"the service gives no address for {self._job.stem} any more")
        part = self._part
        have = Have(part.size, part.validator, part.total)
        if not part.size or part.size != part.total:
            try:
                async with self._fetcher.open(url, have.asks) as answer:
                    await self._take(answer, have)
            except CutError as fault:
                raise _AgainError(str(fault)) from None
            except ForbiddenError as fault:
                raise DownloadError(str(fault)) from None
        return await self._checked()

    async def _take(self, answer: Answer, have: Have) -> None:
        """Do what an answer means."""
        self._declared = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        meaning = meaning_of(answer.status, answer.headers, have)
        match meaning:
            case Begin(validator, total, is_framed):
                self._is_framed = is_framed
                self._check_size(total or 0)
                begin = partial(self._part.begin, validator=validator, total=total)
                await self._receive(answer, total, total, begin)
            case GoOn(expected, total):
                self._part.total = total
                self._is_framed = total is not None
                await self._receive(answer, expected, total)
            case Complete():
                self._part.total, self._is_framed = have.size, True
            case StartOver(why):
                await self._empty()
                raise _AgainError(f"{answer.place}: {why}")
            case Later(why, after):
                raise _AgainError(f"{answer.place} answered {why}", after)
            case Refused(status):
                raise _RefusedError(f"{answer.place} answered HTTP {status}")
            case Hopeless(why):
                raise DownloadError(
                    f"{answer.place} answered {why}, which is no file: ask the service, or fetch it by hand"
                )

    async def _receive(
        self,
        answer: Answer,
        expected: int | None,
        total: int | None,
        begin: Callable[[], None] | None = None,
    ) -> None:
        """Write the body to the part file; what has come before a cut is written, too.

        Args:
            expected: bytes of the body; *total*: of the whole file, where they are told.
            begin: empties the part. That waits until the body shows that it is no page about some fault.
        """
        writer = Writer(self._threads, self._part, self._check_head, begin)
        loop = asyncio.get_running_loop()
        came, pieces, since, before = 0, 0, loop.time(), 0
        size = 0 if begin is not None else self._part.size
        self._job.heard(size, total)
        async with writer:
            async for chunk in answer.chunks:
                came, pieces = came + len(chunk), pieces + 1
                self._check_size(size + came)
                if expected is not None and came > expected:
                    break  # what comes beyond its range is nobody knows what
                if not pieces % TURN:  # they may all be there already: then nothing below ever waits
                    await asyncio.sleep(0)
                await writer.put(chunk)
                self._job.heard(size + came, total)
                if loop.time() - since >= LULL:
                    if came - before < LEAST:
                        raise CutError(f"{answer.place}: {came - before} bytes in {LULL:g} s")
                    since, before = loop.time(), came
        if not came:
            raise _AgainError(f"{answer.place}: the file is empty: no byte came")
        if expected is not None and came != expected:
            if came > expected:
                await self._empty()
            raise _AgainError(f"{answer.place} broke off: {came} of {expected} bytes came")

    async def _checked(self) -> str | None:
        """What the file is, now that no more of it comes."""
        part, kind = self._part, self._output.kind
        media_type = media_type_of(part.head) or _clean(self._declared) or _clean(self._output.media_type)
        place = "the inline result" if self._output.url is None else redact_url(self._output.url)
        if not part.size:
            raise _AgainError(f"{place}: the file is empty: no byte came")
        if part.total is not None and part.size < part.total:
            raise _AgainError(f"{place} broke off: {part.size} of {part.total} bytes came")
        why = await self._in_thread(partial(part.cut_off, media_type))
        if why is None and not self._is_framed:
            is_whole = await self._in_thread(partial(part.proves_whole, media_type))
            why = (
                None
                if is_whole
                else "its server does not tell its length, so nobody can say whether it is whole"
            )
        if why is not None:
            await self._empty()
            raise _AgainError(f"{place}: the {kind} is not whole: {why}")
        return media_type

    async def _empty(self) -> None:
        await self._in_thread(partial(self._part.begin, validator=None, total=None))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await in_thread(self._threads, work)

    def _check_size(self, size: int) -> None:
        if size > self._largest:
            limit = "largest_image" if self._output.kind == "image" else "largest_video"
            raise UselessError(
                DownloadError(
                    f"the {self._output.kind} {self._job.stem} has {size} bytes or more, and {self._largest} are "
                    f"allowed: allow more with Client(downloads=Downloads({limit}=...))"
                )
            )

    def _check_head(self, head: bytes) -> None:
        """A page of words in the place of a picture is a fault of the server, whatever it calls it."""
        if self._output.kind in _MEDIA and media_type_of(head) is None and is_text(head):
            place = "the inline result" if self._output.url is None else redact_url(self._output.url)
            words = excerpt(redact(head.decode("utf-8", "replace")), 80)
            raise _AgainError(
                f"{place} answered with words and not with the {self._output.kind} "
                f"({excerpt(self._declared or 'of no type', 60)}): {words}"
            )

    async def decode(self, data: str) -> str | None:
        """Write *data* from base64, slice by slice, so that the event loop goes on between.

        Raises:
            DownloadError, UselessError: it is no base64, or too large.
        """
        self._declared = None
        if data.startswith("data:"):
            head, _, data = data.partition(",")
            self._declared = head.removeprefix("data:").partition(";")[0]
        begin = partial(self._part.begin, validator=None, total=None)
        rest, came, total = "", 0, len(data) // 4 * 3 - data.count("=", -2)
        try:
            async with Writer(self._threads, self._part, self._check_head, begin) as writer:
                for start in range(0, len(data), SLICE):
                    text = rest + "".join(data[start : start + SLICE].split())
                    cut = len(text) - len(text) % 4
                    rest = text[cut:]
                    piece = base64.b64decode(text[:cut], validate=True)
                    came += len(piece)
                    self._check_size(came)
                    await writer.put(piece)
                    self._job.heard(came, total)
                    await asyncio.sleep(0)
            if rest:
                raise ValueError("it is cut off")
            return await self._checked()
        except ValueError as fault:
            raise DownloadError(f"the inline result {self._job.stem} is not base64: {fault}") from None
        except _AgainError as fault:
            raise DownloadError(f"the inline result {self._job.stem} is of no use: {fault}") from None


def _has_ended(output: Output) -> bool:
    return output.expires_at is not None and output.expires_at <= datetime.now(UTC)


def _pause(failures: int, after: float | None) -> float:
    """Seconds until the next try: none after one that has brought something."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1)) if failures else 0.0
    return max(after or 0.0, longest * random.uniform(0.5, 1.0))  # noqa: S311 - jitter


def _clean(media_type: str | None) -> str | None:
    """A media type as a server may name it; None if it is none."""
    return media_type if media_type and _MEDIA_TYPE.fullmatch(media_type) else None
