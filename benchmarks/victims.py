"""Processes that are killed with open tasks, and the process that takes the tasks over, for `ledger.py`."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from typing import TYPE_CHECKING, Any

import httpx

from bide import Client, DashScope, ImageRequest, Limits
from bide.ledgers import Hint, SQLiteLedger
from crew import CONTEXT, ENDED, MODEL, QUEUED, RUNNING, answer_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

    from bide.ledgers import Record

PATIENCE = 20.0
"""Seconds after which an adoption that has not happened never will."""


def client_on(
    ledger: SQLiteLedger, answer: Callable[[httpx.Request], dict[str, Any]], *, adopt: bool
) -> Client:
    """A client whose service is a function."""
    return Client(
        DashScope(base_url="https://api.example/api/v1"),
        api_key="sk-bench",
        limits=Limits(math.inf, math.inf),
        queries_per_second=math.inf,
        ledger=ledger,
        adopt=adopt,
        transport=httpx.MockTransport(lambda asked: httpx.Response(200, json=answer(asked))),
    )


class Victim:
    """A process with so many accepted tasks, that waits for its end."""

    def __init__(self, path: Path, name: str, tasks: int) -> None:
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_suffer, args=(theirs, path, name, tasks), daemon=True)
        self._process.start()

    async def tickets(self) -> frozenset[str]:
        """Its tasks, as soon as all are accepted."""
        return frozenset(await asyncio.to_thread(answer_of, self._pipe))

    def kill(self) -> float:
        """End it with SIGKILL. Returns the moment before that."""
        moment = time.monotonic()
        self._process.kill()
        return moment

    async def end(self) -> None:
        """Let go of what is left of it."""
        self._process.kill()
        await asyncio.to_thread(self._process.join)
        self._pipe.close()


def _suffer(pipe: Connection, path: Path, name: str, tasks: int) -> None:
    try:
        asyncio.run(_wait_for_death(pipe, path, name, tasks))
    except Exception as fault:  # noqa: BLE001 - it is raised where the victim was made
        pipe.send(fault)


async def _wait_for_death(pipe: Connection, path: Path, name: str, tasks: int) -> None:
    numbers = itertools.count()

    def answer(asked: httpx.Request) -> dict[str, Any]:
        if asked.method == "POST":
            return {**QUEUED, "output": {**QUEUED["output"], "task_id": f"{name}-{next(numbers)}"}}
        return {**RUNNING, "output": {**RUNNING["output"], "task_id": _task_id(asked)}}

    async with client_on(SQLiteLedger(path), answer, adopt=False) as client:
        requests = [ImageRequest(f"number {n} of {name}", model=MODEL) for n in range(tasks)]
        handles = [await client.submit(request) for request in requests]
        for handle in handles:
            await handle.accepted()
        pipe.send([handle.ticket for handle in handles])
        await asyncio.Event().wait()


def _task_id(asked: httpx.Request) -> str:
    return asked.url.path.rpartition("/")[2]


async def adoptions(path: Path, kills: int, tasks: int) -> list[float]:
    """Kill one process after the other. Returns how long each time until a client here has all of its tasks.

    No other process is alive then: only this process can notice.
    """
    seconds: list[float] = []
    ledger = SQLiteLedger(path)
    adopted: set[str] = set()
    news = asyncio.Event()

    def heard(change: Record | Hint) -> None:
        # What others drive is not heard of here: what has an owner is ours.
        if not isinstance(change, Hint) and change.owner is not None:
            adopted.add(change.ticket)
            news.set()

    def answer(asked: httpx.Request) -> dict[str, Any]:
        return {**ENDED, "output": {**ENDED["output"], "task_id": _task_id(asked)}}

    async with client_on(ledger, answer, adopt=True):
        ledger.subscribe(heard)
        for number in range(kills):
            victim = Victim(path, f"victim-{number}", tasks)
            tickets = await victim.tickets()
            moment = victim.kill()
            async with asyncio.timeout(PATIENCE):
                while not tickets <= adopted:
                    news.clear()
                    await news.wait()
            seconds.append(time.monotonic() - moment)
            await victim.end()
    return seconds
