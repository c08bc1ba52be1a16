"""The clock of the tests themselves."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from support.virtual_time import DeadlockError, VirtualTimeLoop


async def test_an_hour_of_sleep_takes_no_time() -> None:
    loop, started = asyncio.get_running_loop(), time.monotonic()
    before = loop.time()

    await asyncio.sleep(3600)

    assert loop.time() - before == pytest.approx(3600)
    assert time.monotonic() - started < 3600


async def test_a_thread_of_the_executor_is_waited_for_without_a_jump() -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()

    async with asyncio.timeout(1):
        await asyncio.to_thread(time.sleep, 0.05)

    assert loop.time() == before


async def test_loopback_traffic_arrives_before_the_clock_jumps() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async with asyncio.timeout(0.001):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello\n")
        answer = await reader.readline()

    assert answer == b"hello\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


def test_a_wait_that_cannot_end_fails() -> None:
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    loop = VirtualTimeLoop()
    loop._selector.patience = 10  # type: ignore[attr-defined]
    try:
        with pytest.raises(DeadlockError):
            loop.run_until_complete(forever())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()
    assert threading.active_count() < 20
