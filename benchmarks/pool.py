"""CPU for one request with many in flight: bide's stack of connections beside a default `httpx.AsyncClient`.

The server runs in a process of its own and answers after 50 ms. httpx's client has a hundred connections, and its
pool looks at all of them whenever a request starts or ends.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from typing import TYPE_CHECKING

import httpx

from bide._pool import ConnectionStack
from goals import Row, arguments, show

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection

ANSWER = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{"status":"running"}'
)
TIMEOUT = {"connect": 60.0, "read": 60.0, "write": 60.0, "pool": 60.0}
ROUNDS = {1: 40, 10: 400, 100: 1000, 1000: 2000}
"""Requests for each number of callers."""


def serve(pipe: Connection) -> None:
    """Answer everything after 50 ms, until the process is ended."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(0.05)
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=2000)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


async def cpu_per_request(get: Callable[[], Awaitable[object]], callers: int) -> float:
    """Milliseconds of CPU for one request, with so many *callers* at once."""
    left = ROUNDS[callers]

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await get()

    await asyncio.gather(*(get() for _ in range(min(callers, 50))))
    left, before = ROUNDS[callers], time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return (time.process_time() - before) / ROUNDS[callers] * 1000


async def through_stack(url: str) -> dict[int, float]:
    """The stack of connections that bide uses, as its transport does."""
    stack = ConnectionStack()

    async def get() -> bytes:
        request = httpx.Request("GET", url, extensions={"timeout": TIMEOUT})
        response = await stack.handle_async_request(request)
        try:
            return b"".join([chunk async for chunk in response.aiter_raw()])
        finally:
            await response.aclose()

    try:
        return {callers: await cpu_per_request(get, callers) for callers in ROUNDS}
    finally:
        await stack.aclose()


async def through_client(url: str) -> dict[int, float]:
    """A default client of httpx."""
    async with httpx.AsyncClient(timeout=60) as client:
        return {callers: await cpu_per_request(lambda: client.get(url), callers) for callers in ROUNDS}


def main() -> list[Row]:
    """Both, one after the other."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        url = f"http://127.0.0.1:{ours.recv()}/v1/tasks/x"
        stack, client = asyncio.run(through_stack(url)), asyncio.run(through_client(url))
    finally:
        server.terminate()
        server.join()
    rows = []
    for callers in ROUNDS:
        rows.append(Row(f"{callers} at once", "ConnectionStack, ms CPU a request", stack[callers]))
        rows.append(Row(f"{callers} at once", "httpx.AsyncClient, ms CPU a request", client[callers]))
    flat = stack[1000] / stack[10]
    return [*rows, Row("flat", "CPU at 1000 in flight to that at 10", flat, "at most 1.30", flat <= 1.3)]


if __name__ == "__main__":
    options = arguments(__doc__)
    show("CPU for one request", main(), options)
