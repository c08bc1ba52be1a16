"""Waiting in real time: for the thing itself, within a bound that a slow machine does not reach and a fault does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

A_MINUTE = 60.0
"""The bound of each wait in real time. It says that something is wrong, never how fast it should be."""


async def until(holds: Callable[[], Any]) -> None:
    """Wait until *holds*, a function or a coroutine function, returns something true."""
    try:
        async with asyncio.timeout(A_MINUTE):
            while True:
                found = holds()
                if await found if inspect.isawaitable(found) else found:
                    return
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"did not happen within a minute: {inspect.getsource(holds).strip()}") from None


async def end_of(process: asyncio.subprocess.Process, given: bytes | None = None) -> tuple[str, str]:
    """Give *process* its input and wait for its end; its output and its errors."""
    try:
        out, err = await asyncio.wait_for(process.communicate(given), A_MINUTE)
    except TimeoutError:
        process.kill()  # else it would be in the way of the tests that follow
        await process.wait()
        raise AssertionError("a process did not end within a minute") from None
    return (out or b"").decode(), (err or b"").decode()
