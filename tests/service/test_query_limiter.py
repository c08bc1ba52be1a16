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


class EndlessPoller:
    """A taker that always has a poll to send. Each takes a moment."""

    def __init__(self, limiter: QueryLimiter) -> None:
        self.limiter = limiter
        self.polls: list[float] = []
        limiter.add_taker(self.take)

    def take(self) -> bool:
        self.polls.append(now())
        asyncio.get_running_loop().call_later(0.01, self.limiter.release)
        return True


async def test_callers_that_wait_go_in_order_of_arrival() -> None:
    limiter = QueryLimiter(2)
    begun = await asyncio.gather(*(query(limiter) for _ in range(6)))

    assert begun == sorted(begun)
    assert begun[-1] - begun[0] == pytest.approx(2 * 1.02, abs=0.01)


async def test_callers_without_end_and_several_pollers_each_get_their_part() -> None:
    limiter, calls = QueryLimiter(20), []

    async def loop_on_queries() -> None:
        while True:
            calls.append(await query(limiter, 0.01))

    callers = [asyncio.create_task(loop_on_queries()) for _ in range(30)]
    one, two = EndlessPoller(limiter), EndlessPoller(limiter)
    await asyncio.sleep(60)
    for taker in (one, two):
        limiter.remove_taker(taker.take)
    for caller in callers:
        caller.cancel()

    assert len(calls) == pytest.approx(20 * 60 / 3, rel=0.1)
    assert len(one.polls) == pytest.approx(len(two.polls), abs=2)
    assert len(one.polls) == pytest.approx(len(calls), rel=0.1)


async def test_a_poller_gets_a_place_as_soon_as_one_is_free() -> None:
    limiter, offered = QueryLimiter(1), []

    def take() -> bool:
        offered.append(now())
        return False

    limiter.add_taker(take)
    before = now()
    await query(limiter)
    await query(limiter)

    assert now() - before == pytest.approx(1.02)
    assert offered, "the poller was offered the places that it did not need"


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
