"""One worker of the crash test: it goes on with what is open, starts callers at a steady pace, and notes what it hears.

What it hears goes to a file of its own, a JSON object a line, each written at once: what stands there was known to the
worker before it died. Its standard input gives orders: `close` and `withdraw` close the client and open a new one,
`leave` closes it and ends the worker. When its standard input ends, it starts no more callers, waits until the ledger
has nothing open, and leaves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from crash_callers import Caller, unfinished

from bide import (
    BideError,
    Client,
    ClientClosedError,
    DashScope,
    Dieyuyun,
    LedgerError,
    Limits,
    Pace,
    Provider,
    TaskHandle,
    TaskStatus,
)
from bide.ledgers import SQLiteLedger

FLOOR = 0.3
"""Seconds between two polls of a task. Tasks take 0.5 to 2 s here, and a worker lives for some 6."""
CAP = 0.6
"""The most seconds between two polls: slots are used again soon, so that misfortunes meet much that is under way."""
HOLD = 5.0
"""Seconds that a create without a known outcome counts as a slot: longer than any task takes."""
PACE = (0.2, 0.5)
"""Seconds between two callers of one worker."""
MOST_CALLERS = 15
LOST_SECONDS = 10.0
"""Seconds that running tasks may take after the ledger's file is gone. Requests wait until the client closes."""


class Diary:
    """The file that outlives the worker. A line is one write: it is there as a whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, ticket: str | None = None, **more: Any) -> None:
        line = {"at": time.time(), "what": what, "ticket": ticket, **more}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """The whole lines of a diary."""
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]


class LogOf(logging.Handler):
    """What the library logs goes to the diary, for the stories. Only errors that no code has caught go elsewhere."""

    def __init__(self, diary: Diary) -> None:
        super().__init__(logging.WARNING)
        self._diary = diary

    def emit(self, record: logging.LogRecord) -> None:
        self._diary.note("log", level=record.levelname, text=record.getMessage()[:300])


def provider_at(service: str, url: str) -> Provider:
    if service == "dashscope":
        return DashScope(base_url=url, video_floor=FLOOR, video_unknown_hold=HOLD)
    return Dieyuyun(base_url=url, video_floor=FLOOR, video_unknown_hold=HOLD)


class Worker:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._name: str = options.name
        self._random = random.Random(options.name)
        self._diary = Diary(options.folder / f"{options.name}.jsonl")
        logging.getLogger("bide").addHandler(LogOf(self._diary))
        self.loses_ledger: bool = options.loses_ledger
        self._has_lost_ledger = False
        self._ending = asyncio.Event()
        self._is_leaving = False
        self._opened = asyncio.Event()
        self._waits: set[asyncio.Task[None]] = set()
        self._orders: asyncio.Queue[str] = asyncio.Queue()

    # The client --------------------------------------------------------------------------------------------

    def _new_client(self) -> Client:
        options = self._options
        self._ledger = SQLiteLedger(options.folder / "tasks.db", durability=options.durability)
        return Client(
            provider_at(options.service, options.url),
            api_key=options.key,
            ledger=self._ledger,
            limits=Limits(concurrency=options.slots),
            queries_per_second=20,
            pace=Pace(cap=CAP),
            on_event=lambda event: self._diary.note(
                event.name, event.ticket, task_id=event.task_id, status=event.task.status
            ),
        )

    async def _open_client(self) -> None:
        while True:
            client = self._new_client()
            try:
                self._client = await client.__aenter__()
            except LedgerError as fault:
                self._diary.note("no client", text=str(fault)[:200])
                await asyncio.sleep(0.3)
            else:
                break
        self._opened.set()

    async def client(self) -> Client:
        """The client, once one is open."""
        await self._opened.wait()
        return self._client

    async def _obey(self) -> None:
        while (order := await self._orders.get()) != "leave":
            await self._reopen(withdraw=order == "withdraw")
        self._is_leaving = True
        self._ending.set()

    async def _reopen(self, *, withdraw: bool) -> None:
        self._opened.clear()
        self._diary.note("closes", how="withdraw" if withdraw else "close")
        await self._client.aclose(withdraw=withdraw)
        self._diary.note("closed")
        await asyncio.sleep(self._random.choice((0.0, 0.3)))
        await self._open_client()
        self._diary.note("opened")

    # Work --------------------------------------------------------------------------------------------------

    async def work(self) -> None:
        reading = asyncio.create_task(self._read_orders())
        await self._open_client()
        self._diary.note("began")
        obeying = asyncio.create_task(self._obey())
        ancestors = [line for name in self._options.after for line in Diary.read(self._options.folder / name)]
        for ticket in unfinished(ancestors).values():
            self._diary.note("inherits", ticket)
            self._start(self._caller(ticket, is_heir=True).pursue(ticket))
        if self._random.random() < 0.5:
            await self._resume()
        number = 0
        while not self._ending.is_set():
            await self._move()
            if len(self._waits) < MOST_CALLERS and len(await self._open()) < self._options.open:
                number += 1
                ticket = f"{self._name}-{number:03}"
                self._start(self._caller(ticket).pursue(ticket))
            await self._rest(self._random.uniform(*PACE))
        if not self._is_leaving:
            await self._drain()
        obeying.cancel()
        reading.cancel()
        await self._opened.wait()
        await self._client.aclose()
        self._diary.note("left" if self._is_leaving else "ended")

    async def _read_orders(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while line := await reader.readline():
            self._orders.put_nowait(line.decode().strip())
        self._ending.set()

    def _caller(self, ticket: str, *, is_heir: bool = False) -> Caller:
        return Caller(
            self, ticket.partition(".")[0], self._diary.note, leaves=self._options.leavers, is_heir=is_heir
        )

    def _start(self, work: Any) -> None:
        wait = asyncio.create_task(work)
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            pass

    async def _open(self) -> list[str]:
        """What is open. A ledger that cannot be read counts as full."""
        await self._opened.wait()
        try:
            records = await self._ledger.records()
        except LedgerError as fault:
            self._note_fault(fault)
            return ["?"] * self._options.open
        return [f"{each.ticket} is {each.task.status}" for each in records if not each.task.status.is_final]

    async def _move(self) -> None:
        """The explicit order: what waits for a key that no client has any more is sent with the key of this worker."""
        if not self._options.moves:
            return
        client = await self.client()
        try:
            keys = client._engine.account.keys  # type: ignore[union-attr]  # fingerprints are no secret
            records = await self._ledger.records()
            if any(each.task.status is TaskStatus.WAITING and keys.isdisjoint(each.keys) for each in records):
                await client.resume(other_keys=True)
                self._diary.note("moves")
        except (LedgerError, ClientClosedError) as fault:
            self._diary.note("fault", error=type(fault).__name__, text=str(fault)[:200])

    def _note_fault(self, fault: LedgerError) -> None:
        self._diary.note("fault", error=type(fault).__name__, text=str(fault)[:200])
        if self.loses_ledger:
            self._has_lost_ledger = True
            self._ending.set()

    async def _resume(self) -> None:
        """Follow what is open, as a program does that has no list of its own."""
        try:
            handles = await (await self.client()).resume()
        except (LedgerError, ClientClosedError) as fault:
            self._diary.note("fault", error=type(fault).__name__, text=str(fault)[:200])
            return
        for handle in handles:
            self._diary.note("followed", handle.ticket)
            self._start(self._outcome(handle))

    async def _outcome(self, handle: TaskHandle) -> None:
        """What a waiter hears: exactly one thing, whichever process drives the task."""
        try:
            task = await handle.result()
        except ClientClosedError:
            self._diary.note("parted", handle.ticket)
        except BideError as error:
            self._diary.note("raised", handle.ticket, error=type(error).__name__, task_id=handle.task_id)
        else:
            self._diary.note("got", handle.ticket, task_id=task.task_id)

    async def _drain(self) -> None:
        until = time.monotonic() + self._options.patience
        while time.monotonic() < until and not self._has_lost_ledger and (self._waits or await self._open()):
            await self._move()
            await asyncio.sleep(0.1)
        if self._waits:
            await asyncio.wait(self._waits, timeout=LOST_SECONDS if self._has_lost_ledger else 5)
        left = [] if self._has_lost_ledger else await self._open()
        self._diary.note("drained", open=left)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="no other worker has it; its tickets begin with it")
    parser.add_argument("--folder", type=Path, required=True, help="of the ledger and the diaries")
    parser.add_argument("--service", required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument(
        "--after", nargs="*", default=[], help="the diaries of the workers in whose place it works"
    )
    parser.add_argument("--leavers", action="store_true", help="callers are cancelled and time out")
    parser.add_argument(
        "--moves", action="store_true", help="what waits for a key that was replaced is moved"
    )
    parser.add_argument(
        "--loses-ledger", action="store_true", help="the first fault of the ledger is the end"
    )
    parser.add_argument("--durability", default="process")
    parser.add_argument("--slots", type=int, default=3)
    parser.add_argument("--open", type=int, default=12, help="so many open records of all workers are enough")
    parser.add_argument("--patience", type=float, default=120.0)
    asyncio.run(Worker(parser.parse_args()).work())
