"""How a peer is run: all its jobs at once, for a bounded time, with what its service counted."""

from __future__ import annotations

import asyncio
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from goals import Row

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager, AsyncExitStack

BOUND = 120.0
"""Seconds until a peer is stopped, and only what it has finished counts."""

# The services are on this machine; a proxy that the environment names would not find them.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"


@dataclass(frozen=True)
class Counts:
    """What a service saw. `paid` are the creates that it accepted: each costs money, whether a client waits or not.

    `twice` are those of them that it has accepted for the same prompt before.
    """

    paid: int
    refused: int
    polls: int
    polls_refused: int = 0
    twice: int = 0


@dataclass(frozen=True)
class Entry:
    """A peer that is ready: `make` returns when one video or image is there, and raises if there will be none.

    A peer that limits what it has under way does so only for what it is given together. It has `make_all`, too, which
    is used instead: it calls back for each one that is there, and returns when no more will come.
    """

    make: Callable[[str], Awaitable[object]]
    counts: Callable[[], Counts]
    make_all: Callable[[list[str], Callable[[], None]], Awaitable[object]] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a peer came to. `seconds` is the time until its last job had its result or its error."""

    finished: int
    seconds: float
    counts: Counts


class Peer:
    """One peer in the table. It is made ready before the race: its import would hold up the others on the loop."""

    def __init__(self, name: str, entry: AbstractAsyncContextManager[Entry]) -> None:
        self.name = name
        self._entry = entry
        self._ready: Entry | None = None

    async def prepare(self, stack: AsyncExitStack) -> None:
        """Import the peer's package and start its service, for as long as *stack* is open."""
        try:
            self._ready = await stack.enter_async_context(self._entry)
        except ModuleNotFoundError:
            self._ready = None

    async def run(self, jobs: int, rows: Callable[[str, Outcome], list[Row]]) -> list[Row]:
        """The rows of that many jobs at once, or one row that says that the package is not there."""
        if self._ready is None:
            return [Row(self.name, "not installed", math.nan)]
        return rows(self.name, await _outcome(self._ready, jobs))


async def _outcome(entry: Entry, jobs: int) -> Outcome:
    finished: list[float] = []
    started = time.perf_counter()
    prompts = [f"number {number}" for number in range(jobs)]

    def note() -> None:
        finished.append(time.perf_counter())

    async def one(make: Callable[[str], Awaitable[object]], prompt: str) -> None:
        await make(prompt)
        note()

    if entry.make_all is not None:
        work = [entry.make_all(prompts, note)]
    else:
        work = [one(entry.make, prompt) for prompt in prompts]
    tasks = [asyncio.ensure_future(each) for each in work]
    _, late = await asyncio.wait(tasks, timeout=BOUND)
    seconds = time.perf_counter() - started
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return Outcome(len(finished), seconds, entry.counts())
