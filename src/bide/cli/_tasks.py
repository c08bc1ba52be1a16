"""`bide image`, `bide video`, `bide watch` and `bide cancel`: what their words mean for the library."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from bide import BideError, Client
from bide.cli._exits import FAILED, status_of, worst
from bide.cli._progress import Lines
from bide.cli._prompts import prompts_from
from bide.cli._run import Item, run
from bide.cli._text import plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from bide import Provider, Request, TaskHandle
    from bide.cli._run import Wishes


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
    if times < 1:
        raise ValueError(f"-n is at least 1, not {times}")
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
            yield Item(each, partial(_attach, each))

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
    return asyncio.run(_cancel_all(provider, ids))


async def _cancel_all(provider: Provider, ids: Sequence[str]) -> int:
    statuses = set()
    async with Client(provider) as client:
        for each in dict.fromkeys(ids):
            try:
                handle: TaskHandle = await client.attach(each)
                if await handle.cancel():
                    print(each)
                    continue
                await handle.refresh()
                Lines().say(f"bide: {each} is {handle.task.status}: too late to cancel it")
                statuses.add(FAILED)
            except (BideError, ValueError) as error:
                Lines().say(f"bide: {plain(str(error), 2000)}")
                statuses.add(status_of(error))
    return worst(statuses)


def _check(ids: Sequence[str]) -> None:
    if not ids:
        raise ValueError("give at least one task id, as the service gave it")
