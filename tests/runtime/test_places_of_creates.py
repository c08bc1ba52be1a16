"""Creates that hang, and creates that are looked up, hold no others up."""

from __future__ import annotations

import asyncio

import httpx

from bide import Limits, TaskStatus
from support.emulated import client_at, emulator_with, image, now, video
from support.toy import ToyService

MANY = Limits(1000, creates_per_minute=100_000)


async def test_a_kind_whose_creates_hang_stops_no_other_kind() -> None:
    service, is_open = ToyService(queries=[{"status": "succeeded"}]), asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and b"hangs" in request.content:
            await is_open.wait()
        return await service(request)

    async with service.client(limits={"image": MANY, "video": MANY}) as client:
        client._transport._api._handler = client._transport._api.handler = answer  # type: ignore[union-attr]
        stuck = [await client.submit(image(f"hangs {number}")) for number in range(60)]
        await asyncio.sleep(1)
        before = now()

        task = await client.run(video())

        assert task.status is TaskStatus.SUCCEEDED
        assert now() - before < 30
        assert all(handle.task.task_id is None for handle in stuck)
        is_open.set()


async def test_creates_that_are_looked_up_hold_no_create_up() -> None:
    async with emulator_with(concurrency=1000) as emulator, client_at(emulator, limits=MANY) as client:
        emulator.fault(on="create", drop="before", times=40)
        lost = [await client.submit(image(f"lost {number}")) for number in range(40)]
        await asyncio.sleep(1)
        before = now()

        await (await client.submit(image("found"))).accepted()

        assert now() - before < 1
        assert all(handle.task.status is TaskStatus.SUBMITTING for handle in lost)


async def test_look_ups_of_many_lost_creates_leave_the_running_tasks_their_polls() -> None:
    async with emulator_with(concurrency=1000, image_seconds=12) as emulator:
        async with client_at(emulator, limits=MANY, queries_per_second=5) as client:
            running = await client.submit(image("a cat"))
            await running.accepted()
            emulator.fault(on="create", drop="before", times=100)
            for number in range(100):
                await client.submit(image(f"lost {number}"))

            before = now()
            await running.result()

            assert now() - before < 20
