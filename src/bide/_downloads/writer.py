"""`Writer`: writes to disk in a thread what the event loop receives."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Self

from bide._concurrency import wait_done, wait_to_end
from bide._downloads.media_types import HEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from types import TracebackType

    from bide._downloads.part_file import PartFile

PIECE_BYTES = 2**20
"""Bytes that are gathered for one write: each write is a switch to a thread."""
MAX_GATHER_SECONDS = 2.0
"""Seconds after which fewer bytes are written, too: so the bytes of a slow download survive a crash."""


class Writer:
    """Gathers chunks into large pieces, and writes one in a thread while the next one comes.

    After its `async with` block no write is under way, whether the block succeeded or failed. So no thread writes to
    the part file while its owner closes it.

    Args:
        check: called with the first bytes of the body, if *begin* is given.
        begin: called in the thread after *check*, before the first piece is written. None appends to the part file.
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
        self._has_failed = False  # then a later piece must not be written: there would be a gap before it

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._flush()
        else:
            await self._flush_after_fault()

    async def put(self, chunk: bytes) -> None:
        """Gather *chunk*; start a write if enough has come."""
        self._chunks.append(chunk)
        self._gathered += len(chunk)
        if self._gathered >= PIECE_BYTES or self._loop.time() - self._since >= MAX_GATHER_SECONDS:
            await self._start_write()

    async def _flush(self) -> None:
        """Write all gathered bytes."""
        try:
            await self._start_write()
            await self._wait_for_write()
        except asyncio.CancelledError:
            await self._flush_after_fault()
            raise

    async def _flush_after_fault(self) -> None:
        """Write all gathered bytes after an error. That error is raised, not one of this write. A cancel that comes
        meanwhile is raised afterwards."""
        me = asyncio.current_task()
        cancels = me.cancelling() if me is not None else 0
        flushing = asyncio.ensure_future(self._flush_quietly())
        await wait_done(flushing)
        if me is not None and me.cancelling() > cancels:
            raise asyncio.CancelledError

    async def _flush_quietly(self) -> None:
        try:
            await self._start_write()
            await self._wait_for_write()
        except Exception:  # noqa: BLE001 - the block's own error is raised
            return

    async def _start_write(self) -> None:
        if not self._chunks:
            return
        begin = self._begin
        if begin is not None:
            self._check(b"".join(self._chunks)[:HEAD_BYTES])
        await self._wait_for_write()
        chunks, self._chunks, self._gathered = self._chunks, [], 0
        self._begin, self._since = None, self._loop.time()
        self._writing = self._loop.run_in_executor(self._threads, partial(self._write, chunks, begin))

    def _write(self, chunks: list[bytes], begin: Callable[[], None] | None) -> None:
        if self._has_failed:
            return
        self._has_failed = True
        if begin is not None:
            begin()
        self._part.write(b"".join(chunks))  # joined in the thread, too: it takes 0.1 ms
        self._has_failed = False

    async def _wait_for_write(self) -> None:
        """Wait until the last piece is written, even when cancelled."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await wait_to_end(writing)
