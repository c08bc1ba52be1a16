"""Races that were found: each test here loses its race on the code before the fix."""

from __future__ import annotations

import asyncio
import os
import traceback

import httpx
import pytest

from bide import BideError, ClientClosedError, Limits, MemoryLedger, SubmissionUnknownError, TaskStatus
from bide._wire import Secret
from support.emulated import KEY, UNLIMITED, calls, client_at, emulator_with, image, now, video
from support.toy import Toy, ToyService

DONE = {"status": "succeeded"}
RUNNING = {"status": "running"}


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5])
async def test_a_cancelled_step_of_as_completed_does_not_submit_its_request_again(steps: int) -> None:
    service = ToyService(queries=[DONE])
    async with service.client() as client:
        completed = client.as_completed([image()])
        step = asyncio.create_task(anext(completed))
        for _ in range(steps):
            await asyncio.sleep(0)
        step.cancel()
        await asyncio.wait([step])

        assert [handle.request async for handle in completed] == [image()]
        assert service.count("POST") == 1


async def test_one_as_completed_is_not_for_two_tasks() -> None:
    async with ToyService(queries=[DONE]).client() as client:
        completed = client.as_completed([image(), image()])
        first = asyncio.create_task(anext(completed))
        await asyncio.sleep(0)

        with pytest.raises(RuntimeError, match="another asyncio task awaits"):
            await anext(completed)
        await first


@pytest.mark.parametrize("steps", range(1, 9))
async def test_a_submit_that_is_cancelled_before_the_post_sends_nothing(steps: int) -> None:
    service = ToyService(queries=[RUNNING])
    async with service.client() as client:
        submit = asyncio.create_task(client.submit(image()))
        for _ in range(steps):
            await asyncio.sleep(0)
        sent = service.count("POST")
        if submit.done():
            return
        submit.cancel()
        await asyncio.wait([submit])
        await asyncio.sleep(10)

        assert service.count("POST") == sent
        assert (await client.statistics()).open == sent


async def test_a_lost_create_does_not_adopt_the_task_of_one_that_is_made_while_it_looks() -> None:
    async with emulator_with(video_seconds=40) as emulator, client_at(emulator, limits=UNLIMITED) as client:
        emulator.fault(on="create", drop="before", match="lost")
        emulator.fault(on="create", delay=6, match="slow")
        emulator.fault(on="list", delay=1.5, times=9)
        lost = await client.submit(video("lost"))
        await asyncio.sleep(1.4)
        slow = await client.submit(video("slow"))

        with pytest.raises(SubmissionUnknownError):
            await lost.result()
        assert (await slow.result()).task_id == emulator.tasks()[0].id


@pytest.mark.parametrize("steps", range(0, 60, 3))
async def test_closing_in_the_midst_of_a_gather_leaves_the_lane_free_and_nobody_waiting(steps: int) -> None:
    service = ToyService(queries=[RUNNING])
    ledger = MemoryLedger()
    first = service.client(ledger=ledger, limits=Limits(1))
    gather = asyncio.create_task(first.gather(*(image(str(n)) for n in range(30)), return_exceptions=True))
    for _ in range(steps):
        await asyncio.sleep(0)
    await first.aclose()
    async with asyncio.timeout(5):
        (ended,) = await asyncio.gather(gather, return_exceptions=True)

    assert isinstance(ended, list | ClientClosedError)
    service.script["GET"] = [DONE]
    async with service.client(ledger=ledger, limits=Limits(1)) as second:
        assert (await second.run(image("mine"), timeout=300)).status is TaskStatus.SUCCEEDED


async def test_closing_ends_other_waits_with_an_error_and_not_with_a_cancel() -> None:
    service = ToyService()
    service.delay["GET"] = service.delay["DELETE"] = 15
    client = service.client()
    handle = await client.submit(image())
    await handle.accepted()
    waits = [asyncio.create_task(each) for each in (handle.refresh(), handle.cancel(), handle.result())]
    await asyncio.sleep(1)
    await client.aclose(grace=2)
    await asyncio.wait(waits)

    assert [type(wait.exception()) for wait in waits] == [ClientClosedError] * 3


async def test_a_remembered_cancel_is_carried_out_within_the_grace() -> None:
    service = ToyService()
    service.delay["POST"] = 3
    client = service.client()
    handle = await client.submit(image())
    await asyncio.sleep(1)
    cancel = asyncio.create_task(handle.cancel())
    await asyncio.sleep(1)

    await client.aclose(grace=10)

    assert await cancel
    assert service.count("DELETE") == 1


async def test_a_fault_while_a_list_is_read_loses_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, failures = MemoryLedger(), iter([OSError("disk full")])
    honest = ledger.update

    async def shaky(*args: object) -> object:
        for fault in failures:
            raise fault
        return await honest(*args)  # type: ignore[arg-type]

    async with emulator_with(queries=5, image_seconds=15) as emulator:
        async with client_at(emulator, limits=UNLIMITED, queries_per_second=5, ledger=ledger) as client:
            handles = [await client.submit(image(str(number))) for number in range(40)]
            monkeypatch.setattr(ledger, "update", shaky)
            await asyncio.sleep(600)

        assert {handle.task.status for handle in handles} == {TaskStatus.SUCCEEDED}


async def test_as_completed_ends_though_the_client_closes_while_an_error_is_told() -> None:
    service = ToyService(queries=[401])
    client = service.client()
    completed = client.as_completed([image("one"), image("two")])
    errors = []
    for number in range(6):
        try:
            async with asyncio.timeout(3600):
                await anext(completed)
        except (BideError, TimeoutError, StopAsyncIteration) as error:
            errors.append(type(error))
        if number == 0:
            await client.aclose()

    assert TimeoutError not in errors
    assert ClientClosedError in errors


@pytest.mark.parametrize("steps", range(5))
async def test_a_client_that_is_closed_while_it_starts_stays_closed(steps: int) -> None:
    before = asyncio.all_tasks()
    service = ToyService()
    client = service.client()
    submit = asyncio.create_task(client.submit(image()))
    for _ in range(steps):
        await asyncio.sleep(0)
    await client.aclose()
    await asyncio.gather(submit, return_exceptions=True)
    await asyncio.sleep(100)

    assert asyncio.all_tasks() == before


async def test_a_cancelled_entry_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    client = ToyService().client()
    entry = asyncio.create_task(client.__aenter__())
    await asyncio.sleep(0)
    entry.cancel()
    await asyncio.wait([entry])
    await asyncio.sleep(1)

    assert asyncio.all_tasks() == before


async def test_a_ticket_of_another_service_or_key_is_refused() -> None:
    one, two = ToyService(queries=[RUNNING]), ToyService(queries=[RUNNING])
    async with one.client() as client, two.client(api_key="sk-other") as other:
        await client.submit(image(), ticket="order-1")

        with pytest.raises(ValueError, match="with another key"):
            await other.submit(image(), ticket="order-1")
    assert two.seen == []


async def test_a_repeated_create_obeys_the_retry_after_too() -> None:
    creates = [
        httpx.ReadError("cut"),
        httpx.Response(429, headers={"Retry-After": "30"}),
        {"status": "queued"},
    ]
    service = ToyService(creates=creates, queries=[DONE])
    async with service.client(Toy(idempotent=True)) as client:
        await client.run(image())

    _, second, third = service.times("POST")
    assert third - second >= 30


async def test_the_waiting_deadline_outlives_an_admission_in_the_same_moment() -> None:
    from bide import Deadlines, WaitTimeoutError

    service = ToyService(creates=[429])
    async with service.client(deadlines=Deadlines(waiting=5)) as client:
        handle = await client.submit(image())
        before = now()

        with pytest.raises(WaitTimeoutError):
            await handle.result()

        assert now() - before < 30


async def test_the_key_is_in_no_frame_of_a_cancelled_attach() -> None:
    service = ToyService()
    service.delay["GET"] = 100
    async with service.client(api_key=[KEY, "sk-two"]) as client:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(1):
                await client.attach("made-elsewhere")

    shown = "".join(
        traceback.TracebackException.from_exception(caught.value, capture_locals=True).format(chain=True)
    )
    assert "key_of" in shown
    assert "Bearer" not in shown
    with pytest.raises(TypeError, match="not pickled"):
        Secret(KEY).__getstate__()


async def test_a_create_that_is_answered_as_done_without_a_result_is_looked_at_for_it() -> None:
    async with emulator_with() as emulator, client_at(emulator) as client:
        task = await client.run(image("a [seconds 0] cat"))

        assert task.status is TaskStatus.SUCCEEDED
        assert [output.kind for output in task.outputs] == ["image"]
        assert len(calls(emulator, "query")) == 1


async def test_a_forked_child_that_leaves_a_client_says_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = ToyService().client()

    async def child() -> None:
        async with client:
            monkeypatch.setattr(os, "getpid", lambda: 1)
            raise SystemExit(0)

    with pytest.raises(SystemExit, match="0"):
        await child()

    monkeypatch.undo()
    await client.aclose()
