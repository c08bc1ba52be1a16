"""Looking again: what a look may tell, and what it may not break."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from typing import Any

import httpx
import pytest

from bide import (
    Billing,
    Deadlines,
    InvalidRequestError,
    Limits,
    MemoryLedger,
    Pace,
    ServerError,
    TaskExpiredError,
    TaskStatus,
    UnexpectedReplyError,
    WaitTimeoutError,
)
from bide.emulator import DieyuyunStyle, Emulator
from support.emulated import UNLIMITED, calls, client_at, emulator_with, image, now, video
from support.toy import Toy, ToyService

DONE = {"status": "succeeded"}
RUNNING = {"status": "running"}


async def test_with_nothing_learned_the_first_look_comes_within_five_seconds_and_the_cap_grows_with_age() -> (
    None
):
    service = ToyService(queries=[RUNNING])
    async with service.client() as client:
        await client.submit(image())
        await asyncio.sleep(600)

    created, times = service.times("POST")[0], service.times("GET")
    ages = [time - created for time in [created, *times]]
    gaps = [later - sooner for sooner, later in itertools.pairwise(ages)]
    assert 3.0 <= gaps[0] <= 5.01
    assert min(gaps) >= 3.0 - 1e-6
    assert all(gap <= max(5, age / 2) + 0.01 for gap, age in zip(gaps, ages, strict=False))
    assert gaps[-1] > 1.3 * min(gaps), (
        "far beyond all that is documented an end is less likely in each second"
    )


@pytest.mark.parametrize("status", [401, 403, 400])
async def test_told_is_not_ended(status: int) -> None:
    service = ToyService(queries=[*[status] * 5, DONE])
    async with service.client() as client:
        handle = await client.submit(image())

        with pytest.raises(InvalidRequestError, match="denied") as caught:
            await handle.result()
        first, *_, fourth = service.times("GET")
        assert fourth - first == pytest.approx(30)
        with pytest.raises(InvalidRequestError):
            await handle.result()

        assert caught.value.task_id == "toy-1"
        assert not handle.task.status.is_final
        assert (await handle.result()).status is TaskStatus.SUCCEEDED
        *_, fourth, fifth, sixth = service.times("GET")
        assert (fifth - fourth, sixth - fifth) == pytest.approx((60, 60))


async def test_not_allowed_that_is_over_within_half_a_minute_raises_nowhere() -> None:
    service = ToyService(queries=[401, 403, 401, RUNNING, 401, 401, DONE, DONE])
    async with service.client() as client:
        first, second = await client.gather(image("one"), image("two"))

    assert (first.status, second.status) == (TaskStatus.SUCCEEDED, TaskStatus.SUCCEEDED)


async def test_no_such_task_ends_a_task_only_when_it_repeats_over_a_minute() -> None:
    service = ToyService(queries=[RUNNING, 404])
    async with service.client() as client:
        handle = await client.submit(image())

        with pytest.raises(TaskExpiredError, match="gone"):
            await handle.result()

        times = service.times("GET")
        assert times[-1] - times[1] >= 60
        assert min(later - sooner for sooner, later in itertools.pairwise(times)) >= 3
        assert handle.task.status is TaskStatus.EXPIRED


async def test_one_odd_answer_loses_nothing() -> None:
    service = ToyService(queries=[404, 404, 404, RUNNING, 404, 404, DONE])
    async with service.client() as client:
        assert (await client.run(image())).status is TaskStatus.SUCCEEDED


@pytest.mark.parametrize("expired", [200, 404, 410])
async def test_an_expired_dieyuyun_task_is_told_whatever_way_the_service_says_it(expired: Any) -> None:
    style = DieyuyunStyle(expired=expired)
    async with (
        Emulator(dieyuyun=style, image_seconds=5) as emulator,
        client_at(emulator, "dieyuyun") as client,
    ):
        first = await client.run(image("[expire 60] a cat"))
        await asyncio.sleep(100)
        handle = await client.attach(str(first.task_id))

        with pytest.raises(TaskExpiredError):
            await handle.result()


async def test_an_unknown_dashscope_task_expires() -> None:
    async with Emulator() as emulator, client_at(emulator) as client:
        before = now()
        handle = await client.attach("11111111-2222-3333-4444-555555555555")

        with pytest.raises(TaskExpiredError):
            await handle.result()

        assert 60 <= now() - before <= 80


@pytest.mark.parametrize(
    "fault",
    [
        httpx.ReadTimeout("hung"),
        httpx.ConnectError("down"),
        500,
        502,
        503,
        429,
        408,
        httpx.Response(200, text="<html>"),
    ],
    ids=str,
)
async def test_polls_that_fail_go_on_at_short_intervals(fault: Any) -> None:
    service = ToyService(queries=[*[fault] * 9, DONE])
    async with service.client() as client:
        assert (await client.run(image())).status is TaskStatus.SUCCEEDED

    times = service.times("GET")
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert min(gaps) >= 3
    assert max(gaps) <= (63 if fault == 429 else 4)


async def test_a_retry_after_of_a_look_is_obeyed() -> None:
    busy = httpx.Response(503, headers={"Retry-After": "33"})
    service = ToyService(queries=[busy, DONE])
    async with service.client() as client:
        await client.run(image())

    first, second = service.times("GET")
    assert 33 <= second - first <= 35


async def test_a_hung_look_ends_by_its_own_time_out() -> None:
    service = ToyService(queries=[RUNNING, DONE])
    async with service.client() as client:
        handle = await client.submit(image())
        await handle.accepted()
        service.delay["GET"] = 3600
        await asyncio.sleep(15)
        service.delay["GET"] = 0

        assert (await handle.result()).status is TaskStatus.SUCCEEDED
        first, second = service.times("GET")
        assert 20 < second - first < 30


async def test_a_wait_that_times_out_names_the_bug_of_an_adapter_and_no_other_task_is_stopped() -> None:
    def read(reply: Any) -> Any:
        if b"bad" in reply.content:
            raise ZeroDivisionError("adapter bug")
        return Toy().read_task(reply, "")

    service = ToyService(queries=[{"status": "bad"}, DONE, DONE])
    async with service.client(Toy(read=read)) as client:
        first = await client.submit(image("first"))
        with pytest.raises(WaitTimeoutError) as caught:
            await first.result(timeout=6)
        assert isinstance(caught.value.fault, UnexpectedReplyError)
        assert "ZeroDivisionError: adapter bug" in str(caught.value)

        assert (await client.run(image("second"))).status is TaskStatus.SUCCEEDED
        assert (await first.result()).status is TaskStatus.SUCCEEDED


@pytest.mark.parametrize(("state", "name"), [("queued", "queued"), ("running", "running")])
async def test_a_deadline_ends_the_wait_and_leaves_the_task(state: str, name: str) -> None:
    service = ToyService(creates=[{"status": state}], queries=[*[{"status": state}] * 20, DONE])
    async with service.client(deadlines=Deadlines(queued=50, running=50)) as client:
        handle = await client.submit(image())
        await handle.accepted()
        before = now()

        with pytest.raises(WaitTimeoutError, match=rf"after 50 s \(Deadlines\.{name}\)") as caught:
            await handle.result()

        assert now() - before == pytest.approx(50, abs=0.1)
        assert caught.value.task is not None
        assert service.count("DELETE") == 0
        assert (await handle.result()).status is TaskStatus.SUCCEEDED


async def test_the_clock_of_a_deadline_starts_anew_with_the_state() -> None:
    service = ToyService(queries=[*[{"status": "queued"}] * 3, *[RUNNING] * 4, DONE])
    async with service.client(deadlines=Deadlines(queued=50, running=50), pace=Pace.fixed(10.0)) as client:
        before = now()
        assert (await client.run(image())).status is TaskStatus.SUCCEEDED
        assert now() - before > 50, "longer than either clock"


async def test_an_overdue_task_gives_its_slot_back_and_is_told_and_still_looked_at() -> None:
    service = ToyService(queries=[RUNNING])
    async with service.client(Toy(longest=100), limits=Limits(1)) as client:
        hung, next_one = await client.submit(image("hung")), await client.submit(image("next"))

        with pytest.raises(WaitTimeoutError, match="overdue"):
            await hung.result()

        await next_one.accepted()
        first, second = service.times("POST")
        assert 100 <= second - first <= 101
        service.script["GET"] = [DONE]
        assert (await hung.result()).status is TaskStatus.SUCCEEDED


async def test_progress_never_goes_backwards() -> None:
    bars = [10, 40, 20, None, 60, 55]
    service = ToyService(queries=[*[{**RUNNING, "progress": bar} for bar in bars], DONE])
    async with service.client() as client:
        handle = await client.submit(image())
        seen = [task.progress async for task in handle.events() if task.progress is not None]

    assert seen == [10, 40, 60, 60]


async def test_a_cancel_that_the_service_takes_is_true_and_the_end_is_still_awaited() -> None:
    service = ToyService(queries=[{"status": "cancelled"}])
    async with service.client() as client:
        handle = await client.submit(image())
        await handle.accepted()

        assert await handle.cancel()
        task = handle.task
        with pytest.raises(Exception, match="was cancelled"):
            await handle.result()

        assert task.status is TaskStatus.QUEUED
        assert service.times("GET")[0] - service.times("DELETE")[0] < 0.1
        assert await handle.cancel(), "it is cancelled"


async def test_too_late_to_cancel_is_false_and_no_error() -> None:
    service = ToyService(queries=[DONE], cancels=[409])
    async with service.client() as client:
        handle = await client.submit(image())
        await handle.accepted()

        assert not await handle.cancel()
        await handle.result()
        assert not await handle.cancel()
        assert service.count("DELETE") == 1


async def test_a_cancel_is_tried_again_and_then_says_what_is_wrong() -> None:
    service = ToyService(cancels=[500])
    async with service.client() as client:
        handle = await client.submit(image())
        await handle.accepted()

        with pytest.raises(ServerError, match="later") as caught:
            await handle.cancel()
        assert caught.value.task_id == "toy-1"
        assert service.count("DELETE") == 5

        service.script["DELETE"] = [403]
        with pytest.raises(InvalidRequestError, match="may not cancel"):
            await handle.cancel()


@pytest.mark.parametrize("service", ["dieyuyun", "dashscope"])
async def test_a_cancel_follows_the_rules_of_the_service(service: str) -> None:
    async with emulator_with(video_seconds=60) as emulator, client_at(emulator, service) as client:
        queued = await client.submit(video("[queue 30] a cat"))
        running = await client.submit(video("a dog"))
        await asyncio.gather(queued.accepted(), running.accepted())
        await asyncio.sleep(10)

        taken = [await queued.cancel(), await running.cancel()]
        await asyncio.sleep(20)

        assert taken == [True, service == "dieyuyun"]
        assert queued.task.status is TaskStatus.CANCELLED
        assert queued.task.billing is (Billing.PARTIAL if service == "dashscope" else Billing.UNKNOWN)


async def test_an_absurd_retry_after_holds_the_queries_for_an_hour_at_most() -> None:
    patient = Deadlines(queued=None, running=None)
    async with (
        emulator_with(image_seconds=10) as emulator,
        client_at(emulator, deadlines=patient) as client,
    ):
        emulator.fault(on="query", status=429, headers={"Retry-After": "31536000"})
        before = now()
        await client.run(image())

        assert 3600 <= now() - before <= 4100


async def test_a_429_on_a_query_slows_the_queries_and_nothing_else() -> None:
    async with emulator_with(video_seconds=20) as emulator, client_at(emulator, limits=UNLIMITED) as client:
        first = await client.submit(video("one"))
        await first.accepted()
        emulator.fault(on="query", status=429, headers={"Retry-After": "15"})
        while emulator.stats()["queries_429"] == 0:
            await asyncio.sleep(0.5)
        refused = now()
        second = await client.submit(video("two"))
        await second.accepted()
        assert now() - refused < 1

        await asyncio.gather(first.result(), second.result())
        after = [call.time for call in calls(emulator, "query") if call.time > refused]
        assert after[0] >= refused - 0.5 + 15


async def test_a_strange_word_on_record_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    service = ToyService(queries=[{"status": "dreaming"}, {"status": "dreaming"}, DONE])
    with caplog.at_level(logging.WARNING, logger="bide"):
        async with service.client() as client:
            await client.run(image())

    assert len([record for record in caplog.records if "dreaming" in record.getMessage()]) == 1


@pytest.mark.parametrize("part", ["_start_due", "_start_next"])
async def test_a_scheduler_that_stumbles_logs_it_ends_no_wait_and_goes_on(
    part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = ToyService(queries=[RUNNING, DONE])
    async with service.client() as client:
        handle = await client.submit(image())
        await handle.accepted()
        poller = client._engine.poller  # type: ignore[union-attr]
        broken = iter([True])
        start = getattr(poller, part)

        def stumble() -> object:
            if next(broken, False):
                raise RuntimeError("a bug of ours")
            return start()

        monkeypatch.setattr(poller, part, stumble)
        before = now()
        assert (await handle.result()).status is TaskStatus.SUCCEEDED

        assert now() - before < 20
        assert "a bug of ours" in caplog.text


async def test_a_deadline_that_passed_while_nobody_waited_is_told_to_the_first_who_does() -> None:
    async with ToyService(queries=[RUNNING]).client(deadlines=Deadlines(running=30)) as client:
        handle = await client.submit(image())
        await asyncio.sleep(100)
        before = now()

        with pytest.raises(WaitTimeoutError, match=r"Deadlines\.running"):
            await handle.result(timeout=1000)
        assert now() == before
        with pytest.raises(WaitTimeoutError, match="gave up waiting"):
            await handle.result(timeout=50)


async def test_a_fault_that_is_over_is_not_told_any_more() -> None:
    async with ToyService(queries=[*[401] * 4, RUNNING, RUNNING, DONE]).client() as client:
        handle = await client.submit(image())
        await asyncio.sleep(120)

        assert (await handle.result()).status is TaskStatus.SUCCEEDED


async def test_a_burst_of_what_is_due_leaves_the_loop_to_others_between() -> None:
    async with ToyService().client() as client:
        await client.attach("task-1")
        assert client._engine is not None
        poller, called = client._engine.poller, []
        await asyncio.sleep(0.1)
        for number in range(1200):
            poller.at(now() + 1, lambda number=number: called.append(number))  # type: ignore[misc]
        await asyncio.sleep(1)

        seen = []
        while len(called) < 1200:
            seen.append(len(called))
            await asyncio.sleep(0)

        assert called == list(range(1200))
        assert max(after - before for before, after in itertools.pairwise([0, *seen, 1200])) <= 500


async def test_a_late_record_of_a_task_that_has_ended_is_polled_once_and_closed() -> None:
    service, ledger = ToyService(queries=[RUNNING, DONE]), MemoryLedger()
    async with service.client(ledger=ledger) as client:
        handle = await client.submit(image())
        await handle.accepted()
        late = await ledger.get(handle.ticket)
        assert late is not None
        await handle.result()
        del handle
        gc.collect()
        polls = service.count("GET")

        submission = client._engine.open(late)  # type: ignore[union-attr]
        await asyncio.sleep(30)

        assert submission.task.status is TaskStatus.SUCCEEDED
        assert service.count("GET") == polls + 1
        assert (await client.statistics()).open == 0
