"""The queue in front of the account's query rate."""

from __future__ import annotations

import asyncio
import random

import pytest

from bide._service.query_rate import QueryLimiter, query_limiter_for
from bide.ledgers import MemoryLedger
from support.emulated import now


async def query(limiter: QueryLimiter, seconds: float = 0.0) -> float:
    await limiter.acquire()
    begun = now()
    try:
        await asyncio.sleep(seconds)
    finally:
        limiter.release()
    return begun


async def test_whoever_waits_goes_in_order_of_arrival_and_before_the_poller() -> None:
    limiter = QueryLimiter(2)
    first = [asyncio.create_task(query(limiter)) for _ in range(6)]
    await asyncio.sleep(0)

    assert not limiter.try_acquire(now())
    begun = [await each for each in first]
    assert begun == sorted(begun)
    assert begun[-1] - begun[0] == pytest.approx(2 * 1.02, abs=0.01)


async def test_the_poller_hears_of_a_place_once_nobody_waits() -> None:
    limiter, heard = QueryLimiter(1), []
    limiter.on_free.append(lambda: heard.append(now()))
    assert limiter.try_acquire(now())
    waits = asyncio.create_task(query(limiter))
    await asyncio.sleep(0)

    limiter.release()
    assert heard == []
    await waits

    assert len(heard) >= 1


async def test_random_cancels_lose_no_place_and_break_no_limit() -> None:
    limiter, chance, begun = QueryLimiter(10), random.Random(3), []

    async def one() -> None:
        begun.append(await query(limiter, chance.uniform(0, 0.3)))

    for _ in range(400):
        task = asyncio.create_task(one())
        asyncio.get_running_loop().call_later(chance.choice([0, 0, 0.01, 0.2, 5]), task.cancel)
        await asyncio.sleep(chance.choice([0, 0, 0.02]))
    await asyncio.sleep(100)

    before = now()
    times = await asyncio.gather(*(query(limiter) for _ in range(10)))
    assert max(times) - before < 0.01, "all ten places are free"
    for moment in begun:
        assert sum(moment - 1 < each <= moment for each in begun) <= 10


async def test_a_cancel_just_as_its_turn_comes_passes_the_place_on() -> None:
    limiter = QueryLimiter(1)
    await limiter.acquire()
    second, third = asyncio.create_task(query(limiter)), asyncio.create_task(query(limiter))
    await asyncio.sleep(0)
    limiter.release()
    asyncio.get_running_loop().call_later(1.02, second.cancel)
    await asyncio.wait([second, third])

    assert third.result() > 0


async def test_clients_that_share_a_key_share_the_budget_and_the_lower_rate_holds() -> None:
    ledger = MemoryLedger()

    one = query_limiter_for(ledger, "o", ["a", "b"], 20)
    two = query_limiter_for(ledger, "o", ["b", "c"], 5)

    assert one is two
    assert one.window.rate == 5
    assert query_limiter_for(ledger, "o", ["c"], None) is one
    assert query_limiter_for(ledger, "elsewhere", ["c"], None) is not one
    assert query_limiter_for(MemoryLedger(), "o", ["c"], None) is not one
