"""A timeout counts the time that its loop has run: what has arrived is read before anything is called timed out."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from bide._concurrency import MOST_MOMENTS, lived_timeout
from support.emulated import now
from support.virtual_time import advance


async def test_a_timeout_ends_a_wait_on_time() -> None:
    began, scope = now(), lived_timeout(10)

    with pytest.raises(TimeoutError):
        async with scope:
            await asyncio.sleep(60)

    assert scope.expired()
    assert now() - began == pytest.approx(10)


async def test_without_a_time_nothing_ends_and_in_time_nothing_is_late() -> None:
    for seconds in (None, 10):
        async with lived_timeout(seconds) as scope:
            await asyncio.sleep(5)
        await asyncio.sleep(60)
        assert not scope.expired()


async def test_a_loop_that_was_blocked_reads_what_has_arrived_before_it_calls_it_timed_out() -> None:
    arrives: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read() -> str:
        async with lived_timeout(10):
            answer = await arrives
            for _ in range(5):  # a real answer takes some turns from the socket to who waits
                await asyncio.sleep(0)
            return answer

    reading = asyncio.create_task(read())
    await asyncio.sleep(1)
    arrives.set_result("an answer")
    advance(60)  # the process was stopped

    assert await reading == "an answer"


async def test_a_loop_that_is_always_late_times_out_all_the_same() -> None:
    async def is_late() -> None:
        while True:
            await asyncio.sleep(0.1)
            advance(5)

    late = asyncio.create_task(is_late())
    began = now()

    with pytest.raises(TimeoutError):
        async with lived_timeout(10):
            await asyncio.sleep(3600)

    late.cancel()
    assert now() - began <= 10 + 10 * (MOST_MOMENTS + 1)


async def test_a_cancel_is_no_timeout() -> None:
    async def wait() -> None:
        async with lived_timeout(10):
            await asyncio.sleep(60)

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(1)
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_processes_draw_jitter_of_their_own() -> None:
    program = (
        "import os\nfrom bide import _outside\nfor _ in range(3):\n    if os.fork() == 0:\n"
        "        os.write(1, f'{_outside.chance.random()}\\n'.encode())\n        os._exit(0)\n    os.wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert len(set(done.stdout.split())) == 3
