"""One worker of the crash test: it goes on with what is open, submits at a steady pace, and tells all that it hears.

What it hears goes to a file of its own, a JSON object a line, each written at once: what stands there was known to the
worker before it died. When its standard input ends it submits no more, waits until the ledger has nothing open, and
leaves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from bide import BideError, Client, DashScope, Dieyuyun, Limits, Provider, TaskHandle, VideoRequest
from bide.ledgers import SQLiteLedger

KEY = "sk-crash"
FLOOR = 0.3
"""Seconds between two polls of a task. Tasks take 0.5 to 2 s here, and a worker lives for some 6."""
HOLD = 5.0
"""Seconds that a create without a known outcome counts as a slot: longer than any task takes."""
LOTS = 20
"""Every lot is of the same size; the emulator cuts the creates of one of them."""
PACE = (0.2, 0.5)
"""Seconds between two submissions of one worker."""
OPEN = 12
"""So many open records of all workers are enough to keep the slots contended: nobody submits more then."""


class Diary:
    """The file that outlives the worker. A line is one write: it is there as a whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, ticket: str | None = None, **more: Any) -> None:
        line = {"at": time.time(), "what": what, "ticket": ticket, **more}
        os.write(self._file, json.dumps(line).encode() + b"\n")


def provider_at(service: str, url: str) -> Provider:
    if service == "dashscope":
        return DashScope(base_url=url, video_floor=FLOOR, video_unknown_hold=HOLD)
    return Dieyuyun(base_url=url, video_floor=FLOOR, video_unknown_hold=HOLD)


class Worker:
    def __init__(self, options: argparse.Namespace) -> None:
        self._name = options.name
        self._random = random.Random(options.name)
        self._diary = Diary(options.diary)
        self._ledger = SQLiteLedger(options.ledger, durability=options.durability)
        self._client = Client(
            provider_at(options.service, options.url),
            api_key=KEY,
            ledger=self._ledger,
            limits=Limits(concurrency=options.slots),
            queries_per_second=20,
            on_event=lambda event: self._diary.note(
                event.name, event.ticket, task_id=event.task_id, status=event.task.status
            ),
        )
        self._patience = options.patience
        self._ending = asyncio.Event()
        self._waits: set[asyncio.Task[None]] = set()

    async def work(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), self._end)
        async with self._client:
            self._diary.note("began")
            for handle in await self._client.resume():
                self._follow(handle)
            number = 0
            while not self._ending.is_set():
                if len(await self._open()) < OPEN:
                    number += 1
                    await self._submit(f"{self._name}-{number:03}")
                await self._rest(self._random.uniform(*PACE))
            await self._drain()
        self._diary.note("ended")

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        self._ending.set()

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            pass

    async def _open(self) -> list[str]:
        return [each.ticket for each in await self._ledger.records() if not each.task.status.is_final]

    async def _submit(self, ticket: str) -> None:
        # DashScope takes no ticket of ours, so the prompt tells the emulator whose task it is.
        prompt = f"ticket {ticket}, lot {self._random.randrange(LOTS)}, a kitten in the rain"
        self._diary.note("intended", ticket)
        handle = await self._client.submit(VideoRequest(prompt, model="wan2.6-t2v"), ticket=ticket)
        self._diary.note("returned", ticket)
        self._follow(handle)

    def _follow(self, handle: TaskHandle) -> None:
        self._diary.note("followed", handle.ticket)
        wait = asyncio.create_task(self._outcome(handle))
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)

    async def _outcome(self, handle: TaskHandle) -> None:
        """What whoever waits for the result hears: exactly one thing, whichever process drives the task."""
        try:
            task = await handle.result()
        except BideError as error:
            self._diary.note("raised", handle.ticket, error=type(error).__name__, task_id=handle.task_id)
        else:
            self._diary.note("result", handle.ticket, task_id=task.task_id)

    async def _drain(self) -> None:
        until = time.monotonic() + self._patience
        while time.monotonic() < until and await self._open():
            await asyncio.sleep(0.1)
        left = await self._open()
        if self._waits and not left:
            await asyncio.wait(self._waits, timeout=5)
        self._diary.note("drained", open=left)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="no other worker has it; its tickets begin with it")
    parser.add_argument("--service", required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--diary", type=Path, required=True)
    parser.add_argument("--durability", default="process")
    parser.add_argument("--slots", type=int, default=3)
    parser.add_argument("--patience", type=float, default=120.0)
    asyncio.run(Worker(parser.parse_args()).work())
