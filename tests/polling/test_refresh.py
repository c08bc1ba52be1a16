"""`refresh` is a wish for a poll soon: shared, never more often than the floor, and at the cost of no other task."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from attrs import evolve

from bide import Client, ClientClosedError, MemoryLedger, Pace, TaskHandle, TaskStatus
from support.emulated import image, now
from support.toy import TimedService, Toy, ToyService

RUNNING = {"status": "running"}
LIMITED = Toy(queries_per_second=5)


async def refresh_for_ever(handle: TaskHandle) -> None:
    while True:
        await handle.refresh()


async def running(client: Client, number: int, seconds: int) -> list[TaskHandle]:
    handles = [await client.submit(image(f"{seconds} {number}")) for number in range(number)]
    await asyncio.gather(*(handle.accepted() for handle in handles))
    return handles


def gaps(times: list[float]) -> list[float]:
    return [later - sooner for sooner, later in itertools.pairwise(times)]


async def test_thirty_callers_that_loop_on_refresh_leave_the_other_tasks_their_polls() -> None:
    service = TimedService()
    async with service.client(LIMITED, pace=Pace(cap=10)) as client:
        handles = await running(client, 40, 600)
        loops = [asyncio.create_task(refresh_for_ever(handle)) for handle in handles[:30]]
        began = now()
        await asyncio.sleep(60)
        for loop in loops:
            loop.cancel()

        others = [handle.task_id or "" for handle in handles[30:]]
        polls = [[moment for moment in service.looks.get(each, []) if moment > began] for each in others]
        assert min(map(len, polls)) >= 4, "the others are polled about as often as without the loops"


async def test_callers_that_cancel_without_end_leave_the_tasks_their_polls() -> None:
    service = ToyService(cancels=[409], queries=[RUNNING])
    async with service.client(LIMITED, pace=Pace(cap=10)) as client:
        handles = await running(client, 10, 600)

        async def cancel_for_ever(handle: TaskHandle) -> None:
            while True:
                await handle.cancel()

        loops = [asyncio.create_task(cancel_for_ever(handle)) for handle in handles[:9]]
        await asyncio.sleep(5)
        before = service.count("GET"), service.count("DELETE")
        await asyncio.sleep(60)
        polls, cancels = service.count("GET") - before[0], service.count("DELETE") - before[1]
        for loop in loops:
            loop.cancel()

    assert polls > 100
    assert cancels > 100


@pytest.mark.parametrize(("pace", "floor"), [(Pace(), 3.0), (Pace(floor=7.0), 7.0)])
async def test_no_number_of_callers_polls_a_task_more_often_than_its_floor(pace: Pace, floor: float) -> None:
    service = ToyService(queries=[RUNNING])
    service.delay["GET"] = 0.05
    async with service.client(pace=pace) as client:
        handle = await client.submit(image())
        await handle.accepted()
        loops = [asyncio.create_task(refresh_for_ever(handle)) for _ in range(30)]
        await asyncio.sleep(100)
        for loop in loops:
            loop.cancel()

    assert min(gaps(service.times("GET"))) >= floor
    assert max(gaps(service.times("GET"))) == pytest.approx(floor, abs=0.1)


async def test_a_task_is_not_polled_below_its_floor_after_cancels() -> None:
    service = ToyService(cancels=[409], queries=[RUNNING])
    async with service.client() as client:
        handle = await client.submit(image())
        await handle.accepted()
        for _ in range(20):
            assert not await handle.cancel()
            await asyncio.sleep(0.5)

    assert min(gaps(service.times("GET"))) >= 3.0


async def test_a_refresh_goes_before_the_tasks_that_have_waited_longer() -> None:
    service = TimedService()
    async with service.client(LIMITED, pace=Pace.fixed(3.0)) as client:
        handles = await running(client, 100, 600)
        await asyncio.sleep(60)  # a task is polled about every 20 s
        before = now()

        await handles[50].refresh()

        assert now() - before < 3.0 + 1.0


async def test_a_refresh_ends_when_its_task_ends_by_another_way() -> None:
    service, ledger = ToyService(queries=[RUNNING]), MemoryLedger()
    async with service.client(pace=Pace(floor=60.0), ledger=ledger) as client:
        handle = await client.submit(image())
        await handle.accepted()
        await handle.refresh()
        refresh = asyncio.create_task(handle.refresh())
        await asyncio.sleep(1)
        record = await ledger.get(handle.ticket)
        assert record is not None
        ended = evolve(record.task, status=TaskStatus.SUCCEEDED)
        await ledger.finish(handle.ticket, ended, owner=record.owner or "")

        assert (await refresh).status is TaskStatus.SUCCEEDED
        assert service.count("GET") == 1


async def test_a_refresh_that_waits_for_its_floor_ends_with_the_client() -> None:
    service = ToyService(queries=[RUNNING])
    async with service.client(pace=Pace(floor=60.0)) as client:
        handle = await client.submit(image())
        await handle.accepted()
        await handle.refresh()
        refresh = asyncio.create_task(handle.refresh())
        await asyncio.sleep(1)

    with pytest.raises(ClientClosedError):
        await refresh
