"""Writing in a thread what comes in the loop."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Self

from bide._concurrency import wait_done, wait_to_end
from bide._downloads.media_types import HEAD

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from types import TracebackType

    from bide._downloads.part_file import PartFile

PIECE = 2**20
"""Bytes that are gathered for one write: each is a hop to a thread."""
SOON = 2.0
"""Seconds after which fewer bytes are written, too: what has come slowly outlives a crash."""


class Writer:
    """Gathers what comes into large pieces, and writes one in a thread while the next one comes.

    When its block is left all is written, or nothing is being written any more: whatever happens, nobody writes behind
    the back of who has the part.

    Args:
        check: called with the first bytes of the body, if it is the begin of the file.
        begin: called in the thread after that, before the first piece is written; None goes on with what is there.
    """

    def __init__(
        self,
        threads: Executor,
        part: PartFile,
        check: Callable[[bytes], None],
        begin: Callable[[], None] | None,
    ) -> None:
        self._threads = threads
        self._part = part
        self._check = check
        self._begin = begin
        self._chunks: list[bytes] = []
        self._gathered = 0
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._writing: asyncio.Future[None] | None = None
        self._failed = False  # then what comes after it must not follow what came before it

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._flush()
        else:
            await self._save_what_came()

    async def put(self, chunk: bytes) -> None:
        """Take *chunk*."""
        self._chunks.append(chunk)
        self._gathered += len(chunk)
        if self._gathered >= PIECE or self._loop.time() - self._since >= SOON:
            await self._hand_over()

    async def _flush(self) -> None:
        """Write all that has come."""
        try:
            await self._hand_over()
            await self._written()
        except asyncio.CancelledError:
            await self._save_what_came()
            raise

    async def _save_what_came(self) -> None:
        """Write it where something has gone wrong already: that is told, and no fault of this. A cancel that comes
        meanwhile is put off, not lost."""
        me = asyncio.current_task()
        cancels = me.cancelling() if me is not None else 0
        flushing = asyncio.ensure_future(self._last_words())
        await wait_done(flushing)
        if me is not None and me.cancelling() > cancels:
            raise asyncio.CancelledError

    async def _last_words(self) -> None:
        try:
            await self._hand_over()
            await self._written()
        except Exception:  # noqa: BLE001 - it failed before, and that is told
            return

    async def _hand_over(self) -> None:
        if not self._chunks:
            return
        begin = self._begin
        if begin is not None:
            self._check(b"".join(self._chunks)[:HEAD])
        await self._written()
        chunks, self._chunks, self._gathered = self._chunks, [], 0
        self._begin, self._since = None, self._loop.time()
        self._writing = self._loop.run_in_executor(self._threads, partial(self._write, chunks, begin))

    def _write(self, chunks: list[bytes], begin: Callable[[], None] | None) -> None:
        if self._failed:
            return
        self._failed = True
        if begin is not None:
            begin()
        self._part.write(b"".join(chunks))  # joined here, too: it takes a tenth of a millisecond
        self._failed = False

    async def _written(self) -> None:
        """Wait until the last piece is written, cancelled or not."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await wait_to_end(writing)
