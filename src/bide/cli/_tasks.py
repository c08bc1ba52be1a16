"""`bide image`, `bide video`, `bide watch` and `bide cancel`: what their words mean for the library."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import TYPE_CHECKING

from bide import BideError, Client
from bide.cli._exits import FAILED, status_of, worst
from bide.cli._out import Stream
from bide.cli._prompts import prompts_from
from bide.cli._run import LAST_WORDS, Item, keep_the_log_quiet, run
from bide.cli._text import plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from bide import Provider, Request, TaskHandle
    from bide.cli._run import Wishes


MOST_TIMES = 100
"""Tasks of one prompt."""


def generate(
    provider: Provider,
    request: Callable[[str], Request],
    words: Sequence[str],
    file: Path | None,
    wishes: Wishes,
    *,
    times: int = 1,
) -> int:
    """Submit a request for each prompt, so many *times*, and follow it; returns the exit status.

    Raises:
        ValueError, TypeError: there are no prompts, or the options make no request. Nothing was sent.
        OSError: *file* cannot be read.
    """
    if not 1 <= times <= MOST_TIMES:
        raise ValueError(f"-n is from 1 to {MOST_TIMES}, not {times}")
    prompts, total = prompts_from(words, file)
    for word in words or ["any"]:  # options that make no request are told before anything is sent
        provider.create_call(request(word), "check")

    async def items() -> AsyncIterator[Item]:
        async for prompt in prompts:
            for _ in range(times):
                yield Item(prompt, partial(_submit, request, prompt))

    return run(provider, wishes, items(), None if total is None else total * times)


def watch(provider: Provider, ids: Sequence[str], wishes: Wishes) -> int:
    """Follow tasks that exist already; returns the exit status.

    Raises:
        ValueError: no ids were given.
    """
    _check(ids)

    async def items() -> AsyncIterator[Item]:
        for each in dict.fromkeys(ids):
            yield Item(each, partial(_attach, each), each)

    return run(provider, wishes, items(), len(set(ids)))


async def _submit(request: Callable[[str], Request], prompt: str, client: Client) -> TaskHandle:
    return await client.submit(request(prompt))


async def _attach(task_id: str, client: Client) -> TaskHandle:
    return await client.attach(task_id)


def cancel(provider: Provider, ids: Sequence[str]) -> int:
    """Cancel tasks; returns the exit status.

    Raises:
        ValueError: no ids were given.
    """
    _check(ids)
    keep_the_log_quiet()
    return asyncio.run(_cancel_all(provider, ids))


async def _cancel_all(provider: Provider, ids: Sequence[str]) -> int:
    stdout, stderr = Stream(sys.stdout, "standard output"), Stream(sys.stderr, "standard error")
    statuses = set()
    async with Client(provider) as client:
        for each in dict.fromkeys(ids):
            try:
                handle = await client.attach(each)
                if await handle.cancel():
                    stdout.put(each)
                    continue
                await handle.refresh()
                stderr.put(f"bide: {each} is {handle.task.status}: too late to cancel it")
                statuses.add(FAILED)
            except (BideError, ValueError) as error:
                stderr.put(f"bide: {plain(str(error), 2000)}")
                statuses.add(status_of(error))
    for stream in (stdout, stderr):
        stream.flush(LAST_WORDS)
    return worst(statuses)


def _check(ids: Sequence[str]) -> None:
    if not ids:
        raise ValueError("give at least one task id, as the service gave it")
