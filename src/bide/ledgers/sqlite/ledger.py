"""`SQLiteLedger`: opens and closes the file with its clients, and sends each step to its thread."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from bide import _outside
from bide.errors import LedgerError
from bide.ledgers._ledger import Ledger
from bide.ledgers.sqlite.backend import SQLiteBackend
from bide.ledgers.sqlite.report import LedgerReport, report_of
from bide.ledgers.sqlite.session import Session

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Mapping
    from types import TracebackType

    from bide.ledgers._records import Record
    from bide.ledgers._state_machine import StateMachine

_T = TypeVar("_T")

WEEK_SECONDS = 7 * 24 * 3600.0


class SQLiteLedger(Ledger):
    """Records in a SQLite file: durable, and shared by all processes of one machine that name the same file.

    A client opens it when it starts, and releases it when it closes. Another client with the key takes over the open
    records of a client that has closed or of a process that has died. Without a client, use it as
    `async with SQLiteLedger(path)`. One instance serves one event loop at a time. Fork before a ledger is first used,
    or start processes by `spawn`: a forked process cannot open a ledger that was open at the fork.

    If the file, the folder of locks beside it or their directory is deleted, moved or replaced while it is open, each
    method raises `LedgerError`. Nothing new is sent then, and what was sent is still polled. Move it back, and work
    goes on; or close all clients that use it.

    Args:
        path: the file, on a local disk. A missing file is made, for this user alone, with a folder of locks beside it.
        durability: "process": records outlive the death of processes. "power": the intent to buy, and the ids of what
            was bought, outlive a loss of power, too; each of these steps waits for the disk.
        store_prompts: False keeps only a digest of each request. Then only the submitting process can send a waiting
            record, which ends as `cancelled` if that process closes or dies. A create with an unknown outcome cannot
            be found by its prompt. Stored results leave out what the service echoes of a prompt.
        keep: seconds that records of ended tasks are kept after the expiry of their results. At the expiry their
            addresses are blanked.

    Raises:
        ValueError: *path* names no file; *durability* is not one of the two; *keep* is not a number of 0 or more.

    Example:
        async with Client(DashScope(), ledger=SQLiteLedger("tasks.db")) as client:
            for handle in await client.resume():
                print(handle)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Literal["process", "power"] = "process",
        store_prompts: bool = True,
        keep: float = WEEK_SECONDS,
    ) -> None:
        super().__init__()
        if durability not in ("process", "power"):
            raise ValueError(f'durability must be "process" or "power", not {durability!r}')
        if isinstance(keep, bool) or not isinstance(keep, int | float) or not keep >= 0:
            raise ValueError(f"keep must be a number of seconds, 0 or more, not {keep!r}")
        name = str(path)
        if not name or "\0" in name or name.startswith((":memory:", "file:")):
            raise ValueError(
                f"path must name a file, not {name!r}; to keep nothing on disk use MemoryLedger()"
            )
        self.path: Path = Path(path).resolve()  # one file has one folder of locks, by any of its names
        self._waits_for_disk = durability == "power"
        self._store_prompts = store_prompts
        self._keep = keep
        self._owners: set[str] = set()
        self._numbers = itertools.count(1)
        self._entered = 0
        self._session: Session | None = None
        self._opening: asyncio.Task[Session] | None = None

    def __repr__(self) -> str:
        return f"<SQLiteLedger {self.path}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a ledger cannot be pickled: make a SQLiteLedger of the same path in the other process"
        )

    async def __aenter__(self) -> Self:
        self._entered += 1
        try:
            await self._open_session()
        except BaseException:
            self._entered -= 1
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered -= 1
        await self._close_if_unused()

    @property
    def durable(self) -> bool:
        return True

    def now(self) -> float:
        return _outside.wall_time() if self._session is None else self._session.now()

    async def salt(self) -> bytes:
        return (await self._open_session()).salt

    async def enter(self, origin: str, keys: Collection[str]) -> str:
        session = await self._open_session()
        owner = f"{session.instance}.{next(self._numbers)}"
        self._owners.add(owner)
        try:
            await session.worker.put(lambda backend: backend.enter(owner, origin, keys), writes=True)
        except BaseException:
            self._owners.discard(owner)
            await self._close_if_unused()
            raise
        return owner

    async def leave(self, owner: str, *, waiting: bool = False) -> list[Record]:
        session = await self._open_session()
        if waiting:
            return await session.worker.put(lambda backend: backend.leave(owner, waiting=True), writes=True)
        try:
            return await session.worker.put(lambda backend: backend.leave(owner), writes=True)
        except LedgerError:
            session.unrecorded_leaves.add(owner)  # the session tries again
            raise
        finally:
            self._owners.discard(owner)
            await self._close_if_unused()

    async def newer_records(self, versions: Mapping[str, int]) -> list[Record]:
        session = await self._open_session()
        return await session.worker.put(lambda backend: backend.store.newer_records(versions), writes=False)

    async def share(self, owner: str, rate: float) -> float:
        session = await self._open_session()
        return await session.worker.put(lambda backend: backend.share(owner, rate), writes=False)

    async def records(self, *, all: bool = False) -> list[Record]:  # noqa: A002 - the word of `bide ls --all`
        """The records that are open or `unknown`, or *all* records, in the order of arrival."""
        session = await self._open_session()
        return await session.worker.put(
            lambda backend: backend.store.list_records(is_open=not all), writes=False
        )

    async def report(self) -> LedgerReport:
        """The state of the file, its owners and its lanes. This reads the whole file."""
        session = await self._open_session()
        return await session.worker.put(report_of, writes=False)

    async def aclose(self) -> None:
        """Close the file. The next use opens it again.

        Raises:
            RuntimeError: clients still use it: close them first.
        """
        session = self._session
        if self._owners and session is not None and session.has_open_loop and not session.is_inherited:
            raise RuntimeError(f"{len(self._owners)} clients use this ledger: close them first")
        await self._close()

    async def _close(self) -> None:
        if self._session is not None and self._session.is_inherited:
            return  # a forked child that ends must not wait for a thread that it does not have
        session, self._session = self._session, None
        if session is None:
            return
        if session.has_open_loop:
            await session.aclose()
        else:
            session.worker.stop()

    # Inside ------------------------------------------------------------------------------------------------

    async def _step(
        self, step: Callable[[StateMachine], _T], *, writes: bool = True, vital: bool = False
    ) -> _T:
        session = await self._open_session()
        return await session.worker.put(
            lambda backend: step(backend.machine), writes=writes, vital=vital and self._waits_for_disk
        )

    async def _open_session(self) -> Session:
        """The open session of this loop and process."""
        if self._session is not None and self._session.has_open_loop:
            self._session.check()
            return self._session
        if self._session is not None:  # its loop was closed before it
            self._session.worker.stop()
            self._session = None
            self._owners.clear()
            self._entered = 0
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._start_session())
        return await asyncio.shield(self._opening)

    async def _start_session(self) -> Session:
        full, store_prompts, keep, path = self._waits_for_disk, self._store_prompts, self._keep, self.path
        session = Session(
            lambda: SQLiteBackend(path, full=full, store_prompts=store_prompts, keep=keep), self._notify
        )
        await session.start()
        self._session = session
        return session

    async def _close_if_unused(self) -> None:
        if not self._owners and self._entered <= 0:
            await self._close()
