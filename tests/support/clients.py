"""Short names for tests of downloads under attack."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from bide import Client, Output, Task, TaskStatus
from support.hostile_server import far_client
from support.virtual_time import VirtualTimeLoop

NOWHERE = "http://127.0.0.1:9/api/v1"
"""An API on loopback, where nothing answers: files may come from loopback, too."""
WEBM = bytes.fromhex("1a45dfa3010000000000000042828477") + b"ebm" + bytes(400_000)
"""A type whose end has no mark."""


def near_client(**options: Any) -> Client:
    return far_client(base_url=NOWHERE, **options)


def advance(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.advance(seconds)


def inline(data: str) -> Task:
    outputs = (Output(data=data, kind="image"),)
    return Task(ticket="t1", task_id="x1", status=TaskStatus.SUCCEEDED, outputs=outputs)


async def cancelled(saving: asyncio.Task[Any]) -> None:
    saving.cancel()
    with suppress(asyncio.CancelledError):
        await saving
